//! What the fuzz targets run, and `agent/tests/corpus.rs` runs over `seeds/` with
//! plain `cargo test`: one function per parser of input from outside. Each takes
//! any bytes, and panics if the parser does or if what it accepts breaks a promise.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use hickory_proto::op::{Message, MessageType};
use netagent::api::types::{
    CertificateRequest, Connect, CreateEndpoint, CreateNetwork, CreateService, CreateWorkload,
    InitRequest, JoinRequest, LeaveRequest, StatusReport, UpdateEndpoint, UpdateService,
    UpdateWorkload, WatchEvent,
};
use netagent::cluster::ca::{self, Authority, Subject};
use netagent::cluster::token::Token;
use netagent::cluster::{network_detail, service_detail};
use netagent::dns::{self, Action, ResolvConf, Transport, Verdict, Zone};
use netagent::model::{
    Attachment, Datapath, EndpointId, Hold, Mac, Name, NetworkId, NodeId, Role, Snapshot, Workload,
    WorkloadId,
};
use netagent::plan::{self, Me, State};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target: its name (of the binary and of its folder in `seeds/`) and its function.
pub const TARGETS: &[(&str, Target)] = &[
    ("name", name),
    ("identifier", identifier),
    ("request", request),
    ("watch", watch),
    ("snapshot", snapshot),
    ("token", token),
    ("certificate", certificate),
    ("question", question),
    ("response", response),
    ("resolv_conf", resolv_conf),
];

/// Names of networks, workloads and aliases.
pub fn name(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(name) = text.parse::<Name>() else { return };
    assert!(!name.as_str().is_empty() && name.as_str().len() <= 63, "{name}");
    assert!(!name.as_str().contains(['.', '/', ' ', '\0']), "{name:?} is not one label");
    assert_eq!(name.as_str(), text.to_ascii_lowercase());
    assert_eq!(name.as_str().parse::<Name>().expect("a name is a name"), name);
}

/// Identifiers and MAC addresses.
pub fn identifier(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(id) = text.parse::<EndpointId>() {
        assert_eq!(id.as_str(), text);
        assert!(id.is_meant_by(text));
    }
    if let Ok(mac) = text.parse::<Mac>() {
        assert_eq!(mac.to_string(), text.to_ascii_lowercase());
    }
}

/// Bodies of requests, on the unix socket and from other nodes.
pub fn request(data: &[u8]) {
    json::<InitRequest>(data);
    json::<JoinRequest>(data);
    json::<LeaveRequest>(data);
    json::<CreateNetwork>(data);
    json::<CreateService>(data);
    json::<UpdateService>(data);
    json::<CreateEndpoint>(data);
    json::<UpdateEndpoint>(data);
    json::<CreateWorkload>(data);
    json::<UpdateWorkload>(data);
    json::<Connect>(data);
    json::<StatusReport>(data);
    json::<CertificateRequest>(data);
}

/// A line of the watch stream. What a newer agent may tell is read, and never written.
pub fn watch(data: &[u8]) {
    if !matches!(serde_json::from_slice(data), Ok(WatchEvent::Unknown)) {
        json::<WatchEvent>(data);
    }
}

/// The snapshot that a node keeps on disk, and what either datapath makes of it: whatever
/// it says, the plan must be a plan.
pub fn snapshot(data: &[u8]) {
    let Some(snapshot) = json::<Snapshot>(data) else { return };
    // What a manager does not let into the store, and the detail need not expect.
    for network in snapshot.networks.values().filter(|n| (8..=29).contains(&n.subnet.prefix())) {
        let detail = network_detail(&snapshot, network.id.as_str()).expect("it is there");
        assert!(detail.addresses.total <= 1 << 24);
    }
    for service in snapshot.services.values() {
        service_detail(&snapshot, service.id.as_str()).expect("it is there");
    }
    let _ = snapshot.backends();
    let Some(node) = snapshot.nodes.values().next() else { return };
    let workloads = workloads(&snapshot, &node.id);
    for datapath in [Datapath::Ebpf, Datapath::Kernel] {
        let me = Me {
            id: node.id.clone(),
            vtep: node.address,
            advertised: node.address,
            uplink: "eth0".to_owned(),
            neighbour_bits: 24,
            addresses: [node.address].into(),
            datapath,
            ipvs: true,
            ipsec: node.ipsec.clone(),
            object: String::new(),
        };
        let state = plan::desired(&snapshot, &workloads, &me);
        assert_eq!(plan::diff(&state, &state), []);
        let _ = plan::diff(&state, &State::new());
    }
}

