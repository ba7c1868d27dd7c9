//! `netagent endpoint`: which workload has which address on which network of
//! which node.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};

use super::filter::{self, Filter};
use super::output::{self, Shape};
use super::{each, is_not_found, path};
use crate::api::client::Client;
use crate::api::types::UpdateWorkload;
use crate::model::{
    Endpoint, Network, NetworkId, Node, NodeId, Service, ServiceId, Task, Workload,
};

/// Verbs of `netagent endpoint`.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    Ls(Ls),
    Inspect(Inspect),
    Rm(Rm),
    Update(Update),
}

/// List the endpoints of the cluster
///
/// An endpoint is one interface of one workload on one network. The list covers
/// all nodes.
#[derive(Args, Debug)]
#[command(
    visible_alias = "list",
    after_long_help = "Filters:
  id=TEXT          identifier starts with the text
  name=TEXT        name of the workload contains the text
  network=NETWORK  is on this network (name or identifier)
  node=NODE        is on this node (host name or identifier)
  service=SERVICE  serves this service (name or identifier)

Examples:
      netagent endpoint ls
      netagent endpoint ls --filter node=n2 --filter network=mydrupal"
)]
pub(super) struct Ls {
    #[command(flatten)]
    shape: Shape,
    /// Show only what matches
    #[arg(short, long, value_name = "KEY=VALUE",
          value_parser = Filter::with(&["id", "name", "network", "node", "service"]))]
    filter: Vec<Filter>,
}

/// Show endpoints in full, as JSON
///
/// Prints a JSON array of all endpoints that have one of the given identifiers or
/// belong to a workload of one of the given names.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent endpoint inspect psql")]
pub(super) struct Inspect {
    /// Endpoints, by identifier or by name of the workload
    #[arg(required = true, value_name = "ENDPOINT")]
    endpoints: Vec<String>,
}

/// Release workloads of this node, or remove stale endpoints
///
/// With the name or identifier of a workload of this node: takes all its interfaces
/// away and frees its addresses and names; its processes go on without network.
/// Workloads release themselves when their process ends, so this is rarely needed.
///
/// With the identifier of an endpoint, on a manager: removes an endpoint that nothing stands
/// behind any more, such as one of a node that never came back.
#[derive(Args, Debug)]
#[command(
    visible_alias = "remove",
    after_long_help = "Examples:
      netagent endpoint rm psql
      netagent endpoint rm bk4xq2mz7abc"
)]
pub(super) struct Rm {
    /// Workloads of this node by name or identifier, or endpoints by identifier
    #[arg(required = true, value_name = "ENDPOINT")]
    endpoints: Vec<String>,
}

/// Change the weight of workloads that serve, or drain them
///
/// For workloads of this node that run with --service. A draining workload keeps its
/// connections and gets no new ones. Returns when all nodes that can be reached have taken it
/// up. `netagent service ps` shows what holds.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  A third of the connections of a backend with weight 3:
      netagent endpoint update --weight 1 web-2

  Maintenance:
      netagent endpoint update --drain web-2
      netagent endpoint update --no-drain web-2")]
pub(super) struct Update {
    /// Share of new connections beside that of the other backends; 0 for none
    #[arg(long, value_name = "WEIGHT", required_unless_present_any = ["drain", "no_drain"])]
    weight: Option<u16>,
    /// Send new connections to other backends
    #[arg(long, conflicts_with = "no_drain")]
    drain: bool,
    /// Take new connections again
    #[arg(long)]
    no_drain: bool,
    /// Workloads of this node, by name or identifier
    #[arg(required = true, value_name = "WORKLOAD")]
    workloads: Vec<String>,
}

