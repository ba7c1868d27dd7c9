//! Maps, programs and hooks.

use std::path::PathBuf;
use std::time::Duration;

use aya::programs::{SchedClassifier, TcAttachType};
use netagent::kernel::{Kernel, KernelConfig, counters, object};
use netagent::model::Datapath;
use netagent::plan::{Hook, Key, MapKey, Op, State, Value, diff};
use netagent_common::{ABI_VERSION, Counter, maps};
use nix::sched::{CloneFlags, unshare};
use xtask::wait::eventually;

use crate::bench::{Bench, on_a_host, sh};
use crate::clsact;
use crate::world::World;

fn version(bench: &Bench) -> PathBuf {
    bench.config().bpf_dir.join(format!("v{ABI_VERSION}"))
}

/// Pins of a directory under the version.
fn pins(bench: &Bench, directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(version(bench).join(directory)).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The kernel detaches a link some time after its last pin went.
#[track_caller]
fn eventually_at_ingress(link: &str, wanted: &[u32]) {
    eventually("the programs at the link", Duration::from_secs(10), || {
        Ok((at_ingress(link) == wanted).then_some(()))
    })
    .unwrap();
}

fn world(bench: &Bench) -> (World, State) {
    let world = World::new(Datapath::Ebpf, bench);
    let want = world.desired();
    (world, want)
}

/// Whether programs are attached by TCX.
fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// Ids of the programs at the ingress of a link of the calling thread's namespace.
fn at_ingress(link: &str) -> Vec<u32> {
    if !has_tcx() {
        return clsact::at_ingress(link);
    }
    let (_, programs) = SchedClassifier::query_tcx(link, TcAttachType::Ingress).unwrap();
    programs.iter().map(aya::programs::ProgramInfo::id).collect()
}

/// What an agent of another build carries: the same programs, another digest.
pub(crate) fn other_build(bench: &Bench, world: &mut World) -> (KernelConfig, State) {
    let mut object = object().to_vec();
    object.push(0);
    // One for the whole run of the tests.
    let object: &'static [u8] = Box::leak(object.into_boxed_slice());
    world.me.object = String::new();
    let mut want = world.desired();
    let digest = sh_digest(object);
    for value in want.values_mut() {
        if let Value::Program(program) = value {
            program.clone_from(&digest);
        }
    }
    (KernelConfig { object, ..bench.config() }, want)
}

/// The digest by another tool.
fn sh_digest(object: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), object).unwrap();
    sh(&format!("sha256sum {}", file.path().display()))[..16].to_owned()
}

#[test]
fn applied_is_observed_and_a_restart_writes_nothing() {
    on_a_host(async |bench| {
        let (_, want) = world(bench);
        assert!(want.keys().any(|k| matches!(k, Key::Hook(..))));
        assert!(!bench.settle(&want).await.is_empty());
        assert_eq!(bench.settle(&want).await, []);
    });
}

#[test]
fn nothing_stays_behind() {
    on_a_host(async |bench| {
        let before = bench.portrait();
        let (_, want) = world(bench);
        bench.settle(&want).await;
        let mut removed = bench.kernel().await.teardown().await.unwrap();
        removed.reverse();
        // Workloads are not looked into: what is there goes with the links.
        let outside = |key: &&Key| {
            !matches!(key, Key::Address(..) | Key::Route(netagent::plan::Ns::At(_), _))
        };
        assert_eq!(removed, want.keys().filter(outside).cloned().collect::<Vec<_>>());
        bench.assert_unchanged_since(&before);
        assert!(!bench.config().bpf_dir.exists());

        bench.settle(&want).await;
        bench.settle(&State::new()).await;
        bench.assert_unchanged_since(&before);
        assert!(!bench.config().bpf_dir.exists());
        eventually_at_ingress("eth0", &[]);
    });
}

#[test]
fn the_kernel_datapath_loads_nothing() {
    on_a_host(async |bench| {
        let config = KernelConfig { object: &[], ..bench.config() };
        let want = World::new(Datapath::Kernel, bench).desired();
        bench.settle_with(config.clone(), &want).await;
        assert!(!config.bpf_dir.exists());
        Kernel::open(config).await.unwrap().teardown().await.unwrap();
    });
}

