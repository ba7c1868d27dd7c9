//! Does the deeds. Nothing waits: what hangs on a frozen agent or a cut link hangs beside the
//! others, and ends with the playground.

use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::plan::{Deed, NETWORKS, Place, SERVICES, slots};
use crate::command::CommandExt;
use crate::node::Shell;
use crate::playground::Playground;
use crate::process::Process;
use crate::wait::eventually;

/// Longest that a command may hang.
const HANGS: &str = "60";
/// Longest that what was asked for last may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The cluster, and what was started in it.
pub(super) struct Stage {
    pub(super) playground: Playground,
    /// By slot.
    pub(super) workloads: Vec<Option<Child>>,
    /// Commands that have not ended yet, and workloads that were asked to.
    ending: Vec<Child>,
}

impl Stage {
    /// Makes the networks and services that stay.
    ///
    /// # Errors
    /// If one cannot be made.
    pub(super) fn new(playground: Playground) -> Result<Self> {
        let n1 = playground.node(1);
        for network in 0..NETWORKS {
            n1.read(&["netagent", "network", "create", &format!("net{network}")])?;
        }
        for service in 0..SERVICES {
            let words = create_service(service);
            n1.read(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        let workloads = (0..slots(playground.nodes().len())).map(|_| None).collect();
        Ok(Self { playground, workloads, ending: Vec::new() })
    }

    /// Does all of them, each at its time.
    ///
    /// # Errors
    /// If an agent cannot be started or killed, or a process not be made.
    pub(super) fn play(
        &mut self,
        plan: &[(Duration, Deed)],
        go_on: fn() -> Result<()>,
    ) -> Result<()> {
        let began = Instant::now();
        for (at, deed) in plan {
            go_on()?;
            sleep(at.saturating_sub(began.elapsed()));
            self.act(deed).with_context(|| format!("at {:.1} s: {deed}", at.as_secs_f64()))?;
            self.ending.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        }
        Ok(())
    }

    fn act(&mut self, deed: &Deed) -> Result<()> {
        let node = |number: &usize| self.playground.node(*number);
        match deed {
            Deed::KillAgent(n) => node(n).kill_agent()?,
            Deed::StartAgent(n) => node(n).begin_agent()?,
            Deed::Freeze(n) => signal(node(n).agent(), Signal::SIGSTOP)?,
            Deed::Thaw(n) => signal(node(n).agent(), Signal::SIGCONT)?,
            Deed::Cut(n) => self.link(*n, "down")?,
            Deed::Mend(n) => self.link(*n, "up")?,
            Deed::Start { slot, node, place } => self.start(*slot, *node, *place)?,
            Deed::End { slot, killed } => self.end(*slot, *killed)?,
            Deed::CreateNetwork(n) => self.ask(&["network", "create", &format!("net{n}")])?,
            Deed::RemoveNetwork(n) => self.ask(&["network", "rm", &format!("net{n}")])?,
            Deed::CreateService(n) => {
                let words = create_service(*n);
                self.ask(&words[1..].iter().map(String::as_str).collect::<Vec<_>>())?;
            }
            Deed::RemoveService(n) => self.ask(&["service", "rm", &format!("web{n}")])?,
            Deed::Schedule { service, scheduler } => {
                let service = format!("web{service}");
                self.ask(&["service", "update", "--scheduler", scheduler, &service])?;
            }
        }
        Ok(())
    }

    fn link(&self, number: usize, state: &str) -> Result<()> {
        let port = format!("n{number}");
        self.playground.wire().read(&["ip", "link", "set", &port, state]).map(drop)
    }

    fn start(&mut self, slot: usize, node: usize, place: Place) -> Result<()> {
        if self.workloads[slot].as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return Ok(());
        }
        let (name, place) = (
            format!("w{slot}"),
            match place {
                Place::Network(network) => ["--network".to_owned(), format!("net{network}")],
                Place::Service(service) => ["--service".to_owned(), format!("web{service}")],
            },
        );
        let run = ["netagent", "run", "--name", &name, &place[0], &place[1], "--stop-grace", "1s"];
        // The grace is a service's.
        let run = if place[0] == "--service" { &run[..] } else { &run[..6] };
        let words = [run, &["--", "sleep", "infinity"]].concat();
        let child = quiet(&mut self.playground.node(node).command(&words))?;
        self.workloads[slot] = Some(child);
        Ok(())
    }

    fn end(&mut self, slot: usize, killed: bool) -> Result<()> {
        let Some(mut child) = self.workloads[slot].take() else { return Ok(()) };
        if killed {
            child.kill()?;
        } else {
            signal(Process::of(child.id().cast_signed()), Signal::SIGTERM)?;
        }
        self.ending.push(child);
        Ok(())
    }

    /// Asks the manager for something; whether it does it is its affair.
    fn ask(&mut self, words: &[&str]) -> Result<()> {
        let line = [&["timeout", HANGS, "netagent"], words].concat();
        self.ending.push(quiet(&mut self.playground.node(1).command(&line))?);
        Ok(())
    }

    /// Ends all faults, and waits for what was asked for last.
    ///
    /// # Errors
    /// If an agent does not start, or a command does not end.
    pub(super) fn settle(&mut self) -> Result<()> {
        for number in 1..=self.playground.nodes().len() {
            self.link(number, "up")?;
        }
        for node in self.playground.nodes() {
            signal(node.agent(), Signal::SIGCONT)?;
            node.start_agent()?;
        }
        let ending = &mut self.ending;
        eventually("all commands to end", PATIENCE, || {
            ending.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            Ok(ending.is_empty().then_some(()))
        })
    }
}

fn signal(process: Option<Process>, signal: Signal) -> Result<()> {
    process.map_or(Ok(()), |process| process.signal(signal))
}

fn quiet(command: &mut std::process::Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("cannot start `{}`", command.line()))
}

/// Its network is one that stays; every other one publishes a port.
fn create_service(number: usize) -> Vec<String> {
    let network = format!("net{}", number % NETWORKS);
    let name = format!("web{number}");
    let mut words: Vec<String> =
        ["netagent", "service", "create", "--name", &name, "--network", &network]
            .map(str::to_owned)
            .into();
    if number.is_multiple_of(2) {
        words.extend(["-p".to_owned(), format!("{}:80", 8000 + number)]);
    }
    words
}
