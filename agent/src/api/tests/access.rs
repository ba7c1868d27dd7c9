//! Who may do what, shown over TLS with real certificates.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::api::identity;
use crate::api::server::document;
use crate::cluster::ca::{self, Authority, Subject};
use crate::cluster::tests::endpoint;
use crate::cluster::token::Token;
use crate::model::{NodeId, Role};

/// Every route that is described, and some that are not: all but the one to join.
fn routes() -> Vec<(String, String)> {
    let document = serde_json::to_value(document()).unwrap();
    let mut routes: Vec<_> = [("GET", "/v1/openapi.json"), ("GET", "/v1/unknown")]
        .into_iter()
        .chain([("GET", identity::JOIN), ("PUT", "/v1/networks"), ("GET", "/")])
        .map(|(method, path)| (method.to_owned(), path.to_owned()))
        .collect();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let mut filled = path.clone();
        for (name, value) in [
            ("role", "worker"),
            ("node", "n2"),
            ("network", "db"),
            ("service", "web"),
            ("endpoint", "x"),
            ("workload", "x"),
        ] {
            filled = filled.replace(&format!("{{{name}}}"), value);
        }
        assert!(!filled.contains('{'), "what stands for the parameter of {path}?");
        let methods = operations.as_object().unwrap().keys();
        routes.extend(methods.map(|method| (method.to_ascii_uppercase(), filled.clone())));
    }
    routes.retain(|(method, path)| (method.as_str(), path.as_str()) != ("POST", identity::JOIN));
    assert!(routes.len() > 35, "{routes:?}");
    routes
}

async fn call(client: &Client, method: &str, path: &str) -> Result<serde_json::Value, ClientError> {
    client.request(method.parse().unwrap(), path, Some(&json!({}))).await
}

async fn anonymous(manager: &Agent) -> Client {
    let token: Token = manager.token().await.token.parse().unwrap();
    manager.tls(tls::joiner(token.ca).unwrap())
}

#[tokio::test]
async fn strangers_may_only_join() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    n1.network("db").await;
    let stranger = anonymous(&n1).await;
    let before = n1.cluster.snapshot();
    for (method, path) in routes() {
        let (status, message) = refusal(call(&stranger, &method, &path).await);
        assert_eq!(status, 401, "{method} {path}: {message}");
    }
    let (status, _) = refusal(call(&stranger, "POST", "/v1/join").await);
    assert_eq!(status, 400, "this route is open, and the body is empty");
    assert_eq!(n1.cluster.snapshot(), before);
}

#[tokio::test]
async fn workers_write_their_own_only() {
    let dir = tempfile::tempdir().unwrap();
    let (n1, n2, n3) = three(dir.path()).await;
    n1.network("db").await;
    let theirs = n3.endpoint("db", "psql").await;
    let (id2, id3) = (n2.cluster.identity().unwrap().node, n3.cluster.identity().unwrap().node);
    let worker = n2.as_node(&n1);
    let before = n1.cluster.snapshot();

    // Each of these has a test of its own, here or above.
    let open = [
        ("GET", "/v1/watch"),
        ("POST", "/v1/endpoints"),
        ("PATCH", "/v1/endpoints/x"),
        ("DELETE", "/v1/endpoints/x"),
        ("POST", "/v1/nodes/n2/status"),
        ("POST", "/v1/nodes/n2/certificate"),
        ("POST", "/v1/cluster/leave-notification"),
        ("GET", "/v1/unknown"),
        ("GET", "/"),
    ];
    for (method, path) in routes() {
        if !open.contains(&(&method, &path)) {
            let refused = refusal(call(&worker, &method, &path).await).0;
            assert!([403, 405].contains(&refused), "{method} {path}: {refused}");
        }
    }
    for refused in [
        post(&worker, "/v1/endpoints", &endpoint("db", &id3, "mine")).await,
        call(&worker, "PATCH", &format!("/v1/endpoints/{}", theirs.id)).await,
        call(&worker, "DELETE", &format!("/v1/endpoints/{}", theirs.id)).await,
        post(&worker, &format!("/v1/nodes/{id3}/status"), &json!({"applied": 1, "facts": null}))
            .await,
        post(&worker, &format!("/v1/nodes/{id3}/certificate"), &json!({"csr": ""})).await,
    ] {
        assert_eq!(refusal(refused).0, 403);
    }
    // Reads are for managers, too.
    assert_eq!(refusal(call(&worker, "GET", "/v1/endpoints").await).0, 403);
    assert_eq!(n1.cluster.snapshot(), before, "something was changed");

    // It may not turn itself into another host either.
    let mut facts = json!({
        "hostname": "n2", "address": "192.168.50.13", "mtu": 1500, "datapath": "ebpf",
        "version": "0.0.0", "routes": []
    });
    let path = format!("/v1/nodes/{id2}/status");
    let refused = post(&worker, &path, &json!({"applied": 1, "facts": facts})).await;
    assert_eq!(refusal(refused).0, 409);
    facts["address"] = json!("192.168.50.12");
    facts["hostname"] = json!("a\nb");
    let refused = post(&worker, &path, &json!({"applied": 1, "facts": facts})).await;
    assert_eq!(refusal(refused).0, 400);
    assert_eq!(n1.cluster.snapshot(), before, "something was changed");

    let own: Endpoint = worker.post("/v1/endpoints", &endpoint("db", &id2, "mine")).await.unwrap();
    worker.delete(&format!("/v1/endpoints/{}", own.id)).await.unwrap();
}