#[test]
fn an_agent_without_programs_still_clears_up_after_one_with() {
    on_a_host(async |bench| {
        let (_, want) = world(bench);
        bench.settle(&want).await;
        let config = KernelConfig { object: &[], ..bench.config() };
        let kernel = World::new(Datapath::Kernel, bench).desired();
        // The first pass finds the UDP port taken by the device that it then removes.
        let mut agent = Kernel::open(config.clone()).await.unwrap();
        let have = agent.observe(&bench.namespaces()).await.unwrap();
        let mut errors = 0;
        for op in diff(&kernel, &have) {
            errors += usize::from(agent.apply(&op).await.is_err());
        }
        assert!(errors > 0);
        bench.settle_with(config.clone(), &kernel).await;
        assert!(!config.bpf_dir.exists());
        eventually_at_ingress("eth0", &[]);
    });
}

#[test]
fn other_tools_see_maps_and_programs() {
    on_a_host(async |bench| {
        let (world, want) = world(bench);
        bench.settle(&want).await;
        assert_eq!(pins(bench, "maps"), {
            let mut names = maps::ALL.map(str::to_owned);
            names.sort();
            names
        });
        let dump = |map: &str| {
            let path = version(bench).join("maps").join(map);
            let json = sh(&format!("bpftool -j map dump pinned {}", path.display()));
            serde_json::from_str::<serde_json::Value>(&json).unwrap()
        };
        let link = world.link();
        let index: u64 = sh(&format!(
            "cat /sys/class/net/{link}/ifindex || ip -o link show {link} | cut -d: -f1"
        ))
        .trim()
        .parse()
        .unwrap();
        let ports = dump("PORTS");
        let port =
            ports.as_array().unwrap().iter().find(|p| p["formatted"]["key"] == index).unwrap();
        assert_eq!(port["formatted"]["value"]["ip"], serde_json::json!([10, 0, 0, 2]));
        assert_eq!(port["formatted"]["value"]["mtu"], 1450);
        assert_eq!(dump("PEERS")[0]["formatted"]["key"], serde_json::json!([192, 168, 50, 12]));
        assert_eq!(dump("ENDPOINTS").as_array().unwrap().len(), 6);
        let service = &dump("SERVICES")[0]["formatted"]["value"];
        assert_eq!(service["slots"], 3);
        assert_eq!(service["affinity"], 60);
        assert_eq!(service["idle"], 900);
        let published = dump("PUBLISHED");
        let targets: Vec<_> = published
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                let (key, value) = (&entry["formatted"]["key"], &entry["formatted"]["value"]);
                assert_eq!(value["allowed"] == 0, key["protocol"] == 17, "{entry}");
                value["ip"].to_string()
            })
            .collect();
        let leads_to = |ip: &str| targets.iter().filter(|target| *target == ip).count();
        assert_eq!((leads_to("[10,0,0,200]"), leads_to("[10,0,0,3]")), (2, 2), "{published}");
        assert_eq!(dump("ALLOWED").as_array().unwrap().len(), 1);
        for pin in pins(bench, "links") {
            let path = version(bench).join("links").join(&pin);
            let shown = sh(&format!("bpftool -j link show pinned {}", path.display()));
            let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
            let program = u32::try_from(shown["prog_id"].as_u64().unwrap()).unwrap();
            let (index, _) = pin.split_once('-').unwrap();
            let link = sh(&format!(
                "ip -o link | grep '^{index}:' | cut -d' ' -f2 | cut -d@ -f1 | tr -d :"
            ));
            assert_eq!(at_ingress(link.trim()), [program], "{pin}");
        }
    });
}

