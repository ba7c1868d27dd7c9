//! IPVS in its namespace: what the plan wants is what `ipvsadm` shows, what others do to
//! it is mended, and a frame that is put in comes out addressed to a backend.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use netagent::model::{Datapath, Mac, Scheduler};
use netagent::plan::{Key, State};
use netagent_common::{GATEWAY_MAC, LB_MAC};
use netagent_tests::packet::{Packet, ethernet};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, bind, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use xtask::build::{self, Profile};

use crate::bench::{Bench, on_a_host, sh};
use crate::world::World;

/// The virtual address of [`World`]'s service, and a client of it.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Runs `test` on a host with IPVS, with a world whose first node uses it.
fn on_a_host_with_ipvs(name: &str, test: impl AsyncFnOnce(&Bench, World) + Send) {
    on_a_host(async |bench| {
        if bench.kernel().await.has_ipvs().await.is_err() {
            println!("SKIP: {name}: this kernel has no IPVS (CONFIG_IP_VS)");
            return;
        }
        let mut world = World::new(Datapath::Ebpf, bench);
        world.me.ipvs = true;
        test(bench, world).await;
    });
}

/// The state without its BPF parts, which not every kernel with IPVS can have.
fn netlink(world: &World) -> State {
    let mut state = world.desired();
    state.retain(|key, _| !matches!(key, Key::Map(_) | Key::Hook(..)));
    state
}

impl Bench {
    fn balancer(&self) -> String {
        format!("{}-lb", self.bridges())
    }

    /// Runs a command in the namespace of IPVS.
    #[track_caller]
    fn lb(&self, command: &str) -> String {
        sh(&format!("nsenter --net=/run/netns/{} {command}", self.balancer()))
    }

    /// The rules of IPVS as `ipvsadm` would restore them, sorted.
    #[track_caller]
    fn rules(&self) -> Vec<String> {
        let mut rules: Vec<_> =
            self.lb("ipvsadm -Sn").lines().map(|line| line.trim().to_owned()).collect();
        rules.sort();
        rules
    }
}

#[test]
fn who_asks_for_ipvs_without_it_is_told_what_is_missing() {
    on_a_host(async |bench| {
        let Err(error) = bench.kernel().await.has_ipvs().await else {
            println!(
                "SKIP: who_asks_for_ipvs_without_it_is_told_what_is_missing: this kernel has IPVS"
            );
            return;
        };
        let directory = bench.directory.path();
        let output = Command::new(build::binary(Profile::Debug))
            .args(["agent", "--lb", "ipvs", "--data-dir"])
            .arg(directory.join("data"))
            .arg("--run-dir")
            .arg(directory.join("run"))
            .output()
            .unwrap();
        assert!(!output.status.success());
        for text in [String::from_utf8(output.stderr).unwrap(), error.to_string()] {
            for word in ["CONFIG_IP_VS", "modprobe ip_vs", "--lb ebpf"] {
                assert!(text.contains(word), "{text}");
            }
        }
    });
}

#[test]
fn ipvsadm_shows_what_is_planned() {
    on_a_host_with_ipvs("ipvsadm_shows_what_is_planned", async |bench, mut world| {
        bench.settle(&netlink(&world)).await;
        assert_eq!(bench.settle(&netlink(&world)).await, []);
        assert_eq!(
            bench.rules(),
            [
                "-A -t 10.0.0.200:80 -s wrr -p 60",
                "-A -u 10.0.0.200:53 -s wrr -p 60",
                "-a -t 10.0.0.200:80 -r 10.0.0.3:80 -g -w 1",
                "-a -t 10.0.0.200:80 -r 10.0.0.4:80 -g -w 2",
                "-a -u 10.0.0.200:53 -r 10.0.0.3:53 -g -w 1",
                "-a -u 10.0.0.200:53 -r 10.0.0.4:53 -g -w 2",
            ]
        );
        let timeouts = bench.lb("ipvsadm -L --timeout");
        assert!(timeouts.contains("900 120 300"), "{timeouts}");
        let reuse = bench.lb("sysctl -n net.ipv4.vs.conn_reuse_mode");
        assert_eq!(reuse.trim(), "3");

        world.drain();
        for service in world.snapshot.services.values_mut() {
            service.affinity = None;
            service.idle_timeout = 7200;
            service.scheduler = Scheduler::Mh;
            service.ports.pop();
        }
        bench.settle(&netlink(&world)).await;
        assert_eq!(
            bench.rules(),
            [
                "-A -t 10.0.0.200:80 -s mh -b mh-fallback",
                "-a -t 10.0.0.200:80 -r 10.0.0.3:80 -g -w 1",
                "-a -t 10.0.0.200:80 -r 10.0.0.4:80 -g -w 0",
            ]
        );
        assert!(bench.lb("ipvsadm -L --timeout").contains("7200 120 300"));
    });
}

