//! A cluster with a service that is called all the time, and what can be asked of it.
//!
//! ```text
//!   n1 manager    n2 backend `one`    n3 backend `two`    n4 a workload that calls    client
//!    │             │                   │                   │      the virtual address   │
//!   ─┴─────────────┴───────────────────┴───────────────────┴── wire ──┬─────────────────┴─
//!                  n4's published port is what the client calls      n5 kernel datapath
//! ```

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::load::{Kind, Load, PATIENCE};
use crate::command::CommandExt;
use crate::node::{Datapath, Node, Shell};
use crate::playground::{Playground, Topology};
use crate::wait::eventually;

/// Where the service listens, and where it is published.
const PORT: u16 = 80;
const PUBLISHED: u16 = 8080;
/// Longest that anything here takes to come right by itself.
const SOON: Duration = Duration::from_secs(120);
/// So long nothing fails before a fault, and after it.
const CALM: Duration = Duration::from_millis(1500);

const DATAPATHS: [Datapath; BRIDGED] =
    [Datapath::Ebpf, Datapath::Ebpf, Datapath::Ebpf, Datapath::Ebpf, Datapath::Kernel];

/// The nodes with a backend, and its name.
pub(super) const BACKENDS: [(usize, &str); 2] = [(2, "one"), (3, "two")];
/// The node with the workload that calls, at which the client calls too.
pub(super) const CALLER: usize = 4;
/// The node with the kernel datapath and a workload that only is there.
pub(super) const BRIDGED: usize = 5;

/// The cluster, its workloads, and who calls them. What it makes it takes down.
pub(super) struct Scene {
    pub(super) load: Load,
    /// Who calls whom.
    ways: [(PathBuf, SocketAddrV4); 2],
    /// The backends, and the workload that calls. They end with the playground.
    children: Vec<(&'static str, Child)>,
    /// Workloads that nobody calls.
    crowd: Vec<Child>,
    pub(super) playground: Playground,
}

impl Scene {
    /// Sets it up, and begins to call.
    ///
    /// # Errors
    /// If a step fails; what was made is gone again.
    pub(super) fn new() -> Result<Self> {
        let playground = Playground::up(&Topology::test("faults", &DATAPATHS))?;
        let n1 = playground.node(1);
        n1.read(&["netagent", "network", "create", "net1"])?;
        let (tcp, udp) = (format!("{PUBLISHED}:{PORT}"), format!("{PUBLISHED}:{PORT}/udp"));
        let create = ["netagent", "service", "create", "--name", "web", "--network", "net1"];
        n1.read(&[&create[..], &["-p", &tcp, "-p", &udp]].concat())?;
        let mut children = Vec::new();
        for (node, name) in BACKENDS {
            children.push((name, backend(playground.node(node), name)?));
        }
        for (node, name) in [(BRIDGED, "bridged"), (CALLER, "caller")] {
            let run = ["netagent", "run", "--network", "net1", "--name", name, "--"];
            let words = [&run[..], &["sleep", "infinity"]].concat();
            let child = playground.node(node).spawn(&words)?;
            eventually("a workload to be attached", SOON, || runs(child.id(), "sleep"))?;
            children.push((name, child));
        }
        let (_, caller) = children.last().context("the caller was just started")?;
        let netns = PathBuf::from(format!("/proc/{}/ns/net", caller.id()));
        let node = playground.node(CALLER);
        let shown: Value =
            serde_json::from_str(&n1.read(&["netagent", "service", "inspect", "web"])?)?;
        let vip = shown[0]["networks"][0]["vip"].as_str().context("the service has no address")?;
        let ways = [
            (netns, SocketAddrV4::new(vip.parse()?, PORT)),
            (playground.client().netns_path(), SocketAddrV4::new(node.address, PUBLISHED)),
        ];
        let load = Load::start(&ways)?;
        let scene = Self { load, ways, children, crowd: Vec::new(), playground };
        scene.wait_until_right()?;
        Ok(scene)
    }

    pub(super) fn node(&self, number: usize) -> &Node {
        self.playground.node(number)
    }

    /// Starts a backend that has ended, as what supervises it would.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start_backend(&mut self, name: &'static str) -> Result<()> {
        let (node, _) = BACKENDS.into_iter().find(|(_, n)| *n == name).context("no backend")?;
        let new = backend(self.playground.node(node), name)?;
        let old = self.children.iter_mut().find(|(n, _)| *n == name).context("no backend")?;
        let mut old = std::mem::replace(&mut old.1, new);
        // It has ended: only its parent was missing.
        old.wait().map(drop).context("waiting for a backend")
    }

