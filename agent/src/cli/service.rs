//! `netagent service`: names and virtual addresses for any number of workloads, and the
//! ports of the nodes that lead to them.

mod affinity;
mod create;
mod ls;
mod ps;
mod publish;
mod update;

use clap::{Args, Subcommand};

use super::output;
use super::{each, path};
use crate::api::client::Client;
use crate::api::types::ServiceDetail;
use crate::model::{Datapath, Node};

/// Verbs of `netagent service`.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    Create(create::Create),
    Ls(ls::Ls),
    Ps(ps::Ps),
    Inspect(Inspect),
    Update(update::Update),
    Scale(Scale),
    Rm(Rm),
}

/// Show services in full, as JSON
///
/// Prints a JSON array with one object per service: its fields, its networks with its virtual
/// address on each, its published ports, and the endpoints of the workloads that serve it
/// (tasks).
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent service inspect web
      netagent service inspect web | jq -r '.[0].networks[].vip'")]
pub(super) struct Inspect {
    /// Services, by name or identifier
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// Remove services
///
/// The name, the virtual addresses and the published ports are gone on all nodes when this
/// returns. A service that workloads still serve is removed only with --force; the workloads
/// go on, on their networks and under their own names. Prints what was removed, and goes on
/// past what could not be. Works on a manager.
#[derive(Args, Debug)]
#[command(
    visible_alias = "remove",
    after_long_help = "Examples:
      netagent service rm web
      netagent service rm --force web"
)]
pub(super) struct Rm {
    /// Services, by name or identifier
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    /// Remove them although workloads serve them
    #[arg(short, long)]
    force: bool,
}

/// Scale a service: says how, since netagent starts no workloads of its own
///
/// A service has as many tasks as workloads were started for it. One more task is one more
/// `netagent run --service`, on any node; one less is one workload that ends.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  Three tasks, each on the node where this is typed:
      netagent run --service web -- ./server

  One less: the workload drains and ends
      kill PID")]
pub(super) struct Scale {
    /// As Docker has it
    #[arg(required = true, value_name = "SERVICE=TASKS")]
    services: Vec<String>,
}

/// Does what `verb` says.
pub(super) async fn run(verb: Verb, client: &Client) -> anyhow::Result<()> {
    match verb {
        Verb::Create(args) => args.run(client).await,
        Verb::Ls(args) => args.run(client).await,
        Verb::Ps(args) => args.run(client).await,
        Verb::Inspect(args) => {
            let get = async |service: &str| {
                Ok(client.get::<ServiceDetail>(&path(&["services", service])).await?)
            };
            let (found, result) = each(&args.services, get).await;
            output::print(&output::json(&found))?;
            result
        }
        Verb::Update(args) => args.run(client).await,
        Verb::Scale(Scale { services }) => anyhow::bail!(
            "{}: netagent starts no workloads of its own: start one more with `netagent run \
             --service {}`, end one to have one less",
            services.join(" "),
            services[0].split('=').next().unwrap_or_default()
        ),
        Verb::Rm(args) => {
            let query = if args.force { "?force=true" } else { "" };
            let remove = async |service: &str| {
                client.delete(&(path(&["services", service]) + query)).await?;
                Ok(output::print(&format!("{service}\n"))?)
            };
            each(&args.services, remove).await.1
        }
    }
}

/// Warns when ports are published that some nodes do not answer on.
async fn warn_of_silent_nodes(client: &Client) -> anyhow::Result<()> {
    let nodes: Vec<Node> = client.get("/v1/nodes").await?;
    if let Some(warning) = silent_nodes(&nodes) {
        eprintln!("netagent: warning: {warning}");
    }
    Ok(())
}

fn silent_nodes(nodes: &[Node]) -> Option<String> {
    let silent = nodes.iter().filter(|node| node.datapath == Datapath::Kernel);
    let mut names: Vec<_> = silent.map(|node| node.hostname.as_str()).collect();
    names.sort_unstable();
    if names.is_empty() {
        return None;
    }
    Some(format!(
        "published ports do not answer on {}: --datapath kernel carries networks and names only",
        names.join(", ")
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::node::tests::node;
    use crate::model::{Endpoint, Service};

    pub(in crate::cli) fn service(id: &str, name: &str) -> Service {
        serde_json::from_value(serde_json::json!({
            "id": id, "name": name, "aliases": [],
            "networks": [{"network": "nnnnnnnnnnnnnnnn", "vip": "10.0.0.5"}],
            "endpoint_mode": "vip", "scheduler": "wrr", "affinity": null,
            "idle_timeout": 432_000, "prefer": "any", "labels": {"tier": "front"},
            "created": "2026-11-20T10:00:00Z",
            "ports": [{"published": 8080, "target": 80, "protocol": "tcp", "mode": "ingress",
                       "address": null, "allow": []}],
        }))
        .unwrap()
    }

    /// A healthy endpoint of the workload `name` that serves `service`.
    pub(in crate::cli) fn task(service: &str, name: &str, address: &str) -> Endpoint {
        serde_json::from_value(serde_json::json!({
            "id": "eeeeeeeeeeeeeeee", "network": "nnnnnnnnnnnnnnnn", "node": "aaaaaaaaaaaaaaaa",
            "workload": format!("{name:w<16}"), "name": name, "aliases": [], "address": address,
            "mac": "02:6e:0a:00:00:02", "created": "2026-11-20T10:00:00Z",
            "task": {"service": service, "weight": 1, "health": "healthy", "draining": false},
        }))
        .unwrap()
    }

    #[test]
    fn nodes_that_do_not_answer_are_named() {
        let mut nodes =
            ["n3", "n1", "n2"].map(|name| node("aaaaaaaaaaaaaaaa", name, "worker", "ready"));
        assert_eq!(silent_nodes(&nodes), None);
        nodes[0].datapath = Datapath::Kernel;
        nodes[2].datapath = Datapath::Kernel;
        let warning = silent_nodes(&nodes).unwrap();
        assert!(warning.starts_with("published ports do not answer on n2, n3: "), "{warning}");
    }
}
