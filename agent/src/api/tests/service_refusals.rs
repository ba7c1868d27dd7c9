//! Requests about services and those who serve them that cannot be: each says why, and
//! changes nothing.

use super::*;
use crate::cluster::tests::endpoint;
use crate::model::Service;

#[tokio::test]
async fn services() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    n1.network("db").await;
    n1.network("front").await;
    n1.network("other").await;
    n1.endpoint("db", "psql").await;
    let body = json!({
        "name": "web", "networks": ["front", "db"], "aliases": ["www"],
        "ports": [
            {"published": 80, "target": 8080},
            {"published": 81, "target": 8081, "address": "192.168.50.11"},
        ],
    });
    post(&n1.client, "/v1/services", &body).await.unwrap();
    let before = n1.cluster.snapshot();
    let port = |port: serde_json::Value| json!({ "ports": [port] });
    let published = |number: u16| json!({"ports": [{"published": number, "target": 9}]});
    let cases = [
        (json!({"networks": []}), 400, "choose with --network"),
        (json!({"networks": ["nope"]}), 404, "no network nope"),
        (json!({"networks": ["db", "front", "DB"]}), 400, "network db is given twice"),
        (json!({"name": "WEB", "networks": ["other"]}), 409, "service web exists"),
        (json!({"name": "www"}), 409, "name www means service web on network db"),
        (json!({"aliases": ["web"]}), 409, "name web means service web on network db"),
        (json!({"name": "tasks"}), 400, "tasks.NAME are the backends"),
        (json!({"name": "psql"}), 409, "workload psql (10.0.0.2 on n1) on network db"),
        (json!({"aliases": ["x", "psql"]}), 409, "workload psql (10.0.0.2 on n1) on network db"),
        (json!({"vip": "10.0.1.9"}), 400, "not in network db (10.0.0.0/24)"),
        (json!({"vip": "10.0.0.0"}), 400, "first or last"),
        (json!({"vip": "10.0.0.1"}), 409, "network db's gateway"),
        (json!({"vip": "10.0.0.2"}), 409, "in use by psql (10.0.0.2 on n1)"),
        (json!({"vip": "10.0.0.3"}), 409, "in use by service web"),
        (json!({"vip": "10.0.0.9", "networks": ["db", "front"]}), 400, "on a service of one"),
        (json!({"vip": "10.0.0.9", "endpoint_mode": "dnsrr"}), 400, "dnsrr has none"),
        (published(80), 409, "80/tcp is published by service web already: choose another"),
        (published(81), 409, "81/tcp is published by service web already (192.168.50.11:81/tcp)"),
        (
            port(json!({"published": 80, "target": 9, "mode": "host"})),
            409,
            "published by service web",
        ),
        (
            port(json!({"published": 80, "target": 9, "address": "192.168.50.12"})),
            409,
            "192.168.50.12:80/tcp is published by service web already (80/tcp)",
        ),
        (published(2377), 409, "port 2377/tcp is the cluster's own: managers listen"),
        (
            port(json!({"published": 4789, "target": 9, "protocol": "udp"})),
            409,
            "port 4789/udp is the cluster's own: it carries the networks",
        ),
        (published(0), 400, "ports are from 1 to 65535"),
        (port(json!({"target": 0})), 400, "ports are from 1 to 65535"),
        (
            json!({"ports": [{"published": 9, "target": 9}, {"published": 9, "target": 8}]}),
            400,
            "9/tcp is given twice",
        ),
        (
            port(json!({"published": 9, "target": 9, "address": "10.0.0.2"})),
            400,
            "10.0.0.2 is in network db",
        ),
        (
            port(json!({"published": 9, "target": 9, "address": "224.0.0.1"})),
            400,
            "cannot be an address of a node",
        ),
        (
            port(json!({"published": 9, "target": 9, "address": "127.0.0.53"})),
            400,
            "nothing answers at 127.0.0.53",
        ),
        (
            port(json!({"published": 9, "target": 9, "allow": ["10.1.0.1/8"]})),
            400,
            "10.0.0.0/8 is the block",
        ),
        (
            json!({"endpoint_mode": "dnsrr", "ports": [{"published": 9, "target": 9}]}),
            400,
            "publish it with mode=host, or take --endpoint-mode vip",
        ),
        (json!({"affinity": 2_678_401}), 400, "from 1 to 2678400 seconds"),
        (json!({"idle_timeout": 0}), 400, "idle timeout 0 s"),
        (json!({"labels": {"l": "x".repeat(2000)}}), 400, "a service has at most 64 labels"),
    ];
    for (mut body, status, part) in cases {
        for (field, usual) in [("name", json!("new")), ("networks", json!(["db"]))] {
            if body.get(field).is_none() {
                body[field] = usual;
            }
        }
        let (seen, message) = refusal(post(&n1.client, "/v1/services", &body).await);
        assert_eq!(seen, status, "{body}: {message}");
        assert!(message.contains(part), "{body}: {message}");
    }

    let cases = [
        (json!({"publish_rm": [{"target": 9}]}), 404, "publishes nothing for target port 9/tcp"),
        (json!({"endpoint_mode": "dnsrr"}), 400, "port 80/tcp of service web"),
        (json!({"idle_timeout": 0}), 400, "idle timeout 0 s"),
        (
            json!({"publish_add": [{"published": 81, "target": 9}]}),
            409,
            "81/tcp is published by service web already (192.168.50.11:81/tcp)",
        ),
    ];
    for (body, status, part) in cases {
        let (seen, message) = refusal::<Service>(n1.client.patch("/v1/services/web", &body).await);
        assert_eq!(seen, status, "{body}: {message}");
        assert!(message.contains(part), "{body}: {message}");
    }
    assert_eq!(n1.cluster.snapshot(), before, "something was changed");
}

