//! The faults: how each is made, how it ends, and what is to be said of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::build::another_build;
use super::scene::{BRIDGED, CALLER, Scene};
use crate::node::Node;
use crate::wait::eventually;

/// The node that most faults befall; it has a backend.
const VICTIM: usize = 3;
/// The backend there.
const ITS_BACKEND: &str = "two";
/// Nodes with a worker.
const WORKERS: [usize; 4] = [2, VICTIM, CALLER, BRIDGED];

/// Something that breaks, and comes back.
pub(super) struct Fault {
    /// As `--only` names it.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// What is done, and what users notice.
    pub(super) story: &'static str,
    /// How long it lasts.
    pub(super) lasts: Duration,
    /// More rounds than that tell nothing more; none for as many as are asked for.
    pub(super) rounds: Option<usize>,
    pub(super) begin: fn(&mut Scene) -> Result<()>,
    pub(super) end: fn(&mut Scene) -> Result<()>,
}

/// In the order of the table.
pub(super) const FAULTS: &[Fault] = &[
    Fault {
        id: "kill",
        title: "agents killed",
        story: "`kill -9` of every agent, the manager's too; started again after 3 s. The \
                programs and maps stay: packets and new flows notice nothing",
        lasts: Duration::from_secs(3),
        rounds: None,
        begin: |scene| scene.playground.nodes().iter().try_for_each(Node::kill_agent),
        end: |scene| scene.playground.nodes().iter().try_for_each(Node::start_agent),
    },
    Fault {
        id: "upgrade",
        title: "agents replaced by another build",
        story: "workers one by one, then the manager; after 3 s back to the former build. The \
                programs are replaced in place",
        lasts: Duration::from_secs(3),
        rounds: None,
        begin: |scene| {
            let other = another_build(&scene.node(1).binary)?;
            order(scene).try_for_each(|node| {
                node.stop_agent()?;
                Node { binary: other.clone(), ..node.clone() }.start_agent()
            })
        },
        end: |scene| {
            order(scene).try_for_each(|node| {
                node.stop_agent()?;
                node.start_agent()
            })
        },
    },
    Fault {
        id: "freeze",
        title: "an agent frozen for 10 s",
        story: "SIGSTOP, later SIGCONT, on a node with a backend. Its lease ends, so new flows go \
                to the others; what runs there goes on",
        lasts: Duration::from_secs(10),
        rounds: None,
        begin: |scene| signal(scene.node(VICTIM), Signal::SIGSTOP),
        end: |scene| signal(scene.node(VICTIM), Signal::SIGCONT),
    },
    Fault {
        id: "off",
        title: "a node off for 10 s",
        story: "no link, all its processes killed; then everything anew but the agent's files. \
                New flows fail that go to its backend until it is out of the balance",
        lasts: Duration::from_secs(10),
        rounds: None,
        begin: |scene| {
            scene.link(VICTIM, false)?;
            scene.node(VICTIM).kill_agent()?;
            scene.kill_backend(ITS_BACKEND)
        },
        end: |scene| {
            scene.node(VICTIM).teardown()?;
            scene.link(VICTIM, true)?;
            scene.node(VICTIM).start_agent()?;
            scene.start_backend(ITS_BACKEND)
        },
    },
    Fault {
        id: "cut",
        title: "a node's link cut for 10 s",
        story: "as for a node that is off, but its connections live on: TCP sends again what was \
                lost, when its own timer says so",
        lasts: Duration::from_secs(10),
        rounds: None,
        begin: |scene| scene.link(VICTIM, false),
        end: |scene| scene.link(VICTIM, true),
    },
    Fault {
        id: "cut30",
        title: "a node's link cut for 30 s",
        story: "the same, longer",
        lasts: Duration::from_secs(30),
        rounds: Some(2),
        begin: |scene| scene.link(VICTIM, false),
        end: |scene| scene.link(VICTIM, true),
    },
    Fault {
        id: "manager",
        title: "no manager for 60 s",
        story: "the only manager's agent is killed. Meanwhile a backend is killed and starts \
                again with its name and address, and the callers' agent restarts; names are \
                right all the time. (60 s stand for any time: the longest of the agents' own times, \
                the 30 s between two full passes, has come and gone by then)",
        lasts: Duration::from_secs(60),
        rounds: Some(3),
        begin: |scene| {
            let address = scene.resolve(ITS_BACKEND)?;
            ensure!(!address.is_empty(), "{ITS_BACKEND} has no address");
            scene.node(1).kill_agent()?;
            scene.kill_backend(ITS_BACKEND)?;
            scene.node(CALLER).kill_agent()?;
            scene.node(CALLER).start_agent()?;
            scene.wait_until_gone(VICTIM, ITS_BACKEND)?;
            scene.start_backend(ITS_BACKEND)?;
            let name = || Ok((scene.resolve(ITS_BACKEND)? == address).then_some(()));
            eventually("the name of a backend without a manager", Duration::from_secs(30), name)
        },
        end: |scene| scene.node(1).start_agent(),
    },
    Fault {
        id: "half",
        title: "killed in the middle of a change",
        story: "twelve workloads start on a node at once, and its agent is killed at some moment \
                of that, and started again",
        lasts: Duration::from_secs(1),
        rounds: None,
        begin: |scene| scene.crowd(VICTIM, 12),
        end: |scene| {
            scene.node(VICTIM).start_agent()?;
            scene.disperse()
        },
    },
];

/// Workers before the manager, as one upgrades.
fn order(scene: &Scene) -> impl Iterator<Item = &Node> {
    WORKERS.into_iter().chain([1]).map(|number| scene.node(number))
}

fn signal(node: &Node, signal: Signal) -> Result<()> {
    node.agent().context("no agent runs")?.signal(signal)
}
