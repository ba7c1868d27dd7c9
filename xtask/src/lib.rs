//! The front door to the project: `cargo xtask <command>`.
//!
//! ```text
//! setup ──> build ──> playground ──> cluster (by hand), demo, test, vm
//! ```
//!
//! A library too, so that the tests stand on the same playground as a person
//! at a prompt does. It runs other programs and owns no logic of netagent.

mod apt;
pub mod bench;
pub mod build;
pub mod chaos;
pub mod cluster;
pub mod command;
pub mod demo;
pub mod disk;
pub mod faults;
pub mod install;
pub mod lint;
mod membership;
pub mod node;
pub mod playground;
pub mod process;
mod record;
pub mod scenario;
pub mod setup;
pub mod test;
pub mod vagrant;
pub mod vm;
pub mod wait;
