//! Several hosts on one machine: network namespaces on one wire, an agent in each.
//!
//! ```text
//!      wire: a bridge, 192.168.50.1 and, as the outside, 203.0.113.1
//!       ┌───────────────┬───────────────┬── ─ ─ ─ ──┬───────────────┐
//!     eth0            eth0            eth0        eth0            eth0
//! n1 .11          n2 .12          n3 .13        ...          client .100
//! ```
//!
//! The bridge has a namespace of its own, for in the machine's namespace the packet
//! filter of others would see its frames. What is to be made is written down before
//! it is made, so that it can be taken down whatever happened in between; what is not
//! written down is never touched.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::build::{Profile, binary};
use crate::command::CommandExt;
use crate::disk::unmount_below;
use crate::membership;
use crate::node::{Datapath, Host, Node, Shell};
use crate::process::Process;
use crate::record::{self, pins, remove_tree, title};

/// Hosts beyond this would collide with the client's address.
const MOST_NODES: usize = 80;

/// Address of the wire itself: every host's default gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
/// Address of the client.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 100);
/// A host of the outside, behind the gateway. It knows no way to an overlay.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// What a playground is to look like.
#[derive(Clone, Debug)]
pub struct Topology {
    /// Put before the names of its namespaces; empty for the one at the prompt.
    pub prefix: String,
    /// A node each.
    pub nodes: Vec<Datapath>,
    /// MTU of the wire, in bytes.
    pub mtu: u16,
    /// The agent to start.
    pub binary: PathBuf,
}

impl Topology {
    /// The usual one: an Ethernet wire and the debug build of the agent.
    pub fn new(prefix: &str, nodes: &[Datapath]) -> Self {
        let prefix = prefix.to_owned();
        Self { prefix, nodes: nodes.to_owned(), mtu: 1500, binary: binary(Profile::Debug) }
    }

    /// One for a test: no other has its prefix, neither of this process nor of another.
    pub fn test(name: &str, nodes: &[Datapath]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::new(&format!("{name}-{}-{number}-", std::process::id()), nodes)
    }
}

/// A playground that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Playground {
    prefix: String,
    nodes: Vec<Node>,
    client: Host,
    wire: Host,
    keep: bool,
}

impl Playground {
    /// Makes the hosts, starts an agent on each, and forms a cluster with n1 as the manager.
    ///
    /// # Errors
    /// If one with this prefix is up, or a step fails; what was made is taken down again.
    pub fn up(topology: &Topology) -> Result<Self> {
        let playground = Self::hosts(topology)?;
        for node in &playground.nodes {
            node.start_agent()?;
        }
        playground.form_cluster()?;
        Ok(playground)
    }

    /// Makes the hosts without starting an agent.
    ///
    /// # Errors
    /// As [`Playground::up`].
    pub fn hosts(topology: &Topology) -> Result<Self> {
        sweep()?;
        let prefix = &topology.prefix;
        if record::read(prefix)?.is_some() {
            bail!("the playground {} is up already", title(prefix));
        }
        if topology.nodes.is_empty() || topology.nodes.len() > MOST_NODES {
            bail!("a playground has 1 to {MOST_NODES} nodes, not {}", topology.nodes.len());
        }
        let mut playground = Self::of(topology);
        if let Some(host) = playground.all_hosts().find(|host| host.netns_path().exists()) {
            bail!("a network namespace {} exists, and no playground made it", host.netns);
        }
        record::write(topology, Some(Process::me()))?;
        playground.keep = false;
        playground.make_wire(topology.mtu)?;
        Ok(playground)
    }

    /// The playground with this prefix that another process left up. Dropping it leaves it so.
    ///
    /// # Errors
    /// If what is written down of it cannot be read.
    pub fn find(prefix: &str) -> Result<Option<Self>> {
        let Some((topology, _)) = record::read(prefix)? else { return Ok(None) };
        Ok(Some(Self::of(&topology)))
    }

    /// Leaves it up when this process ends.
    ///
    /// # Errors
    /// If that cannot be written down.
    pub fn leave_up(mut self) -> Result<()> {
        let Some((topology, _)) = record::read(&self.prefix)? else {
            bail!("the playground {} has been taken down", title(&self.prefix));
        };
        record::write(&topology, None)?;
        self.keep = true;
        Ok(())
    }

    /// Initialises a cluster on n1 and has the other nodes join it as workers.
    ///
    /// # Errors
    /// If a node refuses or does not become ready.
    pub fn form_cluster(&self) -> Result<()> {
        membership::form_cluster(&self.nodes)
    }

    /// Waits until n1 has every node as ready, and the kernels of all reflect the same revision.
    ///
    /// # Errors
    /// If that does not come about.
    pub fn wait_until_ready(&self) -> Result<()> {
        membership::wait_until_ready(&self.nodes)
    }

    /// A node by its number, from 1.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// Its nodes, n1 first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A host on the wire that is no node.
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// The namespace of the bridge, where every frame comes by, and the outside.
    pub fn wire(&self) -> &Host {
        &self.wire
    }

    /// A place of that name: a node, `client` or `wire`.
    ///
    /// # Errors
    /// If there is none, with the names that there are.
    pub fn shell(&self, name: &str) -> Result<&dyn Shell> {
        if let Some(node) = self.nodes.iter().find(|node| node.name() == name) {
            return Ok(node);
        }
        if let Some(host) = [&self.client, &self.wire].into_iter().find(|host| host.name == name) {
            return Ok(host);
        }
        let names: Vec<_> = self.all_hosts().map(|host| host.name.as_str()).collect();
        bail!("no host {name}; there are {}", names.join(", "));
    }

