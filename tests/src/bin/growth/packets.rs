//! What a packet costs: the program that sees what a workload sends, run by the kernel on one
//! packet after the other (BPF_PROG_TEST_RUN), each to somewhere else, so that no cache
//! has what it looks for from the last one.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::TestRunOptions;
use aya::programs::{SchedClassifier, TestRun as _};
use netagent::kernel::object_digest;
use netagent::model::Mac;
use netagent_common::{ABI_VERSION, programs};
use netagent_tests::packet::ethernet;
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};

use crate::world::{HERE, Kind, World, elsewhere, vip};

/// Packets that are timed.
const TIMED: usize = 20_000;
/// `TC_ACT_REDIRECT`: the packet went where it should.
const REDIRECT: u32 = 7;
/// A step that comes by every number below two to any power before it comes by one again.
const STRIDE: usize = 0x9e37_79b1;

/// Median and spread of the time in ns, to endpoints or services all over.
pub(crate) fn cost(kind: Kind, count: usize, world: &World, pins: &Path) -> Result<Value> {
    let programs = format!("v{ABI_VERSION}/progs-{}", object_digest());
    let program = pins.join(programs).join(programs::FROM_ENDPOINT);
    let runner = Runner {
        program: SchedClassifier::from_pin(&program)
            .with_context(|| format!("open {}", program.display()))?,
        context: context(if_nametoindex(world.link().as_str())?),
    };
    let scattered = |n: usize, of: usize| n.wrapping_mul(STRIDE) % of.max(1);
    let target = |n: usize| -> (Ipv4Addr, u16, u16) {
        match kind {
            Kind::Endpoints => (elsewhere(scattered(n, count)), 1000, 2000),
            Kind::Services => (vip(scattered(n, count)), 1000, 2000),
            // Each begins a flow.
            Kind::Backends(_) => (vip(0), port(n), 2000),
            Kind::Flows => {
                let flow = scattered(n, count);
                (vip(0), port(flow % 50_000), port(flow / 50_000))
            }
        }
    };
    // What is measured is the second packet of a flow, but where it is the first.
    let known = match kind {
        Kind::Flows => count,
        Kind::Services => count.min(TIMED),
        _ => 0,
    };
    for n in 0..known {
        let to = match kind {
            Kind::Flows => (vip(0), port(n % 50_000), port(n / 50_000)),
            _ => target(n),
        };
        runner.run(to)?;
    }
    let mut times = (0..TIMED).map(|n| runner.run(target(n))).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    let part = |tenths: usize| times[(times.len() - 1) * tenths / 10];
    Ok(json!({"median": part(5), "p10": part(1), "p90": part(9)}))
}

fn port(number: usize) -> u16 {
    u16::try_from(number % 50_000).expect("it is below 50,000") + 1000
}

struct Runner {
    program: SchedClassifier,
    context: [u8; 192],
}

impl Runner {
    /// Has the workload send a packet; what the program took for it, in ns.
    fn run(&self, (to, source, destination): (Ipv4Addr, u16, u16)) -> Result<u64> {
        let frame = ethernet(Mac::of(HERE).0, Mac::of(to).0)
            .ipv4(HERE, to)
            .udp(source, destination)
            .payload_of(64)
            .build();
        let result = self.program.test_run(TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&self.context),
            ..TestRunOptions::default()
        })?;
        ensure!(result.return_value == REDIRECT, "a packet to {to} was not redirected");
        Ok(u64::try_from(result.duration.as_nanos())?)
    }
}

/// `struct __sk_buff` (linux/bpf.h) of a packet that came in at an interface.
fn context(ifindex: u32) -> [u8; 192] {
    let mut bytes = [0; 192];
    bytes[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    bytes
}
