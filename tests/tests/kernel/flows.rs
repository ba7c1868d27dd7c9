//! The flows that the programs remember, gone through by the agent.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use netagent::kernel::{Flows, KernelConfig, Swept};
use netagent::model::Datapath;
use netagent::plan::flow::Lost;
use netagent_common::{
    Affinity, AffinityKey, EndpointKey, Flow, FlowKey, Kind, Load, maps as names,
};

use crate::bench::{Bench, on_a_host, sh};
use crate::world::World;

const VNI: u32 = 4096;
const VIP: [u8; 4] = [10, 0, 0, 200];
/// In the first workload here.
const CLIENT: [u8; 4] = [10, 0, 0, 2];
/// The backend here, the one on the other node, and one that is no more.
const HERE: [u8; 4] = [10, 0, 0, 3];
const THERE: [u8; 4] = [10, 0, 0, 4];
const GONE: [u8; 4] = [10, 0, 0, 9];
const TCP: u8 = 6;

/// The world with room for many flows, in the kernel.
async fn settled(bench: &Bench) -> World {
    let world = World::new(Datapath::Ebpf, bench);
    let config = KernelConfig { max_flows: Some(1 << 17), ..bench.config() };
    bench.settle_with(config, &world.desired()).await;
    world
}

fn open<K: Pod, V: Pod>(bench: &Bench, name: &str) -> HashMap<MapData, K, V> {
    let version = format!("v{}", netagent_common::ABI_VERSION);
    let path = bench.config().bpf_dir.join(version).join("maps").join(name);
    Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap().try_into().unwrap()
}

/// Seconds of the programs' clock, by another tool.
fn now() -> u32 {
    sh("cut -d. -f1 /proc/uptime").trim().parse().unwrap()
}

/// A flow from the client's `port` to port 80 of the service.
fn key(kind: Kind, port: u16) -> FlowKey {
    let mut key = FlowKey::new(kind, VNI, TCP);
    key.client = CLIENT;
    key.called = VIP;
    key.client_port = port.to_be_bytes();
    key.port = 80_u16.to_be_bytes();
    key
}

fn choice(port: u16, backend: [u8; 4]) -> (FlowKey, Flow) {
    (key(Kind::Choice, port), Flow { seen: now(), ip: backend, ..Flow::default() })
}

fn inwards(port: u16, backend: [u8; 4]) -> (FlowKey, Flow) {
    let mut key = key(Kind::In, port);
    key.backend = backend;
    (key, Flow { seen: now(), ip: CLIENT, port: key.client_port, ..Flow::default() })
}

#[test]
fn what_leads_nowhere_goes_and_what_backends_have_to_do_is_counted() {
    on_a_host(async |bench| {
        settled(bench).await;
        let flows = Flows::new(&bench.config().bpf_dir);
        let mut map = open::<FlowKey, Flow>(bench, names::FLOWS);
        let kept = [choice(1, THERE), choice(2, THERE), inwards(3, HERE), inwards(4, HERE)];
        let lost = [choice(5, GONE), inwards(6, GONE)];
        for (key, flow) in kept.iter().chain(&lost) {
            map.insert(key, flow, 0).unwrap();
        }
        let mut load = open::<EndpointKey, Load>(bench, names::LOAD);
        let at = |ip: [u8; 4]| EndpointKey::new(VNI, Ipv4Addr::from(ip));
        let wrong = Load { flows: 17, turn: 5 };
        load.insert(at(THERE), wrong, 0).unwrap();
        load.insert(at(GONE), wrong, 0).unwrap();
        load.insert(at(CLIENT), wrong, 0).unwrap();
        let mut affinity = open::<AffinityKey, Affinity>(bench, names::AFFINITY);
        let client = |last| AffinityKey { vni: VNI, vip: VIP, client: [10, 0, 0, last] };
        affinity.insert(client(2), Affinity { ip: THERE, seen: now() }, 0).unwrap();
        affinity.insert(client(3), Affinity { ip: GONE, seen: now() }, 0).unwrap();

        let swept = flows.sweep(Lost::default()).await.unwrap();
        assert_eq!(swept, Swept { seen: 6, removed: 2, told: 1 });
        // There is no such client: its kernel resets what it is told of, and that is seen.
        let running = map.iter().map(Result::unwrap).filter(|(_, f)| f.state & Flow::CLOSING == 0);
        let mut left: Vec<_> = running.map(|(key, _)| key.client_port[1]).collect();
        left.sort_unstable();
        assert_eq!(left, [1, 2, 3, 4]);
        assert_eq!(load.get(&at(THERE), 0).unwrap(), Load { flows: 2, turn: 5 });
        assert!(load.get(&at(GONE), 0).is_err());
        assert!(load.get(&at(CLIENT), 0).is_err(), "it serves nothing");
        assert_eq!(affinity.keys().map(Result::unwrap).collect::<Vec<_>>(), [client(2)]);

        assert_eq!(flows.running(HERE.into()).await.unwrap(), 2);
        assert_eq!(flows.running(GONE.into()).await.unwrap(), 0);
        let again = flows.sweep(Lost::default()).await.unwrap();
        assert_eq!((again.removed, again.told), (0, 0));
        let vip = Ipv4Addr::from(VIP);
        let backends = [HERE, THERE].map(|ip| (VNI, ip.into(), vip));
        assert_eq!(flows.backends(Lost::default()).await.unwrap(), backends.into());
    });
}

