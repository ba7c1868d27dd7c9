//! The watch stream, in which nodes follow their manager.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::version;
use crate::model::{
    Endpoint, EndpointId, Keyring, Network, NetworkId, Node, NodeId, Service, ServiceId, Snapshot,
    Trust,
};

/// One object's change in the watch stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "type", content = "object")]
pub enum Change {
    /// A node is new or changed.
    Node(Arc<Node>),
    /// A node is gone.
    NodeRemoved(NodeId),
    /// A network is new or changed.
    Network(Network),
    /// A network is gone.
    NetworkRemoved(NetworkId),
    /// A service is new or changed.
    Service(Service),
    /// A service is gone.
    ServiceRemoved(ServiceId),
    /// An endpoint is new or changed.
    Endpoint(Endpoint),
    /// An endpoint is gone.
    EndpointRemoved(EndpointId),
    /// Other CAs are trusted.
    Trust(Trust),
    /// The keys of encrypted networks are others, or gone. Only members are told.
    Keyring(Option<Keyring>),
}

/// `GET /v1/watch`: one JSON object a line. First a snapshot, then deltas.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum WatchEvent {
    /// The whole state.
    Snapshot {
        /// It.
        snapshot: Box<Snapshot>,
    },
    /// What changed up to a revision, in order.
    Delta {
        /// Revision after the changes.
        revision: u64,
        /// The changes of one or several transactions.
        #[serde(deserialize_with = "version::known_changes")]
        changes: Vec<Change>,
    },
    /// Nothing changed; sent every second so that a dead peer is noticed.
    Alive {
        /// Current revision.
        revision: u64,
    },
    /// What a newer agent tells and this one does not know; never sent.
    #[serde(other, skip_serializing)]
    Unknown,
}