#[test]
fn programs_stay_when_the_agent_is_gone_and_carry() {
    on_a_host(async |bench| {
        let (_, want) = world(bench);
        bench.settle(&want).await;
        // No kernel module is there now.
        sh(&format!("{} ping -c 3 -i 0.1 -W 2 10.0.0.3", bench.inside()));
        let counters = counters(&bench.config().bpf_dir).unwrap();
        assert_eq!(counters.len(), Counter::ALL.len());
        let (_, delivered) =
            counters.iter().find(|(c, _)| *c == Counter::DeliveredLocally).unwrap();
        assert!(delivered.packets >= 6, "{counters:?}");
        assert!(delivered.bytes >= 6 * 98, "{counters:?}");
    });
}

#[test]
fn another_build_takes_over_in_place() {
    on_a_host(async |bench| {
        let (mut world, want) = world(bench);
        bench.settle(&want).await;
        let before = at_ingress("eth0");
        let links = pins(bench, "links");
        sh(&format!("{} ping -c 1 -W 2 10.0.0.3", bench.inside()));
        let (config, new) = other_build(bench, &mut world);
        assert_ne!(new, want);
        let ops = bench.settle_with(config, &new).await;
        assert!(ops.iter().all(|op| matches!(op, Op::Put(Key::Hook(..), _))), "{ops:?}");
        assert_ne!(at_ingress("eth0"), before);
        assert_eq!(at_ingress("eth0").len(), 1);
        assert_eq!(pins(bench, "links"), links);
        let directories = pins(bench, "");
        assert_eq!(directories.len(), 3, "{directories:?}");
        let counters = counters(&bench.config().bpf_dir).unwrap();
        assert!(counters.iter().any(|(_, count)| count.packets > 0), "counters start again");
        sh(&format!("{} ping -c 1 -W 2 10.0.0.3", bench.inside()));
        // And back.
        let ops = bench.settle(&want).await;
        assert!(ops.iter().all(|op| matches!(op, Op::Put(Key::Hook(..), _))), "{ops:?}");
    });
}

type Damage = fn(&World, &Bench) -> String;