/// Does what `verb` says.
pub(super) async fn run(verb: Verb, client: &Client) -> anyhow::Result<()> {
    match verb {
        Verb::Ls(args) => {
            let mut endpoints: Vec<Endpoint> = client.get("/v1/endpoints").await?;
            endpoints.sort_by_key(|endpoint| endpoint.address);
            let names = Names::new(
                client.get("/v1/networks").await?,
                client.get("/v1/nodes").await?,
                client.get("/v1/services").await?,
            );
            output::print(&list(&endpoints, &names, &args.filter, args.shape))?;
        }
        Verb::Inspect(args) => {
            let endpoints: Vec<Endpoint> = client.get("/v1/endpoints").await?;
            let find = async |wanted: &str| found(&endpoints, wanted);
            let (found, result) = each(&args.endpoints, find).await;
            output::print(&output::json(&found.concat()))?;
            result?;
        }
        Verb::Rm(args) => {
            let remove = async |wanted: &str| {
                match client.delete(&path(&["workloads", wanted])).await {
                    Err(error) if is_not_found(&error) => {
                        let endpoints: Vec<Endpoint> = client.get("/v1/endpoints").await?;
                        // Never by name: it may be that of a workload of another node.
                        let Some(stale) = endpoints.iter().find(|e| e.id.is_meant_by(wanted))
                        else {
                            return Err(error.into());
                        };
                        client.delete(&path(&["endpoints", stale.id.as_str()])).await?;
                    }
                    result => result?,
                }
                Ok(output::print(&format!("{wanted}\n"))?)
            };
            each(&args.endpoints, remove).await.1?;
        }
        Verb::Update(args) => {
            let draining = (args.drain || args.no_drain).then_some(args.drain);
            let update = UpdateWorkload { weight: args.weight, draining };
            let change = async |wanted: &str| {
                let changed: Workload =
                    client.patch(&path(&["workloads", wanted]), &update).await?;
                Ok(output::print(&format!("{}\n", changed.name))?)
            };
            each(&args.workloads, change).await.1?;
        }
    }
    Ok(())
}

/// Names of the networks, nodes and services that endpoints refer to.
struct Names {
    networks: BTreeMap<NetworkId, String>,
    nodes: BTreeMap<NodeId, String>,
    services: BTreeMap<ServiceId, String>,
}

impl Names {
    fn new(networks: Vec<Network>, nodes: Vec<Node>, services: Vec<Service>) -> Self {
        Self {
            networks: networks.into_iter().map(|n| (n.id, n.name.to_string())).collect(),
            nodes: nodes.into_iter().map(|n| (n.id, n.hostname)).collect(),
            services: services.into_iter().map(|s| (s.id, s.name.to_string())).collect(),
        }
    }

    /// The network's name; its identifier if it has just been removed.
    fn network<'a>(&'a self, id: &'a NetworkId) -> &'a str {
        self.networks.get(id).map_or(id.as_str(), String::as_str)
    }

    /// The node's name; its identifier if it has just been removed.
    fn node<'a>(&'a self, id: &'a NodeId) -> &'a str {
        self.nodes.get(id).map_or(id.as_str(), String::as_str)
    }

    /// Name of the service that an endpoint serves; empty if it serves none.
    fn service<'a>(&'a self, endpoint: &'a Endpoint) -> &'a str {
        let Some(Task { service: id, .. }) = &endpoint.task else { return "" };
        self.services.get(id).map_or(id.as_str(), String::as_str)
    }
}

fn list(endpoints: &[Endpoint], names: &Names, filters: &[Filter], shape: Shape) -> String {
    let shown = endpoints.iter().filter(|endpoint| {
        filter::pass(filters, |key, value| match key {
            "id" => endpoint.id.as_str().starts_with(value),
            "network" => {
                names.network(&endpoint.network) == value.to_ascii_lowercase()
                    || endpoint.network.is_meant_by(value)
            }
            "node" => names.node(&endpoint.node) == value || endpoint.node.is_meant_by(value),
            "service" => {
                names.service(endpoint) == value.to_ascii_lowercase()
                    || endpoint.task.as_ref().is_some_and(|task| task.service.is_meant_by(value))
            }
            _ => endpoint.name.as_str().contains(&value.to_ascii_lowercase()),
        })
    });
    shape.list(
        &["ENDPOINT ID", "NAME", "NETWORK", "ADDRESS", "NODE", "SERVICE", "ALIASES"],
        shown,
        |endpoint| endpoint.id.to_string(),
        |endpoint| {
            let aliases: Vec<_> = endpoint.aliases.iter().map(|a| a.as_str()).collect();
            vec![
                shape.id(&endpoint.id),
                endpoint.name.to_string(),
                names.network(&endpoint.network).to_owned(),
                endpoint.address.to_string(),
                names.node(&endpoint.node).to_owned(),
                names.service(endpoint).to_owned(),
                aliases.join(","),
            ]
        },
    )
}

