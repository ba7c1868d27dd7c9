//! The faults: how each is made, how it ends, and what is to be said of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::build::another_build;
use super::clock;
use super::scene::{BRIDGED, CALLER, GUEST, Scene};
use crate::disk::Disk;
use crate::node::Node;

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
    /// Whether it is a row of the table; others are tried only by name.
    pub(super) listed: bool,
    /// What is done before all rounds.
    pub(super) before: fn(&mut Scene) -> Result<()>,
    pub(super) begin: fn(&mut Scene) -> Result<()>,
    /// What is done every half minute while it lasts.
    pub(super) meanwhile: fn(&mut Scene) -> Result<()>,
    pub(super) end: fn(&mut Scene) -> Result<()>,
    /// What is done after all rounds.
    pub(super) after: fn(&mut Scene) -> Result<()>,
}

impl Fault {
    /// How often it is tried if others are so often.
    pub(super) fn rounds(&self, others: usize) -> usize {
        self.rounds.map_or(others, |most| most.min(others))
    }
}

/// What most have in common.
const USUAL: Fault = Fault {
    id: "",
    title: "",
    story: "",
    lasts: Duration::from_secs(10),
    rounds: None,
    listed: true,
    before: |_| Ok(()),
    begin: |_| Ok(()),
    meanwhile: |_| Ok(()),
    end: |_| Ok(()),
    after: |_| Ok(()),
};

/// In the order of the table.
pub(super) const FAULTS: &[Fault] = &[
    Fault {
        id: "kill",
        title: "agents killed",
        story: "`kill -9` of every agent, the manager's too; started again after 3 s. The \
                programs and maps stay: packets and new flows notice nothing",
        lasts: Duration::from_secs(3),
        begin: |scene| scene.playground.nodes().iter().try_for_each(Node::kill_agent),
        end: |scene| scene.playground.nodes().iter().try_for_each(Node::start_agent),
        ..USUAL
    },
    Fault {
        id: "upgrade",
        title: "agents replaced by another build",
        story: "workers one by one, then the manager; after 3 s back to the former build. The \
                programs are replaced in place",
        lasts: Duration::from_secs(3),
        begin: |scene| {
            let other = another_build(&scene.node(1).binary)?;
            order(scene).try_for_each(|node| {
                node.stop_agent()?;
                Node { binary: other.clone(), ..node.clone() }.start_agent()
            })
        },
        end: |scene| order(scene).try_for_each(restart),
        ..USUAL
    },
    Fault {
        id: "freeze",
        title: "an agent frozen for 10 s",
        story: "SIGSTOP, later SIGCONT, on a node with a backend. Its lease ends, so new flows go \
                to the others; what runs there goes on",
        begin: |scene| signal(scene.node(VICTIM), Signal::SIGSTOP),
        end: |scene| signal(scene.node(VICTIM), Signal::SIGCONT),
        ..USUAL
    },
    Fault {
        id: "off",
        title: "a node off for 10 s",
        story: "no link, all its processes killed; then everything anew but the agent's files. \
                New flows fail that go to its backend until it is out of the balance",
        begin: |scene| {
            scene.link(VICTIM, false)?;
            scene.node(VICTIM).kill_agent()?;
            scene.kill(ITS_BACKEND)
        },
        end: |scene| {
            scene.node(VICTIM).teardown()?;
            scene.link(VICTIM, true)?;
            scene.node(VICTIM).start_agent()?;
            scene.start(ITS_BACKEND)
        },
        ..USUAL
    },
    Fault {
        id: "cut",
        title: "a node's link cut for 10 s",
        story: "as for a node that is off, but its connections live on: TCP sends again what was \
                lost, when its own timer says so",
        begin: |scene| scene.link(VICTIM, false),
        end: |scene| scene.link(VICTIM, true),
        ..USUAL
    },
    Fault {
        id: "cut30",
        title: "a node's link cut for 30 s",
        story: "the same, longer",
        lasts: Duration::from_secs(30),
        listed: false,
        begin: |scene| scene.link(VICTIM, false),
        end: |scene| scene.link(VICTIM, true),
        ..USUAL
    },
    Fault {
        id: "manager10",
        title: "no manager for 10 minutes",
        story: "the only manager's agent is killed. A backend is killed and starts again on its \
                node, with its name and address, and the callers' agent restarts; then every \
                half minute another workload ends and starts again. Their names are right, and \
                packets reach them, all the time. Requests fail that go to the backend before it \
                is back: of its end the other nodes would learn by the manager alone",
        lasts: Duration::from_secs(600),
        rounds: Some(1),
        begin: manager_gone,
        meanwhile: guest_restarts,
        end: |scene| scene.node(1).start_agent(),
        ..USUAL
    },
    Fault {
        id: "manager",
        title: "no manager for 60 s",
        story: "the same, shorter",
        lasts: Duration::from_secs(60),
        listed: false,
        begin: manager_gone,
        meanwhile: guest_restarts,
        end: |scene| scene.node(1).start_agent(),
        ..USUAL
    },
    Fault {
        id: "full",
        title: "all disks full for 10 s",
        story: "the file systems of the agents' data, of the manager and the workers, have no room \
                left. Commands that must write are refused, naming the reason. A backend is killed, \
                and started when there is room again. Its node tells of its end although it cannot \
                write that down, but a manager tells nobody what it cannot keep: until then requests \
                fail that go to this backend",
        begin: disks_full,
        end: |scene| {
            scene.disks.iter().try_for_each(Disk::free)?;
            scene.start(ITS_BACKEND)
        },
        ..USUAL
    },
    Fault {
        id: "clock",
        title: "all clocks a day ahead for 5 s",
        story: "the wall clocks of all agents, one after the other, and back again. Meanwhile a \
                workload starts on every node, and keys of an encrypted network are renewed, as they \
                seem to be a day old, and again when they seem to be of tomorrow. Leases, checks and \
                probes know the monotonic clock alone",
        lasts: Duration::from_secs(5),
        before: clock::install,
        begin: clock::forwards,
        end: clock::back,
        after: clock::remove,
        ..USUAL
    },
    Fault {
        id: "months",
        title: "all clocks seventy days ahead for 65 s",
        story: "certificates are renewed meanwhile, and must do no harm when the clocks are right \
                again and all agents restart: the manager renews its own",
        lasts: Duration::from_secs(65),
        rounds: Some(1),
        listed: false,
        before: clock::install,
        begin: clock::months_ahead,
        end: |scene| {
            clock::ensure_renewed(scene)?;
            clock::back(scene)?;
            order(scene).try_for_each(restart)
        },
        after: clock::remove,
        ..USUAL
    },
    Fault {
        id: "half",
        title: "killed in the middle of a change",
        story: "twelve workloads start on a node at once, and its agent is killed at some moment \
                of that, and started again",
        lasts: Duration::from_secs(1),
        begin: |scene| scene.crowd(VICTIM, 12),
        end: |scene| {
            scene.node(VICTIM).start_agent()?;
            scene.disperse()
        },
        ..USUAL
    },
];