const DAMAGES: &[Damage] = &[
    |_, b| map(b, "delete", "PEERS", "key 192 168 50 12"),
    |_, b| map(b, "update", "PEERS", "key 192 168 50 13 value 0 0 0 0"),
    |_, b| map(b, "update", "PEERS", "key 192 168 50 12 value 1 0 0 0"),
    |_, b| map(b, "update", "NETWORKS", "key 0 16 0 0 value 10 0 0 9 170 5 0 0"),
    |_, b| map(b, "update", "NETWORKS", "key 9 16 0 0 value 10 0 0 9 170 5 0 0"),
    |_, b| map(b, "update", "SUBNETS", "key 16 0 0 0 10 9 0 0 value 1 0 0 0"),
    |_, b| map(b, "delete", "ENDPOINTS", "key 0 16 0 0 10 0 0 4"),
    |_, b| {
        let value = "2 0 0 0 0 0 0 0 0 0 0 0 1 2 3 4 0 0 0 0";
        map(b, "update", "ENDPOINTS", &format!("key 0 16 0 0 10 0 0 4 value {value}"))
    },
    |_, b| map(b, "update", "CONFIG", &format!("key 0 0 0 0 value {}", "0 ".repeat(28))),
    |_, b| {
        let value = "0 ".repeat(28);
        map(b, "update", "PORTS", &format!("key 99 0 0 0 value {value}"))
    },
    |_, b| map(b, "delete", "ENDPOINTS", "key 0 16 0 0 10 0 0 200"),
    |_, b| {
        let (key, value) = ("key 0 16 0 0 10 0 0 200", "0 0 0 0 0 0 0 0 0 0 0 0 1 2 3 4 0 0 0 0");
        map(b, "update", "ENDPOINTS", &format!("{key} value {value}"))
    },
    |_, b| map(b, "delete", "SERVICES", "key 0 16 0 0 10 0 0 200"),
    |_, b| {
        let value = "0 ".repeat(20);
        map(b, "update", "SERVICES", &format!("key 9 16 0 0 10 0 0 200 value {value}"))
    },
    // Whichever half is in force.
    |_, b| format!("{} || {}", slot(b, "delete", 0, 1, ""), slot(b, "delete", 1, 1, "")),
    |_, b| {
        let value = "value 10 0 0 9 1 0 0 0";
        format!("{}; {}", slot(b, "update", 0, 0, value), slot(b, "update", 1, 0, value))
    },
    |_, b| slot(b, "update", 0, 100, "value 10 0 0 3 1 0 0 0"),
    |_, b| slot(b, "update", 7, 0, "value 10 0 0 3 1 0 0 0"),
    |_, b| map(b, "delete", "PUBLISHED", "key 127 0 0 1 31 144 6 0"),
    |_, b| {
        let value = "0 ".repeat(20);
        map(b, "update", "PUBLISHED", &format!("key 192 168 50 11 31 144 6 0 value {value}"))
    },
    |_, b| {
        let value = "0 ".repeat(20);
        map(b, "update", "PUBLISHED", &format!("key 1 2 3 4 0 80 6 0 value {value}"))
    },
    |_, b| map(b, "update", "ALLOWED", "key 48 0 0 0 7 0 0 0 10 9 0 0 value 1 0 0 0"),
    |_, b| map(b, "update", "VIRTUAL", "key 10 0 0 200 0 80 6 0 value 1 0 0 0"),
    |_, _| "sysctl -qw net.ipv4.conf.lo.route_localnet=0".into(),
    |_, _| "sysctl -qw net.ipv4.conf.lo.accept_local=0".into(),
    |_, b| detach(b, "lo", "1-from_host"),
    |_, b| format!("rm {}/maps/FLOWS", version(b).display()),
    |_, b| format!("rm {}/maps/RING", version(b).display()),
    |_, b| detach(b, "eth0", "*-from_uplink"),
    |_, b| format!("rm {}/maps/PEERS", version(b).display()),
    |_, b| format!("rm {}/progs-*/netagent_from_uplink", version(b).display()),
    |_, b| format!("rm -r {}/progs-*", version(b).display()),
    |_, b| format!("rm -r {}", version(b).display()),
    |_, b| format!("rm -r {}", b.config().bpf_dir.display()),
    |w, _| format!("ip link del {}", w.link()),
    |_, _| "ip link del na-vxlan".into(),
];

fn map(bench: &Bench, verb: &str, name: &str, rest: &str) -> String {
    format!("bpftool map {verb} pinned {}/maps/{name} {rest}", version(bench).display())
}

fn detach(bench: &Bench, link: &str, pin: &str) -> String {
    if has_tcx() {
        format!("rm {}/links/{pin}", version(bench).display())
    } else {
        format!("tc filter del dev {link} ingress")
    }
}

/// About a slot of the service's ring.
fn slot(bench: &Bench, verb: &str, half: u8, slot: u8, value: &str) -> String {
    let key = format!("key 0 16 0 0 10 0 0 200 {slot} 0 0 0 {half} 0 0 0");
    map(bench, verb, "RING", &format!("{key} {value}"))
}

#[test]
fn every_damage_is_seen_and_mended() {
    on_a_host(async |bench| {
        let (world, want) = world(bench);
        bench.settle(&want).await;
        // One that has been running all the time, too.
        let mut running = bench.kernel().await;
        for damage in DAMAGES {
            let damage = damage(&world, bench);
            println!("{damage}");
            sh(&damage);
            assert_ne!(bench.observe().await, want, "not seen");
            let have = running.observe(&bench.namespaces()).await.unwrap();
            for op in diff(&want, &have) {
                running.apply(&op).await.unwrap();
            }
            assert_eq!(bench.settle(&want).await, []);
            sh(&format!("{} ping -c 1 -W 2 10.0.0.3", bench.inside()));
        }
        assert_eq!(at_ingress("eth0").len(), 1);
    });
}

