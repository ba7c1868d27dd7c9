//! What a workload's namespace holds, the same on both datapaths: addresses and
//! the default route.

use ipnetwork::Ipv4Network;

use crate::model::{Attachment, Network, Snapshot, Workload};

use super::state::{Key, Ns, State, Value};

/// Attachments of the node's workloads with their networks. An attachment whose
/// network is gone from the snapshot has nothing to be attached to.
pub(super) fn attachments<'a>(
    snapshot: &'a Snapshot,
    workloads: &'a [Workload],
) -> impl Iterator<Item = (&'a Workload, &'a Attachment, &'a Network)> {
    workloads.iter().flat_map(|w| w.attachments.iter().map(move |a| (w, a))).filter_map(
        |(workload, attachment)| {
            let network = snapshot.networks.get(&attachment.endpoint.network)?;
            Some((workload, attachment, network))
        },
    )
}

/// Adds address and, for the workload's first network that is not internal, the
/// default route.
pub(super) fn configure(
    state: &mut State,
    workload: &Workload,
    attachment: &Attachment,
    network: &Network,
) {
    let ns = Ns::At(workload.netns.clone());
    let link = attachment.interface.clone();
    let address = Ipv4Network::new(attachment.endpoint.address, network.subnet.prefix())
        .expect("the prefix comes from a network");
    state.insert(Key::Address(ns.clone(), link.clone(), address), Value::Present);
    if !network.internal {
        state.entry(Key::Route(ns, default_route())).or_insert(Value::Route {
            link,
            gateway: Some(network.gateway),
            source: None,
        });
    }
}

/// 0.0.0.0/0.
pub(super) fn default_route() -> Ipv4Network {
    Ipv4Network::new(std::net::Ipv4Addr::UNSPECIFIED, 0).expect("0 is a prefix length")
}
