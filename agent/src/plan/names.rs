//! Names of the links and namespaces that are ours. Link names hold at most 15
//! bytes (IFNAMSIZ less the terminator).

use std::ffi::OsStr;

use crate::model::{EndpointId, NodeId, Vni};

use super::state::LINK_PREFIX;

const SHORT: usize = 11;

/// Host side of an endpoint's veth.
pub(super) fn endpoint_link(id: &EndpointId) -> String {
    format!("{LINK_PREFIX}{}", &id.as_str()[..SHORT])
}

/// The namespace that holds a node's bridges, by its name under `/run/netns`.
pub(super) fn bridges(id: &NodeId) -> String {
    format!("{LINK_PREFIX}{}", &id.as_str()[..SHORT])
}

/// End of the name of a namespace for IPVS.
const BALANCER: &str = "-lb";

/// The namespace that a node's IPVS works in, by its name under `/run/netns`.
pub(super) fn balancer(id: &NodeId) -> String {
    format!("{}{BALANCER}", bridges(id))
}

/// Whether this is such a name.
pub(super) fn is_balancer(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(LINK_PREFIX) && name.ends_with(BALANCER))
}

/// The bridge of a network.
pub(super) fn bridge(vni: Vni) -> String {
    format!("br{vni}")
}

/// The vxlan device of a network.
pub(super) fn vxlan(vni: Vni) -> String {
    format!("vx{vni}")
}