/// The slots of all rings, as half, number and backend.
fn slots(bench: &Bench) -> Vec<(u64, u64, String)> {
    let path = version(bench).join("maps/RING");
    let dump = sh(&format!("bpftool -j map dump pinned {}", path.display()));
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let slot = |entry: &serde_json::Value| {
        let (key, value) = (&entry["formatted"]["key"], &entry["formatted"]["value"]);
        (key["half"].as_u64().unwrap(), key["slot"].as_u64().unwrap(), value["ip"].to_string())
    };
    let mut slots: Vec<_> = dump.as_array().unwrap().iter().map(slot).collect();
    slots.sort();
    slots
}

#[test]
fn a_ring_changes_over_from_half_to_half() {
    on_a_host(async |bench| {
        let (mut world, want) = world(bench);
        bench.settle(&want).await;
        let (a, b) = ("[10,0,0,3]".to_owned(), "[10,0,0,4]".to_owned());
        assert_eq!(slots(bench), [(0, 0, b.clone()), (0, 1, a.clone()), (0, 2, b)]);
        world.drain();
        let ops = bench.settle(&world.desired()).await;
        let kinds: Vec<_> = ops
            .iter()
            .map(|op| match op {
                Op::Put(Key::Map(MapKey::Endpoint(..)), _) => "endpoint",
                Op::Put(Key::Map(MapKey::Service(..)), _) => "service",
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(kinds, ["endpoint", "service"], "nothing else is written");
        assert_eq!(slots(bench), [(1, 0, a)]);
        // And back, with what another left there in the way.
        sh(&slot(bench, "update", 0, 1, "value 10 0 0 9 1 0 0 0"));
        bench.settle(&want).await;
        assert_eq!(slots(bench).len(), 3);
        bench.settle(&State::new()).await;
    });
}

#[test]
fn the_table_of_flows_has_the_size_asked_for_and_keeps_it() {
    on_a_host(async |bench| {
        let (_, want) = world(bench);
        let size = || {
            let path = version(bench).join("maps/FLOWS");
            let shown = sh(&format!("bpftool -j map show pinned {}", path.display()));
            let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
            assert_eq!(shown["type"], "lru_hash");
            shown["max_entries"].as_u64().unwrap()
        };
        bench.settle_with(KernelConfig { max_flows: Some(5000), ..bench.config() }, &want).await;
        assert_eq!(size(), 5000);
        sh(&format!("rm -r {}/progs-*", version(bench).display()));
        bench.settle_with(KernelConfig { max_flows: Some(6000), ..bench.config() }, &want).await;
        assert_eq!(size(), 5000, "the flows in it go on");
    });
}

#[test]
fn a_link_that_went_leaves_no_entry_and_no_pin() {
    on_a_host(async |bench| {
        let (mut world, want) = world(bench);
        bench.settle(&want).await;
        let mut kernel = bench.kernel().await;
        let have = kernel.observe(&bench.namespaces()).await.unwrap();
        let link = world.link();
        let gone = world.workloads.remove(0);
        for attachment in &gone.attachments {
            world.snapshot.endpoints.remove(&attachment.endpoint.id);
        }
        sh(&format!("ip link del {link}"));
        let want = world.desired();
        for op in diff(&want, &have) {
            kernel.apply(&op).await.unwrap();
        }
        // What could not be found by name is found by number.
        let have = kernel.observe(&bench.namespaces()).await.unwrap();
        let rest = diff(&want, &have);
        assert!(
            matches!(rest.as_slice(), [Op::Delete(Key::Map(MapKey::Port(name)))] if name.starts_with('#')),
            "{rest:?}"
        );
        bench.settle(&want).await;
        // Uplink, vxlan, one endpoint, loopback.
        assert_eq!(pins(bench, "links").len(), if has_tcx() { 4 } else { 0 });
    });
}

async fn error(bench: &Bench, config: KernelConfig) -> String {
    let mut kernel = Kernel::open(config).await.unwrap();
    let (_, want) = world(bench);
    let (key, value) = want.iter().find(|(k, _)| matches!(k, Key::Map(MapKey::Peer(_)))).unwrap();
    let error = kernel.apply(&Op::Put(key.clone(), value.clone())).await.unwrap_err();
    format!("{:#}", anyhow::Error::from(error))
}

#[test]
fn a_pinned_map_of_another_shape_is_refused_by_name() {
    on_a_host(async |bench| {
        let (_, want) = world(bench);
        bench.settle(&want).await;
        let version = version(bench);
        sh(&format!(
            "rm -r {0}/progs-*
             rm {0}/maps/PEERS
             bpftool map create {0}/maps/PEERS type hash key 4 value 4 entries 7 name PEERS",
            version.display()
        ));
        let error = error(bench, bench.config()).await;
        assert!(error.contains("maps/PEERS") && error.contains("7 entries"), "{error}");
        assert!(error.contains("--teardown"), "{error}");
        bench.kernel().await.teardown().await.unwrap();
        bench.settle(&want).await;
    });
}

#[test]
fn a_directory_that_takes_no_pins_is_refused() {
    on_a_host(async |bench| {
        let bpf_dir = bench.directory.path().join("bpf");
        let error = error(bench, KernelConfig { bpf_dir, ..bench.config() }).await;
        assert!(error.contains("not in a BPF file system"), "{error}");
    });
}

#[test]
fn a_missing_bpf_file_system_is_mounted() {
    on_a_host(async |bench| {
        // In a mount namespace of this thread's own.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        sh("mount --make-rprivate /; while umount /sys/fs/bpf 2>/dev/null; do :; done");
        assert_eq!(sh("stat -f -c %T /sys/fs/bpf").trim(), "sysfs");
        let (_, want) = world(bench);
        bench.settle(&want).await;
        assert_eq!(sh("stat -f -c %T /sys/fs/bpf").trim(), "bpf_fs");
        assert_eq!(sh("grep -c ' /sys/fs/bpf ' /proc/thread-self/mounts").trim(), "1");
    });
}

#[test]
fn pins_of_a_former_version_go_once_the_new_ones_are_in_place() {
    on_a_host(async |bench| {
        let (_, want) = world(bench);
        bench.settle(&want).await;
        let root = bench.config().bpf_dir;
        sh(&format!("mkdir -p {0}/v0/links {0}/kept", root.display()));
        if has_tcx() {
            sh(&format!("mv {0}/v{ABI_VERSION}/links/*-from_uplink {0}/v0/links", root.display()));
        }
        bench.settle(&want).await;
        assert!(!root.join("v0").exists());
        eventually("one program at the uplink", Duration::from_secs(10), || {
            Ok((at_ingress("eth0").len() == 1).then_some(()))
        })
        .unwrap();
        bench.kernel().await.teardown().await.unwrap();
        assert_eq!(std::fs::read_dir(root).unwrap().count(), 1, "what is not ours is kept");
    });
}

#[test]
fn programs_of_others_at_the_same_hook_stay() {
    if !has_tcx() {
        println!(
            "SKIP: programs_of_others_at_the_same_hook_stay: this kernel has no TCX (Linux 6.6); \
             of filters there is a test of its own"
        );
        return;
    }
    on_a_host(async |bench| {
        let (_, want) = world(bench);
        // Another agent, with pins elsewhere, stands for the others.
        let other = KernelConfig {
            bpf_dir: bench.config().bpf_dir.with_extension("").join("other"),
            run_dir: bench.directory.path().join("other"),
            ..bench.config()
        };
        let uplink = Key::Hook("eth0".into(), Hook::FromUplink);
        let mut kernel = Kernel::open(other).await.unwrap();
        kernel.apply(&Op::Put(uplink.clone(), want[&uplink].clone())).await.unwrap();
        let theirs = at_ingress("eth0");
        assert_eq!(theirs.len(), 1);
        bench.settle(&want).await;
        assert_eq!(at_ingress("eth0").len(), 2);
        let have = bench.observe().await;
        for key in have.keys().rev().filter(|k| matches!(k, Key::Hook(..))) {
            bench.kernel().await.apply(&Op::Delete(key.clone())).await.unwrap();
        }
        eventually_at_ingress("eth0", &theirs);
    });
}
