//! Docker's own overlay between two Docker daemons, each on a host of the lab. Each has
//! a mount namespace, so that neither meets the other nor a Docker of the machine.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Variant;
use super::lab::{Lab, OVERLAY, UNDERLAY};
use crate::command::{CommandExt, find};
use crate::node::{Host, Shell};
use crate::process::MARK;
use crate::wait::eventually;

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

/// Two containers in an attachable overlay network of a swarm of two.
pub(crate) fn docker(lab: &Lab) -> Result<Vec<Variant>> {
    if !is_there() {
        return Ok(Vec::new());
    }
    let hosts = lab.wired("docker")?;
    let daemons = [Daemon::start(lab, &hosts[0])?, Daemon::start(lab, &hosts[1])?];
    let [manager, worker] = &daemons;
    let [own, other] = UNDERLAY.map(|address| address.to_string());
    manager.read(&["swarm", "init", "--advertise-addr", &own])?;
    let token = manager.read(&["swarm", "join-token", "--quiet", "worker"])?;
    worker.read(&["swarm", "join", "--advertise-addr", &other, "--token", &token, &own])?;
    let create = ["network", "create", "--driver", "overlay", "--attachable"];
    manager.read(&[&create[..], &["--subnet", "10.50.0.0/24", "bench"]].concat())?;
    let client = manager.container(lab, "docker-a", &OVERLAY[0].to_string())?;
    let server = worker.container(lab, "docker-b", &OVERLAY[1].to_string())?;
    let there = || {
        let reply = client.exec(&["ping", "-c1", "-W1", &OVERLAY[1].to_string()])?;
        Ok(reply.status.success().then_some(()))
    };
    eventually("Docker's overlay to carry a packet", Duration::from_secs(20), there)?;
    Ok(vec![Variant { id: "docker", client, server, target: OVERLAY[1], wire: hosts.into() }])
}

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
        // Not of the terminal's group: ^C is for us, who still need it.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("cannot start `{}`", command.line()))?;
        let answers = || Ok(daemon.read(&["version"]).ok().map(drop));
        eventually("dockerd to answer", Duration::from_secs(30), answers)
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

    /// A container that does nothing, with this machine's programs.
    fn container(&self, lab: &Lab, name: &str, address: &str) -> Result<Host> {
        let image = self.path("image.tar");
        fs::write(&image, [0; 1024])?;
        self.read(&["import", &image.to_string_lossy(), "bench"])?;
        let mark = format!("{MARK}={}", self.mark);
        let mut run = vec!["run", "--detach", "--name", name, "--network", "bench", "--ip"];
        run.extend([address, "--env", &mark]);
        run.extend(["--volume", "/usr:/usr:ro", "--volume", "/lib:/lib:ro"]);
        run.extend(["--volume", "/lib64:/lib64:ro", "bench", "/usr/bin/sleep", "infinity"]);
        self.read(&run)?;
        let pid = self.read(&["inspect", "--format", "{{.State.Pid}}", name])?;
        lab.attach(name, pid.parse().with_context(|| format!("docker says pid {pid:?}"))?)
    }
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
