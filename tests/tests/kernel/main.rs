//! The agent's kernel module against a real kernel: what it applies is what it then
//! observes, other tools see the same, damage is seen and mended, and nothing stays.
//! Needs root and the eBPF object (`cargo xtask build-ebpf`).
//!
//! ```text
//!   host (a namespace of its own)             workload w1, w2
//!     eth0 <-> wire                             eth0
//!     na-XXXXXXXXXXX <---------------------------┘
//! ```
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod bpf;
mod clsact;
mod flows;
mod ipvs;
mod netlink;
mod world;
