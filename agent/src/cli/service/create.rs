//! `netagent service create`.

use std::net::Ipv4Addr;

use clap::Args;

use super::affinity::Affinity;
use super::publish::Ports;
use super::warn_of_silent_nodes;
use crate::api::client::Client;
use crate::api::types::CreateService;
use crate::cli::pairs::{pair, unique};
use crate::cli::{duration, output};
use crate::model::{EndpointMode, Name, Prefer, Scheduler, Service};

/// Create a service
///
/// Gives a name, and on each of its networks a virtual address (VIP), to workloads that are
/// started with `netagent run --service`. A connection to the name or the address goes to one
/// of those that are healthy and do not drain; it arrives with the client's own address, and
/// on any port: none has to be declared for use inside the networks. Prints the identifier.
/// Works on a manager.
///
/// A published port is answered by every node of the cluster, whether or not it runs a task,
/// at all its addresses and at 127.0.0.1 on the node itself, and leads to the service on the
/// first of its networks. What a node's own programs listen on is not reached while it is
/// published: think of port 22. The backends see the address of the client outside.
///
/// Names: SERVICE is the virtual address, tasks.SERVICE are the backends; SRV records of
/// _PORT._PROTOCOL.SERVICE, by target port, say where a published port is to be had.
#[derive(Args, Debug)]
#[command(after_long_help = "Ports:
  -p 8080:80              port 8080 of every node leads to port 80 of the backends
  -p 80                   some free port of 30000 to 32767, see `service ls`
  -p 53:53/udp            by UDP; tcp is the default, there is sctp, too
  -p 192.0.2.11:8080:80   at that address of the nodes only
  -p 8000-8010:80-90      eleven ports
  -p published=8080,target=80,protocol=tcp,mode=ingress,addr=192.0.2.11,allow=10.0.0.0/8
                          the same in full; allow= may be given several times (or its
                          blocks joined by ;) and names the only sources that may connect;
                          mode=host: only nodes with a task answer, each for its own task

Examples:
  A database, for workloads of its network:
      netagent service create --name psql --network mydrupal
      netagent run --service psql -- postgres -D /srv/db

  A web server that every node answers for on port 80:
      netagent service create --name web --network mydrupal -p 80:8080
      netagent run --service web --health-http :8080/ -- ./server

  Clients stay with their backend until they make no new connection for ten minutes:
      netagent service create --name shop --network front --affinity clientip:10m

  A port that only the office may use:
      netagent service create --name admin --network mydrupal \\
          -p published=8443,target=443,allow=198.51.100.0/24")]
pub(in crate::cli) struct Create {
    /// Name of the service, unique in the cluster
    #[arg(long)]
    name: Name,
    /// Network that it is on; repeatable. Published ports lead to it on the first
    #[arg(long, required = true, value_name = "NETWORK")]
    network: Vec<String>,
    /// Further name that resolves as its name does; repeatable
    #[arg(long, value_name = "NAME")]
    alias: Vec<Name>,
    /// Port of the nodes that leads to it; repeatable. See Ports below
    #[arg(short, long, value_name = "[[ADDRESS:]PORT:]TARGET[/PROTOCOL]")]
    publish: Vec<Ports>,
    /// What its name resolves to: one virtual address, or all backends, shuffled (dnsrr)
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    endpoint_mode: EndpointMode,
    /// Virtual address to have; by default one of the network is allocated
    #[arg(long, value_name = "ADDRESS")]
    vip: Option<Ipv4Addr>,
    /// How a new connection finds its backend
    #[arg(long, value_enum, default_value_t, value_name = "SCHEDULER")]
    scheduler: Scheduler,
    /// A client's new connections go to the backend of its last one: `clientip`, and for how
    /// long after it (5m by default)
    #[arg(long, value_name = "clientip[:TIMEOUT]")]
    affinity: Option<Affinity>,
    /// Time without a packet after which a connection is forgotten; by default 5d
    #[arg(long, value_name = "TIME", value_parser = duration::seconds)]
    idle_timeout: Option<u32>,
    /// Backends that a node's own clients and published ports prefer: all alike, or those
    /// on the same node as long as one of them takes connections
    #[arg(long, value_enum, default_value_t, value_name = "any|local")]
    prefer: Prefer,
    /// Label to find the service by
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
}

impl Create {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<()> {
        let request = self.request()?;
        let service: Service = client.post("/v1/services", &request).await?;
        output::print(&format!("{}\n", service.id))?;
        if !service.ports.is_empty() {
            warn_of_silent_nodes(client).await?;
        }
        Ok(())
    }

    fn request(self) -> anyhow::Result<CreateService> {
        Ok(CreateService {
            name: self.name,
            aliases: self.alias,
            networks: self.network,
            endpoint_mode: self.endpoint_mode,
            vip: self.vip,
            ports: self.publish.into_iter().flat_map(|ports| ports.0).collect(),
            scheduler: self.scheduler,
            affinity: self.affinity.map(|affinity| affinity.0),
            idle_timeout: self.idle_timeout,
            prefer: self.prefer,
            labels: unique("--label", self.label)?,
        })
    }
}
