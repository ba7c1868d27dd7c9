//! A cluster of namespaces with workloads in it, for tests.
//!
//! ```text
//!   n1 .11    n2 .12    n3 .13    client .100        192.168.50.0/24
//!    │eth0     │eth0     │eth0     │eth0
//!   ─┴─────────┴─────────┴─────────┴─ wire (a bridge in a namespace of its own)
//! ```

use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::node::{Datapath, Node, Shell as _};
use xtask::playground::{Playground, Topology};

/// Longest that a test waits for something that must happen. Processors may be emulated, and
/// others may use them.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done` says yes.
///
/// # Panics
/// After [`PATIENCE`], with `what`.
#[track_caller]
pub fn eventually(what: &str, done: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, done);
}

/// As [`eventually`], for what takes longer.
///
/// # Panics
/// After so long, with `what`.
#[track_caller]
pub fn eventually_within(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < patience, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Standard output of a command that must succeed.
///
/// # Panics
/// If it did not, with all that it printed.
pub fn must(output: anyhow::Result<Output>) -> String {
    let output = output.expect("a command that can be started");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\nstdout: {stdout}\nstderr: {stderr}", output.status);
    stdout
}

/// What a command said on standard error when it refused.
///
/// # Panics
/// If it succeeded.
pub fn refusal(output: anyhow::Result<Output>) -> String {
    let output = output.expect("a command that can be started");
    assert!(!output.status.success(), "it was accepted");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running `netagent run`; killed and waited for when dropped.
pub struct Workload {
    child: Child,
    /// The command: `netagent run` itself, or its child if that serves.
    pid: u32,
    /// Its addresses in the order of its interfaces.
    pub addresses: Vec<Ipv4Addr>,
}

impl Workload {
    /// Runs `sleep infinity` as a workload on `node`; `args` go before `--`.
    #[must_use]
    pub fn start(node: &Node, args: &[&str]) -> Self {
        Self::start_command(node, args, &["sleep", "infinity"])
    }

    /// Runs `command` as a workload on `node`.
    ///
    /// # Panics
    /// If it does not get attached.
    #[must_use]
    pub fn start_command(node: &Node, args: &[&str], command: &[&str]) -> Self {
        let line: Vec<&str> =
            ["netagent", "run"].iter().chain(args).chain(&["--"]).chain(command).copied().collect();
        let mut child = node.command(&line).stdin(Stdio::null()).spawn().expect("spawning");
        let mut pid = child.id();
        let mut addresses = Vec::new();
        eventually(&format!("workload {args:?} attached on {}", node.name()), || {
            if let Some(status) = child.try_wait().expect("waiting") {
                panic!("netagent run {args:?} ended: {status}");
            }
            let list = workloads(node);
            let command = |w: &Value| w["hold"]["pid"].as_u64().and_then(|n| u32::try_from(n).ok());
            let ours = |pid| pid == child.id() || parent(pid) == Some(child.id());
            let Some(found) = list.iter().find(|w| command(w).is_some_and(ours)) else {
                return false;
            };
            pid = command(found).expect("found by it");
            addresses = found["attachments"]
                .as_array()
                .expect("attachments")
                .iter()
                .map(|a| a["endpoint"]["address"].as_str().expect("text").parse().expect("IPv4"))
                .collect();
            // Attached is one thing, the command running another: exec is the last step.
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim() != "netagent")
        });
        Self { child, pid, addresses }
    }

    /// Its first address.
    #[must_use]
    pub fn ip(&self) -> String {
        self.addresses[0].to_string()
    }

    /// The process of its command.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The process of `netagent run`: the command's own, or its parent if it serves.
    #[must_use]
    pub fn outer_pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn wait(mut self) -> ExitStatus {
        self.child.wait().expect("our child")
    }

    /// A command in its network and mount namespaces.
    #[must_use]
    pub fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid().to_string(), "--net", "--mount", "--uts", "--"]);
        command.args(line);
        command
    }

    /// Runs a command inside to its end.
    #[must_use]
    pub fn exec(&self, line: &[&str]) -> Output {
        self.command(line).output().expect("nsenter")
    }

    /// Runs a command inside that must succeed; its standard output.
    pub fn run(&self, line: &[&str]) -> String {
        must(Ok(self.exec(line)))
    }

    /// What a name resolves to inside, if anything: nothing is what a name of another
    /// network gives, and of the outside where that cannot be reached.
    #[must_use]
    pub fn resolves(&self, name: &[&str]) -> String {
        let dig = ["dig", "+short", "+time=1", "+tries=1"];
        let output = self.exec(&[&dig, name].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().filter(|line| !line.starts_with(';')).collect::<Vec<_>>().join(" ")
    }

    /// Whether one of two pings of `size` payload bytes with DF set comes back.
    #[must_use]
    pub fn pings(&self, to: &str, size: u32) -> bool {
        let size = size.to_string();
        self.exec(&[
            "ping", "-n", "-q", "-M", "do", "-c", "2", "-i", "0.2", "-W", "1", "-s", &size, to,
        ])
        .status
        .success()
    }

    /// Ends it with `SIGTERM`, as an administrator does, and waits until it is gone.
    ///
    /// # Panics
    /// If it cannot be signalled.
    pub fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM)
            .expect("a signal");
        eventually("it ends", || self.child.try_wait().expect("waiting").is_some());
    }

    /// Ends it with `SIGKILL` and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Already gone is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.end();
    }
}

/// The parent of a process.
fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// What `netagent NOUN ls` lists on a node: one JSON object a line.
///
/// # Panics
/// If the command fails or prints no JSON.
#[must_use]
pub fn list(node: &Node, noun: &str) -> Vec<Value> {
    must(node.netagent(&[noun, "ls", "--format", "json"])).lines().map(parse).collect()
}

