use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::TXT;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::dns::fixture::{Cluster, published};
use crate::model::{Datapath, Protocol};

fn cluster() -> Cluster {
    let mut cluster = Cluster::new().network("shop", "10.0.0.0/16").endpoint(
        "web",
        "shop",
        "10.0.0.3",
        &["front"],
    );
    for i in 0..100 {
        cluster = cluster.endpoint(&format!("t{i}"), "shop", &format!("10.0.1.{i}"), &["many"]);
    }
    cluster = cluster.service("app", "shop", Some("10.0.0.100"), |app| {
        app.ports = vec![published(80, Protocol::Tcp), published(443, Protocol::Tcp)];
    });
    for (i, weight) in [(1, 1), (2, 5)] {
        cluster = cluster.serves(&format!("10.0.1.{i}"), "app", |task| task.weight = weight);
    }
    cluster
}

fn ask(name: &str, kind: RecordType) -> Message {
    let mut request = Message::new(4711, MessageType::Query, OpCode::Query);
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    request
}

fn act(packet: &[u8], transport: Transport) -> Action {
    let cluster = cluster();
    let zone = Zone::new(&cluster.snapshot, Datapath::Ebpf);
    answer(packet, transport, &zone, &cluster.ids(&["shop"]), &mut StdRng::seed_from_u64(7))
}

fn reply(request: &Message, transport: Transport) -> (Message, usize) {
    match act(&request.to_vec().unwrap(), transport) {
        Action::Reply(bytes) => (Message::from_vec(&bytes).unwrap(), bytes.len()),
        other => panic!("{other:?}"),
    }
}

fn question(request: &Message, transport: Transport) -> Question {
    Question::parse(&request.to_vec().unwrap(), transport).unwrap()
}

#[test]
fn a_name_has_its_address_and_keeps_the_case_it_was_asked_in() {
    let (reply, _) = reply(&ask("Front.", RecordType::A), Transport::Udp);
    assert_eq!(reply.metadata.id, 4711);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
    assert!(reply.metadata.recursion_desired && !reply.metadata.truncation);
    assert_eq!(reply.queries[0].name().to_ascii(), "Front.");
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].data, RData::A("10.0.0.3".parse().unwrap()));
    assert!((1..=5).contains(&reply.answers[0].ttl));
    assert!(reply.edns.is_none());
}

#[test]
fn other_types_of_an_existing_name_are_empty() {
    for name in ["web.", "web.shop.", "shop.", "3.0.0.10.in-addr.arpa."] {
        for kind in [RecordType::AAAA, RecordType::MX, RecordType::SRV, RecordType::HTTPS] {
            let (reply, _) = reply(&ask(name, kind), Transport::Udp);
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name} {kind}");
            assert!(reply.answers.is_empty(), "{name} {kind}");
        }
    }
    assert_eq!(reply(&ask("web.", RecordType::ANY), Transport::Udp).0.answers.len(), 1);
}

#[test]
fn a_pointer_names_the_network_too() {
    let (reply, _) = reply(&ask("3.0.0.10.in-addr.arpa.", RecordType::PTR), Transport::Udp);
    assert_eq!(reply.answers[0].data.to_string(), "web.shop.");
    assert_eq!(reply.answers[0].data.record_type(), RecordType::PTR);
}

#[test]
fn a_location_comes_with_its_address() {
    let srv = |name| {
        let (reply, _) = reply(&ask(name, RecordType::SRV), Transport::Udp);
        let text = |records: &[Record]| {
            let mut lines: Vec<_> = records.iter().map(|r| r.to_string()).collect();
            lines.sort();
            lines
        };
        (text(&reply.answers), text(&reply.additionals))
    };
    let (answers, additionals) = srv("_80._tcp.App.");
    assert_eq!(answers, ["_80._tcp.App. 1 IN SRV 0 0 80 app.shop."]);
    assert_eq!(additionals, ["app.shop. 1 IN A 10.0.0.100"]);
    let (answers, additionals) = srv("tasks.app.");
    assert_eq!(
        answers,
        [
            "tasks.app. 1 IN SRV 0 1 443 10-0-1-1.tasks.app.shop.",
            "tasks.app. 1 IN SRV 0 1 80 10-0-1-1.tasks.app.shop.",
            "tasks.app. 1 IN SRV 0 5 443 10-0-1-2.tasks.app.shop.",
            "tasks.app. 1 IN SRV 0 5 80 10-0-1-2.tasks.app.shop.",
        ]
    );
    assert_eq!(
        additionals,
        ["10-0-1-1.tasks.app.shop. 1 IN A 10.0.1.1", "10-0-1-2.tasks.app.shop. 1 IN A 10.0.1.2"]
    );
    let (both, _) = reply(&ask("app.", RecordType::ANY), Transport::Udp);
    assert_eq!(both.answers.len(), 3, "an address and two locations");
}

