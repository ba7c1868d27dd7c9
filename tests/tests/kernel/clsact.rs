//! Hooks as kernels without TCX have them, on any kernel: filters at a clsact qdisc.

use std::path::PathBuf;

use netagent::kernel::{Kernel, KernelConfig};
use netagent::model::Datapath;
use netagent::plan::{Hook, Key, Op, State, diff};
use serde_json::Value;

use crate::bench::{Bench, on_a_host, sh};
use crate::bpf::other_build;
use crate::world::World;

fn world(bench: &Bench) -> (World, State) {
    let world = World::new(Datapath::Ebpf, bench);
    let want = world.desired();
    (world, want)
}

fn config(bench: &Bench) -> KernelConfig {
    KernelConfig { without_tcx: true, ..bench.config() }
}

async fn kernel(bench: &Bench) -> Kernel {
    Kernel::open(config(bench)).await.unwrap()
}

/// What `tc` says of the filters of a link, without what it says of classifiers.
fn filters(link: &str) -> Vec<Value> {
    let text = sh(&format!("tc -j filter show dev {link} ingress"));
    let mut all: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    all.retain(|filter| filter["options"]["prog"]["id"].is_u64());
    all
}

/// Ids of the programs at the ingress of a link of the calling thread's namespace.
pub(crate) fn at_ingress(link: &str) -> Vec<u32> {
    let id = |filter: &Value| filter["options"]["prog"]["id"].as_u64()?.try_into().ok();
    filters(link).iter().filter_map(id).collect()
}

/// A filter of somebody else's: a program that is pinned elsewhere. Returns
/// the directory of its pin.
fn add_others(bench: &Bench, link: &str, place: &str) -> PathBuf {
    let own = bench.config().bpf_dir;
    let directory = PathBuf::from(format!("{}-others", own.display()));
    sh(&format!(
        "mkdir -p {0}
         [ -e {0}/other ] || bpftool prog pin pinned {1}/v*/progs-*/netagent_from_overlay {0}/other
         tc filter add dev {link} ingress {place} bpf da object-pinned {0}/other",
        directory.display(),
        own.display(),
    ));
    directory
}

async fn delete_hooks(bench: &Bench) {
    let mut kernel = kernel(bench).await;
    let have = kernel.observe(&bench.namespaces()).await.unwrap();
    for key in have.into_keys().rev().filter(|key| matches!(key, Key::Hook(..))) {
        kernel.apply(&Op::Delete(key)).await.unwrap();
    }
}

#[test]
fn filters_carry_and_other_tools_see_them() {
    on_a_host(async |bench| {
        let (world, want) = world(bench);
        assert!(!bench.settle_with(config(bench), &want).await.is_empty());
        assert_eq!(bench.settle_with(config(bench), &want).await, []);
        sh(&format!("{} ping -c 3 -i 0.1 -W 2 10.0.0.3", bench.inside()));
        let link = world.link();
        for (link, name) in [
            ("eth0", "netagent_from_uplink"),
            ("na-vxlan", "netagent_from_overlay"),
            (link.as_str(), "netagent_from_endpoint"),
        ] {
            let all = filters(link);
            let [filter] = all.as_slice() else { panic!("{link}: {all:?}") };
            assert_eq!(filter["pref"], 110);
            assert_eq!(filter["protocol"], "all");
            assert_eq!(filter["options"]["bpf_name"], name);
            assert_eq!(filter["options"]["direct-action"], true);
        }
    });
}

#[test]
fn nothing_stays_behind() {
    on_a_host(async |bench| {
        let before = bench.portrait();
        let (_, want) = world(bench);
        bench.settle_with(config(bench), &want).await;
        kernel(bench).await.teardown().await.unwrap();
        bench.assert_unchanged_since(&before);
        assert_eq!(sh("tc qdisc show dev lo clsact"), "");
        assert!(!bench.config().bpf_dir.exists());
        assert_eq!(std::fs::read_dir(bench.config().run_dir).unwrap().count(), 0);
    });
}