/// What `netagent NOUN inspect NAME` shows on a node.
///
/// # Panics
/// If the command fails or does not print a JSON array of one.
#[must_use]
pub fn inspect(node: &Node, noun: &str, name: &str) -> Value {
    let mut shown = parse(&must(node.netagent(&[noun, "inspect", name])));
    shown[0].take()
}

/// The workloads of a node, asked for with a tool that is not ours.
///
/// # Panics
/// If the agent does not answer with a JSON array.
#[must_use]
pub fn workloads(node: &Node) -> Vec<Value> {
    let socket = node.socket().display().to_string();
    let url = "http://localhost/v1/workloads";
    let reply = must(node.exec(&["curl", "--silent", "--fail", "--unix-socket", &socket, url]));
    parse(&reply).as_array().expect("an array").clone()
}

/// What the node's reconciler has done so far, and what differs now.
///
/// # Panics
/// If the command prints no JSON.
#[must_use]
pub fn verify(node: &Node) -> Value {
    let output = node.netagent(&["verify", "--format", "json"]).expect("netagent");
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text:?}: {error}"))
}

/// Packets that a counter of the node's datapath has counted.
///
/// # Panics
/// If there is no such counter.
#[must_use]
pub fn packets(node: &Node, counter: &str) -> u64 {
    must(node.netagent(&["metrics", "--format", "json"]))
        .lines()
        .map(parse)
        .find(|c| c["name"] == counter)
        .and_then(|c| c["packets"].as_u64())
        .unwrap_or_else(|| panic!("no counter {counter}"))
}

/// Drops at the wire what matches; `rule` is that of nft(8).
///
/// # Panics
/// If the rule is none.
pub fn block(cluster: &Playground, rule: &str) {
    let table = "add table bridge block";
    let chain = "add chain bridge block wire { type filter hook forward priority 0; }";
    let rule = format!("add rule bridge block wire {rule} counter drop");
    must(cluster.wire().exec(&["nft", &[table, chain, &rule].join("; ")]));
}

/// Packets that were blocked.
///
/// # Panics
/// If nothing is.
#[must_use]
pub fn blocked(cluster: &Playground) -> u64 {
    let rules = must(cluster.wire().exec(&["nft", "list", "table", "bridge", "block"]));
    let counts = rules.split("counter packets ").skip(1);
    counts.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// Lets everything pass again.
///
/// # Panics
/// If nothing was blocked.
pub fn unblock(cluster: &Playground) {
    must(cluster.wire().exec(&["nft", "delete", "table", "bridge", "block"]));
}

/// The path from a node to another, as it says itself.
#[must_use]
pub fn path(from: &Node, to: &Node) -> Value {
    inspect(from, "node", to.name())["path"].take()
}

/// Waits until the path from a node to another is in this state.
///
/// # Panics
/// After [`PATIENCE`].
pub fn reaches(from: &Node, to: &Node, state: &str) {
    let what = format!("{} is {state} from {}", to.name(), from.name());
    eventually(&what, || path(from, to)["reach"] == state);
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text:?}"))
}

/// Restarts all agents with what their unit leaves them of root's capabilities; they have
/// that until they are started again.
///
/// # Panics
/// If they do not come up, or have others.
pub fn confine(cluster: &Playground) {
    let unit = include_str!("../../agent/systemd/netagent.service");
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let set: Vec<_> = set.expect("the unit has a set").split_whitespace().collect();
    let names = set.iter().map(|name| name.trim_start_matches("CAP_").to_lowercase());
    let names = names.collect::<Vec<_>>().join(",+");
    for node in cluster.nodes() {
        let binary = node.directory.join("confined");
        let real = node.binary.display();
        let script = format!(
            "#!/bin/sh\nexec setpriv --bounding-set=-all,+{names} --no-new-privs {real} \"$@\"\n"
        );
        std::fs::write(&binary, script).expect("a script");
        std::fs::set_permissions(&binary, Permissions::from_mode(0o755)).expect("our script");
        node.stop_agent().expect("stop");
        Node { binary, ..node.clone() }.start_agent().expect("start");
        let pid = node.agent().expect("it runs").pid;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let left = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a set");
        let left = u64::from_str_radix(left.trim(), 16).expect("hexadecimal").count_ones();
        assert_eq!(usize::try_from(left), Ok(set.len()), "{}", node.name());
    }
    cluster.wait_until_ready().expect("ready");
}

/// Short for the tables below.
const EBPF: Datapath = Datapath::Ebpf;
const KERNEL: Datapath = Datapath::Kernel;

/// The three layouts of datapaths that every connectivity test passes on.
pub const LAYOUTS: [(&str, [Datapath; 3]); 3] =
    [("ebpf", [EBPF; 3]), ("kernel", [KERNEL; 3]), ("mixed", [EBPF, KERNEL, EBPF])];

/// Three nodes with these datapaths, joined to one cluster.
///
/// # Panics
/// If the cluster does not come up.
#[must_use]
pub fn three(datapaths: [Datapath; 3]) -> Playground {
    let cluster = Playground::up(&Topology::test("t", &datapaths)).expect("a cluster");
    // Ready is the control plane's word; the kernels follow.
    eventually("every node has what it should", || {
        cluster.nodes().iter().all(|node| {
            let verified = verify(node);
            verified["passes"].as_u64() > Some(0)
                && verified["differences"].as_array().is_some_and(Vec::is_empty)
        })
    });
    cluster
}