#[test]
fn thousands_of_flows_are_seen_once_each() {
    on_a_host(async |bench| {
        settled(bench).await;
        let mut map = open::<FlowKey, Flow>(bench, names::FLOWS);
        let ((_, here), (_, there)) = (choice(0, HERE), choice(0, THERE));
        for port in 0..20_000 {
            let flow = if port % 2 == 0 { here } else { there };
            map.insert(key(Kind::Choice, port), flow, 0).unwrap();
        }
        let flows = Flows::new(&bench.config().bpf_dir);
        assert_eq!(
            flows.sweep(Lost::default()).await.unwrap(),
            Swept { seen: 20_000, removed: 0, told: 0 }
        );
        let load = open::<EndpointKey, Load>(bench, names::LOAD);
        for backend in [HERE, THERE] {
            let load = load.get(&EndpointKey::new(VNI, backend.into()), 0).unwrap();
            assert_eq!(load.flows, 10_000);
        }
    });
}

#[test]
fn without_a_datapath_there_are_no_flows() {
    on_a_host(async |bench| {
        let flows = Flows::new(&bench.config().bpf_dir);
        assert_eq!(flows.sweep(Lost::default()).await.unwrap(), Swept::default());
        assert_eq!(flows.running(HERE.into()).await.unwrap(), 0);
        assert!(flows.backends(Lost::default()).await.unwrap().is_empty());
    });
}

/// What tcpdump shows, run by the words `inside` at interface `link`, of two packets from
/// port 80 that come while `work` is done.
async fn seen(inside: &str, link: &str, work: impl Future<Output = ()>) -> String {
    let line =
        format!("{inside} timeout 20 tcpdump -c 2 -nlvv -i {link} src port 80 or src port 8080");
    let mut tcpdump = Command::new("sh")
        .args(["-c", &format!("exec {line}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = std::io::BufReader::new(tcpdump.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap(), 0, "{link}");
    }
    work.await;
    let output = tcpdump.wait_with_output().unwrap();
    assert!(output.status.success(), "no two packets came");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_client_whose_backend_is_gone_gets_a_segment_of_the_service() {
    on_a_host(async |bench| {
        settled(bench).await;
        let flows = Flows::new(&bench.config().bpf_dir);
        let mut map = open::<FlowKey, Flow>(bench, names::FLOWS);
        let (key, flow) = choice(40_000, GONE);
        map.insert(key, flow, 0).unwrap();
        let text = seen(&bench.inside(), "eth0", async {
            assert_eq!(flows.sweep(Lost::default()).await.unwrap().told, 1);
        })
        .await;
        assert_eq!(text.matches("10.0.0.200.80 > 10.0.0.2.40000: Flags [.], cksum").count(), 2);
        assert_eq!(text.matches("(correct)").count(), 2, "{text}");
        assert!(!text.contains("bad cksum"), "{text}");
    });
}

#[test]
fn a_client_outside_gets_it_from_the_published_port() {
    on_a_host(async |bench| {
        settled(bench).await;
        sh("ip neigh add 192.168.50.100 lladdr 02:00:00:00:00:64 dev eth0");
        let flows = Flows::new(&bench.config().bpf_dir);
        let mut map = open::<FlowKey, Flow>(bench, names::FLOWS);
        let outside = [192, 168, 50, 100];
        let (mut key, flow) = choice(50_000, GONE);
        key.client = outside;
        map.insert(key, flow, 0).unwrap();
        let mut exit = self::key(Kind::Exit, 50_000);
        exit.client = outside;
        let back = Flow {
            ip: [192, 168, 50, 11],
            other_port: 8080_u16.to_be_bytes(),
            client: outside,
            port: 50_001_u16.to_be_bytes(),
            ..flow
        };
        map.insert(exit, back, 0).unwrap();
        let text = seen("", "wire", async {
            assert_eq!(flows.sweep(Lost::default()).await.unwrap().told, 1);
        })
        .await;
        let segment = "192.168.50.11.8080 > 192.168.50.100.50001: Flags [.]";
        assert_eq!(text.matches(segment).count(), 2, "{text}");
        assert_eq!(text.matches("(correct)").count(), 2, "{text}");
    });
}