/// Join tokens.
pub fn token(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(token) = text.parse::<Token>() else { return };
    assert_eq!(token.to_string(), text.trim().to_ascii_lowercase().replace("natkn", "NATKN"));
    assert!(!format!("{token:?}").ends_with(&token.secret), "debug output ends up in logs");
}

/// What a node that is not yet a member sends to be signed, and certificates that a
/// peer shows: PEM, or DER as it is.
pub fn certificate(data: &[u8]) {
    static AUTHORITY: LazyLock<Authority> =
        LazyLock::new(|| Authority::new("cluster").expect("there is randomness"));
    let _ = ca::subject(&CertificateDer::from(data));
    let Ok(pem) = str::from_utf8(data) else { return };
    if let Ok(certificate) = ca::certificate(pem) {
        let _ = ca::subject(&certificate);
    }
    let given = Subject { node: NodeId::new(), role: Role::Worker, cluster: "cluster".to_owned() };
    if let Ok(signed) = AUTHORITY.sign(pem, &given, ca::EXPIRY) {
        let signed = ca::certificate(&signed).expect("what we sign is a certificate");
        assert_eq!(ca::subject(&signed).expect("it names a node"), given);
    }
}

/// A question of a workload to its DNS server.
pub fn question(data: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        match ask(data, transport) {
            Action::Reply(reply) => answers(&reply, &data[..2], usize::from(u16::MAX)),
            Action::Forward(question) => {
                let forwarded = question.forwarded(7);
                assert_eq!(forwarded[..2], [0, 7]);
                assert_eq!(forwarded[2..], data[2..], "a question is forwarded as it is");
            }
            Action::Ignore => {}
        }
    }
}

/// What comes back from one of the host's resolvers, or from whoever forges that.
pub fn response(data: &[u8]) {
    const ID: u16 = 7;
    // example.org A, from the client under the identifier 1.
    let asked = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
    let Action::Forward(question) = ask(asked, Transport::Udp) else {
        panic!("example.org is not the cluster's");
    };
    if question.is_answered_by(data, ID) {
        assert_eq!(data[..2], ID.to_be_bytes());
        let _ = Verdict::of(data);
        let relayed = question.relay(data.to_vec());
        assert!(relayed.len() <= 512, "{} bytes over UDP", relayed.len());
        assert_eq!(relayed[..2], [0, 1], "the client's own identifier");
    }
}

/// The host's `/etc/resolv.conf`.
pub fn resolv_conf(data: &[u8]) {
    let conf = ResolvConf::parse(&String::from_utf8_lossy(data));
    assert!(conf.servers.len() <= 3);
    assert!(conf.servers.iter().all(|server| server.ip() != dns::SERVER));
}

fn ask(packet: &[u8], transport: Transport) -> Action {
    static ZONE: LazyLock<(Zone, Vec<NetworkId>)> = LazyLock::new(|| {
        let text = include_str!("../seeds/snapshot/services");
        let snapshot: Snapshot = serde_json::from_str(text).expect("the seed is a snapshot");
        (Zone::new(&snapshot, Datapath::Ebpf), snapshot.networks.into_keys().collect())
    });
    dns::answer(packet, transport, &ZONE.0, &ZONE.1, &mut StdRng::seed_from_u64(0))
}

/// A reply must be one: readable, to this question, and no larger than `limit`.
fn answers(reply: &[u8], id: &[u8], limit: usize) {
    assert!(reply.len() <= limit, "{} bytes", reply.len());
    let message = Message::from_vec(reply).expect("a reply can be read");
    assert_eq!(message.metadata.id.to_be_bytes(), id);
    assert_eq!(message.metadata.message_type, MessageType::Response);
}

/// The workloads that the endpoints of `node` belong to.
fn workloads(snapshot: &Snapshot, node: &NodeId) -> Vec<Workload> {
    let mut workloads = BTreeMap::<WorkloadId, Workload>::new();
    for endpoint in snapshot.endpoints.values().filter(|e| &e.node == node) {
        let workload = workloads.entry(endpoint.workload.clone()).or_insert_with(|| Workload {
            id: endpoint.workload.clone(),
            name: endpoint.name.clone(),
            netns: PathBuf::from("/proc/1/ns/net"),
            hold: Hold::Process { pid: 1, start: 0 },
            mounted: false,
            serving: None,
            attachments: vec![],
        });
        let interface = format!("eth{}", workload.attachments.len());
        workload.attachments.push(Attachment { interface, endpoint: endpoint.clone() });
    }
    workloads.into_values().collect()
}

/// Parses; what parses must survive being written and read again.
fn json<T: Serialize + DeserializeOwned>(data: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(data).ok()?;
    let text = serde_json::to_string(&value).expect("what was read can be written");
    let again: T = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!(serde_json::to_string(&again).expect("as before"), text);
    Some(value)
}
