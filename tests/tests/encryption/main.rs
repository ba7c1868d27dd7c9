//! Encrypted networks, seen from the wire. Where the kernel has no IPsec they are refused,
//! which is tested there; the rest says `SKIP`.
//!
//! ```text
//!   a          b          c
//!   n1 .11     n2 .12     n3 .13     client .100, no member
//!    │eth0      │eth0      │eth0      │eth0
//!   ─┴──────────┴──────────┴──────────┴─ wire: every frame is captured
//! ```

mod cleartext;
mod nat;
mod refusal;
mod renewal;
mod replay;
mod services;
mod wire;
mod world;