/// Kills the manager's agent, and sees what the others do alone.
fn manager_gone(scene: &mut Scene) -> Result<()> {
    let address = scene.address(ITS_BACKEND)?;
    scene.node(1).kill_agent()?;
    scene.kill(ITS_BACKEND)?;
    scene.node(CALLER).kill_agent()?;
    scene.node(CALLER).start_agent()?;
    scene.start_alone(ITS_BACKEND, &address)
}

/// Ends a workload and starts it again, without a manager.
fn guest_restarts(scene: &mut Scene) -> Result<()> {
    scene.address(ITS_BACKEND)?;
    let address = scene.address(GUEST)?;
    scene.kill(GUEST)?;
    scene.start_alone(GUEST, &address)
}

/// Leaves no room on any disk, kills a backend, and tries what has to be written.
fn disks_full(scene: &mut Scene) -> Result<()> {
    scene.disks.iter().try_for_each(Disk::fill)?;
    scene.kill(ITS_BACKEND)?;
    let backup = scene.node(1).directory.join("data/backup").display().to_string();
    for (number, words) in [
        (1, &["cluster", "backup", &backup][..]),
        (1, &["run", "--network", "net1", "--", "true"]),
        (VICTIM, &["run", "--network", "net1", "--", "true"]),
    ] {
        let output = scene.node(number).netagent(words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let line = words.join(" ");
        ensure!(!output.status.success(), "`{line}` was not refused on n{number}");
        let named = ["No space left on device", "disk is full"].iter().any(|w| said.contains(w));
        ensure!(named, "`{line}` on n{number} does not say that the disk is full: {said}");
    }
    Ok(())
}

/// Workers before the manager, as one upgrades.
fn order(scene: &Scene) -> impl Iterator<Item = &Node> {
    WORKERS.into_iter().chain([1]).map(|number| scene.node(number))
}

fn restart(node: &Node) -> Result<()> {
    node.stop_agent()?;
    node.start_agent()
}

fn signal(node: &Node, signal: Signal) -> Result<()> {
    node.agent().context("no agent runs")?.signal(signal)
}
