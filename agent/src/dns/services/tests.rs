use super::*;
use crate::dns::fixture::{Cluster, labels, published};
use crate::dns::zone::Zone;
use crate::model::{Health, NodeStatus};

fn cluster() -> Cluster {
    let mut cluster = Cluster::new().network("shop", "10.0.0.0/24").network("blog", "10.0.1.0/24");
    for i in 2..6 {
        cluster = cluster.endpoint(&format!("w{i}"), "shop", &format!("10.0.0.{i}"), &["any"]);
    }
    cluster
        .service("web", "shop", Some("10.0.0.100"), |web| {
            web.aliases = vec!["www".parse().unwrap()];
            web.ports = vec![
                published(80, Protocol::Tcp),
                published(53, Protocol::Tcp),
                published(53, Protocol::Udp),
            ];
        })
        .serves("10.0.0.2", "web", |_| {})
        .serves("10.0.0.3", "web", |task| task.weight = 7)
        .service("rr", "shop", None, |_| {})
        .serves("10.0.0.4", "rr", |_| {})
        .serves("10.0.0.5", "rr", |_| {})
}

fn resolve(cluster: &Cluster, name: &str) -> Found {
    Zone::new(&cluster.snapshot, Datapath::Ebpf).resolve(&labels(name), &cluster.ids(&["shop"]))
}