#[test]
fn what_is_missing_is_denied_here_and_what_is_foreign_is_forwarded() {
    for name in ["nobody.shop.", "9.0.0.10.in-addr.arpa."] {
        let (reply, _) = reply(&ask(name, RecordType::A), Transport::Udp);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    }
    for name in ["example.com.", "nobody.", "."] {
        let packet = ask(name, RecordType::A).to_vec().unwrap();
        assert!(matches!(act(&packet, Transport::Udp), Action::Forward(_)), "{name}");
    }
}

#[test]
fn many_addresses_come_in_changing_order() {
    let cluster = cluster();
    let zone = Zone::new(&cluster.snapshot, Datapath::Ebpf);
    let packet = ask("many.", RecordType::A).to_vec().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut orders = std::collections::HashSet::new();
    for _ in 0..5 {
        let asker = cluster.ids(&["shop"]);
        let Action::Reply(bytes) = answer(&packet, Transport::Tcp, &zone, &asker, &mut rng) else {
            panic!("not answered")
        };
        let answers = Message::from_vec(&bytes).unwrap().answers;
        assert_eq!(answers.len(), 100);
        orders.insert(answers.iter().map(|a| a.data.to_string()).collect::<Vec<_>>());
    }
    assert_eq!(orders.len(), 5);
}

#[test]
fn what_does_not_fit_is_cut_and_marked() {
    let mut request = ask("many.", RecordType::A);
    let (cut, len) = reply(&request, Transport::Udp);
    assert!(cut.metadata.truncation && len <= 512);
    assert!(cut.answers.len() >= 25, "as many as fit: {}", cut.answers.len());

    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    request.set_edns(edns.clone());
    let (cut, len) = reply(&request, Transport::Udp);
    assert!(cut.metadata.truncation && (513..=1232).contains(&len));
    assert!(cut.edns.is_some());

    edns.set_max_payload(4096);
    request.set_edns(edns);
    let (whole, _) = reply(&request, Transport::Udp);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);

    request.edns = None;
    let (whole, _) = reply(&request, Transport::Tcp);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
}

