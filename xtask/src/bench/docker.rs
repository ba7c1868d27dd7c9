//! Docker's own overlay and routing mesh, between two Docker daemons, each on a host of the lab.
//! Each has a mount namespace, so that neither meets the other nor a Docker of the machine.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::lab::{Lab, OVERLAY, PATIENCE, UNDERLAY};
use super::mesh::three;
use super::processes::{DATAGRAM_PORT, ECHO_PORT, STREAM_PORT};
use super::{Variant, ends, ipvs};
use crate::command::{CommandExt, find};
use crate::node::{Host, Shell};
use crate::process::MARK;
use crate::wait::eventually;

/// Programs of Docker, and what those call.
const CALLED: &str = "containerd containerd-shim-runc-v2 docker docker-init docker-proxy dockerd
    ip6tables iptables ipvsadm modprobe runc";

/// What the daemon must not share; then it becomes the daemon.
const START: &str = r#"
mkdir -p /etc/docker /run/docker /run/containerd
for directory in /etc/docker /run/docker /run/containerd; do
    mount -t tmpfs tmpfs $directory
done
hostname "$1"
shift
exec "$@"
"#;

/// Docker if it can be had, installing it where apt-get can; what else, has been said.
pub(super) fn is_there() -> bool {
    if find("dockerd").is_none() && find("apt-get").is_some() {
        eprintln!("bench: apt-get install docker.io (what an overlay is compared with)");
        let mut install = Command::new("apt-get");
        install.args(["install", "--yes", "--quiet=2", "--no-install-recommends", "docker.io"]);
        if let Err(error) = install.env("DEBIAN_FRONTEND", "noninteractive").read() {
            eprintln!("bench: {error:#}");
        }
    }
    let there = find("dockerd").is_some();
    if !there {
        eprintln!("bench: no Docker here; its layout by hand (docker-like) stands for it");
    }
    there
}

/// What Docker's daemons call, if Docker can be had.
pub(super) fn tools() -> Result<Vec<PathBuf>> {
    if !is_there() {
        return Ok(Vec::new());
    }
    let mut tools: Vec<_> = CALLED.split_whitespace().filter_map(find).collect();
    // Parts of iptables.
    for directory in ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/aarch64-linux-gnu/xtables"] {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            tools.push(entry?.path());
        }
    }
    Ok(tools)
}

/// Two containers in an attachable overlay network of a swarm of two.
pub(crate) fn docker(lab: &Lab) -> Result<Vec<Variant>> {
    if !is_there() {
        return Ok(Vec::new());
    }
    let hosts = lab.wired("docker")?;
    let [manager, worker] = swarm(lab, hosts.each_ref())?;
    let create = ["network", "create", "--driver", "overlay", "--attachable"];
    manager.read(&[&create[..], &["--subnet", "10.50.0.0/24", "bench"]].concat())?;
    let client = manager.container(lab, "docker-a", &OVERLAY[0].to_string())?;
    let server = worker.container(lab, "docker-b", &OVERLAY[1].to_string())?;
    let there = || {
        let reply = client.exec(&["ping", "-c1", "-W1", &OVERLAY[1].to_string()])?;
        Ok(reply.status.success().then_some(()))
    };
    eventually("Docker's overlay to carry a packet", PATIENCE, there)?;
    Ok(vec![Variant { id: "docker", client, server, target: OVERLAY[1], wire: ends(&hosts) }])
}

/// The published ports of a service whose one task is on the other host.
pub(crate) fn service(lab: &Lab) -> Result<Vec<Variant>> {
    if !ipvs::is_there() || !is_there() {
        return Ok(Vec::new());
    }
    let ([client, entry, host], wire) = three(lab, "dservice")?;
    let [manager, worker] = swarm(lab, [&entry, &host])?;
    manager.forward()?;
    worker.import()?;
    let ports = [(STREAM_PORT, "tcp"), (ECHO_PORT, "tcp"), (DATAGRAM_PORT, "udp")]
        .map(|(port, protocol)| format!("{port}:{port}/{protocol}"));
    let place = format!("node.hostname=={}", host.name);
    let mark = lab.mark();
    let mut create = vec!["service", "create", "--detach", "--name", "mesh", "--no-resolve-image"];
    create.extend(["--constraint", &place, "--env"]);
    let mark = format!("{MARK}={mark}");
    create.push(&mark);
    create.extend(ports.iter().flat_map(|port| ["--publish", port]));
    create.extend(PROGRAMS.iter().flat_map(|mount| ["--mount", mount]));
    create.extend(["bench", "/usr/bin/sleep", "infinity"]);
    manager.read(&create)?;
    let server = eventually("Docker to start the task", PATIENCE, || {
        let task = worker.read(&["ps", "--quiet", "--filter", "status=running"])?;
        Ok((!task.is_empty()).then_some(task))
    })?;
    let server = worker.attach(lab, "dservice-server", &server)?;
    Ok(vec![Variant { id: "docker-service", client, server, target: UNDERLAY[0], wire }])
}