/// What a service does to the workloads on its networks.
#[tokio::test]
async fn tasks() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    n1.network("db").await;
    n1.network("other").await;
    let body = json!({
        "name": "web", "networks": ["db"], "aliases": ["www"], "vip": "10.0.0.77",
        "ports": [{"published": 80, "target": 8080, "mode": "host"}],
    });
    post(&n1.client, "/v1/services", &body).await.unwrap();
    let serve = |network: &str, name: &str, service: Option<&str>| {
        let node = n1.cluster.identity().unwrap().node;
        let mut body = serde_json::to_value(endpoint(network, &node, name)).unwrap();
        body["serve"] = service.map_or(json!(null), |service| json!({"service": service}));
        body
    };
    let first: Endpoint =
        n1.client.post("/v1/endpoints", &serve("db", "one", Some("web"))).await.unwrap();
    let plain: Endpoint =
        n1.client.post("/v1/endpoints", &serve("db", "plain", None)).await.unwrap();
    let before = n1.cluster.snapshot();
    let mut asked = serve("db", "new", None);
    asked["address"] = json!("10.0.0.77");
    let mut alias = serve("db", "new", None);
    alias["aliases"] = json!(["www"]);
    // The same request again is no repetition if it serves something else.
    let mut again = serve("db", "one", None);
    again["workload"] = json!(first.workload);
    for (body, status, part) in [
        (
            serve("other", "two", Some("web")),
            409,
            "service web is not on network other: it is on db",
        ),
        (serve("db", "web", Some("web")), 409, "name web means service web on network db"),
        (serve("db", "web", None), 409, "name web means service web on network db"),
        (alias, 409, "name www means service web on network db"),
        (asked, 409, "address 10.0.0.77 is in use by service web"),
        (again, 409, "workload one is on network db already"),
        (
            serve("db", "two", Some("web")),
            409,
            "port 80/tcp of node n1 leads to one (10.0.0.2 on n1) already",
        ),
    ] {
        let (seen, message) = refusal(post(&n1.client, "/v1/endpoints", &body).await);
        assert_eq!(seen, status, "{body}: {message}");
        assert!(message.contains(part), "{body}: {message}");
    }
    let path = format!("/v1/endpoints/{}", plain.id);
    let (status, message) =
        refusal::<Endpoint>(n1.client.patch(&path, &json!({"draining": true})).await);
    assert_eq!(status, 409);
    assert!(message.contains("plain (10.0.0.3 on n1) serves no service"), "{message}");
    assert_eq!(n1.cluster.snapshot(), before, "something was changed");

    // On a network of its own a workload may have any name; tasks may share a node
    // once no port of the node is in question.
    n1.endpoint("other", "web").await;
    let update = json!({"publish_rm": [{"target": 8080}]});
    let _: Service = n1.client.patch("/v1/services/web", &update).await.unwrap();
    let two: Endpoint =
        n1.client.post("/v1/endpoints", &serve("db", "two", Some("web"))).await.unwrap();
    let update = json!({"publish_add": [{"target": 8080, "mode": "host"}]});
    let (status, message) = refusal::<Service>(n1.client.patch("/v1/services/web", &update).await);
    assert_eq!(status, 409);
    assert!(message.contains("node n1 runs several tasks of service web, one"), "{message}");
    let retold: Endpoint = n1
        .client
        .patch(&format!("/v1/endpoints/{}", two.id), &json!({"weight": 65535, "draining": true}))
        .await
        .unwrap();
    let task = retold.task.unwrap();
    assert_eq!((task.weight, task.draining), (65535, true));
}
