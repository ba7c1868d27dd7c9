//! What the tests of this crate share.

pub mod client;
pub mod lab;
pub mod nat;
pub mod object;
pub mod packet;
pub mod prog;
mod trampoline;
pub mod verified;
pub mod world;
