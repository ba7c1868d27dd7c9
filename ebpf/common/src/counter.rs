use crate::pod;

/// Value of the per-CPU array `COUNTERS` (index: [`Counter`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets; a GSO packet counts once.
    pub packets: u64,
    /// Bytes as the hook saw them, Ethernet header included.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Count>() == 16);
pod!(Count);

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Every verdict of the datapath. Each packet that a program sees moves
        /// exactly one of these.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Counter {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Counter {
            /// All counters, in the order of their indexes.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The counter with this index.
            #[inline(always)]
            #[must_use]
            pub fn from_index(index: u32) -> Option<Self> {
                if index >= const { Self::ALL.len() as u32 } {
                    return None;
                }
                // SAFETY: the enum is `repr(u32)`, and its values are the numbers from 0 up
                // to how many there are.
                Some(unsafe { core::mem::transmute::<u32, Self>(index) })
            }

            /// Stable name for people and metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What it means, one line.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

counters! {
    /// Carried to another node inside VXLAN, header pushed by eBPF.
    Encapsulated = "encapsulated",
    /// Received from another node, header popped by eBPF, delivered.
    Decapsulated = "decapsulated",
    /// Received from another node, popped by the kernel's vxlan device, delivered.
    DeliveredFromVxlan = "delivered_from_vxlan",
    /// Left to the kernel's vxlan device, to be pushed or popped there: what only
    /// the kernel can do right (UDP GSO, tunnels within the tunnel, outer fragments,
    /// options, checksums and congestion marks).
    PassedToVxlan = "passed_to_vxlan",
    /// Delivered to another endpoint on this node.
    DeliveredLocally = "delivered_locally",
    /// ARP request of a local endpoint answered in place.
    ArpAnswered = "arp_answered",
    /// ARP request that came through the overlay answered in place.
    ArpAnsweredRemote = "arp_answered_remote",
    /// Echo request to the gateway or to a service's address answered in place.
    EchoAnswered = "echo_answered",
    /// Too big for the network's MTU: answered with ICMP fragmentation needed.
    FragNeeded = "frag_needed",
    /// Handed to the host's stack, to leave for the outside or for the host itself.
    PassedToHost = "passed_to_host",
    /// At the uplink, not an overlay packet: passed untouched.
    PassedAtUplink = "passed_at_uplink",
    /// To a service, a new flow: given to IPVS, which chooses the backend.
    ToScheduler = "to_scheduler",
    /// To a service without a backend that may take it: answered, with a TCP reset or with
    /// ICMP port unreachable.
    NoBackendAnswered = "no_backend_answered",
    /// On `lo`, not to a published port: passed untouched.
    PassedAtLoopback = "passed_at_loopback",
    /// Came from outside of all networks to a published port, and went on to a backend.
    EnteredMesh = "entered_mesh",
    /// Answer of a published port, on its way to who called it.
    LeftMesh = "left_mesh",
    /// Probe of another node, sent back to it.
    ProbeAnswered = "probe_answered",
    /// Answer to a probe of this node, taken by the agent.
    ProbeReturned = "probe_returned",
    /// Carried to another node encrypted: given to the kernel's VXLAN device and IPsec.
    Encrypted = "encrypted",
    /// ESP of another node that came in UDP, because one of the two is behind NAT: taken out
    /// of it, and passed to the kernel's IPsec.
    TakenOutOfUdp = "taken_out_of_udp",
    /// Leaves by the uplink, and is nothing of an encrypted network in clear: passed
    /// untouched.
    PassedOut = "passed_out",
    /// Drop: a header is truncated or contradicts itself.
    DropMalformed = "drop_malformed",
    /// Drop: the interface is not a port of the overlay (yet, or any more).
    DropUnknownPort = "drop_unknown_port",
    /// Drop: an endpoint used a source MAC that is not its own.
    DropSpoofedMac = "drop_spoofed_mac",
    /// Drop: an endpoint used a source address that is not its own.
    DropSpoofedAddress = "drop_spoofed_address",
    /// Drop: an endpoint tried to send VXLAN to the underlay.
    DropForgedTunnel = "drop_forged_tunnel",
    /// Drop: no endpoint has this address in this network.
    DropUnknownDestination = "drop_unknown_destination",
    /// Drop: the destination belongs to another network.
    DropOtherNetwork = "drop_other_network",
    /// Drop: the network is internal and the destination is outside it.
    DropInternal = "drop_internal",
    /// Drop: broadcast or multicast, which this network does not carry.
    DropMulticast = "drop_multicast",
    /// Drop: ARP that asks nothing of another: a probe, an announcement, a reply.
    DropArp = "drop_arp",
    /// Drop: too big for the network's MTU, and a kind of packet that must not be
    /// answered (a fragment after the first).
    DropTooBig = "drop_too_big",
    /// Drop: neither ARP nor IPv4.
    DropOtherProtocol = "drop_other_protocol",
    /// Drop: VXLAN from an address that is no member's VTEP.
    DropNotMember = "drop_not_member",
    /// Drop: VXLAN for a network that this node does not know.
    DropUnknownVni = "drop_unknown_vni",
    /// Drop: the sending VTEP does not own the inner source address.
    DropNotOwner = "drop_not_owner",
    /// Drop: VXLAN for an address that is not on this node.
    DropNotLocal = "drop_not_local",
    /// Drop: to a service without a backend that may take it, and a kind of packet that
    /// must not be answered.
    DropNoBackend = "drop_no_backend",
    /// Drop: to a service, and neither TCP, UDP, SCTP nor an error about these.
    DropServiceProtocol = "drop_service_protocol",
    /// Drop: a later fragment or an ICMP error, to a service, of a flow that is not known.
    DropUnknownFlow = "drop_unknown_flow",
    /// Drop: VXLAN to a service, for an endpoint that is no backend of it on this node.
    DropNotBackend = "drop_not_backend",
    /// Drop: for a new flow to a backend there is no port that tells it from others.
    DropNoPort = "drop_no_port",
    /// Copy of a packet that IPVS was told of, come out of it again: dropped.
    DropAccounted = "drop_accounted",
    /// Drop: came out of the namespace where IPVS schedules, and is no packet of a client
    /// to a service.
    DropScheduler = "drop_scheduler",
    /// Drop: to a published port, from a source that may not use it.
    DropNotAllowed = "drop_not_allowed",
    /// Drop: came in clear, but is of an encrypted network or for its port.
    DropCleartextIn = "drop_cleartext_in",
    /// Drop: of an encrypted network, and about to leave in clear.
    DropCleartextOut = "drop_cleartext_out",
    /// Drop: the kernel refused to change or to redirect the packet.
    DropRefused = "drop_refused",
}
