use std::net::Ipv4Addr;

use crate::model::{
    Attachment, Endpoint, EndpointId, Hold, Mac, NetworkId, NodeId, Workload, WorkloadId,
};

/// A workload in the namespace of this very process, so that it is held.
pub(super) fn workload(name: &str, addresses: &[&str]) -> Workload {
    let (id, pid) = (WorkloadId::new(), std::process::id().cast_signed());
    let attachment = |(n, address): (usize, &&str)| {
        let address: Ipv4Addr = address.parse().unwrap();
        Attachment {
            interface: format!("eth{n}"),
            endpoint: Endpoint {
                id: EndpointId::new(),
                network: NetworkId::new(),
                node: NodeId::new(),
                workload: id.clone(),
                name: name.parse().unwrap(),
                aliases: Vec::new(),
                address,
                mac: Mac::of(address),
                task: None,
                created: "2026-11-20T00:00:00Z".to_owned(),
            },
        }
    };
    Workload {
        name: name.parse().unwrap(),
        netns: "/proc/self/ns/net".into(),
        hold: Hold::Process { pid, start: super::hold::start_time(pid).unwrap() },
        mounted: false,
        serving: None,
        attachments: addresses.iter().enumerate().map(attachment).collect(),
        id: id.clone(),
    }
}
