//! From `netagent service update` to the last node that has applied it: three real agents, and
//! many in one process, which follow a real manager over TLS and program a kernel of memory
//! (the program `fleet` of the tests crate).

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

use super::super::machine;
use super::super::stats::{percentile, sorted};
use super::Helper;
use super::endpoints::{cpu_time, resident};
use crate::build::{self, Profile};
use crate::node::{Datapath, Node, Shell};
use crate::playground::{Playground, Topology};

const NETWORK: &str = "fleet";
const SERVICE: &str = "web";
/// Where simulated nodes keep their files. Real ones have a disk each; these would wait for one
/// another.
const MEMORY: &str = "/dev/shm/netagent-fleet";
/// Longest that one change may take to reach all.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a wait looks whether the user wants to end.
const LOOK: Duration = Duration::from_millis(200);
/// How long a cluster is left alone before it is changed.
const REST: Duration = Duration::from_secs(5);

/// What was found with so many agents.
pub(super) struct Row {
    pub(super) agents: usize,
    real: bool,
    /// From the command until the first, the middle and the last had applied it, in s; of
    /// real agents only the last is known, when the command returns.
    changes: Vec<[f64; 3]>,
    /// CPU time of the manager for one change, and for a second in which nothing happens, in s.
    manager: [f64; 2],
    /// Resident memory of the manager, in bytes.
    memory: u64,
    /// CPU time of all other agents together for one change.
    fleet: Option<f64>,
}

impl Row {
    fn seconds(&self, which: usize, fraction: f64) -> f64 {
        let of: Vec<_> = self.changes.iter().map(|change| change[which]).collect();
        percentile(&sorted(&of), fraction).unwrap_or(f64::NAN)
    }

    /// Until the last had it: the median of the changes, and the worst.
    pub(super) fn last(&self) -> [f64; 2] {
        [self.seconds(2, 0.5), self.seconds(2, 1.0)]
    }
}

/// Measures with three real agents and with fleets, into `rows`: what was found is not lost if a
/// machine is too small for the next fleet.
pub(super) fn measure(
    helper: &Helper,
    profile: Profile,
    quick: bool,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (sizes, changes) = match quick {
        true => (&[10, 100][..], 5),
        false => (&[10, 100, 300, 1_000][..], 21),
    };
    rows.push(real(profile, changes)?);
    for size in sizes {
        let row = simulated(helper, profile, *size, changes);
        rows.push(row.with_context(|| format!("measuring with {size} agents"))?);
    }
    Ok(())
}

fn real(profile: Profile, changes: usize) -> Result<Row> {
    eprintln!("bench: 3 real agents");
    let playground = up(profile, 3)?;
    let manager = playground.node(1);
    for node in playground.nodes() {
        let name = format!("task-{}", node.name());
        node.spawn(&[
            "netagent",
            "run",
            "--service",
            SERVICE,
            "--name",
            &name,
            "--",
            "sleep",
            "infinity",
        ])?;
    }
    let tasks = || {
        let shown = manager.read(&["netagent", "service", "ps", "--format", "json", SERVICE])?;
        Ok((shown.lines().count() == 3).then_some(()))
    };
    crate::wait::eventually("three tasks", Duration::from_secs(60), tasks)?;
    let change = |number| {
        let begin = Instant::now();
        update(manager, number)?;
        Ok([f64::NAN, f64::NAN, begin.elapsed().as_secs_f64()])
    };
    row(manager, None, 3, changes, change)
}

fn simulated(helper: &Helper, profile: Profile, agents: usize, changes: usize) -> Result<Row> {
    eprintln!("bench: {agents} simulated agents");
    let playground = up(profile, 1)?;
    let manager = playground.node(1);
    let fleet = Fleet::start(helper, manager, agents)?;
    // What it has just been set up with is none of the changes.
    fleet.reach(applied(manager)?)?;
    let change = |number| {
        let begin = now();
        update(manager, number)?;
        let times = fleet.reach(applied(manager)?)?;
        Ok(times.map(|time| (time - begin) as f64 / 1e9))
    };
    row(manager, Some(&fleet), agents, changes, change)
}

/// Changes the service so often, one change after the other.
fn row(
    manager: &Node,
    fleet: Option<&Fleet>,
    agents: usize,
    changes: usize,
    mut change: impl FnMut(usize) -> Result<[f64; 3]>,
) -> Result<Row> {
    let pid = manager.agent().context("the manager has ended")?.pid;
    let used = || -> Result<[f64; 2]> {
        let fleet = fleet.map(|fleet| cpu_time(fleet.process.id().cast_signed())).transpose()?;
        Ok([cpu_time(pid)?, fleet.unwrap_or(0.0)])
    };
    let begin = used()?;
    std::thread::sleep(REST);
    let rested = used()?;
    let idle = [0, 1].map(|n| (rested[n] - begin[n]) / REST.as_secs_f64());
    let start = Instant::now();
    let all = (0..changes)
        .map(|number| {
            machine::go_on()?;
            change(number)
        })
        .collect::<Result<Vec<_>>>()?;
    let (after, time) = (used()?, start.elapsed().as_secs_f64());
    let each = [0, 1].map(|n| ((after[n] - rested[n] - idle[n] * time) / changes as f64).max(0.0));
    Ok(Row {
        agents,
        real: fleet.is_none(),
        changes: all,
        manager: [each[0], idle[0]],
        memory: resident(pid)?,
        fleet: fleet.map(|_| each[1]),
    })
}

