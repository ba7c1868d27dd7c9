//! `netagent service update`.

use std::net::Ipv4Addr;

use clap::{ArgGroup, Args};

use super::affinity::Affinity;
use super::publish::{Ports, Target};
use super::warn_of_silent_nodes;
use crate::api::client::Client;
use crate::api::types::UpdateService;
use crate::cli::pairs::{pair, unique};
use crate::cli::{duration, output, path};
use crate::model::{EndpointMode, Name, Prefer, Scheduler, Service};

/// Change a service
///
/// What is named changes, on all nodes and at once; the rest stays. Connections that are
/// established and not concerned go on. Prints the service's name. Works on a manager.
///
/// A published port ends for new and for established connections alike when it is withdrawn,
/// and so does a virtual address that gives way to another. A scheduler or an affinity is for
/// connections that are new.
#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("change").multiple(true).required(true),
    after_long_help = "Examples:
  Another port, and the old one away:
      netagent service update --publish-rm 80 --publish-add 8081:80 web

  Another scheduler, with affinity for ten minutes:
      netagent service update --scheduler wlc --affinity clientip:10m web

  No affinity any more:
      netagent service update --affinity none web"
)]
pub(in crate::cli) struct Update {
    /// Service, by name or identifier
    service: String,
    /// Port of the nodes that leads to it from now on, as `service create` has it;
    /// repeatable. What the same port of the nodes was for the service before is replaced
    #[arg(long, group = "change", value_name = "[[ADDRESS:]PORT:]TARGET[/PROTOCOL]")]
    publish_add: Vec<Ports>,
    /// Target port that is published no longer; repeatable
    #[arg(long, group = "change", value_name = "TARGET[/PROTOCOL]")]
    publish_rm: Vec<Target>,
    /// What its name resolves to: one virtual address, or all backends, shuffled (dnsrr)
    #[arg(long, group = "change", value_enum, value_name = "MODE")]
    endpoint_mode: Option<EndpointMode>,
    /// Virtual address to have instead of its own
    #[arg(long, group = "change", value_name = "ADDRESS")]
    vip: Option<Ipv4Addr>,
    /// Further name that resolves as its name does; repeatable
    #[arg(long, group = "change", value_name = "NAME")]
    alias_add: Vec<Name>,
    /// Alias that is its name no longer; repeatable
    #[arg(long, group = "change", value_name = "NAME")]
    alias_rm: Vec<Name>,
    /// How a new connection finds its backend
    #[arg(long, group = "change", value_enum, value_name = "SCHEDULER")]
    scheduler: Option<Scheduler>,
    /// A client's new connections go to the backend of its last one, or not (none)
    #[arg(long, group = "change", value_name = "clientip[:TIMEOUT]|none")]
    affinity: Option<Affinity>,
    /// Time without a packet after which a connection is forgotten
    #[arg(long, group = "change", value_name = "TIME", value_parser = duration::seconds)]
    idle_timeout: Option<u32>,
    /// Backends that a node's own clients and published ports prefer
    #[arg(long, group = "change", value_enum, value_name = "any|local")]
    prefer: Option<Prefer>,
    /// Label to set; repeatable
    #[arg(long, group = "change", value_name = "KEY=VALUE", value_parser = pair)]
    label_add: Vec<(String, String)>,
    /// Label to take away; repeatable
    #[arg(long, group = "change", value_name = "KEY")]
    label_rm: Vec<String>,
}

impl Update {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<()> {
        let path = path(&["services", &self.service]);
        let request = UpdateService {
            endpoint_mode: self.endpoint_mode,
            vip: self.vip,
            alias_add: self.alias_add,
            alias_rm: self.alias_rm,
            publish_add: self.publish_add.into_iter().flat_map(|ports| ports.0).collect(),
            publish_rm: self.publish_rm.into_iter().map(|target| target.0).collect(),
            scheduler: self.scheduler,
            affinity: self.affinity.map(|affinity| affinity.0),
            idle_timeout: self.idle_timeout,
            prefer: self.prefer,
            label_add: unique("--label-add", self.label_add)?,
            label_rm: self.label_rm,
        };
        let service: Service = client.patch(&path, &request).await?;
        output::print(&format!("{}\n", service.name))?;
        if !request.publish_add.is_empty() {
            warn_of_silent_nodes(client).await?;
        }
        Ok(())
    }
}
