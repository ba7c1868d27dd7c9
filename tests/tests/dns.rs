//! The workloads' DNS server as `dig` sees it, without a cluster around it: a snapshot
//! made by hand, a resolver of our own behind it.
//!
//! ```text
//!   namespace of the workload          the test's own namespace
//!   dig ──> 127.0.0.11:53 ── served by this process ──> 127.53.x.y:53
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;

use netagent::dns::{Forwarder, Names, Server, Sockets};
use netagent::model::{Datapath, NetworkId, Snapshot};
use netagent_tests::lab::must;
use nix::sched::{CloneFlags, setns};
use serde_json::{Map, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

/// Addresses that `many` has on the network, and that the resolver gives for `big.test`.
const MANY: u8 = 100;

/// Identifiers of the node and the services.
const NODE: &str = "nodenodenodenode";
const WEB: &str = "webwebwebwebwebw";
const RR: &str = "rrrrrrrrrrrrrrrr";

/// A namespace with a DNS server in it, removed at the end.
struct Lab {
    namespace: String,
    runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    files: tempfile::TempDir,
}

impl Lab {
    fn new(name: &str) -> Self {
        let namespace = format!("t-dns-{name}-{}", std::process::id());
        must(Ok(Command::new("ip").args(["netns", "add", &namespace]).output().expect("ip")));
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let upstream = Ipv4Addr::new(127, 53, high, low | 1);
        let files = tempfile::tempdir().expect("a directory");
        let conf = files.path().join("resolv.conf");
        std::fs::write(&conf, format!("nameserver {upstream}\n")).expect("writing");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let (snapshot, receiver) = watch::channel(Arc::new(snapshot(&[])));
        let mut lab = Self { namespace, runtime, server: None, snapshot, files };
        must(lab.inside(&["ip", "link", "set", "lo", "up"]));
        let sockets = lab.sockets().expect("port 53 in a new namespace");
        let server = lab.runtime.block_on(async {
            resolver(upstream).await;
            let names = Names::new(receiver, Datapath::Ebpf, Forwarder::new(conf));
            Server::start(names, sockets, vec![network()]).expect("a server")
        });
        lab.server = Some(server);
        lab
    }

    fn inside(&self, line: &[&str]) -> anyhow::Result<std::process::Output> {
        let namespace = format!("--net=/run/netns/{}", self.namespace);
        Ok(Command::new("nsenter").arg(namespace).arg("--").args(line).output()?)
    }

    /// Opens the server's sockets as the agent does, on a thread of its own.
    fn sockets(&self) -> std::io::Result<Sockets> {
        let path = format!("/run/netns/{}", self.namespace);
        let open = move || {
            setns(std::fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
            Sockets::open()
        };
        std::thread::spawn(open).join().expect("no panic")
    }

    fn dig(&self, args: &str) -> String {
        let mut line = vec!["dig", "@127.0.0.11", "+time=5", "+tries=1"];
        line.extend(args.split(' '));
        must(self.inside(&line))
    }

    fn short(&self, args: &str) -> String {
        self.dig(&format!("+short {args}")).trim().to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", &self.namespace]).status();
        assert!(deleted.is_ok_and(|status| status.success()), "{} is left", self.namespace);
    }
}

/// Identifier of the one network, `shop`.
fn network() -> NetworkId {
    "shopshopshopshop".parse().expect("an identifier")
}

/// `shop` with psql (10.9.0.2, also db), 100 tasks (also many), and `extra`. The tasks t1 to
/// t3 serve `web` (10.9.0.80, port 80), of which t3 drains, and all others serve `rr`.
fn snapshot(extra: &[(&str, &str)]) -> Snapshot {
    let mut endpoints = Map::new();
    let mut add = |name: &str, alias: &str, address: &str, service: Option<&str>| {
        let id = format!("endpointwith{}", base32(endpoints.len()));
        let endpoint = json!({
            "id": id, "network": network(), "node": NODE,
            "workload": "workworkworkwork", "name": name, "aliases": [alias],
            "address": address, "mac": "02:6e:0a:09:00:02", "created": "",
            "task": service.map(|service| json!({
                "service": service, "weight": 1, "health": "healthy", "draining": name == "t3",
            })),
        });
        endpoints.insert(id, endpoint);
    };
    add("psql", "db", "10.9.0.2", None);
    for n in 0..MANY {
        let service = if (1..=3).contains(&n) { WEB } else { RR };
        add(&format!("t{n}"), "many", &format!("10.9.1.{n}"), Some(service));
    }
    for (name, address) in extra {
        add(name, name, address, None);
    }
    let service = |id: &str, name: &str, mode: &str, vip: Option<&str>| {
        json!({
            "id": id, "name": name, "aliases": [format!("{name}-too")],
            "networks": [{ "network": network(), "vip": vip }], "endpoint_mode": mode,
            "ports": [{ "published": 8080, "target": 80, "protocol": "tcp", "mode": "ingress",
                        "address": null, "allow": [] }],
            "scheduler": "rr", "affinity": null, "idle_timeout": 900, "prefer": "any",
            "labels": {}, "created": "",
        })
    };
    let json = json!({
        "revision": 1, "cluster": null, "endpoints": endpoints,
        "networks": { network().as_str(): {
            "id": network(), "name": "shop", "driver": "overlay", "vni": 4096,
            "subnet": "10.9.0.0/16", "gateway": "10.9.0.1", "ip_range": null,
            "aux_addresses": {}, "internal": false, "mtu": null, "labels": {}, "created": "",
        }},
        "nodes": { NODE: {
            "id": NODE, "hostname": "n1", "role": "manager", "address": "192.168.50.11",
            "mtu": 1500, "datapath": "ebpf", "version": "0", "status": "ready", "routes": [],
        }},
        "services": {
            WEB: service(WEB, "web", "vip", Some("10.9.0.80")),
            RR: service(RR, "rr", "dnsrr", None),
        },
    });
    serde_json::from_value(json).expect("a snapshot")
}

/// Four characters of an identifier's alphabet.
fn base32(number: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    (0..4).rev().map(|n| char::from(ALPHABET[number >> (5 * n) & 31])).collect()
}

/// A resolver that answers every question for an address with 192.0.2.7, and for
/// `big.test` with a hundred addresses, which over UDP it says are too many.
async fn resolver(address: Ipv4Addr) {
    let udp = UdpSocket::bind((IpAddr::V4(address), 53)).await.expect("a free address");
    let tcp = TcpListener::bind((IpAddr::V4(address), 53)).await.expect("a free address");
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (len, client) = udp.recv_from(&mut buffer).await.expect("receiving");
            udp.send_to(&respond(&buffer[..len], 1), client).await.expect("sending");
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.expect("accepting");
            let len = stream.read_u16().await.expect("a length");
            let mut request = vec![0; usize::from(len)];
            stream.read_exact(&mut request).await.expect("a request");
            let response = respond(&request, MANY);
            stream.write_u16(u16::try_from(response.len()).expect("fits")).await.expect("writing");
            stream.write_all(&response).await.expect("writing");
        }
    });
}