fn up(profile: Profile, nodes: usize) -> Result<Playground> {
    let binary = build::binary(profile);
    let topology = Topology { binary, ..Topology::test("fleet", &vec![Datapath::Ebpf; nodes]) };
    let playground = Playground::up(&topology)?;
    let node = playground.node(1);
    node.read(&["netagent", "network", "create", "--subnet", "10.64.0.0/16", NETWORK])?;
    let create = ["netagent", "service", "create", "--name", SERVICE, "--network", NETWORK];
    node.read(&[&create[..], &["--publish", "8080:80"]].concat())?;
    Ok(playground)
}

/// Another scheduler: every node lays the service's ring out anew.
fn update(manager: &Node, number: usize) -> Result<()> {
    let scheduler = ["lc", "rr"][number % 2];
    manager.read(&["netagent", "service", "update", "--scheduler", scheduler, SERVICE])?;
    Ok(())
}

/// The revision that the manager itself has applied.
fn applied(manager: &Node) -> Result<u64> {
    let info = manager.read(&["netagent", "cluster", "info", "--format", "json"])?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    info["applied"].as_u64().context("`cluster info` tells no revision")
}

fn now() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has this clock");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

/// The process of many agents; ends with this.
struct Fleet {
    process: Child,
    lines: Receiver<String>,
    directory: PathBuf,
}

impl Fleet {
    /// Starts it in the manager's namespace, and waits until all have joined and have their task.
    fn start(helper: &Helper, manager: &Node, agents: usize) -> Result<Self> {
        let token = manager.read(&["netagent", "cluster", "join-token", "worker", "-q"])?;
        let directory = PathBuf::from(format!("{MEMORY}-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let mut command = manager.command(&[&helper.path("fleet").to_string_lossy()]);
        command.arg(format!("{}:2377", manager.address)).arg(token.trim()).arg(&directory);
        command.args([&agents.to_string(), NETWORK, SERVICE]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().context("cannot start the fleet")?;
        let output = process.stdout.take().expect("stdout is piped");
        let (sender, lines) = channel();
        let read = move |output: ChildStdout| {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        };
        std::thread::spawn(move || read(output));
        let fleet = Self { process, lines, directory };
        let ready = fleet.line(PATIENCE * 5).context("the fleet does not come up")?;
        anyhow::ensure!(ready == "ready", "the fleet says {ready:?}");
        Ok(fleet)
    }

    /// Waits until all have applied this revision or a later one: when the first, the middle and
    /// the last of them had (`CLOCK_MONOTONIC`, in ns).
    fn reach(&self, revision: u64) -> Result<[i64; 3]> {
        loop {
            let line = self.line(PATIENCE).context("not all agents apply it")?;
            let told: Vec<i64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            if let [reached, times @ ..] = &told[..]
                && u64::try_from(*reached)? >= revision
            {
                return times.try_into().context("the fleet tells three times");
            }
        }
    }

    /// The next line that it says within `patience`.
    fn line(&self, patience: Duration) -> Result<String> {
        let end = Instant::now() + patience;
        loop {
            machine::go_on()?;
            match self.lines.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                line => return line.context("it said nothing"),
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The rows, and what they mean.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text =
        "| agents | first, ms | middle one, ms | last, ms | last, worst, ms | manager, CPU \
                    ms | others together, CPU ms | manager, MiB | manager idle, % of a CPU |\n\
                    |--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
    let cell = |value: f64| if value.is_nan() { "-".to_owned() } else { format!("{value:.1}") };
    for row in rows {
        let [median, worst] = row.last().map(|seconds| cell(seconds * 1e3));
        let _ = writeln!(
            text,
            "| {} {} | {} | {} | {median} | {worst} | {:.1} | {} | {:.1} | {:.1} |",
            row.agents,
            if row.real { "real" } else { "simulated" },
            cell(row.seconds(0, 0.5) * 1e3),
            cell(row.seconds(1, 0.5) * 1e3),
            row.manager[0] * 1e3,
            cell(row.fleet.unwrap_or(f64::NAN) * 1e3),
            row.memory as f64 / f64::from(1 << 20),
            row.manager[1] * 1e2,
        );
    }
    text + "\nFrom the start of `netagent service update --scheduler` until all nodes have it in \
           their kernel, medians of the changes and the worst. The service is published and has \
           ten tasks at most, so every node programs each change. Real agents are three, in network \
           namespaces; for them the command itself says when the last has it. Simulated ones \
           share one process and the two CPUs with their manager: each has a control plane, a \
           stream over TLS and a loop of its own, over a kernel and a disk of memory. What they take together is what a real \
           cluster shares among its nodes.\n"
}
