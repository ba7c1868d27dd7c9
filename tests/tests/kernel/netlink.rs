//! Links, addresses, routes, neighbours, FDB, sysctls, rules, namespaces.

use netagent::model::Datapath;
use netagent::plan::{Key, Ns, Op, State, Value, diff};

use crate::bench::{Bench, on_a_host, sh};
use crate::world::World;

/// The state without its BPF parts.
fn netlink(mut state: State) -> State {
    state.retain(|key, _| !matches!(key, Key::Map(_) | Key::Hook(..)));
    state
}

fn world(bench: &Bench, datapath: Datapath) -> (World, State) {
    let world = World::new(datapath, bench);
    let want = netlink(world.desired());
    assert!(want.len() > 10, "{want:?}");
    (world, want)
}

#[test]
fn applied_is_observed_and_a_restart_writes_nothing() {
    for datapath in [Datapath::Ebpf, Datapath::Kernel] {
        on_a_host(async |bench| {
            let (_, want) = world(bench, datapath);
            assert!(!bench.settle(&want).await.is_empty());
            assert_eq!(bench.settle(&want).await, []);
        });
    }
}

#[test]
fn a_host_that_forwards_by_default_needs_one_pass_too() {
    for datapath in [Datapath::Ebpf, Datapath::Kernel] {
        on_a_host(async |bench| {
            sh("sysctl -qw net.ipv4.ip_forward=1");
            let (_, want) = world(bench, datapath);
            bench.settle(&want).await;
            bench.kernel().await.teardown().await.unwrap();
            assert_eq!(sh("sysctl -n net.ipv4.conf.eth0.forwarding").trim(), "1");
        });
    }
}

#[test]
fn nothing_stays_behind() {
    for datapath in [Datapath::Ebpf, Datapath::Kernel] {
        on_a_host(async |bench| {
            let before = bench.portrait();
            let (_, want) = world(bench, datapath);
            bench.settle(&want).await;
            assert_ne!(bench.portrait(), before);
            bench.settle(&State::new()).await;
            bench.assert_unchanged_since(&before);

            bench.settle(&want).await;
            bench.kernel().await.teardown().await.unwrap();
            bench.assert_unchanged_since(&before);
            assert_eq!(std::fs::read_dir(bench.config().run_dir).unwrap().count(), 0);
        });
    }
}

/// The script, each of its commands inside the first workload.
fn inside(bench: &Bench, script: &str) -> String {
    let commands = script.split("; ").map(|command| format!("{} {command}", bench.inside()));
    commands.collect::<Vec<_>>().join("\n")
}

type Damage = fn(&World, &Bench) -> String;

const EBPF_DAMAGES: &[Damage] = &[
    |w, _| format!("ip link del {}", w.link()),
    |w, _| format!("ip link set {} down", w.link()),
    |w, _| format!("ip link set {} mtu 1300", w.link()),
    |w, _| format!("ip link set {} address 02:00:00:00:00:09", w.link()),
    |w, _| format!("ip link add br9 type bridge; ip link set {} master br9", w.link()),
    |_, b| inside(b, "ip link set eth0 down"),
    |_, b| inside(b, "ip link set eth0 mtu 1300"),
    |_, b| inside(b, "ip link set eth0 down; ip link set eth0 name eth7"),
    |_, b| inside(b, "ip link set eth0 address 02:00:00:00:00:09"),
    |_, b| inside(b, "ip address flush dev eth0"),
    |_, b| inside(b, "ip address add 10.0.0.77/24 dev eth0"),
    |_, b| inside(b, "ip route del default"),
    |w, _| format!("ip neigh del 10.0.0.2 dev {}", w.link()),
    |w, _| format!("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:09 dev {}", w.link()),
    |_, _| "ip route del 10.0.0.2/32".into(),
    |w, _| format!("ip route replace 10.0.0.3/32 dev {} proto 110 scope link", w.link()),
    |w, _| format!("ip route add 10.0.9.0/24 dev {} proto 110 scope link", w.link()),
    |w, _| format!("sysctl -w net.ipv4.conf.{}.forwarding=0", w.link()),
    |_, _| "sysctl -w net.ipv4.conf.eth0.forwarding=0".into(),
    |_, _| "sysctl -w net.ipv4.conf.na-vxlan.forwarding=1".into(),
    |_, _| "ip link set na-vxlan down".into(),
    |_, _| "ip link set na-vxlan mtu 1400".into(),
    |_, _| {
        "ip link del na-vxlan
         ip link add na-vxlan type vxlan external dstport 4790"
            .into()
    },
    |_, _| "nft flush chain ip netagent forward".into(),
    |_, _| "nft delete table ip netagent".into(),
];