/// Last octets of the addresses that a name has.
fn hosts(found: Found) -> Vec<u8> {
    match found {
        Found::Addresses(addresses) | Found::Service { addresses, .. } => {
            addresses.iter().map(|a| a.octets()[3]).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// `HOST:PORT/WEIGHT` of what a name is located at.
fn located(found: Found) -> Vec<String> {
    let Found::Service { locations, .. } = found else { panic!("{found:?}") };
    locations.iter().map(|l| format!("{}:{}/{}", l.host, l.port, l.weight)).collect()
}

#[test]
fn a_service_is_its_virtual_address_and_its_tasks_are_the_backends() {
    let cluster = cluster();
    for name in ["web", "WEB.shop", "www", "www.shop"] {
        assert_eq!(hosts(resolve(&cluster, name)), [100], "{name}");
    }
    for name in ["tasks.web", "Tasks.Web.shop", "tasks.www"] {
        assert_eq!(hosts(resolve(&cluster, name)), [2, 3], "{name}");
    }
    assert_eq!(hosts(resolve(&cluster, "w2")), [2], "a backend keeps its own names");
    assert_eq!(hosts(resolve(&cluster, "any")), [2, 3, 4, 5]);
}

#[test]
fn without_a_virtual_address_a_service_is_its_backends() {
    let cluster = cluster();
    for name in ["rr", "rr.shop", "tasks.rr"] {
        assert_eq!(hosts(resolve(&cluster, name)), [4, 5], "{name}");
    }
}

#[test]
fn on_a_kernel_datapath_a_service_is_its_backends() {
    let cluster = cluster();
    let zone = Zone::new(&cluster.snapshot, Datapath::Kernel);
    let web = zone.resolve(&labels("web"), &cluster.ids(&["shop"]));
    assert_eq!(hosts(web.clone()), [2, 3]);
    assert_eq!(located(web)[0], "10-0-0-2.tasks.web.shop:53/1");
}

#[test]
fn a_service_is_unknown_off_its_networks() {
    let cluster = cluster();
    let zone = Zone::new(&cluster.snapshot, Datapath::Ebpf);
    for name in ["web", "tasks.web", "_80._tcp.web", "web.shop"] {
        let found = zone.resolve(&labels(name), &cluster.ids(&["blog"]));
        assert_eq!(found, Found::Elsewhere, "{name}");
    }
    assert_eq!(zone.resolve(&labels("web.blog"), &cluster.ids(&["blog"])), Found::Missing);
}

#[test]
fn who_takes_no_connections_is_not_named() {
    for ineligible in [
        |task: &mut crate::model::Task| task.draining = true,
        |task: &mut crate::model::Task| task.health = Health::Unhealthy,
        |task: &mut crate::model::Task| task.health = Health::Starting,
        |task: &mut crate::model::Task| task.weight = 0,
    ] {
        let cluster = cluster().serves("10.0.0.2", "web", ineligible);
        assert_eq!(hosts(resolve(&cluster, "tasks.web")), [3]);
        assert_eq!(resolve(&cluster, "10-0-0-2.tasks.web"), Found::Missing);
        assert_eq!(hosts(resolve(&cluster, "w2")), [2], "its own name stays");
        let cluster = cluster.serves("10.0.0.3", "web", ineligible);
        assert_eq!(hosts(resolve(&cluster, "tasks.web")), [0; 0], "it exists and is empty");
        assert_eq!(hosts(resolve(&cluster, "web")), [100]);
    }
}

#[test]
fn nodes_that_are_down_are_avoided_as_long_as_others_are_left() {
    let cluster = cluster().on_a_node("10.0.0.2", NodeStatus::Down);
    assert_eq!(hosts(resolve(&cluster, "tasks.web")), [3]);
    let cluster = cluster.on_a_node("10.0.0.3", NodeStatus::Down);
    assert_eq!(hosts(resolve(&cluster, "tasks.web")), [2, 3]);
    let cluster = cluster.on_a_node("10.0.0.3", NodeStatus::Ready);
    assert_eq!(hosts(resolve(&cluster, "tasks.web")), [3]);
}

#[test]
fn nodes_that_cannot_be_reached_are_avoided_as_long_as_others_are_left() {
    let mut cluster = cluster();
    for (node, left) in [("10.0.0.2", vec![3]), ("10.0.0.3", vec![2, 3])] {
        cluster = cluster.on_a_node(node, NodeStatus::Ready);
        let endpoints = &cluster.snapshot.endpoints;
        let there = endpoints.values().find(|e| e.address.to_string() == node).unwrap();
        cluster.snapshot.unreachable.insert(there.node.clone());
        assert_eq!(hosts(resolve(&cluster, "tasks.web")), left);
    }
    assert_eq!(hosts(resolve(&cluster, "w2")), [2], "a workload's own name stays");
}

#[test]
fn published_ports_are_located_at_their_targets() {
    let cluster = cluster();
    assert_eq!(located(resolve(&cluster, "_80._tcp.web")), ["web.shop:80/0"]);
    assert_eq!(located(resolve(&cluster, "_53._UDP.www.shop")), ["web.shop:53/0"]);
    assert_eq!(
        located(resolve(&cluster, "_80._tcp.tasks.web")),
        ["10-0-0-2.tasks.web.shop:80/1", "10-0-0-3.tasks.web.shop:80/7"]
    );
    assert_eq!(located(resolve(&cluster, "web")), ["web.shop:53/0", "web.shop:80/0"]);
    assert_eq!(located(resolve(&cluster, "tasks.web")).len(), 4, "53 once for each backend");
    assert_eq!(located(resolve(&cluster, "rr")), [""; 0], "nothing is published");
    for name in ["_81._tcp.web", "_80._udp.web", "_http._tcp.web", "_080._tcp.web", "_80._tcp.rr"] {
        assert_eq!(resolve(&cluster, name), Found::Missing, "{name}");
    }
}

#[test]
fn what_a_location_is_called_leads_there() {
    let cluster = cluster();
    for name in ["web", "tasks.web"] {
        let Found::Service { locations, .. } = resolve(&cluster, name) else { panic!("{name}") };
        for Location { host, address, .. } in locations {
            assert_eq!(hosts(resolve(&cluster, &host)), [address.octets()[3]], "{host}");
        }
    }
    for name in ["10-0-0-4.tasks.web", "10-0-0.tasks.web", "x.tasks.web", "a.b.c.tasks.web"] {
        assert_eq!(resolve(&cluster, name), Found::Missing, "{name}");
    }
    assert_eq!(resolve(&cluster, "x.web"), Found::Elsewhere, "web may be a domain as well");
    assert_eq!(resolve(&cluster, "x.web.shop"), Found::Missing);
}

#[test]
fn a_virtual_address_is_the_services_and_a_backends_is_its_workloads() {
    let cluster = cluster();
    let name = |text: &str| -> Name { text.parse().unwrap() };
    for (address, owner) in [("100.0.0.10", "web"), ("2.0.0.10", "w2")] {
        assert_eq!(
            resolve(&cluster, &format!("{address}.in-addr.arpa")),
            Found::Pointer(name(owner), name("shop"))
        );
    }
}

#[test]
fn a_service_may_have_the_name_of_its_network() {
    let cluster = cluster().service("shop", "shop", Some("10.0.0.103"), |_| {});
    assert_eq!(hosts(resolve(&cluster, "shop")), [103]);
    assert_eq!(hosts(resolve(&cluster, "shop.shop")), [103]);
    assert_eq!(hosts(resolve(&cluster, "tasks.shop")), [0; 0]);
    assert_eq!(hosts(resolve(&cluster, "web.shop")), [100], "names on the network stay");
}
