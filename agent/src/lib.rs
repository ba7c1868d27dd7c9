//! netagent: the network of a container cluster for plain Linux hosts.
//!
//! Modules in layer order; imports point down only:
//!
//! ```text
//! cli ──> api (HTTP)          daemon (wires) ──> api, cluster, workload, dns, reconcile
//! api ──> cluster, workload   cluster ──> store ──> model
//! reconcile ──> plan ──> model
//! reconcile, flows, paths ──> kernel ──> ebpf/common
//! ```
//!
//! `model` and `plan` are pure: no tokio, no aya, no netlink. `kernel` is the
//! only module that changes the kernel, and never reads `cluster`.

pub mod api;
pub mod cli;
pub mod cluster;
pub mod daemon;
pub mod dns;
pub mod facts;
pub mod flows;
pub mod kernel;
pub mod model;
pub mod paths;
pub mod plan;
pub mod reconcile;
pub mod store;
pub mod workload;
