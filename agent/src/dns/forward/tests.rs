use std::net::UdpSocket as StdUdp;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::TcpListener;

use super::*;
use crate::dns::answer::{Action, Transport, answer};
use crate::dns::fixture::Cluster;
use crate::dns::zone::Zone;
use crate::model::Datapath;

fn question(name: &str, transport: Transport) -> Question {
    let mut request = Message::new(4711, MessageType::Query, OpCode::Query);
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let cluster = Cluster::new().network("shop", "10.0.0.0/24");
    let (zone, asker) = (Zone::new(&cluster.snapshot, Datapath::Ebpf), cluster.ids(&["shop"]));
    match answer(&request.to_vec().unwrap(), transport, &zone, &asker, &mut rand::rng()) {
        Action::Forward(question) => question,
        other => panic!("{other:?}"),
    }
}

/// A resolver that sends what `respond` makes of each question, which may be nothing.
async fn resolver(respond: impl Fn(Message) -> Vec<Message> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (len, client) = socket.recv_from(&mut buffer).await.unwrap();
            for response in respond(Message::from_vec(&buffer[..len]).unwrap()) {
                socket.send_to(&response.to_vec().unwrap(), client).await.unwrap();
            }
        }
    });
    address
}

fn with_address(request: Message, address: &str) -> Message {
    let name = request.queries[0].name().clone();
    let mut response = request.into_response();
    response.add_answer(Record::from_rdata(name, 60, RData::A(A(address.parse().unwrap()))));
    response
}

fn with_code(request: Message, code: ResponseCode) -> Message {
    let mut response = request.into_response();
    response.metadata.response_code = code;
    response
}

async fn asked(servers: &[SocketAddr], first: &AtomicUsize) -> Option<Message> {
    let question = question("example.com.", Transport::Udp);
    let response = ask(servers, first, &question).await?;
    Some(Message::from_vec(&question.relay(response)).unwrap())
}

fn address_in(response: &Message) -> String {
    response.answers[0].data.to_string()
}

/// A port that nobody serves: the kernel refuses at once.
fn refusing() -> SocketAddr {
    StdUdp::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_server_that_fails_is_passed_over_and_the_good_one_remembered() {
    let failing = resolver(|r| vec![with_code(r, ResponseCode::ServFail)]).await;
    let good = resolver(|r| vec![with_address(r, "192.0.2.7")]).await;
    let first = AtomicUsize::new(0);
    let response = asked(&[refusing(), failing, good], &first).await.unwrap();
    assert_eq!(address_in(&response), "192.0.2.7");
    assert_eq!(response.metadata.id, 4711);
    assert_eq!(first.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_silent_server_is_passed_over() {
    let silent = resolver(|_| Vec::new()).await;
    let good = resolver(|r| vec![with_address(r, "192.0.2.7")]).await;
    let response = asked(&[silent, good], &AtomicUsize::new(0)).await.unwrap();
    assert_eq!(address_in(&response), "192.0.2.7");
}

#[tokio::test]
async fn a_lost_datagram_is_sent_again() {
    let seen = AtomicUsize::new(0);
    let deaf_once = resolver(move |r| {
        let again = seen.fetch_add(1, Ordering::Relaxed) > 0;
        again.then(|| with_address(r, "192.0.2.7")).into_iter().collect()
    })
    .await;
    let response = asked(&[deaf_once], &AtomicUsize::new(0)).await.unwrap();
    assert_eq!(address_in(&response), "192.0.2.7");
}

#[tokio::test]
async fn no_such_name_is_an_answer() {
    let first = resolver(|r| vec![with_code(r, ResponseCode::NXDomain)]).await;
    let other = resolver(|r| vec![with_address(r, "192.0.2.7")]).await;
    let response = asked(&[first, other], &AtomicUsize::new(0)).await.unwrap();
    assert_eq!(response.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn when_all_fail_the_failure_is_told() {
    let refused = resolver(|r| vec![with_code(r, ResponseCode::Refused)]).await;
    let response = asked(&[refusing(), refused], &AtomicUsize::new(0)).await.unwrap();
    assert_eq!(response.metadata.response_code, ResponseCode::Refused);
    assert!(asked(&[], &AtomicUsize::new(0)).await.is_none());
    assert!(asked(&[refusing()], &AtomicUsize::new(0)).await.is_none());
}

#[tokio::test]
async fn what_answers_another_question_is_not_taken() {
    let forging = resolver(|request| {
        let mut wrong_id = with_address(request.clone(), "192.0.2.66");
        wrong_id.metadata.id ^= 1;
        let mut wrong_name = with_address(request.clone(), "192.0.2.66");
        wrong_name.queries[0].set_name(Name::from_ascii("example.org.").unwrap());
        vec![wrong_id, wrong_name, with_address(request, "192.0.2.7")]
    })
    .await;
    let response = asked(&[forging], &AtomicUsize::new(0)).await.unwrap();
    assert_eq!(address_in(&response), "192.0.2.7");
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp() {
    let truncating = resolver(|request| {
        let mut response = request.into_response();
        response.metadata.truncation = true;
        vec![response]
    })
    .await;
    let listener = TcpListener::bind(truncating).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = Message::from_vec(&read_framed(&mut stream).await.unwrap()).unwrap();
            let mut response = with_address(request, "192.0.2.7");
            let name = response.queries[0].name().clone();
            let text = TXT::new(vec!["x".repeat(250); 4]);
            response.add_answer(Record::from_rdata(name, 60, RData::TXT(text)));
            write_framed(&mut stream, &response.to_vec().unwrap()).await.unwrap();
        }
    });
    let servers = [truncating];
    let over_tcp = question("example.com.", Transport::Tcp);
    let whole = ask(&servers, &AtomicUsize::new(0), &over_tcp).await.unwrap();
    let whole = Message::from_vec(&over_tcp.relay(whole)).unwrap();
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 2);

    let cut = asked(&servers, &AtomicUsize::new(0)).await.unwrap();
    assert!(cut.metadata.truncation, "it does not fit into the client's 512 bytes");
    assert_eq!(address_in(&cut), "192.0.2.7");
}

#[tokio::test]
async fn the_file_is_read_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    std::fs::write(&path, "nameserver 192.0.2.1\nsearch one.example\n").unwrap();
    let forwarder = Forwarder::new(path.clone());
    let servers = || forwarder.upstream().servers.iter().map(|s| s.ip()).collect::<Vec<_>>();
    assert_eq!(servers(), ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);

    let other = dir.path().join("new");
    std::fs::write(&other, "nameserver 192.0.2.2\nsearch two.example\n").unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(servers(), ["192.0.2.2".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(forwarder.search(), ["two.example"]);

    std::fs::remove_file(&path).unwrap();
    assert!(servers().is_empty());
    let question = question("example.com.", Transport::Udp);
    let reply = Message::from_vec(&forwarder.forward(&question).await).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}
