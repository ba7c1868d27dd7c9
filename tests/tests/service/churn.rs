//! Ten thousand connections through the mesh while backends come, drain and go.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use netagent_tests::client::{Connection, inside};
use netagent_tests::lab::{eventually, inspect, must, refusal};
use xtask::playground::Playground;

use crate::world::{backend, cluster, service};

const CONNECTIONS: usize = 10_000;
const CLIENTS: usize = 8;

/// None fails, whatever node it enters by: a backend that goes is drained first.
#[test]
fn ten_thousand_connections_while_backends_come_and_go() {
    let cluster = cluster();
    service(&cluster, &["-p", "8080:8000"]);
    let _stays = backend(&cluster, 1, "stays", &[]);
    let done = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let entries: Vec<_> =
        cluster.nodes().iter().map(|n| SocketAddrV4::new(n.address, 8080)).collect();
    let outside = cluster.client().netns_path();
    let rounds = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|first| {
                let (entries, done, outside) = (&entries, &done, &outside);
                scope.spawn(move || {
                    inside(outside, || {
                        for n in (first..CONNECTIONS).step_by(CLIENTS) {
                            let to = entries[n % entries.len()];
                            let mut connection = Connection::open(to)
                                .unwrap_or_else(|e| panic!("connection {n} to {to}: {e}"));
                            connection
                                .echo("hello")
                                .unwrap_or_else(|e| panic!("{n} by {to}, {connection:?}: {e}"));
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                })
            })
            .collect();
        let churn = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                let node = 2 + rounds % 2;
                let name = format!("guest{rounds}");
                // Or it would be chosen before it listens.
                let health = ["--health-tcp", "8000", "--health-interval", "200ms"];
                let guest = backend(&cluster, node, &name, &health);
                eventually("the guest is healthy", || healthy(&cluster) == 2);
                std::thread::sleep(Duration::from_millis(300));
                guest.stop();
                rounds += 1;
            }
            rounds
        });
        let failed: Vec<_> = clients.into_iter().filter_map(|c| c.join().err()).collect();
        over.store(true, Ordering::Relaxed);
        let rounds = churn.join().expect("the backends");
        if let Some(panic) = failed.into_iter().next() {
            std::panic::resume_unwind(panic);
        }
        rounds
    });
    assert_eq!(done.load(Ordering::Relaxed), CONNECTIONS);
    println!("{CONNECTIONS} connections while {rounds} backends came, drained and went");
    assert!(rounds > 2, "the backends did change meanwhile");
}

/// How many tasks of `web` take connections.
fn healthy(cluster: &Playground) -> usize {
    let web = inspect(cluster.node(1), "service", "web");
    let tasks = web["tasks"].as_array().expect("tasks");
    tasks.iter().filter(|task| task["task"]["health"] == "healthy").count()
}

/// Ports, scheduler and weights change under load, and no request fails.
#[test]
fn updates_under_load() {
    let cluster = cluster();
    service(&cluster, &["-p", "8080:8000"]);
    let _backends = [1, 2].map(|n| backend(&cluster, n, &format!("b{n}"), &[]));
    let over = AtomicBool::new(false);
    let outside = cluster.client().netns_path();
    let entry = SocketAddrV4::new(cluster.node(3).address, 8080);
    let n1 = cluster.node(1);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            inside(&outside, || {
                let mut long = Connection::open(entry).expect("a connection");
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    Connection::open(entry).expect("a connection").echo("short").expect("an echo");
                    long.echo("long").expect("an echo");
                    count += 1;
                }
                count
            })
        });
        for scheduler in ["rr", "lc", "wlc", "sh", "mh", "wrr"] {
            must(n1.netagent(&["service", "update", "web", "--scheduler", scheduler]));
            must(n1.netagent(&["service", "update", "web", "--publish-add", "8090:8000"]));
            must(n1.netagent(&["endpoint", "update", "b1", "--weight", "5"]));
            must(n1.netagent(&["service", "update", "web", "--affinity", "clientip:10s"]));
            must(n1.netagent(&["service", "update", "web", "--affinity", "none"]));
            must(n1.netagent(&["endpoint", "update", "b1", "--weight", "1"]));
        }
        refusal(n1.netagent(&["service", "update", "web", "--scheduler", "none"]));
        over.store(true, Ordering::Relaxed);
        println!("{} requests meanwhile", load.join().expect("the load"));
    });
}
