//! Names for workloads: a DNS server in each workload's namespace.
//!
//! [`zone`] indexes a snapshot, with [`services`] for the names of services, and [`answer`] turns a question into an answer from
//! it, both pure; [`forward`] asks the host's resolvers for what is not the
//! cluster's; [`server`] serves the sockets that [`sockets`] opened. Answers come
//! from the snapshot alone, so they stay right with every manager away. Nothing here
//! decides who is on which network: `workload` tells.

mod answer;
#[cfg(test)]
pub(crate) mod fixture;
mod forward;
mod resolv_conf;
mod server;
mod services;
mod sockets;
mod zone;

pub use answer::{Action, Question, TTL, Transport, Verdict, answer};
pub use forward::Forwarder;
pub use resolv_conf::{ResolvConf, SERVER};
pub use server::{Names, Server};
pub use services::Location;
pub use sockets::Sockets;
pub use zone::{Found, Zone};