const KERNEL_DAMAGES: &[Damage] = &[
    |_, _| "nft add rule ip netagent forward accept".into(),
    |_, _| "ip link del na-egress".into(),
    |_, _| "ip address del 169.254.78.1/30 dev na-egress".into(),
    |_, b| format!("ip netns del {}", b.bridges()),
    |_, b| format!("ip -n {} link del br4096", b.bridges()),
    |_, b| format!("ip -n {} link set br4096 down", b.bridges()),
    |_, b| format!("ip -n {} link set vx4096 nomaster", b.bridges()),
    |_, b| format!("ip -n {} link del vx4096", b.bridges()),
    |_, b| format!("ip -n {} link set vx4096 type vxlan id 4096 learning", b.bridges()),
    |w, b| format!("ip -n {} link set {} nomaster", b.bridges(), w.link()),
    |_, b| inside(b, "ip link del eth0"),
    |_, b| format!("ip -n {} neigh flush nud permanent", b.bridges()),
    |_, b| format!("bridge -n {} fdb del 02:6e:0a:00:00:04 dev vx4096", b.bridges()),
    |_, b| {
        let own = b.bridges();
        format!("bridge -n {own} fdb add 02:6e:0a:00:00:09 dev vx4096 dst 192.168.50.12")
    },
    |_, b| {
        let own = b.bridges();
        format!("bridge -n {own} fdb replace 02:6e:0a:00:00:04 dev vx4096 dst 192.168.50.13")
    },
    |_, b| format!("ip -n {} link add x type bridge", b.bridges()),
    |_, b| format!("ip -n {} route del default", b.bridges()),
    |_, b| format!("nsenter --net=/run/netns/{} nft delete table ip netagent", b.bridges()),
];

#[test]
fn every_damage_is_seen_and_mended() {
    let all = [(Datapath::Ebpf, EBPF_DAMAGES), (Datapath::Kernel, KERNEL_DAMAGES)];
    for (datapath, damages) in all {
        on_a_host(async |bench| {
            let (world, want) = world(bench, datapath);
            bench.settle(&want).await;
            for damage in damages {
                let damage = damage(&world, bench);
                println!("{damage}");
                sh(&damage);
                assert_ne!(bench.observe().await, want, "not seen");
                assert!(!bench.settle(&want).await.is_empty());
            }
        });
    }
}

#[test]
fn other_tools_see_the_ebpf_datapaths_links() {
    on_a_host(async |bench| {
        let (world, want) = world(bench, Datapath::Ebpf);
        bench.settle(&want).await;
        let link = world.link();
        let host = sh(&format!("ip -d link show {link}"));
        assert!(host.contains("02:6e:61:ff:ff:fe") && host.contains("mtu 1450"), "{host}");
        let vxlan = sh("ip -d link show na-vxlan");
        for word in ["external", "nolearning", "dstport 4789", "mtu 1450", "UP"] {
            assert!(vxlan.contains(word), "{word}: {vxlan}");
        }
        assert!(sh("ss -lun").contains(":4789"));
        let route = sh("ip route show proto 110");
        assert!(route.contains(&format!("10.0.0.2 dev {link} scope link")), "{route}");
        let neighbour = sh(&format!("ip neigh show dev {link} nud permanent"));
        assert_eq!(neighbour.trim(), "10.0.0.2 lladdr 02:6e:0a:00:00:02 PERMANENT");
        let inside = bench.inside();
        let address = sh(&format!("{inside} ip -o -4 address show dev eth0"));
        assert!(address.contains("10.0.0.2/24"), "{address}");
        let default = sh(&format!("{inside} ip route show default"));
        assert!(default.starts_with("default via 10.0.0.1 dev eth0"), "{default}");
        let inet6 = sh(&format!("{inside} ip -o -6 address show; ip -o -6 address show"));
        assert!(!inet6.contains("eth0 ") || !inet6.contains(&link), "{inet6}");
        assert_eq!(sh("sysctl -n net.ipv4.conf.eth0.forwarding").trim(), "1");
        assert!(sh("nft list table ip netagent").contains("masquerade"));
    });
}