/// A swarm of two; the first manages it.
fn swarm(lab: &Lab, hosts: [&Host; 2]) -> Result<[Daemon; 2]> {
    let daemons = [Daemon::start(lab, hosts[0])?, Daemon::start(lab, hosts[1])?];
    let [manager, worker] = &daemons;
    let [own, other] = UNDERLAY.map(|address| address.to_string());
    manager.read(&["swarm", "init", "--advertise-addr", &own])?;
    let token = manager.read(&["swarm", "join-token", "--quiet", "worker"])?;
    worker.read(&["swarm", "join", "--advertise-addr", &other, "--token", &token, &own])?;
    Ok(daemons)
}

/// This machine's programs, for a container whose image has none.
const PROGRAMS: [&str; 3] = [
    "type=bind,source=/usr,target=/usr,readonly",
    "type=bind,source=/lib,target=/lib,readonly",
    "type=bind,source=/lib64,target=/lib64,readonly",
];

struct Daemon {
    directory: PathBuf,
    mark: String,
}

impl Daemon {
    fn start(lab: &Lab, host: &Host) -> Result<Self> {
        let directory = lab.directory().join(&host.name);
        fs::create_dir_all(&directory)?;
        let daemon = Self { directory, mark: lab.mark() };
        let log = File::create(daemon.path("log"))?;
        let mut command = host.command(&["unshare", "--mount", "--uts", "sh", "-ec", START, "sh"]);
        command.args([&host.name, "dockerd", "--host", &daemon.socket(), "--pidfile"]);
        command.arg(daemon.path("pid")).arg("--data-root").arg(daemon.path("data"));
        command.arg("--exec-root").arg(daemon.path("exec"));
        // The image is empty: nothing to overlay, so nothing stays mounted.
        command.args(["--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs"]);
        command.args(["--cgroup-parent", &format!("/{}", lab.mark())]);
        // In a test machine the root is a file system of memory, which nobody can leave.
        command.env("DOCKER_RAMDISK", "true");
        // Not of the terminal's group: ^C is for us, who still need it.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("cannot start `{}`", command.line()))?;
        let answers = || Ok(daemon.read(&["version"]).ok().map(drop));
        eventually("dockerd to answer", PATIENCE, answers)
            .with_context(|| format!("its log: {}", tail(&daemon.path("log"))))?;
        Ok(daemon)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.path("socket").display())
    }

    fn read(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("docker");
        command.env("DOCKER_CONFIG", self.path("config"));
        command.args(["--host", &self.socket()]).args(arguments).read()
    }

    /// Has the namespace that balances forward, or no answer would come out of it. Every new
    /// namespace takes this setting from the machine's first one (devinet_init_net, unless
    /// net.core.devconf_inherit_init_net says otherwise). There an ordinary daemon has set it; ours
    /// has set it on a host of the lab.
    fn forward(&self) -> Result<()> {
        let pid = fs::read_to_string(self.path("pid"))?;
        let netns = format!("--net={}", self.path("exec/netns/ingress_sbox").display());
        eventually("Docker to make a namespace that balances", PATIENCE, || {
            let mut set = Command::new("nsenter");
            set.args(["--target", &pid, "--mount", "nsenter", &netns]);
            set.args(["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
            Ok(set.read().ok().map(drop))
        })
    }

    /// Has the image, in which there is nothing.
    fn import(&self) -> Result<()> {
        let image = self.path("image.tar");
        fs::write(&image, [0; 1024])?;
        self.read(&["import", &image.to_string_lossy(), "bench"]).map(drop)
    }

    /// A container that does nothing, with this machine's programs.
    fn container(&self, lab: &Lab, name: &str, address: &str) -> Result<Host> {
        self.import()?;
        let mark = format!("{MARK}={}", self.mark);
        let mut run = vec!["run", "--detach", "--name", name, "--network", "bench", "--ip"];
        run.extend([address, "--env", &mark]);
        run.extend(PROGRAMS.iter().flat_map(|mount| ["--mount", mount]));
        run.extend(["bench", "/usr/bin/sleep", "infinity"]);
        self.read(&run)?;
        self.attach(lab, name, name)
    }

    /// The network namespace of a container.
    fn attach(&self, lab: &Lab, name: &str, container: &str) -> Result<Host> {
        let pid = self.read(&["inspect", "--format", "{{.State.Pid}}", container])?;
        lab.attach(name, pid.parse().with_context(|| format!("docker says pid {pid:?}"))?)
    }
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