/// Endpoints that `wanted` means.
fn found(endpoints: &[Endpoint], wanted: &str) -> anyhow::Result<Vec<Endpoint>> {
    let name = wanted.to_ascii_lowercase();
    let found: Vec<_> = endpoints
        .iter()
        .filter(|e| e.id.is_meant_by(wanted) || e.name.as_str() == name)
        .cloned()
        .collect();
    anyhow::ensure!(
        !found.is_empty(),
        "no endpoint has the identifier or name {wanted:?}: `netagent endpoint ls` lists them"
    );
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::node::tests::node;
    use crate::cli::service::tests::{service, task};

    fn endpoint(id: &str, name: &str, node: &str, address: &str, aliases: &[&str]) -> Endpoint {
        serde_json::from_value(serde_json::json!({
            "id": id, "network": "nnnnnnnnnnnnnnnn", "node": node,
            "workload": "wwwwwwwwwwwwwwww", "name": name, "aliases": aliases,
            "address": address, "mac": "02:6e:0a:00:00:02", "created": "2026-11-20T10:00:00Z",
        }))
        .unwrap()
    }

    fn endpoints() -> [Endpoint; 2] {
        let psql =
            endpoint("bcdefghijklmnopa", "psql", "bbbbbbbbbbbbbbbb", "10.0.0.3", &["db", "sql"]);
        let mut web = endpoint("abcdefghijklmnop", "web-1", "aaaaaaaaaaaaaaaa", "10.0.0.2", &[]);
        web.task = task("ssssssssssssssss", "a", "10.0.0.2").task;
        [web, psql]
    }

    fn listed(filters: &[&str]) -> String {
        let parse = Filter::with(&["id", "name", "network", "node", "service"]);
        let filters: Vec<_> = filters.iter().map(|f| parse(f).unwrap()).collect();
        let nodes = vec![node("aaaaaaaaaaaaaaaa", "n1", "worker", "ready")];
        let mut names = Names::new(vec![], nodes, vec![service("ssssssssssssssss", "web")]);
        names.networks.insert("nnnnnnnnnnnnnnnn".parse().unwrap(), "mydrupal".to_owned());
        list(&endpoints(), &names, &filters, Shape::default())
    }

    #[test]
    fn ls_shows_names_and_falls_back_to_identifiers() {
        assert_eq!(
            listed(&[]),
            "ENDPOINT ID    NAME    NETWORK    ADDRESS    NODE               SERVICE   ALIASES\n\
             abcdefghijkl   web-1   mydrupal   10.0.0.2   n1                 web\n\
             bcdefghijklm   psql    mydrupal   10.0.0.3   bbbbbbbbbbbbbbbb             db,sql\n"
        );
    }

    #[test]
    fn ls_filters() {
        for (filter, lines) in [
            ("node=n1", 2),
            ("node=bbbbbbbbbbbb", 2),
            ("network=MyDrupal", 3),
            ("network=nnnnnnnnnnnnnnnn", 3),
            ("network=other", 1),
            ("name=sql", 2),
            ("service=Web", 2),
            ("service=ssssssssssss", 2),
            ("service=psql", 1),
            ("id=abc", 2),
        ] {
            assert_eq!(listed(&[filter]).lines().count(), lines, "{filter}");
        }
    }

    #[test]
    fn inspect_finds_by_name_and_by_identifier() {
        let all = endpoints();
        assert_eq!(found(&all, "PSQL").unwrap(), [all[1].clone()]);
        assert_eq!(found(&all, "abcdefghijkl").unwrap(), [all[0].clone()]);
        assert_eq!(
            found(&all, "nothing").unwrap_err().to_string(),
            "no endpoint has the identifier or name \"nothing\": `netagent endpoint ls` lists them"
        );
    }
}