#[test]
fn every_scheduler_is_known_to_the_kernel() {
    use Scheduler::{Lc, Mh, Rr, Sh, Wlc, Wrr};
    on_a_host_with_ipvs("every_scheduler_is_known_to_the_kernel", async |bench, mut world| {
        for scheduler in [Rr, Wrr, Lc, Wlc, Sh, Mh] {
            world.snapshot.services.values_mut().for_each(|s| s.scheduler = scheduler);
            bench.settle(&netlink(&world)).await;
            let rules = bench.rules();
            let expected = format!("-A -t 10.0.0.200:80 -s {scheduler} -p 60");
            assert!(rules.iter().any(|rule| rule.starts_with(&expected)), "{rules:?}");
        }
    });
}

const DAMAGES: &[&str] = &[
    "ipvsadm -C",
    "ipvsadm -D -t 10.0.0.200:80",
    "ipvsadm -E -t 10.0.0.200:80 -s rr -p 60",
    "ipvsadm -E -t 10.0.0.200:80 -s wrr",
    "ipvsadm -E -t 10.0.0.200:80 -s wrr -p 300",
    "ipvsadm -E -t 10.0.0.200:80 -s wrr -p 60 -M 255.255.255.0",
    "ipvsadm -E -u 10.0.0.200:53 -s wrr -p 60 -o",
    "ipvsadm -A -t 10.0.0.200:81 -s rr",
    "ipvsadm -A -u 10.0.0.77:53 -s rr",
    "ipvsadm -d -t 10.0.0.200:80 -r 10.0.0.3",
    "ipvsadm -e -t 10.0.0.200:80 -r 10.0.0.3 -g -w 7",
    "ipvsadm -e -t 10.0.0.200:80 -r 10.0.0.3 -g -w 0",
    "ipvsadm -e -t 10.0.0.200:80 -r 10.0.0.3 -m -w 1",
    "ipvsadm -e -t 10.0.0.200:80 -r 10.0.0.3 -i -w 1",
    "ipvsadm -e -t 10.0.0.200:80 -r 10.0.0.3 -g -w 1 -x 5 -y 2",
    "ipvsadm -a -t 10.0.0.200:80 -r 10.0.0.9 -g -w 1",
    "ipvsadm --set 5 6 7",
    "sysctl -qw net.ipv4.vs.conntrack=1",
    "sysctl -qw net.ipv4.vs.sloppy_tcp=0",
    "ip link set lb down",
    "ip link set lb address 02:00:00:00:00:09",
    "ip link del lb",
    "ip neigh del 10.0.0.3 dev lb",
    "ip neigh replace 10.0.0.4 lladdr 02:00:00:00:00:09 dev lb",
    "ip route del 10.0.0.200 table main",
    "ip route del default",
    "ip route add local 10.0.0.201 dev lo table main proto 110",
    "sysctl -qw net.ipv4.conf.lb.forwarding=1",
];

#[test]
fn every_damage_to_ipvs_is_seen_and_mended() {
    on_a_host_with_ipvs("every_damage_to_ipvs_is_seen_and_mended", async |bench, world| {
        let want = netlink(&world);
        bench.settle(&want).await;
        let rules = bench.rules();
        for damage in DAMAGES {
            println!("{damage}");
            bench.lb(damage);
            assert_ne!(bench.observe().await, want, "not seen");
            assert!(!bench.settle(&want).await.is_empty());
            assert_eq!(bench.rules(), rules);
        }
        sh(&format!("ip netns del {}", bench.balancer()));
        assert_ne!(bench.observe().await, want, "not seen");
        bench.settle(&want).await;
        assert_eq!(bench.rules(), rules);
    });
}

#[test]
fn nothing_of_ipvs_stays_behind() {
    on_a_host_with_ipvs("nothing_of_ipvs_stays_behind", async |bench, mut world| {
        let before = bench.portrait();
        let with_ports = netlink(&world);
        bench.settle(&with_ports).await;
        assert!(sh("ip netns list").contains(&bench.balancer()));
        // Without a published port nobody asks IPVS.
        world.snapshot.services.values_mut().for_each(|s| s.ports.clear());
        bench.settle(&netlink(&world)).await;
        assert!(!sh("ip netns list").contains(&bench.balancer()));
        assert!(!sh("ip link").contains("na-lb"));
        bench.settle(&with_ports).await;
        bench.kernel().await.teardown().await.unwrap();
        bench.assert_unchanged_since(&before);
        assert_eq!(std::fs::read_dir(bench.config().run_dir).unwrap().count(), 0);
    });
}

