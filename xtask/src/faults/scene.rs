//! A cluster with a service that is called all the time, and what can be asked of it.
//!
//! ```text
//!   n1 manager    n2 backend `one`    n3 backend `two`    n4 a workload that calls    client
//!    │             │                   │                   │      the virtual address   │
//!   ─┴─────────────┴───────────────────┴───────────────────┴── wire ──┬─────────────────┴─
//!                  n4's published port is what the client calls      n5 kernel datapath
//! ```

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::load::{Kind, Load, PATIENCE};
use crate::command::CommandExt;
use crate::disk::Disk;
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

/// The node with the workload that calls, at which the client calls too.
pub(super) const CALLER: usize = 4;
/// The node with the kernel datapath and a workload that only is there.
pub(super) const BRIDGED: usize = 5;
/// That workload.
pub(super) const GUEST: &str = "bridged";
/// The workloads, and their nodes: the backends, the one that is only there, and last who calls.
const WORKLOADS: [(usize, &str); 4] =
    [(2, "one"), (3, "two"), (BRIDGED, GUEST), (CALLER, "caller")];
/// What each node has for its agent's data, in MiB: for a store with its journal, and more.
const DISK: u32 = 16;

/// The cluster, its workloads, and who calls them. What it makes it takes down.
pub(super) struct Scene {
    pub(super) load: Load,
    /// Who calls whom.
    ways: [(PathBuf, SocketAddrV4); 2],
    /// The workloads. They end with the playground.
    children: Vec<(&'static str, Child)>,
    /// Workloads that nobody calls.
    crowd: Vec<Child>,
    /// Where the agents keep what they know.
    pub(super) disks: Vec<Disk>,
    pub(super) playground: Playground,
}

impl Scene {
    /// Sets it up, and begins to call.
    ///
    /// # Errors
    /// If a step fails; what was made is gone again.
    pub(super) fn new() -> Result<Self> {
        let playground = Playground::hosts(&Topology::test("faults", &DATAPATHS))?;
        let disk = |node: &Node| Disk::mount(&node.directory.join("data"), DISK);
        let disks = playground.nodes().iter().map(disk).collect::<Result<Vec<_>>>()?;
        playground.nodes().iter().try_for_each(Node::start_agent)?;
        playground.form_cluster()?;
        let n1 = playground.node(1);
        n1.read(&["netagent", "network", "create", "net1"])?;
        let (tcp, udp) = (format!("{PUBLISHED}:{PORT}"), format!("{PUBLISHED}:{PORT}/udp"));
        let create = ["netagent", "service", "create", "--name", "web", "--network", "net1"];
        n1.read(&[&create[..], &["-p", &tcp, "-p", &udp]].concat())?;
        let mut children = Vec::new();
        for (node, name) in WORKLOADS {
            children.push((name, workload(playground.node(node), name)?));
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
        let scene = Self { load, ways, children, crowd: Vec::new(), disks, playground };
        scene.wait_until_right()?;
        Ok(scene)
    }

    pub(super) fn node(&self, number: usize) -> &Node {
        self.playground.node(number)
    }

    /// Starts a workload that has ended, as what supervises it would.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start(&mut self, name: &'static str) -> Result<()> {
        let new = workload(self.playground.node(node_of(name)?), name)?;
        *self.child(name)? = new;
        Ok(())
    }

    /// The same without a manager: it must get this address again, and be reached there by
    /// its name.
    ///
    /// # Errors
    /// If it does not.
    pub(super) fn start_alone(&mut self, name: &'static str, address: &str) -> Result<()> {
        let node = self.node(node_of(name)?).clone();
        let gone = || Ok((!is_attached(&node, name)?).then_some(()));
        eventually("a workload to be released", SOON, gone)?;
        // Until what it had can be taken back it is refused, and tried again.
        let started = || Ok(self.start(name).ok());
        eventually("a workload to start without a manager", SOON, started)?;
        let named = || Ok((self.resolve(name)? == address).then_some(()));
        eventually("the name of a workload without a manager", SOON, named)?;
        let ping = ["ping", "-n", "-q", "-c", "1", "-W", "1", address];
        let answers = || Ok(self.inside(&ping).is_ok().then_some(()));
        eventually("a workload to answer without a manager", SOON, answers)
    }

    /// Ends a workload without a word.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn kill(&mut self, name: &str) -> Result<()> {
        let child = self.child(name)?;
        child.kill()?;
        child.wait().map(drop).context("waiting for a workload")
    }

    fn child(&mut self, name: &str) -> Result<&mut Child> {
        let found = self.children.iter_mut().find(|(n, _)| *n == name);
        found.map(|(_, child)| child).with_context(|| format!("there is no workload {name}"))
    }

    /// What a name is to the workload that calls.
    ///
    /// # Errors
    /// If it is nothing.
    pub(super) fn address(&self, name: &str) -> Result<String> {
        let address = self.resolve(name)?;
        if address.is_empty() {
            bail!("{name} has no address");
        }
        Ok(address)
    }

    fn resolve(&self, name: &str) -> Result<String> {
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

    /// Calls no more.
    ///
    /// # Errors
    /// As [`Load::start`].
    pub(super) fn be_quiet(&mut self) -> Result<()> {
        self.load = Load::start(&[])?;
        Ok(())
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

fn node_of(name: &str) -> Result<usize> {
    let found = WORKLOADS.into_iter().find(|(_, n)| *n == name);
    found.map(|(node, _)| node).with_context(|| format!("there is no workload {name}"))
}

/// A new process of a workload.
fn workload(node: &Node, name: &str) -> Result<Child> {
    let run = ["netagent", "run", "--network", "net1", "--name", name, "--", "sleep", "infinity"];
    let serves = !["caller", GUEST].contains(&name);
    let mut child = if serves { backend(node, name) } else { node.spawn(&run) }?;
    eventually("a workload to be attached", SOON, || match child.try_wait()? {
        Some(status) => bail!("the workload {name} has ended: {status}"),
        None => Ok(is_attached(node, name)?.then_some(())),
    })?;
    Ok(child)
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

/// Whether a node has a workload of that name.
fn is_attached(node: &Node, name: &str) -> Result<bool> {
    let socket = node.socket().display().to_string();
    let url = "http://localhost/v1/workloads";
    let ask = ["curl", "--silent", "--fail", "--unix-socket", &socket, url];
    let workloads: Value = serde_json::from_str(&node.read(&ask)?)?;
    Ok(workloads.as_array().context("no array")?.iter().any(|workload| workload["name"] == name))
}
