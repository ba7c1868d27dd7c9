//! The API: HTTP and JSON, one set of routes on the node's unix socket and, with
//! mutual TLS, between nodes.

pub mod client;
mod cluster;
mod endpoints;
pub mod error;
pub mod extract;
pub mod identity;
mod lines;
pub mod listen;
mod networks;
mod nodes;
pub mod server;
mod services;
#[cfg(test)]
mod tests;
pub mod this_node;
pub mod types;
mod version;
mod watch;
mod workloads;
