//! Names in the object file. The kernel cuts a program's name to 15 bytes; they differ
//! within these, and BTF carries them whole.

/// Programs, by the names of their functions.
pub mod programs {
    /// tc ingress of the host side of every endpoint's veth.
    pub const FROM_ENDPOINT: &str = "netagent_from_endpoint";
    /// tc ingress of the collect-metadata vxlan device.
    pub const FROM_OVERLAY: &str = "netagent_from_overlay";
    /// tc ingress of the uplink.
    pub const FROM_UPLINK: &str = "netagent_from_uplink";
    /// tc ingress of `lo`: what the host's own clients send.
    pub const FROM_HOST: &str = "netagent_from_host";
    /// tc ingress of the host side of the veth to the namespace where IPVS schedules.
    pub const FROM_LB: &str = "netagent_from_lb";
    /// tc egress of the uplink.
    pub const TO_UPLINK: &str = "netagent_to_uplink";
    /// All of them.
    pub const ALL: [&str; 6] =
        [FROM_ENDPOINT, FROM_OVERLAY, FROM_UPLINK, FROM_HOST, FROM_LB, TO_UPLINK];
}

/// Maps. What they hold: `overlay.rs`, `service.rs`, `flow.rs`, `probe.rs`, `config.rs`
/// and `counter.rs` beside this file.
pub mod maps {
    /// Array of one [`Config`](crate::Config).
    pub const CONFIG: &str = "CONFIG";
    /// Hash: interface index (`u32`) to [`Port`](crate::Port).
    pub const PORTS: &str = "PORTS";
    /// Hash: [`EndpointKey`](crate::EndpointKey) to [`Endpoint`](crate::Endpoint).
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Hash: VNI (`u32`) to [`Network`](crate::Network).
    pub const NETWORKS: &str = "NETWORKS";
    /// Hash: VTEP (`[u8; 4]`) to [`Peer`](crate::Peer).
    pub const PEERS: &str = "PEERS";
    /// Longest-prefix match: [`SubnetKey`](crate::SubnetKey) to VNI (`u32`).
    pub const SUBNETS: &str = "SUBNETS";
    /// Per-CPU array of [`Count`](crate::Count), by [`Counter`](crate::Counter).
    pub const COUNTERS: &str = "COUNTERS";
    /// Hash: [`EndpointKey`](crate::EndpointKey) of a virtual address to
    /// [`Service`](crate::Service).
    pub const SERVICES: &str = "SERVICES";
    /// Hash: [`SlotKey`](crate::SlotKey) to [`Slot`](crate::Slot).
    pub const RING: &str = "RING";
    /// Hash: [`PublishedKey`](crate::PublishedKey) to [`Published`](crate::Published).
    pub const PUBLISHED: &str = "PUBLISHED";
    /// Longest-prefix match: [`AllowedKey`](crate::AllowedKey) to 1 (`u32`).
    pub const ALLOWED: &str = "ALLOWED";
    /// Hash: [`VirtualKey`](crate::VirtualKey) to 1 (`u32`).
    pub const VIRTUAL: &str = "VIRTUAL";
    /// LRU hash, written by the programs: [`FlowKey`](crate::FlowKey) to
    /// [`Flow`](crate::Flow). Its size is set when the object is loaded.
    pub const FLOWS: &str = "FLOWS";
    /// LRU hash, written by the programs: [`AffinityKey`](crate::AffinityKey) to
    /// [`Affinity`](crate::Affinity).
    pub const AFFINITY: &str = "AFFINITY";
    /// LRU hash, written by the programs: [`EndpointKey`](crate::EndpointKey) to
    /// [`Load`](crate::Load).
    pub const LOAD: &str = "LOAD";
    /// Ring buffer, written by the programs: [`Probed`](crate::Probed).
    pub const PROBED: &str = "PROBED";
    /// Hash: VNI (`u32`) of an encrypted network to the interface index (`u32`) of the vxlan
    /// device that carries it; 0 if nothing on this node can.
    pub const ENCRYPTED: &str = "ENCRYPTED";
    /// All of them; each is pinned under its name.
    pub const ALL: [&str; 17] = [
        CONFIG, PORTS, ENDPOINTS, NETWORKS, PEERS, SUBNETS, COUNTERS, SERVICES, RING, PUBLISHED,
        ALLOWED, VIRTUAL, FLOWS, AFFINITY, LOAD, PROBED, ENCRYPTED,
    ];
}
