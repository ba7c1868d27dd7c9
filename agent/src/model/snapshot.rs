use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Datapath, Endpoint, EndpointId, EndpointMode, Keyring, Name, Network, NetworkId, Node, NodeId,
    NodeStatus, Service, ServiceId, Trust,
};

/// What holds for the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClusterInfo {
    /// Identifier, chosen by `cluster init`.
    pub id: String,
    /// UDP port of VXLAN on every node, host order.
    pub data_path_port: u16,
    /// Time of creation, RFC 3339, UTC.
    pub created: String,
    /// Set when its state was last taken from a backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
}

/// What the cluster has forgotten by being restored from a backup. Times are RFC 3339, UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Restored {
    /// When the backup was made: what came later is not in it.
    pub backup: String,
    /// When it was restored.
    pub at: String,
}

impl Restored {
    /// Whether something that was made at this time, and is not there, was forgotten, and
    /// not removed.
    #[must_use]
    pub fn forgot(&self, created: &str) -> bool {
        // RFC 3339 in UTC and to the second: the order of the texts is that of the times. What
        // was made within the second of the restore was so before it more likely than after.
        *self.backup <= *created && *created <= *self.at
    }
}

impl ClusterInfo {
    /// UDP port of the VXLAN of encrypted networks, host order: the one after the others'.
    #[must_use]
    pub fn encrypted_port(&self) -> u16 {
        self.data_path_port.checked_add(1).unwrap_or(self.data_path_port - 1)
    }
}

/// The cluster's objects at one revision of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Snapshot {
    /// Revision of the store that this is.
    pub revision: u64,
    /// None on a node that is in no cluster.
    pub cluster: Option<ClusterInfo>,
    /// The CAs that nodes trust; None if it is still the one that each got when it joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// Members. Snapshots share what is the same in both: one of a thousand changes.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Networks.
    pub networks: BTreeMap<NetworkId, Network>,
    /// Services.
    #[serde(default)]
    pub services: BTreeMap<ServiceId, Service>,
    /// Endpoints.
    pub endpoints: BTreeMap<EndpointId, Endpoint>,
    /// Nodes that packets of this node do not reach. That is what one node sees: it is neither
    /// stored nor sent, and empty where it was not added by [`Snapshot::seen`].
    #[serde(skip)]
    pub unreachable: BTreeSet<NodeId>,
    /// The keys of encrypted networks, if there is one; only members are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyring: Option<Keyring>,
}

/// An endpoint that serves a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Whether it may take new connections.
    pub eligible: bool,
}

impl Snapshot {
    /// The same as a node sees it that cannot reach these others.
    #[must_use]
    pub fn seen(mut self: Arc<Self>, unreachable: &BTreeSet<NodeId>) -> Arc<Self> {
        if self.unreachable != *unreachable {
            Arc::make_mut(&mut self).unreachable.clone_from(unreachable);
        }
        self
    }

    /// The network with this name, or else with this identifier (its first
    /// twelve characters are enough).
    #[must_use]
    pub fn network(&self, name_or_id: &str) -> Option<&Network> {
        let by_name = name_or_id.parse::<Name>().ok();
        let mut all = self.networks.values();
        all.clone()
            .find(|n| Some(&n.name) == by_name.as_ref())
            .or_else(|| all.find(|n| n.id.is_meant_by(name_or_id)))
    }

    /// The node with this host name, or else with this identifier (its first
    /// twelve characters are enough).
    #[must_use]
    pub fn node(&self, name_or_id: &str) -> Option<&Node> {
        let mut all = self.nodes.values();
        all.clone()
            .find(|n| n.hostname == name_or_id)
            .or_else(|| all.find(|n| n.id.is_meant_by(name_or_id)))
            .map(Arc::as_ref)
    }

    /// The service with this name, or else with this identifier (its first twelve
    /// characters are enough).
    #[must_use]
    pub fn service(&self, name_or_id: &str) -> Option<&Service> {
        let by_name = name_or_id.parse::<Name>().ok();
        let mut all = self.services.values();
        all.clone()
            .find(|s| Some(&s.name) == by_name.as_ref())
            .or_else(|| all.find(|s| s.id.is_meant_by(name_or_id)))
    }

    /// Endpoints of one network, in order of address.
    pub fn endpoints_on(&self, network: &NetworkId) -> impl Iterator<Item = &Endpoint> {
        let mut found: Vec<_> = self.endpoints.values().filter(|e| &e.network == network).collect();
        found.sort_by_key(|e| e.address);
        found.into_iter()
    }

