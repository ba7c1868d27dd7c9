//! Services in clusters of three nodes in namespaces: real agents, real packets, small
//! programs that say who they are and whom they see.

mod balance;
mod churn;
mod ipvs;
mod life;
mod mesh;
mod paths;
mod residue;
mod scenario;
mod upgrade;
mod voting;
mod world;
