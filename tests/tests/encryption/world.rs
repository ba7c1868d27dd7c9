//! A cluster with an encrypted network, and a capture of all that crosses its wire.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use netagent_tests::lab::{Workload, eventually_within, inspect, must, three, verify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::node::{Datapath, Shell as _};
use xtask::playground::Playground;

/// The network.
pub(crate) const NET: &str = "secret";
/// Whatever would be readable: VXLAN on both ports, but for the probes of paths (VNI 0).
const CLEAR: &str = "udp and (port 4789 or port 4790) and udp[12:4] & 0xffffff00 != 0";

/// Longest that something may take which must happen: these tests run where processors are
/// emulated.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until `done` says yes.
#[track_caller]
pub(crate) fn eventually(what: &str, done: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, done);
}

/// What the kernel of these nodes lacks, if it lacks anything.
pub(crate) fn missing(cluster: &Playground) -> Option<String> {
    let node = inspect(cluster.node(1), "node", "n1");
    node["ipsec"]["missing"].as_str().map(str::to_owned)
}

/// Three eBPF nodes with the network; none, and `SKIP`, where the kernel cannot encrypt.
pub(crate) fn cluster(test: &str) -> Option<Playground> {
    let cluster = three([Datapath::Ebpf; 3]);
    if let Some(missing) = missing(&cluster) {
        println!("SKIP: {test}: {missing}");
        return None;
    }
    must(cluster.node(1).netagent(&["network", "create", "--opt", "encrypted", NET]));
    Some(cluster)
}

/// A workload on the network.
pub(crate) fn workload(cluster: &Playground, node: usize) -> Workload {
    Workload::start(cluster.node(node), &["--network", NET])
}

/// Pings one from the other's node, as soon as both ends have keys; if that never comes about,
/// with all that the kernels say of why.
#[track_caller]
pub(crate) fn reaches(cluster: &Playground, from: &Workload, to: &Workload) {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if from.pings(&to.ip(), 56) {
            return;
        }
    }
    let script = "netagent metrics | grep -v ' 0 *0 *$'; grep -v '\t0$' /proc/net/xfrm_stat; \
                  ip -s xfrm state | grep -v -e rfc4106; ip xfrm policy; ip -s link; \
                  netagent verify; netagent node inspect n1 n2";
    for node in cluster.nodes() {
        let said = node.exec(&["bash", "-c", script]).expect("bash");
        println!("--- {}\n{}", node.name(), String::from_utf8_lossy(&said.stdout));
    }
    panic!("{} does not reach {}", from.ip(), to.ip());
}

/// The state of every node is what it should be.
pub(crate) fn settled(cluster: &Playground) {
    eventually("every node has what it should", || {
        cluster.nodes().iter().all(|node| {
            let verified = verify(node);
            let empty = |what: &str| verified[what].as_array().is_some_and(Vec::is_empty);
            empty("differences") && empty("errors")
        })
    });
}

/// Epoch of the newest keys.
pub(crate) fn epoch(cluster: &Playground) -> u64 {
    let info = must(cluster.node(1).netagent(&["cluster", "info", "--format", "json"]));
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    info["keys"]["epoch"].as_u64().expect("an epoch")
}

/// tcpdump on the bridge.
pub(crate) struct Capture<'a> {
    cluster: &'a Playground,
    child: Child,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl<'a> Capture<'a> {
    /// Begins.
    pub(crate) fn start(cluster: &'a Playground) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("wire.pcap");
        let path = file.to_string_lossy().into_owned();
        // As root, and a packet at a time; the start of each is enough.
        let line = ["tcpdump", "-Z", "root", "-U", "--immediate-mode", "-s", "96", "-i", "br0"];
        let filter = ["-w", &path, "udp or esp or tcp"];
        let mut command = cluster.wire().command(&[&line[..], &filter].concat());
        let child = command.stderr(Stdio::null()).spawn().expect("tcpdump");
        // The header of the file is written when it listens.
        eventually("tcpdump listens", || std::fs::metadata(&file).is_ok_and(|m| m.len() > 0));
        Self { cluster, child, file, _dir: dir }
    }

    /// Packets so far that match a filter.
    pub(crate) fn count(&self, filter: &str) -> usize {
        self.lines(filter).lines().count()
    }

    fn lines(&self, filter: &str) -> String {
        let path = self.file.to_string_lossy().into_owned();
        let read = self.cluster.wire().exec(&["tcpdump", "-n", "-r", &path, filter]);
        // The last packet may not be whole yet.
        String::from_utf8_lossy(&read.expect("tcpdump").stdout).into_owned()
    }

    /// Panics if anything of a network was readable, or nothing was there at all.
    #[track_caller]
    pub(crate) fn is_encrypted(&self) {
        eventually("something is captured", || self.count("esp") > 0);
        let clear = self.lines(CLEAR);
        assert!(clear.is_empty(), "in clear:\n{clear}");
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // Already gone is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A ping every 20 ms, for as long as something else goes on.
pub(crate) struct Ping {
    child: Child,
    /// What it prints.
    said: tempfile::NamedTempFile,
}

impl Ping {
    /// Until it is ended.
    pub(crate) fn start(from: &Workload, to: &Workload) -> Self {
        Self::with(from, to, &[])
    }

    /// So many times.
    pub(crate) fn times(from: &Workload, to: &Workload, count: u32) -> Self {
        Self::with(from, to, &["-c", &count.to_string()])
    }

    fn with(from: &Workload, to: &Workload, options: &[&str]) -> Self {
        let said = tempfile::NamedTempFile::new().expect("a file");
        let to = to.ip();
        let line = [&["ping", "-n", "-i", "0.02"][..], options, &[&to]].concat();
        let out = said.reopen().expect("the file");
        let child = from.command(&line).stdout(out).spawn().expect("ping");
        Self { child, said }
    }

    /// Ends it, if it goes on for ever.
    pub(crate) fn end(&self) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGINT).expect("a signal");
    }

    /// Waits for its end; every packet was answered, but for what was under way then.
    #[track_caller]
    pub(crate) fn lost_nothing(mut self) {
        self.child.wait().expect("ping");
        let said = std::fs::read_to_string(self.said.path()).expect("what it printed");
        let number = |line: &str, after: &str| -> Option<u32> {
            line.split_once(after)?.1.split(' ').next()?.parse().ok()
        };
        let answered: BTreeSet<_> =
            said.lines().filter_map(|line| number(line, "icmp_seq=")).collect();
        let last = *answered.last().expect("an answer");
        let lost: Vec<_> = (1..last).filter(|seq| !answered.contains(seq)).collect();
        assert!(lost.is_empty(), "of {last} were lost: {lost:?}");
        let end = said.lines().find(|line| line.contains(" packets transmitted"));
        let sent: u32 = end.and_then(|line| line.split(' ').next()?.parse().ok()).expect("a count");
        assert!(sent - last < 50, "nothing was answered from {last} to {sent}");
    }
}