    /// The endpoints that serve a service, on all its networks, in order of address.
    pub fn tasks_of(&self, service: &ServiceId) -> impl Iterator<Item = &Endpoint> {
        let serves = |e: &&Endpoint| e.task.as_ref().is_some_and(|t| t.service == *service);
        let mut found: Vec<_> = self.endpoints.values().filter(serves).collect();
        found.sort_by_key(|e| e.address);
        found.into_iter()
    }

    /// Every service's backends on each of its networks, in order of address, and for
    /// each whether it may take new connections.
    ///
    /// That is so if its task and its node's datapath allow it, and its node can be reached
    /// and is ready. A node that is not ready may be well all the same, and only its agent
    /// silent; one that cannot be reached from here may be from elsewhere. So where no
    /// backend's node can be reached, none is passed over for that, and likewise where none
    /// of those that are left is ready. A service is never emptied on suspicion alone.
    #[must_use]
    pub fn backends(&self) -> BTreeMap<(&ServiceId, &NetworkId), Vec<Backend<'_>>> {
        let mut all: BTreeMap<_, Vec<Backend<'_>>> = BTreeMap::new();
        for service in self.services.values() {
            for on in &service.networks {
                all.insert((&service.id, &on.network), vec![]);
            }
        }
        for endpoint in self.endpoints.values() {
            if let Some(task) = &endpoint.task
                && let Some(backends) = all.get_mut(&(&task.service, &endpoint.network))
            {
                backends.push(Backend { endpoint, eligible: self.is_able(endpoint) });
            }
        }
        for backends in all.values_mut() {
            backends.sort_by_key(|b| b.endpoint.address);
            prefer(backends, |endpoint| self.is_reachable(endpoint));
            prefer(backends, |endpoint| self.is_ready(endpoint));
        }
        all
    }

    /// Whether its task and its node's kind let it take connections.
    fn is_able(&self, endpoint: &Endpoint) -> bool {
        let Some(task) = &endpoint.task else { return false };
        let Some(service) = self.services.get(&task.service) else { return false };
        let datapath = self.nodes.get(&endpoint.node).map(|n| n.datapath);
        let carried = service.endpoint_mode == EndpointMode::Dnsrr
            || datapath.is_some_and(|datapath| datapath == Datapath::Ebpf);
        task.is_eligible() && carried && service.is_on(&endpoint.network)
    }

    /// Whether packets of this node reach the endpoint's.
    #[must_use]
    pub fn is_reachable(&self, endpoint: &Endpoint) -> bool {
        !self.unreachable.contains(&endpoint.node)
    }

    fn is_ready(&self, endpoint: &Endpoint) -> bool {
        self.nodes.get(&endpoint.node).is_some_and(|n| n.status == NodeStatus::Ready)
    }

    /// MTU of `network` for its workloads, in bytes: the one chosen for it, or
    /// the smallest uplink MTU of the members less what is put around a packet.
    #[must_use]
    pub fn mtu(&self, network: &Network) -> u16 {
        let underlay = self.nodes.values().map(|n| n.mtu).min().unwrap_or(1500);
        let largest = if network.encrypted {
            self.encrypted_mtu(underlay)
        } else {
            underlay.saturating_sub(netagent_common::VXLAN_OVERHEAD)
        };
        network.mtu.map_or(largest, |chosen| chosen.min(largest))
    }

    /// Largest packet of encrypted networks, in bytes, where the underlay takes `underlay`.
    #[must_use]
    pub fn encrypted_mtu(&self, underlay: u16) -> u16 {
        let in_udp = self.nodes.values().any(|node| node.is_behind_nat());
        netagent_common::encrypted_mtu(underlay, in_udp)
    }
}

#[cfg(test)]
impl Snapshot {
    /// The record of a member, to be changed.
    pub(crate) fn node_mut(&mut self, id: &NodeId) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(id).expect("a member"))
    }

    /// Those of all members.
    pub(crate) fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.values_mut().map(Arc::make_mut)
    }
}

/// Passes over those that are not `good`, while one that is good is eligible.
fn prefer(backends: &mut [Backend<'_>], good: impl Fn(&Endpoint) -> bool) {
    if backends.iter().any(|b| b.eligible && good(b.endpoint)) {
        backends.iter_mut().for_each(|b| b.eligible &= good(b.endpoint));
    }
}