#[tokio::test]
async fn an_expelled_node_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (n1, n2, mut n3) = three(dir.path()).await;
    n1.network("db").await;
    let kept = n1.endpoint("db", "kept").await;
    n2.endpoint("db", "web").await;
    n3.endpoint("db", "psql").await;
    let worker = n2.as_node(&n1);
    n1.client.delete("/v1/nodes/n2?force=true").await.unwrap();
    for (method, path) in routes() {
        let (status, _) = refusal(call(&worker, &method, &path).await);
        assert_eq!(status, 403, "{method} {path}");
    }
    while n2.cluster.status().manager_reachable {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It knows, so that it gives up what is not its own any more.
    let without = |s: &Snapshot| s.nodes.len() == 2 && s.endpoints.len() == 2;
    n2.until("without itself", without).await;
    let node = n2.cluster.identity().unwrap().node;
    let another = crate::cluster::tests::endpoint("db", &node, "another");
    let error = n2.cluster.create_endpoint(&another).await.unwrap_err().to_string();
    assert!(error.contains("no member of its cluster any more"), "{error}");
    // One that was away is told when it comes back.
    n3.kill().await;
    n1.client.delete("/v1/nodes/n3?force=true").await.unwrap();
    let n3 = n3.restart().await;
    n3.until("without itself", |s| s.node("n3").is_none() && s.endpoints.keys().eq([&kept.id]))
        .await;
    // It can still leave.
    post(&n2.client, "/v1/cluster/leave", &json!({"force": false})).await.unwrap();
}

#[tokio::test]
async fn certificates_of_others_get_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    // Another cluster's CA, even one that calls itself the same.
    let cluster = n1.cluster.identity().unwrap();
    let forger = Authority::new(&cluster.cluster.id).unwrap();
    let subject =
        Subject { node: cluster.node.clone(), role: Role::Manager, cluster: cluster.cluster.id };
    let mut forged = forger.issue(&subject).unwrap();
    forged.ca = std::fs::read_to_string(dir.path().join("n1/ca.crt")).unwrap();
    let error = n1.tls(tls::member(&forged).unwrap()).get::<serde_json::Value>("/v1/nodes").await;
    assert!(!matches!(error, Ok(_) | Err(ClientError::Refused { .. })), "{error:?}");
    // A good certificate of a node that never was a member.
    let nobody = Subject { node: NodeId::new(), role: Role::Manager, ..subject };
    let store = rusqlite::Connection::open(dir.path().join("n1/store.db")).unwrap();
    let json: Vec<u8> = store
        .query_row("SELECT value FROM kv WHERE key = 'secrets/ca'", [], |row| row.get(0))
        .unwrap();
    let authority: Authority = serde_json::from_slice(&json).unwrap();
    let client = n1.tls(tls::member(&authority.issue(&nobody).unwrap()).unwrap());
    assert_eq!(refusal(call(&client, "GET", "/v1/nodes").await).0, 403);
}

/// A server with a manager's certificate of another cluster: what it gets to read.
async fn impostor() -> (SocketAddr, tokio::task::JoinHandle<Vec<u8>>) {
    let authority = Authority::new("other").unwrap();
    let subject = Subject { node: NodeId::new(), role: Role::Manager, cluster: "other".to_owned() };
    let own = authority.issue(&subject).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls::server(&own).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let read = tokio::spawn(async move {
        let mut read = Vec::new();
        let (stream, _) = listener.accept().await.unwrap();
        if let Ok(mut stream) = acceptor.accept(stream).await {
            let _ = stream.read_to_end(&mut read).await;
        }
        read
    });
    (address, read)
}

#[tokio::test]
async fn the_token_goes_to_its_own_cluster_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    let n2 = Agent::start(dir.path(), 2).await;
    let (address, read) = impostor().await;
    let token = n1.token().await.token;
    let request = json!({
        "token": token, "manager": address.to_string(), "advertise": n2.address,
    });
    let (status, message) = refusal(post(&n2.client, "/v1/cluster/join", &request).await);
    assert_eq!(status, 409);
    assert!(message.contains("nothing was sent"), "{message}");
    assert_eq!(read.await.unwrap(), b"");
    // The right manager with the digest of another CA.
    let mut wrong: Token = token.parse().unwrap();
    wrong.ca[0] ^= 1;
    let (status, _) = refusal(n2.try_join(&n1, &wrong.to_string()).await);
    assert_eq!(status, 409);
    assert_eq!(n1.cluster.snapshot().nodes.len(), 1);
    assert_eq!(n2.cluster.identity(), None);
    n2.join(&n1).await;
}

