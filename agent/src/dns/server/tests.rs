use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::dns::fixture::Cluster;

/// A server for a workload on `shop`, and what must be kept for it to run.
struct Running {
    server: Server,
    address: SocketAddr,
    snapshot: watch::Sender<Arc<Snapshot>>,
    _dir: tempfile::TempDir,
}

fn start(cluster: &Cluster) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("resolv.conf");
    std::fs::write(&conf, "").unwrap();
    let (snapshot, receiver) = watch::channel(Arc::new(cluster.snapshot.clone()));
    let names = Names::new(receiver, Datapath::Ebpf, Forwarder::new(conf));
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = sockets.udp.local_addr().unwrap();
    let server = Server::start(names, sockets, cluster.ids(&["shop"])).unwrap();
    Running { server, address, snapshot, _dir: dir }
}

fn cluster() -> Cluster {
    Cluster::new()
        .network("shop", "10.0.0.0/24")
        .network("blog", "10.0.1.0/24")
        .endpoint("web", "shop", "10.0.0.3", &[])
        .endpoint("feed", "blog", "10.0.1.3", &[])
}

fn ask(name: &str) -> Vec<u8> {
    let mut request = Message::new(4711, MessageType::Query, OpCode::Query);
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    request.to_vec().unwrap()
}

async fn udp(address: SocketAddr, packet: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(packet, address).await.unwrap();
    let mut buffer = [0; 4096];
    let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
    assert_eq!(from, address);
    Message::from_vec(&buffer[..len]).unwrap()
}

#[tokio::test]
async fn names_are_answered_over_udp_and_tcp() {
    let running = start(&cluster());
    let reply = udp(running.address, &ask("web.")).await;
    assert_eq!(reply.answers[0].data.to_string(), "10.0.0.3");

    let mut stream = TcpStream::connect(running.address).await.unwrap();
    for name in ["web.", "web.shop."] {
        write_framed(&mut stream, &ask(name)).await.unwrap();
        let reply = Message::from_vec(&read_framed(&mut stream).await.unwrap()).unwrap();
        assert_eq!(reply.answers[0].data.to_string(), "10.0.0.3");
    }
}

#[tokio::test]
async fn what_no_resolver_knows_is_a_failure() {
    let running = start(&cluster());
    let reply = udp(running.address, &ask("example.com.")).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn garbage_does_not_end_the_service() {
    let running = start(&cluster());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for len in [0, 1, 11, 12, 13, 600, 9000] {
        socket.send_to(&vec![0xff; len], running.address).await.unwrap();
        socket.send_to(&vec![0; len], running.address).await.unwrap();
    }
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0], &[0xff; 70_000], &[0, 12]] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        // The server may hang up first.
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let reply = udp(running.address, &ask("web.")).await;
    assert_eq!(reply.answers.len(), 1);
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_their_turn() {
    let running = start(&cluster());
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        held.push(TcpStream::connect(running.address).await.unwrap());
    }
    let mut late = TcpStream::connect(running.address).await.unwrap();
    write_framed(&mut late, &ask("web.")).await.unwrap();
    let reply = udp(running.address, &ask("web.")).await;
    assert_eq!(reply.answers.len(), 1, "UDP does not wait for them");
    held.pop();
    let reply = Message::from_vec(&read_framed(&mut late).await.unwrap()).unwrap();
    assert_eq!(reply.answers.len(), 1);
}

#[tokio::test]
async fn answers_follow_the_snapshot_and_the_networks() {
    let running = start(&cluster());
    let changed = cluster().endpoint("new", "shop", "10.0.0.4", &[]);
    let ids = changed.ids(&["shop", "blog"]);
    running.snapshot.send_replace(Arc::new(changed.snapshot));
    running.server.set_networks(ids);
    // The index is replaced by a task of its own.
    loop {
        let reply = udp(running.address, &ask("new.")).await;
        if reply.metadata.response_code == ResponseCode::NoError {
            assert_eq!(reply.answers[0].data.to_string(), "10.0.0.4");
            break;
        }
        tokio::task::yield_now().await;
    }
    let reply = udp(running.address, &ask("feed.")).await;
    assert_eq!(reply.answers[0].data.to_string(), "10.0.1.3");
}