#[test]
fn the_kernel_datapath_carries_with_its_socket_on_the_host() {
    on_a_host(async |bench| {
        let (_, want) = world(bench, Datapath::Kernel);
        bench.settle(&want).await;
        let own = bench.bridges();
        let vxlan = sh(&format!("ip -n {own} -d link show vx4096"));
        for word in ["id 4096", "local 192.168.50.11", "nolearning", "proxy", "master br4096", "UP"]
        {
            assert!(vxlan.contains(word), "{word}: {vxlan}");
        }
        assert!(sh("ss -lun").contains(":4789"));
        assert!(!sh(&format!("nsenter --net=/run/netns/{own} ss -lun")).contains(":4789"));
        let fdb = sh(&format!("bridge -n {own} fdb show dev vx4096"));
        assert!(fdb.contains("02:6e:0a:00:00:04 dst 192.168.50.12 link-netnsid 0 self permanent"));
        assert!(!sh("ip link").contains("vx4096"));
        let inside = bench.inside();
        // Both workloads are on one bridge; the host is reached by the way out.
        sh(&format!("{inside} ping -c 1 -W 2 10.0.0.3"));
        sh(&format!("{inside} ping -c 1 -W 2 192.168.50.11"));
        // What is for the other node leaves by the uplink, in VXLAN.
        sh("ip neigh add 192.168.50.12 lladdr 02:00:00:00:00:0c dev eth0");
        let capture = sh(&format!(
            "timeout 10 tcpdump -lni wire -c 1 udp port 4789 2>/dev/null & tcpdump=$!
             while kill -0 $tcpdump 2>/dev/null; do
                 {inside} ping -c 1 -W 0.1 10.0.0.4 >/dev/null || true
             done"
        ));
        assert!(capture.contains("192.168.50.11") && capture.contains("vni 4096"), "{capture}");
    });
}

/// Applies all of `want`; returns what could not be.
async fn errors(bench: &Bench, want: &State) -> Vec<String> {
    let mut kernel = bench.kernel().await;
    let mut errors = Vec::new();
    for (key, value) in want {
        if let Err(error) = kernel.apply(&Op::Put(key.clone(), value.clone())).await {
            errors.push(format!("{:#}", anyhow::Error::from(error)));
        }
    }
    errors
}

#[test]
fn links_of_others_are_refused_and_kept() {
    on_a_host(async |bench| {
        let (world, want) = world(bench, Datapath::Ebpf);
        let inside = bench.inside();
        sh(&format!(
            "{inside} ip link add eth0 type bridge
             ip link add na-vxlan type bridge
             ip link add na-mine type bridge"
        ));
        let errors = errors(bench, &want).await;
        let told = |part: &str| errors.iter().any(|e| e.contains(part));
        assert!(told("cannot set link na-vxlan: the host has a bridge named"), "{errors:#?}");
        assert!(told("a bridge of that name is there already"), "{errors:#?}");
        assert!(told("the link eth0 is not ours"), "{errors:#?}");
        assert!(!sh("ip link").contains(&world.link()));
        // The second workload is not held up by the first.
        let second = format!("nsenter --net={}", bench.workloads[1].display());
        assert!(sh(&format!("{second} ip address show eth0")).contains("10.0.0.3/24"));
        bench.kernel().await.teardown().await.unwrap();
        assert!(sh("ip link").contains("na-mine") && sh("ip link").contains("na-vxlan"));
        assert!(sh(&format!("{inside} ip link")).contains("eth0"));
    });
}

#[test]
fn routes_of_others_are_refused_and_kept() {
    on_a_host(async |bench| {
        let (_, want) = world(bench, Datapath::Ebpf);
        let inside = bench.inside();
        sh(&format!(
            "{inside} ip link add mine type bridge
             {inside} ip address add 172.30.0.2/24 dev mine
             {inside} ip link set mine up
             {inside} ip route add default via 172.30.0.1"
        ));
        let errors = errors(bench, &want).await;
        assert_eq!(errors.len(), 1, "{errors:#?}");
        assert!(errors[0].contains("a route that is not ours leads there already"), "{errors:?}");
        bench.kernel().await.teardown().await.unwrap();
        assert!(sh(&format!("{inside} ip route")).contains("default via 172.30.0.1 dev mine"));
    });
}