    /// Ends a backend without a word.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn kill_backend(&mut self, name: &str) -> Result<()> {
        let (_, child) = self.children.iter_mut().find(|(n, _)| *n == name).context("none")?;
        child.kill()?;
        child.wait().map(drop).context("waiting for a backend")
    }

    /// Waits until a node has noticed that a workload of it has ended.
    ///
    /// # Errors
    /// If it does not.
    pub(super) fn wait_until_gone(&self, number: usize, name: &str) -> Result<()> {
        let node = self.node(number);
        let socket = node.socket().display().to_string();
        let url = "http://localhost/v1/workloads";
        let ask = ["curl", "--silent", "--fail", "--unix-socket", &socket, url];
        let gone = || {
            let workloads: Value = serde_json::from_str(&node.read(&ask)?)?;
            let mut workloads = workloads.as_array().context("no array")?.iter();
            Ok((!workloads.any(|workload| workload["name"] == name)).then_some(()))
        };
        eventually("a workload to be released", SOON, gone)
    }

    /// What a name is to the workload that calls.
    ///
    /// # Errors
    /// If there is no such workload.
    pub(super) fn resolve(&self, name: &str) -> Result<String> {
        let (_, caller) = self.children.last().context("nobody calls")?;
        let mut dig = Command::new("nsenter");
        dig.args(["--target", &caller.id().to_string(), "--net", "--mount", "--"]);
        // No answer is an answer.
        let output = dig.args(["dig", "+short", "+time=1", "+tries=1", name]).collect()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a command inside the workload that calls.
    ///
    /// # Errors
    /// If it fails.
    pub(super) fn inside(&self, words: &[&str]) -> Result<()> {
        let (_, caller) = self.children.last().context("nobody calls")?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &caller.id().to_string(), "--net", "--"]).args(words);
        command.read().map(drop)
    }

    /// Starts many workloads on a node, and kills its agent at some moment of that.
    ///
    /// # Errors
    /// If the agent cannot be killed.
    pub(super) fn crowd(&mut self, number: usize, count: usize) -> Result<()> {
        let node = self.playground.node(number).clone();
        for _ in 0..count {
            let run = ["netagent", "run", "--network", "net1", "--", "sleep", "infinity"];
            let mut command = node.command(&run);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            self.crowd.push(command.spawn().context("cannot start a workload")?);
        }
        // Any moment of the second or so that this takes.
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
        sleep(Duration::from_nanos(nanoseconds.into()));
        node.kill_agent()
    }

    /// Ends them, those that were refused too.
    ///
    /// # Errors
    /// If one cannot be waited for.
    pub(super) fn disperse(&mut self) -> Result<()> {
        for mut child in self.crowd.drain(..) {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Pulls a node's cable, or plugs it in again.
    ///
    /// # Errors
    /// If the wire has no such link.
    pub(super) fn link(&self, number: usize, up: bool) -> Result<()> {
        let (port, state) = (format!("n{number}"), if up { "up" } else { "down" });
        self.playground.wire().read(&["ip", "link", "set", &port, state]).map(drop)
    }

    /// Waits until every node is ready, both backends serve, and each kernel is as the cluster's
    /// objects say.
    ///
    /// # Errors
    /// If that does not come about; says what is not right.
    pub(super) fn wait_until_right(&self) -> Result<()> {
        let mut wrong = String::new();
        let right = || {
            wrong = self.wrong()?;
            Ok(wrong.is_empty().then_some(()))
        };
        let waited = eventually("all to be right", SOON, right);
        waited.with_context(|| format!("in the end this was not right: {wrong}"))
    }

    /// What is not as it should be; nothing if all is.
    fn wrong(&self) -> Result<String> {
        let manager = self.node(1);
        if manager.agent().is_none() {
            return Ok("the manager is away".to_owned());
        }
        // An agent that has just started refuses for a moment.
        let Ok(nodes) = manager.read(&["netagent", "node", "ls", "--format", "json"]) else {
            return Ok("the manager does not answer".to_owned());
        };
        for line in nodes.lines() {
            let node: Value = serde_json::from_str(line)?;
            if node["status"] != "ready" {
                return Ok(format!("{} is {}", node["hostname"], node["status"]));
            }
        }
        let Ok(services) = manager.read(&["netagent", "service", "ls"]) else {
            return Ok("the manager does not answer".to_owned());
        };
        if !services.contains("2/2") {
            return Ok(services);
        }
        for node in self.playground.nodes() {
            if let Err(error) = node.read(&["netagent", "verify"]) {
                return Ok(format!("{}: {error:#}", node.name()));
            }
        }
        Ok(String::new())
    }

    /// Begins to call anew, so that every backend has flows and connections, and waits until
    /// nothing has failed for a while.
    ///
    /// # Errors
    /// If something goes on failing.
    pub(super) fn call_anew(&mut self) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            self.load = Load::start(&self.ways)?;
            // What is tried at the end of it shows after our patience with it.
            sleep(CALM + PATIENCE);
            let events = self.load.take();
            let lost = events.iter().filter(|event| event.lost).count();
            if lost == 0 && events.iter().any(|event| event.kind == Kind::Request) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{lost} of {} went wrong without a fault", events.len());
            }
        }
    }
}

fn backend(node: &Node, name: &str) -> Result<Child> {
    let program = std::env::current_exe().context("where is this program?")?;
    let (program, port) = (program.to_string_lossy().into_owned(), PORT.to_string());
    let mut command = node.command(&["netagent", "run", "--service", "web", "--name", name]);
    command.args(["--health-tcp", &port, "--health-interval", "500ms", "--"]);
    command.args([&program, "load-server", &port]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("cannot start the backend {name}"))
}

fn runs(pid: u32, program: &str) -> Result<Option<()>> {
    let comm = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm"))?;
    Ok((comm.trim() == program).then_some(()))
}
