//! netagent's datapath: tc programs that carry the packets of overlay networks and
//! balance those of services. What they know the agent has written into maps; they own
//! counters, and what they remember of the flows of services.
//!
//! ```text
//! what a workload sends
//!
//!   eth0 ── na-… ─▶ from_endpoint
//!                    ├─ not its own MAC or address ─▶ drop
//!                    ├─ ARP, echo to the gateway ───▶ answered to the workload
//!                    ├─ too big for the network ────▶ answered to the workload
//!                    ├─ answer of a backend ────────▶ as the service, to the client
//!                    ├─ to a service ───────────────▶ a backend, here or elsewhere
//!                    ├─ to an endpoint here ────────▶ that one's eth0       redirect_peer
//!                    ├─ to an endpoint elsewhere ───▶ VXLAN pushed, uplink  redirect_neigh
//!                    │    pushed by the kernel alone ▶ na-vxlan             redirect
//!                    ├─ to a port published here ───▶ a backend, as from outside
//!                    └─ outside of every network ───▶ the host's stack
//!
//! what a node receives
//!
//!   uplink ───────▶ from_uplink
//!                    ├─ to a published port ────────▶ a backend, here or elsewhere
//!                    ├─ ESP in UDP of a member ─────▶ as ESP, the host's stack
//!                    ├─ else not of the tunnel ─────▶ the host's stack
//!                    ├─ popped by the kernel alone ─▶ the host's stack, na-vxlan ──┐
//!                    ├─ from or to a wrong one ─────▶ drop                         │
//!                    ├─ ARP about an endpoint here ─▶ answered through the tunnel  │
//!                    ├─ probe of a member ──────────▶ sent back, or to the agent   │
//!                    ├─ of a service, to a client ──▶ as the published port, uplink │
//!                    └─ to an endpoint here ────────▶ VXLAN popped, its eth0       │
//!   na-vxlan ─────▶ from_overlay ◀─────────────────────────────────────────────────┘
//!                    └─ likewise, with nothing to pop
//!   lo ───────────▶ from_host
//!                    ├─ to a published port ────────▶ a backend, here or elsewhere
//!                    └─ anything else ──────────────▶ the host's stack
//! ```
//!
//! A packet to a service keeps the virtual address up to the backend's node, which the
//! inner destination MAC names (`service.rs`, `choose.rs`, `schedule.rs`); there it is
//! translated (`backend.rs`), and the answer back (`reply.rs`). Where IPVS is the scheduler
//! a new flow makes a detour through its namespace (`steer.rs`, `from_lb.rs`).
//!
//! A packet to a published port becomes one to its service (`entry.rs`) and is carried as
//! any other; the answer comes back to the node where the client came in, and leaves there
//! as the port's (`exit.rs`).
//!
//! From the tunnel nothing is delivered but what a member sends for an endpoint that it
//! owns to an endpoint that is here (`overlay.rs`, both hooks). ARP about a local endpoint
//! is answered back through the tunnel, so that plain Linux VTEPs can take part.
//!
//! What the fast way leaves to the kernel's vxlan device, because only the kernel does it
//! right: packets that are a tunnel's already and not yet segmented, on the way out; on
//! the way in, outer fragments, IPv4 options, outer checksums (which the kernel verifies;
//! RFC 7348 lets a receiver choose), marks of congestion, and GSO packets other than TCP.
//!
//! A hook is a file, a mechanism is a file. Each hook ends in a verdict, and `verdict.rs`
//! makes it an action and moves one counter. Names are constants in `netagent_common`.
//!
//! What a passed packet meets next is not decided here: the action is `TC_ACT_UNSPEC`, so
//! that programs of others at the same hook see what they would see without us.
//!
//! tcpdump shows a packet where it comes in (the host side of the sender's veth, the
//! uplink) and at the `eth0` of the workload that it is delivered to; never at the host
//! side of the receiver's veth, which `redirect_peer` leaves out.
//!
//! The counters tell what happens. The programs log one thing alone, who speaks VXLAN to
//! the node without being a member (`stranger.rs`), and that not for every packet: a line
//! for each would serve whoever floods.
#![no_std]
#![no_main]
// The library has no atomic addition for this machine, which does have it.
#![feature(core_intrinsics)]
#![feature(asm_experimental_arch)]
#![expect(internal_features, reason = "atomic addition, see `load.rs`")]

mod apart;
mod arp;
mod backend;
mod checksum;
mod choose;
mod crc32c;
mod encap;
mod encrypted;
mod entry;
mod exit;
mod flow;
mod fragments;
mod from_endpoint;
mod from_host;
mod from_lb;
mod from_overlay;
mod from_uplink;
mod gateway;
mod headers;
mod icmp_error;
mod load;
mod maps;
mod mtu;
mod overlay;
mod packet;
mod probe;
mod refuse;
mod reply;
mod rewrite;
mod schedule;
mod service;
mod steer;
mod stranger;
mod unreachable;
mod verdict;
mod words;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// What a workload sends.
#[classifier]
fn netagent_from_endpoint(context: TcContext) -> i32 {
    verdict::run(&context, from_endpoint::handle)
}

/// What the host's own clients send, at the loopback device.
#[classifier]
fn netagent_from_host(context: TcContext) -> i32 {
    verdict::run(&context, from_host::handle)
}

/// What IPVS sends out of its namespace.
#[classifier]
fn netagent_from_lb(context: TcContext) -> i32 {
    verdict::run(&context, from_lb::handle)
}

/// What the kernel's vxlan device received.
#[classifier]
fn netagent_from_overlay(context: TcContext) -> i32 {
    verdict::run(&context, from_overlay::handle)
}

/// What leaves the node.
#[classifier]
fn netagent_to_uplink(context: TcContext) -> i32 {
    verdict::run(&context, encrypted::to_uplink)
}

/// What the node receives.
#[classifier]
fn netagent_from_uplink(context: TcContext) -> i32 {
    verdict::run(&context, from_uplink::handle)
}

/// The verifier has shown that it is not reached: it takes no endless loop.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
