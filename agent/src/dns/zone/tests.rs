use proptest::prelude::*;

use super::*;
use crate::dns::fixture::{Cluster, labels};

fn resolve(cluster: &Cluster, name: &str, asker: &[&str]) -> Found {
    Zone::new(&cluster.snapshot, Datapath::Ebpf).resolve(&labels(name), &cluster.ids(asker))
}

fn addresses(list: &[&str]) -> Found {
    Found::Addresses(list.iter().map(|a| a.parse().unwrap()).collect())
}

/// `shop` (10.0.0.0/24) and `blog` (10.0.1.0/24), each with a `db`.
fn two_networks() -> Cluster {
    Cluster::new()
        .network("shop", "10.0.0.0/24")
        .network("blog", "10.0.1.0/24")
        .endpoint("db", "shop", "10.0.0.2", &["psql"])
        .endpoint("web", "shop", "10.0.0.3", &[])
        .endpoint("db", "blog", "10.0.1.2", &["mysql"])
}

#[test]
fn names_and_aliases_resolve_on_shared_networks_only() {
    let cluster = two_networks();
    assert_eq!(resolve(&cluster, "web", &["shop"]), addresses(&["10.0.0.3"]));
    assert_eq!(resolve(&cluster, "PSQL", &["shop"]), addresses(&["10.0.0.2"]));
    assert_eq!(resolve(&cluster, "web", &["blog"]), Found::Elsewhere);
    assert_eq!(resolve(&cluster, "psql", &["blog"]), Found::Elsewhere);
}

#[test]
fn the_first_network_that_knows_a_name_answers() {
    let cluster = two_networks();
    assert_eq!(resolve(&cluster, "db", &["shop", "blog"]), addresses(&["10.0.0.2"]));
    assert_eq!(resolve(&cluster, "db", &["blog", "shop"]), addresses(&["10.0.1.2"]));
    assert_eq!(resolve(&cluster, "mysql", &["shop", "blog"]), addresses(&["10.0.1.2"]));
}

#[test]
fn a_name_is_qualified_by_its_network() {
    let cluster = two_networks();
    assert_eq!(resolve(&cluster, "db.blog", &["shop", "blog"]), addresses(&["10.0.1.2"]));
    assert_eq!(resolve(&cluster, "Db.Shop", &["shop"]), addresses(&["10.0.0.2"]));
    assert_eq!(resolve(&cluster, "db.blog", &["shop"]), Found::Elsewhere);
}

#[test]
fn what_is_under_an_own_network_never_leaves() {
    let cluster = two_networks();
    for name in ["nobody.shop", "a.b.shop", "_x.shop", "db.db.shop"] {
        assert_eq!(resolve(&cluster, name, &["shop"]), Found::Missing, "{name}");
    }
    assert_eq!(resolve(&cluster, "shop", &["shop"]), Found::Nothing);
    assert_eq!(resolve(&cluster, "nobody", &["shop"]), Found::Elsewhere);
    assert_eq!(resolve(&cluster, "shop.example", &["shop"]), Found::Elsewhere);
    assert_eq!(resolve(&cluster, "", &["shop"]), Found::Elsewhere);
}

#[test]
fn several_endpoints_may_have_one_name() {
    let cluster = two_networks().endpoint("app-2", "shop", "10.0.0.9", &["app"]).endpoint(
        "app-1",
        "shop",
        "10.0.0.8",
        &["app", "app"],
    );
    assert_eq!(resolve(&cluster, "app", &["shop"]), addresses(&["10.0.0.8", "10.0.0.9"]));
}

#[test]
fn reverse_names_of_overlay_addresses_never_leave() {
    let cluster = two_networks();
    let name = |text: &str| -> Name { text.parse().unwrap() };
    let ptr = |text| resolve(&cluster, text, &["shop"]);
    assert_eq!(ptr("3.0.0.10.in-addr.arpa"), Found::Pointer(name("web"), name("shop")));
    assert_eq!(ptr("3.0.0.10.IN-ADDR.ARPA"), Found::Pointer(name("web"), name("shop")));
    assert_eq!(ptr("77.0.0.10.in-addr.arpa"), Found::Missing, "nobody has it");
    assert_eq!(ptr("2.1.0.10.in-addr.arpa"), Found::Missing, "not shared");
    assert_eq!(ptr("2.2.0.10.in-addr.arpa"), Found::Elsewhere, "no overlay network");
    assert_eq!(ptr("0.0.10.in-addr.arpa"), Found::Elsewhere);
    assert_eq!(ptr("+3.0.0.10.in-addr.arpa"), Found::Elsewhere);
    assert_eq!(ptr("300.0.0.10.in-addr.arpa"), Found::Elsewhere);
}

#[test]
fn internal_networks_alone_give_no_way_out() {
    let cluster = two_networks().internal("blog");
    assert_eq!(resolve(&cluster, "example.com", &["blog"]), Found::Missing);
    assert_eq!(resolve(&cluster, "example.com", &["blog", "shop"]), Found::Elsewhere);
    assert_eq!(resolve(&cluster, "example.com", &[]), Found::Missing);
}

proptest! {
    /// Whatever is in the cluster: an answer holds exactly the addresses of
    /// the endpoints with that name on the first shared network that has one,
    /// and every address leads back to a name that leads to it.
    #[test]
    fn answers_are_the_endpoints_of_one_shared_network(
        endpoints in prop::collection::vec((0..4u8, 0..6u8, 0..6u8), 0..40),
        asker in prop::sample::subsequence(vec!["n0", "n1", "n2", "n3"], 0..=4).prop_shuffle(),
        asked in 0..6u8,
    ) {
        let mut cluster = Cluster::new();
        for n in 0..4 {
            cluster = cluster.network(&format!("n{n}"), &format!("10.0.{n}.0/24"));
        }
        for (i, (n, name, alias)) in endpoints.iter().enumerate() {
            cluster = cluster.endpoint(
                &format!("e{name}"),
                &format!("n{n}"),
                &format!("10.0.{n}.{}", i + 2),
                &[&format!("e{alias}")],
            );
        }
        let name: Name = format!("e{asked}").parse().unwrap();
        let ids = cluster.ids(&asker);
        let expected = ids.iter().find_map(|id| {
            let hits: Vec<_> = cluster
                .snapshot
                .endpoints_on(id)
                .filter(|e| e.name == name || e.aliases.contains(&name))
                .map(|e| e.address)
                .collect();
            (!hits.is_empty()).then_some(Found::Addresses(hits))
        });
        let none = if ids.is_empty() { Found::Missing } else { Found::Elsewhere };
        let zone = Zone::new(&cluster.snapshot, Datapath::Ebpf);
        prop_assert_eq!(
            zone.resolve(&labels(name.as_str()), &ids),
            expected.unwrap_or(none)
        );
        for endpoint in cluster.snapshot.endpoints.values() {
            let [a, b, c, d] = endpoint.address.octets();
            let reverse = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
            match zone.resolve(&labels(&reverse), &ids) {
                Found::Pointer(name, network) => {
                    prop_assert!(ids.contains(&endpoint.network));
                    let forward = format!("{name}.{network}");
                    let Found::Addresses(found) = zone.resolve(&labels(&forward), &ids) else {
                        return Err(TestCaseError::fail("a pointer leads nowhere"));
                    };
                    prop_assert!(found.contains(&endpoint.address));
                }
                other => {
                    prop_assert_eq!(other, Found::Missing);
                    prop_assert!(!ids.contains(&endpoint.network));
                }
            }
        }
    }
}