/// The response to `request` with at most `most` addresses, in wire format.
fn respond(request: &[u8], most: u8) -> Vec<u8> {
    let name = request[12..].iter().position(|byte| *byte == 0).expect("a root label");
    let end = 12 + name + 5;
    let wanted = if request[12..end].starts_with(b"\x03big") { MANY } else { 1 };
    let (count, truncated) = if wanted > most { (0, 0x02) } else { (wanted, 0) };
    let mut response = request[..2].to_vec();
    response.extend([0x81 | truncated, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    response.extend(&request[12..end]);
    for n in 0..count {
        response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7 + n]);
    }
    response
}

#[test]
fn names_of_the_cluster() {
    let lab = Lab::new("names");
    for name in ["psql", "db", "psql.shop", "DB.Shop."] {
        assert_eq!(lab.short(name), "10.9.0.2", "{name}");
        assert_eq!(lab.short(&format!("+tcp {name}")), "10.9.0.2", "{name} over TCP");
    }
    assert_eq!(lab.short("-x 10.9.0.2"), "psql.shop.");
    for empty in ["psql AAAA", "psql MX", "db.shop SRV", "shop A", "shop SOA"] {
        let answer = lab.dig(empty);
        assert!(answer.contains("status: NOERROR") && answer.contains("ANSWER: 0"), "{answer}");
    }
    for missing in ["nobody.shop", "a.b.shop", "-x 10.9.0.77", "-x 10.9.0.1"] {
        let answer = lab.dig(missing);
        assert!(answer.contains("status: NXDOMAIN"), "{answer}");
    }
    let answer = lab.dig("psql");
    assert!(answer.contains("flags: qr aa rd ra;"), "{answer}");
}