#[test]
fn a_workload_in_the_hosts_own_namespace_is_refused_and_holds_up_nobody() {
    on_a_host(async |bench| {
        let (mut world, _) = world(bench, Datapath::Ebpf);
        world.workloads[0].netns = "/proc/thread-self/ns/net".into();
        let want = netlink(world.desired());
        let errors = errors(bench, &want).await;
        let told = |e: &String| e.contains("the host's own") || e.contains("there is no link");
        assert!(!errors.is_empty() && errors.iter().all(told), "{errors:#?}");
        let namespaces = world.workloads.iter().map(|w| w.netns.clone()).collect();
        let have = bench.kernel().await.observe(&namespaces).await.unwrap();
        let second = Ns::At(bench.workloads[1].clone());
        assert!(have.keys().any(|k| matches!(k, Key::Address(ns, ..) if *ns == second)));
    });
}

#[test]
fn rules_are_known_again_however_nft_words_them() {
    on_a_host(async |bench| {
        let table = "table ip netagent {
            chain forward { type filter hook forward priority 0; ip daddr 10.0.0.0/24 counter drop; }
        }";
        let (key, value) = (Key::Nftables(Ns::Host), Value::Ruleset(table.into()));
        let mut kernel = bench.kernel().await;
        kernel.apply(&Op::Put(key.clone(), value.clone())).await.unwrap();
        let have = kernel.observe(&bench.namespaces()).await.unwrap();
        assert_eq!(have.get(&key), Some(&value));
        sh("nft add rule ip netagent forward accept");
        let have = kernel.observe(&bench.namespaces()).await.unwrap();
        assert_ne!(have.get(&key), Some(&value));
        kernel.teardown().await.unwrap();
        assert!(!sh("nft list tables").contains("netagent"));
    });
}

#[test]
fn a_namespace_of_others_is_refused_and_kept() {
    on_a_host(async |bench| {
        let (_, want) = world(bench, Datapath::Kernel);
        sh(&format!("ip netns add {}", bench.bridges()));
        let errors = errors(bench, &want).await;
        assert!(errors[0].contains("not ours"), "{errors:#?}");
        bench.kernel().await.teardown().await.unwrap();
        assert!(sh("ip netns list").contains(&bench.bridges()));
    });
}

#[test]
fn a_taken_port_is_told_with_the_remedy() {
    on_a_host(async |bench| {
        let (_, want) = world(bench, Datapath::Ebpf);
        let _taken = std::net::UdpSocket::bind("0.0.0.0:4789").unwrap();
        let (key, value) = want.iter().find(|(k, _)| k.to_string() == "link na-vxlan").unwrap();
        let error = bench.kernel().await.apply(&Op::Put(key.clone(), value.clone())).await;
        let error = format!("{:#}", anyhow::Error::from(error.unwrap_err()));
        assert!(error.contains("4789") && error.contains("--data-path-port"), "{error}");
        assert!(!sh("ip link").contains("na-vxlan"), "half a link stayed");
    });
}

#[test]
fn a_workload_that_ends_takes_its_things_along() {
    for datapath in [Datapath::Ebpf, Datapath::Kernel] {
        on_a_host(async |bench| {
            let (mut world, want) = world(bench, datapath);
            bench.settle(&want).await;
            let mut kernel = bench.kernel().await;
            let have = kernel.observe(&bench.namespaces()).await.unwrap();
            assert_eq!(have, want);
            // The kernel module holds the namespace open; its name goes.
            sh(&format!("ip netns del {}", bench.workloads[0].file_name().unwrap().display()));
            let gone = world.workloads.remove(0);
            for attachment in &gone.attachments {
                world.snapshot.endpoints.remove(&attachment.endpoint.id);
            }
            let want = netlink(world.desired());
            for op in diff(&want, &have) {
                kernel.apply(&op).await.unwrap();
            }
            assert_eq!(kernel.observe(&bench.namespaces()).await.unwrap(), want);
        });
    }
}

#[test]
fn an_endpoint_moves_to_another_workload() {
    for datapath in [Datapath::Ebpf, Datapath::Kernel] {
        on_a_host(async |bench| {
            let (mut world, want) = world(bench, datapath);
            bench.settle(&want).await;
            let mut kernel = bench.kernel().await;
            let have = kernel.observe(&bench.namespaces()).await.unwrap();
            let moved = world.workloads[0].attachments.remove(1);
            world.workloads[1].attachments.push(moved);
            let want = netlink(world.desired());
            // From the record, without another look, as the loop does.
            for op in diff(&want, &have) {
                kernel.apply(&op).await.unwrap();
            }
            assert_eq!(kernel.observe(&bench.namespaces()).await.unwrap(), want);
        });
    }
}