    /// Takes it down: ends what runs on its hosts, removes every trace of its agents,
    /// and the hosts. Goes on after an error.
    ///
    /// # Errors
    /// All that could not be ended or removed.
    pub fn down(mut self) -> Result<()> {
        self.keep = true;
        self.take_down()
    }

    fn take_down(&self) -> Result<()> {
        let mut errors = Vec::new();
        let mut note = |result: Result<()>| errors.extend(result.err());
        // Workloads before agents: these then see them end.
        let agents: Vec<_> = self.nodes.iter().filter_map(Node::agent).collect();
        end_all(Process::marked(title(&self.prefix)), &agents, &mut note);
        for node in self.nodes.iter().filter(|node| node.directory.exists()) {
            note(node.teardown().with_context(|| format!("tear {} down", node.name())));
            note(remove_tree(&node.pins));
        }
        end_all(Process::marked(title(&self.prefix)), &[], &mut note);
        for host in self.all_hosts().filter(|host| host.netns_path().exists()) {
            note(ip(&["netns", "delete", &host.netns]));
        }
        note(remove_tree(&pins(&self.prefix)));
        note(unmount_below(&record::directory(&self.prefix)));
        // What is left can be tried again only as long as it is written down.
        if self.all_hosts().all(|host| !host.netns_path().exists()) {
            note(remove_tree(&record::directory(&self.prefix)));
        }
        if errors.is_empty() {
            return Ok(());
        }
        let errors: Vec<_> = errors.iter().map(|error| format!("{error:#}")).collect();
        Err(anyhow!("{}", errors.join("\n")))
            .with_context(|| format!("take the playground {} down", title(&self.prefix)))
    }

    /// The object alone: nothing is made, nothing will be taken down.
    fn of(topology: &Topology) -> Self {
        let Topology { prefix, nodes, binary, mtu: _ } = topology;
        let host = |name: &str| Host {
            name: name.to_owned(),
            netns: format!("{prefix}{name}"),
            mark: title(prefix).to_owned(),
        };
        let node = |(index, datapath): (usize, &Datapath)| {
            let number = u8::try_from(index + 1).expect("MOST_NODES is less than 256");
            let host = host(&format!("n{number}"));
            Node {
                address: Ipv4Addr::new(192, 168, 50, 10 + number),
                datapath: *datapath,
                binary: binary.clone(),
                directory: record::directory(prefix).join(&host.name),
                pins: pins(prefix).join(&host.name),
                options: &[],
                host,
            }
        };
        Self {
            prefix: prefix.clone(),
            nodes: nodes.iter().enumerate().map(node).collect(),
            client: host("client"),
            wire: host("wire"),
            keep: true,
        }
    }

    fn all_hosts(&self) -> impl Iterator<Item = &Host> {
        self.nodes.iter().map(|node| &node.host).chain([&self.client, &self.wire])
    }

    fn make_wire(&self, mtu: u16) -> Result<()> {
        let mtu = mtu.to_string();
        let wire = &self.wire;
        for host in self.all_hosts() {
            ip(&["netns", "add", &host.netns])?;
            host.read(&["ip", "link", "set", "lo", "up"])?;
        }
        let br0 = ["ip", "link", "add", "br0", "mtu", &mtu, "type", "bridge", "stp_state", "0"];
        wire.read(&br0)?;
        wire.read(&["ip", "address", "add", &format!("{GATEWAY}/24"), "dev", "br0"])?;
        wire.read(&["ip", "address", "add", &format!("{OUTSIDE}/32"), "dev", "lo"])?;
        wire.read(&["ip", "link", "set", "br0", "up"])?;
        let nodes = self.nodes.iter().map(|node| (&node.host, node.address));
        for (host, address) in nodes.chain([(&self.client, CLIENT)]) {
            let port = host.name.as_str();
            let pair = ["ip", "link", "add", port, "mtu", &mtu, "type", "veth"];
            let peer = ["peer", "name", "eth0", "mtu", &mtu, "netns", &host.netns];
            wire.read(&[&pair[..], &peer].concat())?;
            wire.read(&["ip", "link", "set", port, "master", "br0", "up"])?;
            host.read(&["ip", "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
            host.read(&["ip", "link", "set", "eth0", "up"])?;
            host.read(&["ip", "route", "add", "default", "via", &GATEWAY.to_string()])?;
        }
        Ok(())
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- log of {}\n{}", node.name(), node.log_end());
            }
        }
        if let Err(error) = self.take_down() {
            eprintln!("error: {error:#}");
        }
    }
}

/// Takes down what processes that are gone have left. What cannot be is said, and is no
/// reason not to make another.
fn sweep() -> Result<()> {
    // One at a time: two would take the same one down.
    let Some(_lock) = record::lock()? else { return Ok(()) };
    for topology in record::abandoned() {
        if let Err(error) = Playground::of(&topology).down() {
            eprintln!("warning: {error:#}");
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    Command::new("ip").args(arguments).read().map(drop)
}

/// Ends processes, all at the same time, but for those to be spared.
fn end_all(processes: Vec<Process>, spared: &[Process], note: &mut impl FnMut(Result<()>)) {
    std::thread::scope(|scope| {
        let ends: Vec<_> = processes
            .into_iter()
            .filter(|process| !spared.contains(process))
            .map(|process| scope.spawn(move || process.end(Duration::from_secs(5))))
            .collect();
        for end in ends {
            note(end.join().unwrap_or_else(|_| bail!("ending a process panicked")));
        }
    });
}