#[test]
fn a_frame_comes_out_addressed_to_a_backend() {
    on_a_host_with_ipvs("a_frame_comes_out_addressed_to_a_backend", async |bench, mut world| {
        // As strict as a host can be, which a new namespace takes over.
        sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1");
        let server = |port: u16| {
            ethernet(Mac::of(CLIENT).0, LB_MAC).ipv4(CLIENT, VIP).tcp(port, 80).payload("hello")
        };
        for service in world.snapshot.services.values_mut() {
            service.affinity = None;
        }
        bench.settle(&netlink(&world)).await;
        let lb = Wire::open();
        // A connection keeps its backend; new ones are shared as weights say.
        let mut counts = BTreeMap::<[u8; 6], u32>::new();
        for port in 1000..1030 {
            let chosen = lb.through(&server(port)).expect("it comes out");
            *counts.entry(chosen).or_default() += 1;
            assert_eq!(lb.through(&server(port)), Some(chosen));
        }
        let mac = |last| Mac::of(Ipv4Addr::new(10, 0, 0, last)).0;
        assert_eq!(counts, BTreeMap::from([(mac(3), 10), (mac(4), 20)]));
        let list = bench.lb("ipvsadm -Ln");
        for line in ["10.0.0.3:80 Route 1 10 0", "10.0.0.4:80 Route 2 20 0"] {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(list.lines().any(|l| words(l).contains(line)), "{line} in {list}");
        }

        // A backend that drains keeps its connections and gets no new one.
        let chosen = |port| lb.through(&server(port));
        let theirs: Vec<u16> = (1000..1030).filter(|p| chosen(*p) == Some(mac(4))).collect();
        world.drain();
        bench.settle(&netlink(&world)).await;
        assert!(theirs.iter().all(|port| chosen(*port) == Some(mac(4))));
        assert!((1100..1110).all(|port| chosen(port) == Some(mac(3))));

        // Of one that is gone they go to another.
        let id = world.snapshot.endpoints.values().find(|e| e.mac.0 == mac(4)).unwrap().id.clone();
        world.snapshot.endpoints.remove(&id);
        bench.settle(&netlink(&world)).await;
        assert!(theirs.iter().all(|port| chosen(*port) == Some(mac(3))), "{theirs:?}");
        // What is for no virtual server comes out as nothing that we would take.
        let stray = ethernet(Mac::of(CLIENT).0, LB_MAC)
            .ipv4(CLIENT, Ipv4Addr::new(10, 0, 0, 250))
            .tcp(1, 80);
        assert_eq!(lb.through(&stray), None);
    });
}

/// The host side of the veth to IPVS.
struct Wire {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Wire {
    fn open() -> Self {
        let link = getifaddrs()
            .unwrap()
            .filter(|interface| interface.interface_name == "na-lb")
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .expect("there is a na-lb");
        let all = nix::sys::socket::SockProtocol::EthAll;
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap();
        bind(socket.as_raw_fd(), &link).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(200)).unwrap();
        Self { socket, link }
    }

    /// Puts a packet in; returns to which MAC it comes out, if it does. It must be the
    /// same but for its MACs, TTL and header checksum.
    fn through(&self, packet: &Packet) -> Option<[u8; 6]> {
        let frame = packet.build();
        let fd = self.socket.as_raw_fd();
        assert_eq!(sendto(fd, &frame, &self.link, MsgFlags::empty()).unwrap(), frame.len());
        let mut buffer = [0; 2048];
        loop {
            let Ok((len, _)) = recvfrom::<LinkAddr>(fd, &mut buffer) else { return None };
            let got = &buffer[..len];
            // Our own frames are seen, too, and so is what the namespace itself says.
            if got[6..12] != LB_MAC || got.get(26..34) != frame.get(26..34) {
                continue;
            }
            let bare = |frame: &[u8]| [&frame[12..22], &frame[23..24], &frame[26..]].concat();
            assert_eq!(bare(got), bare(&frame));
            let to: [u8; 6] = got[..6].try_into().unwrap();
            assert_ne!(to, GATEWAY_MAC);
            return Some(to);
        }
    }
}
