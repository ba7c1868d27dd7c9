//! Clusters of three nodes in namespaces, with real agents, real packets and real
//! programs. What must hold on every datapath is in `everywhere`, run once for each
//! layout; the rest is about one mechanism.

mod agent;
mod backup;
mod certificates;
mod damage;
mod drift;
mod everywhere;
mod garbage;
mod isolation;
mod names;
mod nat;
mod paths;
mod plain_vxlan;
mod removal;
mod residue;
mod run;
mod scale;
mod service_life;
mod service_orphans;
mod services_cli;
