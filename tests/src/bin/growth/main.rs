//! What grows with what a node knows: `growth KIND COUNT NETNS DIRECTORY PINS`, in the network
//! namespace of a host whose uplink is eth0, with NETNS as that of its one workload. Prints
//! one JSON object: what it takes to plan, to program and to look at, for the whole and for
//! one change, and what a packet costs then.

mod packets;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use netagent::kernel::{Kernel, KernelConfig, object};
use netagent::model::Snapshot;
use netagent::plan::{Op, State, diff};
use netagent_common::maps;
use serde_json::json;

use world::{Kind, World};

/// Changes of which the median is told.
const CHANGES: usize = 15;
/// Entries that the table of flows has: as many as it can have.
const FLOWS: u32 = 1 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [kind, count, netns, directory, pins] = &words[..] else {
        bail!("growth KIND COUNT NETNS DIRECTORY PINS");
    };
    let kind = Kind::parse(kind)?;
    let count: usize = count.parse()?;
    let config = KernelConfig {
        run_dir: PathBuf::from(directory),
        bpf_dir: PathBuf::from(pins),
        object: object(),
        max_flows: (kind == Kind::Flows).then_some(FLOWS),
        without_tcx: false,
    };
    let mut kernel = Kernel::open(config).await?;
    let mut world = World::new(kind, count, Path::new(netns));
    let namespaces = [PathBuf::from(netns)].into();
    let mut have = kernel.observe(&namespaces).await?;
    // The links and programs are not what grows.
    let bare = World::new(Kind::Endpoints, 1, Path::new(netns));
    apply(&mut kernel, &diff(&bare.desired(), &have), &mut have).await?;

    let (want, plan) = timed(|| world.desired());
    let (ops, compare) = timed(|| diff(&want, &have));
    let writes = ops.len();
    let begin = Instant::now();
    apply(&mut kernel, &ops, &mut have).await?;
    let program = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let seen = kernel.observe(&namespaces).await?;
    let look = begin.elapsed().as_secs_f64();
    if seen != want {
        bail!("{} differences are left", diff(&want, &seen).len());
    }

    let mut parts = BTreeMap::<_, Vec<f64>>::new();
    for number in 0..CHANGES {
        let (copy, clone) = timed(|| Snapshot::clone(&world.snapshot));
        world.snapshot = Arc::new(copy);
        world.change(number);
        let (want, plan) = timed(|| world.desired());
        let (ops, compare) = timed(|| diff(&want, &have));
        let begin = Instant::now();
        apply(&mut kernel, &ops, &mut have).await?;
        let program = begin.elapsed().as_secs_f64();
        let (text, encode) = timed(|| serde_json::to_vec(&*world.snapshot));
        text?;
        let all = [
            ("copy", clone),
            ("plan", plan),
            ("compare", compare),
            ("program", program),
            ("encode", encode),
        ];
        for (part, seconds) in all {
            parts.entry(part).or_default().push(seconds);
        }
    }
    let one: BTreeMap<_, _> = parts.into_iter().map(|(part, all)| (part, median(all))).collect();
    let packet = packets::cost(kind, count, &world, Path::new(pins))?;
    let bytes: BTreeMap<_, _> =
        maps::ALL.iter().map(|name| Ok((*name, memory(pins, name)?))).collect::<Result<_>>()?;
    let whole = json!({"plan": plan, "compare": compare, "program": program, "look": look});
    println!(
        "{}",
        json!({"kind": kind.name(), "count": count, "writes": writes, "whole": whole, "one": one,
               "packet": packet, "maps": bytes})
    );
    Ok(())
}

async fn apply(kernel: &mut Kernel, ops: &[Op], have: &mut State) -> Result<()> {
    for op in ops {
        kernel
            .apply(op)
            .await
            .map_err(|error| anyhow::anyhow!("{:#}", anyhow::Error::from(error)))?;
        match op {
            Op::Put(key, value) => have.insert(key.clone(), value.clone()),
            Op::Delete(key) => have.remove(key),
        };
    }
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Bytes that the kernel accounts to a map.
fn memory(pins: &str, name: &str) -> Result<u64> {
    let version = format!("v{}", netagent_common::ABI_VERSION);
    let path = Path::new(pins).join(version).join("maps").join(name);
    let map = aya::maps::MapData::from_pin(&path)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(map.fd()));
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.context("the kernel tells no memory of a map")?.trim().parse()?)
}
