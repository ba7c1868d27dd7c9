//! A host to experiment on: a network namespace with an uplink, and workloads.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use netagent::kernel::{Kernel, KernelConfig, object};
use netagent::model::NodeId;
use netagent::plan::{Op, State, diff};
use nix::sched::{CloneFlags, setns};

/// Workloads that every bench has.
const WORKLOADS: usize = 2;

/// One host and its workloads; dropping it removes them.
pub(crate) struct Bench {
    /// Prefix of its namespaces, unique on this machine.
    name: String,
    /// Of the node that the host is.
    pub(crate) node: NodeId,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) workloads: Vec<PathBuf>,
}

impl Bench {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kernel-{}-{number}", std::process::id());
        let directory = tempfile::tempdir().unwrap();
        let mut bench = Self { name, node: NodeId::new(), directory, workloads: vec![] };
        sh(&format!("ip netns add {}", bench.name));
        for i in 1..=WORKLOADS {
            let workload = format!("{}-w{i}", bench.name);
            sh(&format!("ip netns add {workload}"));
            bench.workloads.push(Path::new("/run/netns").join(workload));
        }
        bench
    }

    /// Name of the bridges' namespace.
    pub(crate) fn bridges(&self) -> String {
        format!("na-{}", &self.node.as_str()[..11])
    }

    /// Words that run a command in the first workload.
    pub(crate) fn inside(&self) -> String {
        format!("nsenter --net={}", self.workloads[0].display())
    }

    pub(crate) fn config(&self) -> KernelConfig {
        KernelConfig {
            run_dir: self.directory.path().join("run"),
            bpf_dir: Path::new("/sys/fs/bpf").join(&self.name),
            object: object(),
            max_flows: None,
            without_tcx: false,
        }
    }

    /// The kernel module on this host, as an agent that starts has it.
    pub(crate) async fn kernel(&self) -> Kernel {
        Kernel::open(self.config()).await.unwrap()
    }

    pub(crate) fn namespaces(&self) -> BTreeSet<PathBuf> {
        self.workloads.iter().cloned().collect()
    }

    /// [`Self::settle`] by an agent with `config`.
    pub(crate) async fn settle_with(&self, config: KernelConfig, want: &State) -> Vec<Op> {
        let mut kernel = Kernel::open(config).await.unwrap();
        let have = kernel.observe(&self.namespaces()).await.unwrap();
        let ops = diff(want, &have);
        for op in &ops {
            if let Err(error) = kernel.apply(op).await {
                panic!("{:#}", anyhow::Error::from(error));
            }
        }
        let have = kernel.observe(&self.namespaces()).await.unwrap();
        assert_eq!(diff(want, &have), [], "a pass leaves nothing to do");
        assert_eq!(&have, want);
        ops
    }

    /// Observes with a fresh kernel module: what a restarted agent would see.
    pub(crate) async fn observe(&self) -> State {
        self.kernel().await.observe(&self.namespaces()).await.unwrap()
    }

    /// Brings the host from whatever it is to `want`, and checks that it is.
    pub(crate) async fn settle(&self, want: &State) -> Vec<Op> {
        self.settle_with(self.config(), want).await
    }

    /// All that other tools say of this host and its workloads, but for `lo`: that of a
    /// workload stays up.
    pub(crate) fn portrait(&self) -> Vec<String> {
        let mut text = sh(&format!("ip netns list | grep {} || true", self.bridges()));
        let spaces = self.workloads.iter().map(|w| format!("nsenter --net={} ", w.display()));
        for prefix in [String::new()].into_iter().chain(spaces) {
            text += &format!("--- {prefix}\n");
            for command in [
                "ip -o link",
                "ip -o address",
                "ip route show table all",
                "ip neigh show nud permanent",
                "bridge fdb",
                "nft list ruleset",
                "tc qdisc",
            ] {
                text += &sh(&format!("{prefix}{command}"));
            }
            text += &sh(&format!("{prefix}sysctl -a 2>/dev/null | grep -E 'net.ipv[46].conf'"));
        }
        let loopback = |line: &str| [" lo", "127.", "::1"].iter().any(|word| line.contains(word));
        text.lines().filter(|line| !loopback(line)).map(str::to_owned).collect()
    }

    /// Checks that other tools see what they saw when `before` was taken.
    #[track_caller]
    pub(crate) fn assert_unchanged_since(&self, before: &[String]) {
        let now = self.portrait();
        let only_in = |a: &[String], b: &[String]| -> Vec<String> {
            a.iter().filter(|line| !b.contains(line)).cloned().collect()
        };
        assert_eq!(only_in(&now, before), Vec::<String>::new(), "stayed behind");
        assert_eq!(only_in(before, &now), Vec::<String>::new(), "lost");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A failed test may have left more than its namespaces.
        let _ = std::fs::remove_dir_all(self.config().bpf_dir);
        let _ = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "for n in {0} {0}-w1 {0}-w2 {1}; do ip netns del $n; done 2>/dev/null",
                self.name,
                self.bridges(),
            ))
            .status();
    }
}

/// Runs `test` on a host of its own.
pub(crate) fn on_a_host(test: impl AsyncFnOnce(&Bench) + Send) {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = File::open(Path::new("/run/netns").join(&bench.name)).unwrap();
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1 || true
                ip link set lo up
                ip link add eth0 address 02:00:00:00:00:01 type veth peer name wire
                ip address add 192.168.50.11/24 dev eth0
                ip link set wire up
                ip link set eth0 up
                until ip link show eth0 | grep -q 'state UP'; do sleep 0.02; done
                until ip link show wire | grep -q 'state UP'; do sleep 0.02; done
                sysctl -qw net.ipv6.conf.default.disable_ipv6=0 || true");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test(&bench));
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a script in the namespace of the calling thread; returns what it prints.
#[track_caller]
pub(crate) fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}: {}", text(&output.stderr));
    text(&output.stdout)
}