#[test]
fn names_of_services() {
    let lab = Lab::new("services");
    for name in ["web", "web.shop", "WEB-too", "+tcp web"] {
        assert_eq!(lab.short(name), "10.9.0.80", "{name}");
    }
    assert_eq!(lab.short("-x 10.9.0.80"), "web.shop.");
    assert_eq!(lab.short("-x 10.9.1.1"), "t1.shop.", "a backend keeps its name");
    let sorted = |args: &str| {
        let mut lines: Vec<_> = lab.short(args).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for name in ["tasks.web", "tasks.web.shop", "tasks.web-too"] {
        assert_eq!(sorted(name), ["10.9.1.1", "10.9.1.2"], "{name}: t3 drains");
    }
    assert_eq!(lab.short("web SRV"), "0 0 80 web.shop.");
    assert_eq!(lab.short("_80._tcp.web SRV"), "0 0 80 web.shop.");
    let located =
        ["0 1 80 10-9-1-1.tasks.web.shop.", "0 1 80 10-9-1-2.tasks.web.shop."].map(str::to_owned);
    for name in ["tasks.web", "_80._tcp.tasks.web", "_80._tcp.tasks.web.shop"] {
        assert_eq!(sorted(&format!("{name} SRV")), located, "{name}");
    }
    assert_eq!(lab.short("10-9-1-2.tasks.web.shop"), "10.9.1.2");
    let answer = lab.dig("+noall +additional _80._tcp.tasks.web SRV");
    assert_eq!(answer.matches("IN\tA\t10.9.1.").count(), 2, "{answer}");
    assert!(lab.dig("_81._tcp.web SRV").contains("status: NXDOMAIN"));
}

#[test]
fn a_service_without_a_virtual_address_is_its_backends() {
    let lab = Lab::new("dnsrr");
    let backends = usize::from(MANY) - 3;
    for name in ["rr", "tasks.rr", "rr SRV"] {
        let answer = lab.short(name);
        assert_eq!(answer.lines().count(), backends, "dig turns to TCP itself: {name}");
        assert_ne!(lab.short(name), answer, "shuffled: {name}");
    }
    let cut = lab.dig("+noedns +ignore rr SRV");
    assert!(cut.contains(" tc "), "{cut}");
}

#[test]
fn what_is_not_the_clusters_is_forwarded() {
    let lab = Lab::new("forward");
    for (question, expected) in [
        ("www.test", "192.0.2.7"),
        ("+tcp www.test", "192.0.2.7"),
        ("+noedns www.test", "192.0.2.7"),
        ("intranet", "192.0.2.7"),
    ] {
        assert_eq!(lab.short(question), expected, "{question}");
    }
    assert!(!lab.dig("www.test").contains("flags: qr aa"), "not our word");
    let conf = lab.files.path().join("resolv.conf");
    std::fs::write(conf, "nameserver 127.0.0.11\n").expect("writing");
    assert!(lab.dig("www.test").contains("status: SERVFAIL"), "never asks itself");
    assert_eq!(lab.short("psql"), "10.9.0.2");
}

#[test]
fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    let lab = Lab::new("long");
    let lines = |args: &str| lab.short(args).lines().count();
    for name in ["many", "big.test"] {
        let cut = lab.dig(&format!("+noedns +ignore {name}"));
        assert!(cut.contains(" tc "), "{cut}");
        assert_eq!(lines(&format!("+noedns {name}")), usize::from(MANY), "dig turns to TCP itself");
        assert_eq!(lines(&format!("+tcp {name}")), usize::from(MANY));
        assert_eq!(lines(&format!("+bufsize=4096 +ignore {name}")), usize::from(MANY));
    }
    assert_ne!(lab.short("+tcp many"), lab.short("+tcp many"), "shuffled");
}

#[test]
fn the_snapshot_is_followed() {
    let lab = Lab::new("follow");
    assert!(lab.dig("new.shop").contains("status: NXDOMAIN"));
    lab.snapshot.send_replace(Arc::new(snapshot(&[("new", "10.9.0.3")])));
    netagent_tests::lab::eventually("the new name", || lab.short("new.shop") == "10.9.0.3");
    lab.snapshot.send_replace(Arc::new(Snapshot::default()));
    netagent_tests::lab::eventually("no names", || lab.short("psql") != "10.9.0.2");
}

#[test]
fn a_port_that_is_taken_is_told() {
    let mut lab = Lab::new("taken");
    let taken = lab.sockets().expect_err("the server has the port");
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    let server = lab.server.take().expect("a server");
    lab.runtime.block_on(server.stop());
    lab.sockets().expect("it is free again");
}
