//! The store's contents, decoded: the snapshot that everybody sees, and what only
//! managers need. Owns the layout of the keys:
//!
//! ```text
//! cluster              Settings             nodes/ID      Node
//! writer               (empty, see below)   networks/ID   Network
//! cursors/vni          VNI given last       services/ID   Service
//! cursors/port         port given last      endpoints/ID  Endpoint
//! cursors/NETWORK      address given last   keyring       Keyring, if a network is encrypted
//! trust                Trust, once replaced secrets/...   CA, join tokens: not in a view
//! ```
//!
//! Every transaction compares and rewrites `writer`. So each one is decided on the
//! whole state as it is when it commits, whoever else writes: two networks cannot
//! get overlapping subnets, and an endpoint cannot appear on a network that is
//! being removed.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Error;
use super::keys::Rotation;
use super::validate::Pool;
use crate::model::{
    ClusterInfo, Endpoint, EndpointId, Keyring, Network, NetworkId, Node, NodeId, Service,
    ServiceId, Snapshot, Vni,
};
use crate::store::{Batch, Event, Op, Range};

/// Key that serialises the transactions.
pub(super) const WRITER: &str = "writer";
/// Key of the [`Settings`].
pub(super) const CLUSTER: &str = "cluster";
/// Key of the [`Keyring`](crate::model::Keyring).
pub(super) const KEYRING: &str = "keyring";
/// Key of the CA.
pub(super) const CA: &str = "secrets/ca";
/// Key of the [`Trust`](crate::model::Trust).
pub(super) const TRUST: &str = "trust";
/// Key of the secret that admits workers.
pub(super) const WORKER_TOKEN: &str = "secrets/token/worker";
const VNI_CURSOR: &str = "cursors/vni";
const PORT_CURSOR: &str = "cursors/port";

/// What holds for the whole cluster: what `cluster init` fixes for ever, and what
/// `cluster update` changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    #[serde(flatten)]
    pub(super) info: ClusterInfo,
    pub(super) pool: Pool,
    /// When the keys of encrypted networks are renewed.
    #[serde(default)]
    pub(super) rotation: Rotation,
    /// Seconds for which certificates of nodes are valid.
    #[serde(default = "expiry")]
    pub(super) cert_expiry: u32,
}

/// What [`Settings::cert_expiry`] is unless somebody has chosen.
pub(super) fn expiry() -> u32 {
    u32::try_from(super::ca::EXPIRY.as_secs()).expect("less than 136 years")
}

/// The decoded store at one revision.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) settings: Option<Settings>,
    /// Revision that wrote [`WRITER`]; 0 before the first transaction.
    pub(super) writer: u64,
    /// Revision that wrote the keyring.
    pub(super) keyring: u64,
    /// Revision at which a node was last said to receive by other keys.
    pub(super) epochs: u64,
    pub(super) last_vni: Option<Vni>,
    pub(super) last_port: Option<u16>,
    pub(super) last_address: BTreeMap<NetworkId, Ipv4Addr>,
}

impl View {
    /// Decodes everything. Fails naming the first key that cannot be decoded.
    pub(super) fn read(range: Range) -> Result<Self, Error> {
        let mut view = Self::default();
        let events = range.kvs.into_iter().map(Event::Put).collect();
        view.apply(Batch { revision: range.revision, events })?;
        Ok(view)
    }