#[test]
fn what_is_no_question_is_refused_by_its_code() {
    let code = |request: &Message| reply(request, Transport::Udp).0.metadata.response_code;

    let mut update = ask("web.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update), ResponseCode::NotImp);

    let mut two = ask("web.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two), ResponseCode::FormErr);
    two.queries.clear();
    assert_eq!(code(&two), ResponseCode::FormErr);

    let mut chaos = ask("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    assert_eq!(code(&ask("shop.", RecordType::AXFR)), ResponseCode::Refused);

    let mut future = ask("web.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    assert_eq!(u16::from(code(&future)), 16, "BADVERS; BADSIG has the same number");
}

#[test]
fn responses_and_scraps_are_ignored() {
    let mut response = ask("web.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert!(matches!(act(&response.to_vec().unwrap(), Transport::Udp), Action::Ignore));
    assert!(matches!(act(&[], Transport::Udp), Action::Ignore));
    assert!(matches!(act(&[0; 11], Transport::Udp), Action::Ignore));
}

#[test]
fn a_cut_question_is_malformed() {
    let packet = ask("web.shop.", RecordType::A).to_vec().unwrap();
    for len in 12..packet.len() {
        let Action::Reply(bytes) = act(&packet[..len], Transport::Udp) else { panic!("{len}") };
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr, "{len}");
        assert_eq!(reply.metadata.id, 4711);
    }
}

#[test]
fn only_the_answer_to_the_question_is_taken() {
    let request = ask("Example.com.", RecordType::A);
    let question = question(&request, Transport::Udp);
    let forwarded = Message::from_vec(&question.forwarded(99)).unwrap();
    assert_eq!(forwarded.metadata.id, 99);
    assert_eq!(forwarded.queries, request.queries);

    let answered = |change: &dyn Fn(&mut Message)| {
        let mut response = forwarded.clone().into_response();
        change(&mut response);
        question.is_answered_by(&response.to_vec().unwrap(), 99)
    };
    let other = |name, kind| Query::query(Name::from_ascii(name).unwrap(), kind);
    assert!(answered(&|_| {}));
    assert!(answered(&|r| r.queries[0] = other("eXample.COM.", RecordType::A)));
    assert!(!answered(&|r| r.metadata.id = 98));
    assert!(!answered(&|r| r.metadata.message_type = MessageType::Query));
    assert!(!answered(&|r| r.queries[0] = other("example.org.", RecordType::A)));
    assert!(!answered(&|r| r.queries[0] = other("Example.com.", RecordType::AAAA)));
    assert!(!answered(&|r| r.queries.clear()));
    assert!(answered(&|r| {
        r.queries.clear();
        r.metadata.response_code = ResponseCode::FormErr;
    }));
    assert!(!question.is_answered_by(&[0; 5], 99));
}

#[test]
fn a_response_is_relayed_as_it_is_or_cut_to_fit() {
    let request = ask("example.com.", RecordType::TXT);
    let question = question(&request, Transport::Udp);
    let mut response = Message::from_vec(&question.forwarded(99)).unwrap().into_response();
    let text = |n: usize| {
        let name = Name::from_ascii("example.com.").unwrap();
        Record::from_rdata(name, 60, RData::TXT(TXT::new(vec!["x".repeat(n)])))
    };
    response.add_answer(text(100));
    let small = response.to_vec().unwrap();
    let relayed = question.relay(small.clone());
    assert_eq!(relayed[..2], 4711u16.to_be_bytes());
    assert_eq!(relayed[2..], small[2..], "byte for byte");

    response.add_answers((0..10).map(|_| text(200)));
    let relayed = question.relay(response.to_vec().unwrap());
    assert!(relayed.len() <= 512);
    let cut = Message::from_vec(&relayed).unwrap();
    assert!(cut.metadata.truncation);
    assert_eq!(cut.metadata.id, 4711);
    assert_eq!(cut.answers.len(), 2, "what fits is kept");

    let mut garbage = small[..12].to_vec();
    garbage.extend([0xff; 600]);
    let relayed = Message::from_vec(&question.relay(garbage)).unwrap();
    assert!(relayed.metadata.truncation && relayed.answers.is_empty());
    assert_eq!(relayed.metadata.id, 4711);
}

proptest! {
    /// Anything may arrive: nothing panics, and what is sent back is a well-formed
    /// response to the id that asked, no larger than allowed.
    #[test]
    fn hostile_packets_get_a_response_or_nothing(packet in hostile(), tcp in any::<bool>()) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        match act(&packet, transport) {
            Action::Reply(bytes) => {
                let reply = Message::from_vec(&bytes).unwrap();
                prop_assert_eq!(reply.metadata.message_type, MessageType::Response);
                prop_assert_eq!(&bytes[..2], &packet[..2]);
            }
            Action::Forward(question) => {
                prop_assert_eq!(&question.forwarded(1)[2..], &packet[2..]);
                let failure = question.failure(ResponseCode::ServFail);
                prop_assert!(Message::from_vec(&failure).is_ok());
                prop_assert_eq!(&failure[..2], &packet[..2]);
            }
            Action::Ignore => prop_assert!(packet.len() < 12 || packet[2] & 0x80 != 0),
        }
    }

    /// A resolver may send back anything, too.
    #[test]
    fn hostile_responses_are_relayed_within_the_limit(
        response in prop::collection::vec(any::<u8>(), 12..2000),
    ) {
        let question = question(&ask("example.com.", RecordType::A), Transport::Udp);
        let _ = question.is_answered_by(&response, 1);
        let relayed = question.relay(response);
        prop_assert!(relayed.len() <= 512);
        prop_assert_eq!(&relayed[..2], &4711u16.to_be_bytes());
    }
}

/// Noise, and questions with some bytes changed, cut or added.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec(any::<u8>(), 0..600);
    let name = prop::sample::select(vec![
        "web.",
        "many.shop.",
        "_80._tcp.tasks.app.",
        "example.com.",
        ".",
    ]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let tail = prop::collection::vec(any::<u8>(), 0..40);
    let altered = (name, any::<u16>(), changes, tail, any::<prop::sample::Index>()).prop_map(
        |(name, kind, changes, tail, cut)| {
            let mut request = ask(name, RecordType::from(kind));
            request.set_edns(Edns::new());
            let mut packet = request.to_vec().unwrap();
            packet.extend(tail);
            for (at, byte) in changes {
                let at = at.index(packet.len());
                packet[at] = byte;
            }
            packet.truncate(cut.index(packet.len() * 4).max(2));
            packet
        },
    );
    prop_oneof![noise, altered]
}