/// A clock that is wrong is told from a manager that is.
#[tokio::test]
async fn a_certificate_that_has_ended_is_a_matter_of_clocks() {
    let authority = Authority::new("c").unwrap();
    let cluster = "c".to_owned();
    let subject = Subject { node: NodeId::new(), role: Role::Manager, cluster };
    let (key, csr) = ca::request().unwrap();
    let certificate = authority.sign(&csr, &subject, Duration::ZERO).unwrap();
    let own = Credentials { certificate, key, ca: authority.certificate.clone() };
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls::server(&own).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(acceptor.accept(stream).await);
        }
    });
    let good = authority.issue(&subject).unwrap();
    let config = Arc::new(tls::member(&good).unwrap());
    let client = Client::tls(address, tls::manager_name(), config, SOON);
    // It is valid to the end of the second in which it was made.
    let refused = loop {
        match client.get::<serde_json::Value>("/v1/cluster").await {
            Err(e @ ClientError::Untrusted { .. }) => break e,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert!(matches!(refused, ClientError::Untrusted { foreign: false, .. }), "{refused}");
    assert!(refused.to_string().contains("by this host's clock"), "{refused}");
}

#[tokio::test]
async fn a_rotated_token_is_worthless() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    let (n2, n3) = (Agent::start(dir.path(), 2).await, Agent::start(dir.path(), 3).await);
    let old = n1.token().await.token;
    assert_eq!(n1.token().await.token, old, "the token is printed again");
    n2.join(&n1).await;
    let new: JoinToken = n1.client.post("/v1/cluster/join-token/worker", &()).await.unwrap();
    assert_ne!(new.token, old);
    let (status, message) = refusal(n3.try_join(&n1, &old).await);
    assert_eq!(status, 401);
    assert!(message.contains("join-token"), "{message}");
    assert_eq!(n3.cluster.identity(), None);
    n3.try_join(&n1, &new.token).await.unwrap();
    n2.until("with n3", |s| s.nodes.len() == 3).await;
    // Tokens for managers there are none.
    let manager = n1.client.get::<JoinToken>("/v1/cluster/join-token/manager").await;
    assert_eq!(refusal(manager).0, 409);
}

#[tokio::test]
async fn bad_clients_do_not_keep_members_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    let n2 = Agent::start(dir.path(), 2).await;
    n2.join(&n1).await;
    // Half are silent, half send garbage; more than one address may have.
    let mut bad = Vec::new();
    for n in 0..100 {
        let Ok(mut stream) = TcpStream::connect(n1.listen).await else { continue };
        if n % 2 == 0 {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        }
        bad.push(stream);
    }
    // The member's connections live on.
    n1.network("db").await;
    n2.endpoint("db", "web").await;
    assert!(n2.cluster.status().manager_reachable);
    drop(bad);
    let n3 = Agent::start(dir.path(), 3).await;
    let token = n1.token().await.token;
    let begun = tokio::time::Instant::now();
    while n3.try_join(&n1, &token).await.is_err() {
        assert!(begun.elapsed() < SOON, "strangers keep a node out for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn managers_do_not_act_as_administrators_of_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    n1.init().await;
    n1.network("db").await;
    let manager = n1.as_node(&n1);
    let before = n1.cluster.snapshot();
    let document = serde_json::to_value(document()).unwrap();
    for (method, path) in routes() {
        let described = &document["paths"][&path][method.to_ascii_lowercase()];
        let local = ["init", "join", "leave", "backup"].map(|verb| format!("/v1/cluster/{verb}"));
        if described["tags"] == json!(["this node"]) || local.contains(&path) {
            let (status, message) = refusal(call(&manager, &method, &path).await);
            assert_eq!(status, 403, "{method} {path}: {message}");
        }
    }
    assert_eq!(n1.cluster.snapshot(), before);
    call(&manager, "GET", "/v1/nodes").await.unwrap();
    post(&manager, "/v1/networks", &json!({"name": "more"})).await.unwrap();
}

#[tokio::test]
async fn the_document_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let n1 = Agent::start(dir.path(), 1).await;
    let served: serde_json::Value = n1.client.get("/v1/openapi.json").await.unwrap();
    assert_eq!(served, serde_json::to_value(document()).unwrap());
    let mut ids = std::collections::BTreeSet::new();
    for operations in served["paths"].as_object().unwrap().values() {
        for operation in operations.as_object().unwrap().values() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "two operations are called {id}");
        }
    }
    let (status, message) = refusal(call(&n1.client, "GET", "/v1/unknown").await);
    assert_eq!((status, message.as_str()), (404, "no route GET /v1/unknown"));
    let (status, message) = refusal(call(&n1.client, "PUT", "/v1/networks").await);
    assert_eq!((status, message.as_str()), (405, "/v1/networks does not take PUT"));
}

#[tokio::test]
async fn the_unix_socket_is_one_agents() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let mut n1 = Agent::start(dir.path(), 1).await;
    let socket = dir.path().join("n1.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let error = listen::bind_unix(&socket).await.unwrap_err().to_string();
    assert!(error.contains("another agent listens on"), "{error}");
    n1.kill().await;
    while tokio::net::UnixStream::connect(&socket).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What a killed agent leaves behind is no obstacle.
    assert!(socket.exists());
    listen::bind_unix(&socket).await.unwrap();
}