    /// Moves on by one revision.
    pub(super) fn apply(&mut self, batch: Batch) -> Result<(), Error> {
        let snapshot = Arc::make_mut(&mut self.snapshot);
        snapshot.revision = batch.revision;
        for event in batch.events {
            let (key, value, revision) = match event {
                Event::Put(kv) => (kv.key, Some(kv.value), kv.mod_revision),
                Event::Delete(key) => (key, None, 0),
            };
            let value = value.as_deref();
            match key.split_once('/') {
                Some(("nodes", id)) => {
                    let id = id.parse::<NodeId>().ok();
                    let epoch = |nodes: &BTreeMap<NodeId, Arc<Node>>| {
                        nodes.get(id.as_ref()?).map(|node| node.epoch)
                    };
                    let before = epoch(&snapshot.nodes);
                    set(&mut snapshot.nodes, &key, value)?;
                    if epoch(&snapshot.nodes) != before {
                        self.epochs = batch.revision;
                    }
                }
                Some(("networks", _)) => set(&mut snapshot.networks, &key, value)?,
                Some(("services", _)) => set(&mut snapshot.services, &key, value)?,
                Some(("endpoints", _)) => set(&mut snapshot.endpoints, &key, value)?,
                Some(("cursors", "vni")) => self.last_vni = decode(&key, value)?,
                Some(("cursors", "port")) => self.last_port = decode(&key, value)?,
                Some(("cursors", _)) => set(&mut self.last_address, &key, value)?,
                None if key == CLUSTER => {
                    self.settings = decode(&key, value)?;
                    snapshot.cluster = self.settings.as_ref().map(|s| s.info.clone());
                }
                None if key == TRUST => snapshot.trust = decode(&key, value)?,
                None if key == KEYRING => {
                    snapshot.keyring = decode(&key, value)?;
                    self.keyring = revision;
                }
                None if key == WRITER => self.writer = revision,
                _ => {}
            }
        }
        Ok(())
    }
}

fn set<K, V>(map: &mut BTreeMap<K, V>, key: &str, value: Option<&[u8]>) -> Result<(), Error>
where
    K: std::str::FromStr + Ord,
    V: DeserializeOwned,
{
    let id = key
        .rsplit('/')
        .next()
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| Error::Internal(format!("the store has a strange key {key:?}")))?;
    match decode(key, value)? {
        Some(value) => map.insert(id, value),
        None => map.remove(&id),
    };
    Ok(())
}

/// The value of a key, None if there is none.
pub(super) fn decode<T: DeserializeOwned>(
    key: &str,
    value: Option<&[u8]>,
) -> Result<Option<T>, Error> {
    value.map(serde_json::from_slice).transpose().map_err(|e| {
        Error::Internal(format!("the store's value of {key:?} cannot be understood: {e}"))
    })
}

/// A write of `value` as JSON.
pub(super) fn put<T: Serialize>(key: &str, value: &T) -> Op {
    // Maps with keys that are not text are what JSON cannot carry; we have none.
    let json = serde_json::to_vec(value).expect("our objects are JSON");
    Op::Put(key.to_owned(), json)
}

pub(super) fn put_node(node: &Node) -> Op {
    put(&node_key(&node.id), node)
}

pub(super) fn put_keyring(keyring: &Keyring) -> Op {
    put(KEYRING, keyring)
}

pub(super) fn delete_keyring() -> Op {
    Op::Delete(KEYRING.to_owned())
}

pub(super) fn put_network(network: &Network) -> [Op; 2] {
    [put(&network_key(&network.id), network), put(VNI_CURSOR, &network.vni)]
}

pub(super) fn put_service(service: &Service) -> Op {
    put(&service_key(&service.id), service)
}

pub(super) fn put_endpoint(endpoint: &Endpoint) -> Op {
    put(&endpoint_key(&endpoint.id), endpoint)
}

/// The address of `network` that was given last.
pub(super) fn put_last_address(network: &NetworkId, address: Ipv4Addr) -> Op {
    put(&cursor_key(network), &address)
}

/// The published port that was given last.
pub(super) fn put_last_port(port: u16) -> Op {
    put(PORT_CURSOR, &port)
}

pub(super) fn delete_node(id: &NodeId) -> Op {
    Op::Delete(node_key(id))
}

pub(super) fn delete_network(id: &NetworkId) -> [Op; 2] {
    [Op::Delete(network_key(id)), Op::Delete(cursor_key(id))]
}

pub(super) fn delete_service(id: &ServiceId) -> Op {
    Op::Delete(service_key(id))
}

pub(super) fn delete_endpoint(id: &EndpointId) -> Op {
    Op::Delete(endpoint_key(id))
}

fn node_key(id: &NodeId) -> String {
    format!("nodes/{id}")
}

fn network_key(id: &NetworkId) -> String {
    format!("networks/{id}")
}

fn service_key(id: &ServiceId) -> String {
    format!("services/{id}")
}

fn endpoint_key(id: &EndpointId) -> String {
    format!("endpoints/{id}")
}

fn cursor_key(id: &NetworkId) -> String {
    format!("cursors/{id}")
}