#[test]
fn what_is_removed_by_hand_is_seen_and_mended() {
    on_a_host(async |bench| {
        let (world, want) = world(bench);
        bench.settle_with(config(bench), &want).await;
        let mut kernel = kernel(bench).await;
        let damages = [
            "tc filter del dev eth0 ingress".to_owned(),
            "tc qdisc del dev eth0 clsact".to_owned(),
            format!("tc qdisc del dev {} clsact", world.link()),
            format!("rm -r {}", bench.config().bpf_dir.display()),
        ];
        for damage in damages {
            sh(&damage);
            let have = kernel.observe(&bench.namespaces()).await.unwrap();
            for op in diff(&want, &have) {
                kernel.apply(&op).await.unwrap();
            }
            assert_ne!(have, want, "{damage}: not seen");
            assert_eq!(bench.settle_with(config(bench), &want).await, []);
            assert_eq!(at_ingress("eth0").len(), 1, "{damage}");
            sh(&format!("{} ping -c 1 -W 2 10.0.0.3", bench.inside()));
        }
        kernel.teardown().await.unwrap();
        assert_eq!(sh("tc qdisc show dev eth0 clsact"), "");
    });
}

#[test]
fn another_build_takes_over_in_place() {
    on_a_host(async |bench| {
        let (mut world, want) = world(bench);
        bench.settle_with(config(bench), &want).await;
        let before = at_ingress("eth0");
        let (other, new) = other_build(bench, &mut world);
        let other = KernelConfig { without_tcx: true, ..other };
        let ops = bench.settle_with(other, &new).await;
        assert!(ops.iter().all(|op| matches!(op, Op::Put(Key::Hook(..), _))), "{ops:?}");
        let after = at_ingress("eth0");
        assert_eq!(after.len(), 1);
        assert_ne!(after, before);
    });
}

#[test]
fn filters_and_qdiscs_of_others_stay() {
    on_a_host(async |bench| {
        let (_, want) = world(bench);
        sh("tc qdisc add dev eth0 clsact");
        bench.settle_with(config(bench), &want).await;
        let theirs = add_others(bench, "eth0", "prio 50");
        add_others(bench, "lo", "prio 50");
        assert_eq!(at_ingress("eth0").len(), 2);
        bench.settle_with(config(bench), &want).await;
        delete_hooks(bench).await;
        // A qdisc that was there before, and one that they came to use.
        for link in ["eth0", "lo"] {
            assert_eq!(at_ingress(link).len(), 1, "{link}");
            assert_ne!(sh(&format!("tc qdisc show dev {link} clsact")), "");
        }
        kernel(bench).await.teardown().await.unwrap();
        assert_eq!(at_ingress("eth0").len(), 1);
        assert_eq!(std::fs::read_dir(bench.config().run_dir).unwrap().count(), 0);
        sh(&format!("rm -r {}", theirs.display()));
    });
}

#[test]
fn a_filter_of_others_in_our_place_is_named_and_stays() {
    on_a_host(async |bench| {
        let (_, want) = world(bench);
        bench.settle_with(config(bench), &want).await;
        let place = filters("eth0")[0]["options"]["handle"].as_str().unwrap().to_owned();
        sh("tc filter del dev eth0 ingress");
        let theirs = add_others(bench, "eth0", &format!("prio 110 handle {place}"));
        let uplink = Key::Hook("eth0".into(), Hook::FromUplink);
        let mut kernel = kernel(bench).await;
        let have = kernel.observe(&bench.namespaces()).await.unwrap();
        assert!(!have.contains_key(&uplink));
        let error = kernel.apply(&Op::Put(uplink.clone(), want[&uplink].clone())).await;
        let error = format!("{:#}", anyhow::Error::from(error.unwrap_err()));
        assert!(error.contains("tc filter del dev eth0"), "{error}");
        kernel.teardown().await.unwrap();
        assert_eq!(at_ingress("eth0").len(), 1);
        sh(&format!("rm -r {}", theirs.display()));
    });
}
