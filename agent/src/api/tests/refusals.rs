//! Requests that make no sense are refused in words, and change nothing.

use super::*;

/// Sends raw bytes as a body: what a program with a bug might send.
async fn raw(socket: &Path, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer and hang up before it has read everything.
    let _ = stream.write_all(body).await;
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply).await;
    let status = reply.split(' ').nth(1).unwrap_or("0").parse().unwrap();
    let json = reply.split("\r\n\r\n").nth(1).unwrap_or_default();
    let message = serde_json::from_str::<serde_json::Value>(json)
        .map_or_else(|_| reply.clone(), |v| v["message"].as_str().unwrap_or_default().to_owned());
    (status, message)
}

#[tokio::test]
async fn bodies() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    n1.network("db").await;
    let socket = dir.path().join("n1.sock");
    let before = n1.cluster.snapshot();
    let node = n1.cluster.identity().unwrap().node;
    let wid = "a".repeat(16);
    let large = format!(r#"{{"name":"x","labels":{{"a":"{}"}}}}"#, "x".repeat(2 << 20));
    let deep = "[".repeat(100_000);
    let cases: Vec<(&str, &str, String, u16, &str)> = vec![
        ("POST", "/v1/networks", String::new(), 400, "EOF"),
        ("POST", "/v1/networks", "{".to_owned(), 400, "EOF"),
        ("POST", "/v1/networks", "[]".to_owned(), 400, "expected"),
        ("POST", "/v1/networks", "null".to_owned(), 400, "expected"),
        ("POST", "/v1/networks", "\u{0}\u{1}".to_owned(), 400, "expected"),
        ("POST", "/v1/networks", deep, 400, ""),
        ("POST", "/v1/networks", "{}".to_owned(), 400, "missing field `name`"),
        ("POST", "/v1/networks", r#"{"name":7}"#.to_owned(), 400, "invalid type"),
        ("POST", "/v1/networks", r#"{"name":"a b"}"#.to_owned(), 400, "is not a name"),
        ("POST", "/v1/networks", r#"{"name":""}"#.to_owned(), 400, "is not a name"),
        (
            "POST",
            "/v1/networks",
            r#"{"name":"x","subnett":"10.9.0.0/24"}"#.to_owned(),
            400,
            "subnett",
        ),
        ("POST", "/v1/networks", r#"{"name":"x","subnet":"10.9.0.0/33"}"#.to_owned(), 400, ""),
        ("POST", "/v1/networks", r#"{"name":"x","name":"y"}"#.to_owned(), 400, "duplicate field"),
        ("POST", "/v1/networks", r#"{"name":"x"} {}"#.to_owned(), 400, "trailing"),
        ("POST", "/v1/networks", large, 413, "larger than"),
        ("POST", "/v1/cluster/init", "{}".to_owned(), 409, "already"),
        ("POST", "/v1/cluster/join", r#"{"token":"x","manager":"y"}"#.to_owned(), 409, "already"),
        ("POST", "/v1/cluster/leave", r#"{"force":"yes"}"#.to_owned(), 400, "boolean"),
        ("POST", "/v1/cluster/leave-notification", "{}".to_owned(), 400, "leave"),
        ("GET", "/v1/cluster/join-token/boss", String::new(), 400, "boss"),
        ("POST", "/v1/nodes/x/status", r#"{"applied":1}"#.to_owned(), 400, "identifier"),
        ("POST", "/v1/nodes/aaaaaaaaaaaaaaaa/status", r#"{"applied":-1}"#.to_owned(), 400, "-1"),
        (
            "POST",
            "/v1/nodes/aaaaaaaaaaaaaaaa/status",
            r#"{"applied":1}"#.to_owned(),
            403,
            "not a member",
        ),
        ("DELETE", "/v1/nodes/n9", String::new(), 404, "no node n9"),
        ("DELETE", "/v1/nodes/n1?force=true", String::new(), 409, "manager"),
        ("DELETE", "/v1/nodes/n1?force=perhaps", String::new(), 400, "force"),
        ("DELETE", "/v1/nodes/n1?froce=true", String::new(), 400, "froce"),
        ("DELETE", "/v1/networks/nope", String::new(), 404, "no network nope"),
        ("GET", "/v1/networks/%ff", String::new(), 400, "UTF-8"),
        ("DELETE", "/v1/endpoints/nope", String::new(), 404, "no endpoint nope"),
        ("POST", "/v1/services", "{}".to_owned(), 400, "missing field `name`"),
        ("POST", "/v1/services", r#"{"name":"web"}"#.to_owned(), 400, "missing field `networks`"),
        (
            "POST",
            "/v1/services",
            r#"{"name":"web","networks":["db"],"ports":[{"target":65536}]}"#.to_owned(),
            400,
            "65536",
        ),
        (
            "POST",
            "/v1/services",
            r#"{"name":"web","networks":["db"],"ports":[{"target":80,"prot":"tcp"}]}"#.to_owned(),
            400,
            "prot",
        ),
        (
            "POST",
            "/v1/services",
            r#"{"name":"web","networks":["db"],"scheduler":"fastest"}"#.to_owned(),
            400,
            "fastest",
        ),
        ("GET", "/v1/services/nope", String::new(), 404, "no service nope"),
        ("PATCH", "/v1/services/nope", "{}".to_owned(), 404, "no service nope"),
        ("PATCH", "/v1/services/nope", r#"{"name":"x"}"#.to_owned(), 400, "name"),
        ("DELETE", "/v1/services/nope", String::new(), 404, "no service nope"),
        ("DELETE", "/v1/services/nope?force=1", String::new(), 400, "force"),
        ("PATCH", "/v1/endpoints/nope", "{}".to_owned(), 404, "no endpoint nope"),
        ("PATCH", "/v1/endpoints/nope", r#"{"weight":65536}"#.to_owned(), 400, "65536"),
        ("PATCH", "/v1/endpoints/nope", r#"{"weight":-1}"#.to_owned(), 400, "-1"),
        ("PATCH", "/v1/endpoints/nope", r#"{"health":"well"}"#.to_owned(), 400, "well"),
        (
            "POST",
            "/v1/endpoints",
            format!(
                r#"{{"network":"db","node":"{node}","workload":"{wid}","name":"w",
                     "serve":{{"service":"nope"}}}}"#
            ),
            404,
            "no service nope",
        ),
        (
            "POST",
            "/v1/endpoints",
            format!(r#"{{"network":"nope","node":"{node}","workload":"{wid}","name":"w"}}"#),
            404,
            "no network nope",
        ),
        (
            "POST",
            "/v1/endpoints",
            format!(r#"{{"network":"db","node":"{wid}","workload":"{wid}","name":"w"}}"#),
            404,
            "no node",
        ),
        (
            "POST",
            "/v1/endpoints",
            format!(r#"{{"network":"db","node":"{node}","workload":"UPPER","name":"w"}}"#),
            400,
            "identifier",
        ),
        ("POST", "/v1/join", r#"{"token":"x"}"#.to_owned(), 400, "missing field"),
    ];
    for (method, path, body, status, part) in cases {
        let seen = raw(&socket, method, path, body.as_bytes()).await;
        let shown = &body[..body.len().min(80)];
        assert_eq!(seen.0, status, "{method} {path} {shown}: {}", seen.1);
        assert!(seen.1.contains(part), "{method} {path} {shown}: {}", seen.1);
        assert!(!seen.1.is_empty(), "{method} {path} {shown}");
    }
    assert_eq!(n1.cluster.snapshot(), before, "something was changed");
}

#[tokio::test]
async fn networks() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    n1.network("db").await;
    let before = n1.cluster.snapshot();
    let cases = [
        (json!({"driver": "bridge"}), 400, "overlay is the only one"),
        (json!({"name": "DB"}), 409, "network db exists"),
        (json!({"options": {"encrypted": "maybe"}}), 400, "true or false"),
        (json!({"options": {"mtu": "575"}}), 400, "from 576 to 65485"),
        (json!({"options": {"mtu": "1e3"}}), 400, "from 576 to 65485"),
        (json!({"options": {"com.docker.network.driver.mtu": "70000"}}), 400, "65485"),
        (json!({"options": {"mtu": "1400", "com.docker.network.driver.mtu": "1300"}}), 400, "two"),
        (json!({"options": {"vxlanid_list": "5"}}), 400, "vxlanid_list"),
        (json!({"labels": {"l": "x".repeat(2000)}}), 400, "at most 64 labels of 1024 bytes"),
        (json!({"subnet": "10.9.0.5/24"}), 400, "10.9.0.0/24 is the block"),
        (json!({"subnet": "10.9.0.0/30"}), 400, "from 8 to 29"),
        (json!({"subnet": "8.0.0.0/7"}), 400, "from 8 to 29"),
        (json!({"subnet": "127.1.0.0/16"}), 400, "loopback"),
        (json!({"subnet": "224.1.0.0/16"}), 400, "multicast"),
        (json!({"subnet": "169.254.9.0/24"}), 400, "link-local"),
        (json!({"subnet": "10.0.0.0/16"}), 409, "overlaps network db (10.0.0.0/24)"),
        (json!({"subnet": "172.20.0.0/16"}), 409, "172.16.0.0/12, which host n1 routes itself"),
        (json!({"subnet": "192.168.0.0/16"}), 409, "192.168.50.11, the address of node n1"),
        (json!({"subnet": "10.9.0.0/24", "gateway": "10.9.1.1"}), 400, "not in subnet"),
        (json!({"subnet": "10.9.0.0/24", "gateway": "10.9.0.255"}), 400, "first or last"),
        (json!({"gateway": "10.9.0.0"}), 400, "not in subnet 10.0.1.0/24"),
        (json!({"subnet": "10.9.0.0/24", "ip_range": "10.9.0.0/23"}), 400, "not in subnet"),
        (
            json!({"subnet": "10.9.0.0/24", "ip_range": "10.9.0.9/28"}),
            400,
            "10.9.0.0/28 is the block",
        ),
        (json!({"subnet": "10.9.0.0/24", "aux_addresses": {"r": "10.9.0.1"}}), 400, "the gateway"),
        (
            json!({"subnet": "10.9.0.0/24", "aux_addresses": {"r": "10.8.0.1"}}),
            400,
            "aux-address r",
        ),
        (
            json!({"subnet": "10.9.0.0/24", "aux_addresses": {"r": "10.9.0.9", "s": "10.9.0.9"}}),
            400,
            "r and s are both",
        ),
    ];
    for (mut body, status, part) in cases {
        if body.get("name").is_none() {
            body["name"] = json!("new");
        }
        let (seen, message) = refusal(post(&n1.client, "/v1/networks", &body).await);
        assert_eq!(seen, status, "{body}: {message}");
        assert!(message.contains(part), "{body}: {message}");
    }
    assert_eq!(n1.cluster.snapshot(), before, "something was changed");

    // What fits, just.
    let body = json!({
        "name": "new", "subnet": "10.9.0.0/29", "gateway": "10.9.0.6", "ip_range": "10.9.0.0/30",
        "aux_addresses": {"router": "10.9.0.2"}, "options": {"mtu": "1400"}, "internal": true,
        "labels": {"a": "b"}
    });
    post(&n1.client, "/v1/networks", &body).await.unwrap();
    let taken = [n1.endpoint("new", "a").await.address, n1.endpoint("new", "b").await.address];
    assert_eq!(taken.map(|a| a.to_string()), ["10.9.0.1", "10.9.0.3"]);
    let node = n1.cluster.identity().unwrap().node;
    let ask = |address: Option<&str>| {
        let mut request = crate::cluster::tests::endpoint("new", &node, "c");
        request.address = address.map(|a| a.parse().unwrap());
        async { refusal(post(&n1.client, "/v1/endpoints", &{ request }).await) }
    };
    for (address, status, part) in [
        (None, 409, "no address is free in 10.9.0.0/30 of network new"),
        (Some("10.9.0.0"), 400, "first or last"),
        (Some("10.9.0.7"), 400, "first or last"),
        (Some("10.9.0.8"), 400, "not in network new"),
        (Some("10.9.0.6"), 409, "gateway"),
        (Some("10.9.0.2"), 409, "kept for router"),
        (Some("10.9.0.3"), 409, "in use by b (10.9.0.3 on n1)"),
    ] {
        let (seen, message) = ask(address).await;
        assert_eq!(seen, status, "{address:?}: {message}");
        assert!(message.contains(part), "{address:?}: {message}");
    }
}

#[tokio::test]
async fn joining() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    n1.network("db").await;
    let n2 = Agent::start(dir.path(), 2).await;
    let before = n1.cluster.snapshot();
    let token = n1.token().await.token;
    let join = |token: &str, manager: &str, advertise: &str| {
        let body = json!({"token": token, "manager": manager, "advertise": advertise});
        async { refusal(post(&n2.client, "/v1/cluster/join", &{ body }).await) }
    };
    let manager = n1.listen.to_string();
    let own = "192.168.50.12";
    let secret = token.rsplit_once('-').unwrap().0.to_owned() + "-" + &"0".repeat(32);
    for (token, manager, advertise, status, part) in [
        ("", manager.as_str(), own, 400, "not a join token"),
        ("SWMTKN-1-a-b", &manager, own, 400, "Docker Swarm"),
        (&token[..40], &manager, own, 400, "not a join token"),
        (&secret, &manager, own, 401, "not valid"),
        (&token, "", own, 400, "not the address of a manager"),
        (&token, "127.0.0.1:x", own, 400, "not the address of a manager"),
        (&token, "no such host", own, 400, "not the address of a manager"),
        (&token, "127.0.0.1:1", own, 503, "cannot reach the manager at 127.0.0.1:1"),
        (&token, &manager, "192.168.50.99", 400, "--local-addr"),
    ] {
        let (seen, message) = join(token, manager, advertise).await;
        assert_eq!(seen, status, "{token} {manager}: {message}");
        assert!(message.contains(part), "{token} {manager}: {message}");
    }
    assert_eq!(n2.cluster.identity(), None);
    assert_eq!(n1.cluster.snapshot(), before, "something was changed");

    // Somebody else with n1's address.
    let twin = Agent::run(dir.path().to_owned(), "twin".to_owned(), n1.address, n2.listen).await;
    let (status, message) = refusal(twin.try_join(&n1, &token).await);
    assert_eq!(status, 409);
    assert!(message.contains("192.168.50.11 is that of node n1"), "{message}");

    // And a host inside a network.
    let inside = Ipv4Addr::new(10, 0, 0, 77);
    let inside = Agent::run(dir.path().to_owned(), "inside".to_owned(), inside, n2.listen).await;
    let (status, message) = refusal(inside.try_join(&n1, &token).await);
    assert_eq!(status, 409);
    assert!(message.contains("network db (10.0.0.0/24)"), "{message}");
    assert_eq!(n1.cluster.snapshot(), before, "something was changed");
}

#[tokio::test]
async fn outside_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = Agent::start(dir.path(), 1).await;
    for (path, body) in [
        ("/v1/networks", json!({"name": "db"})),
        ("/v1/networks/prune", json!(null)),
        ("/v1/cluster/leave", json!({"force": true})),
        ("/v1/cluster/join-token/worker", json!(null)),
    ] {
        let (status, message) = refusal(post(&n1.client, path, &body).await);
        assert_eq!(status, 409, "{path}");
        assert!(message.contains("this node is in no cluster"), "{path}: {message}");
    }
    for (body, part) in [
        (json!({"pool": "10.0.0.5/8"}), "10.0.0.0/8 is the block"),
        (json!({"pool": "10.0.0.0/8", "pool_prefix": 7}), "cannot be cut"),
        (json!({"pool": "10.0.0.0/8", "pool_prefix": 30}), "cannot be cut"),
        (json!({"pool": "127.0.0.0/8"}), "loopback"),
        (json!({"data_path_port": 80}), "below 1024"),
        (json!({"data_path_port": 99999}), "99999"),
        (json!({"data_path_port": 4499}), "UDP port 4500"),
        (json!({"advertise": "1.2.3.4"}), "192.168.50.11 (eth0)"),
        (json!({"advertise": "1.2.3.4", "local": "10.0.0.5"}), "192.168.50.11 (eth0)"),
        (json!({"local": "192.168.50.11"}), "--advertise-addr"),
    ] {
        let (status, message) = refusal(post(&n1.client, "/v1/cluster/init", &body).await);
        assert_eq!(status, 400, "{body}: {message}");
        assert!(message.contains(part), "{body}: {message}");
    }
    assert_eq!(n1.cluster.identity(), None);
    let body = json!({"pool": "10.5.0.0/16", "pool_prefix": 26, "data_path_port": 4790});
    post(&n1.client, "/v1/cluster/init", &body).await.unwrap();
    assert_eq!(n1.network("db").await.subnet.to_string(), "10.5.0.0/26");
    assert_eq!(n1.network("db2").await.subnet.to_string(), "10.5.0.64/26");
    assert_eq!(n1.cluster.snapshot().cluster.as_ref().unwrap().data_path_port, 4790);
}
