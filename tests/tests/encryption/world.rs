//! A cluster with an encrypted network, and a capture of all that crosses its wire.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use netagent_tests::lab::{Workload, eventually, inspect, must, three, verify};
use xtask::node::{Datapath, Shell as _};
use xtask::playground::Playground;

/// The network.
pub(crate) const NET: &str = "secret";
/// Whatever would be readable: VXLAN on both ports, but for the probes of paths (VNI 0).
const CLEAR: &str = "udp and (port 4789 or port 4790) and udp[12:4] & 0xffffff00 != 0";

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
    for _ in 0..20 {
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
        let line = ["tcpdump", "-Z", "root", "-U", "-s", "96", "-i", "br0", "-w", &path];
        let filter = ["udp or esp"];
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
        let clear = self.lines(CLEAR);
        assert!(clear.is_empty(), "in clear:\n{clear}");
        assert!(self.count("esp") > 0, "nothing was captured");
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // Already gone is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A ping for as long as something else goes on.
pub(crate) struct Ping(Child);

impl Ping {
    /// Every 20 ms, so many times.
    pub(crate) fn start(from: &Workload, to: &Workload, count: u32) -> Self {
        let (to, count) = (to.ip(), count.to_string());
        let line = ["ping", "-n", "-q", "-i", "0.02", "-c", &count, &to];
        let child = from.command(&line).stdout(Stdio::piped()).spawn().expect("ping");
        Self(child)
    }

    /// Whether it goes on.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.0.try_wait().expect("waiting").is_none()
    }

    /// Waits for its end; not one packet is lost.
    #[track_caller]
    pub(crate) fn lost_nothing(self) {
        let said = must(Ok(self.0.wait_with_output().expect("ping")));
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
}
