//! `netagent node`: the members of the cluster.

use clap::{Args, Subcommand};

use super::filter::{self, Filter};
use super::output::{self, Shape};
use super::{each, path};
use crate::api::client::Client;
use crate::model::Node;

/// Verbs of `netagent node`.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    Ls(Ls),
    Inspect(Inspect),
    Rm(Rm),
}

/// List the nodes of the cluster
#[derive(Args, Debug)]
#[command(
    visible_alias = "list",
    after_long_help = "Filters:
  datapath=ebpf|kernel   runs this datapath
  id=TEXT                identifier starts with the text
  name=TEXT              host name contains the text
  role=manager|worker    has this role
  status=ready|down      has this status

Examples:
      netagent node ls
      netagent node ls --filter status=down -q"
)]
pub(super) struct Ls {
    #[command(flatten)]
    shape: Shape,
    /// Show only what matches
    #[arg(short, long, value_name = "KEY=VALUE",
          value_parser = Filter::with(&["datapath", "id", "name", "role", "status"]))]
    filter: Vec<Filter>,
}

/// Show nodes in full, as JSON
///
/// Prints a JSON array with one object per node: role, status, address of its
/// agent and tunnel end, MTU of its uplink, datapath, version, and the routes of its
/// host that no network may overlap.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent node inspect n2")]
pub(super) struct Inspect {
    /// Nodes, by host name or identifier
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

/// Remove nodes from the cluster
///
/// For nodes that are gone for good: the node loses its membership, and its endpoints
/// lose their addresses and names. A node that is ready is removed only with --force; on
/// a live node use `netagent cluster leave` instead. Works on a manager.
#[derive(Args, Debug)]
#[command(
    visible_alias = "remove",
    after_long_help = "Examples:
      netagent node rm n3"
)]
pub(super) struct Rm {
    /// Nodes, by host name or identifier
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Remove them although they are ready
    #[arg(short, long)]
    force: bool,
}

/// Does what `verb` says.
pub(super) async fn run(verb: Verb, client: &Client) -> anyhow::Result<()> {
    match verb {
        Verb::Ls(args) => {
            let mut nodes: Vec<Node> = client.get("/v1/nodes").await?;
            nodes.sort_by(|a, b| (&a.hostname, &a.id).cmp(&(&b.hostname, &b.id)));
            output::print(&list(&nodes, &args.filter, args.shape))?;
        }
        Verb::Inspect(args) => {
            let get = async |node: &str| Ok(client.get::<Node>(&path(&["nodes", node])).await?);
            let (found, result) = each(&args.nodes, get).await;
            output::print(&output::json(&found))?;
            result?;
        }
        Verb::Rm(args) => {
            let query = if args.force { "?force=true" } else { "" };
            let remove = async |node: &str| {
                client.delete(&(path(&["nodes", node]) + query)).await?;
                Ok(output::print(&format!("{node}\n"))?)
            };
            each(&args.nodes, remove).await.1?;
        }
    }
    Ok(())
}

fn list(nodes: &[Node], filters: &[Filter], shape: Shape) -> String {
    let shown = nodes.iter().filter(|node| {
        filter::pass(filters, |key, value| match key {
            "datapath" => node.datapath.to_string() == value,
            "id" => node.id.as_str().starts_with(value),
            "role" => node.role.to_string() == value,
            "status" => node.status.to_string() == value,
            _ => node.hostname.contains(value),
        })
    });
    shape.list(
        &["NODE ID", "HOSTNAME", "STATUS", "ROLE", "ADDRESS", "DATAPATH", "MTU", "VERSION"],
        shown,
        |node| node.id.to_string(),
        |node| {
            vec![
                shape.id(&node.id),
                node.hostname.clone(),
                node.status.to_string(),
                node.role.to_string(),
                node.address.to_string(),
                node.datapath.to_string(),
                node.mtu.to_string(),
                node.version.clone(),
            ]
        },
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli) fn node(id: &str, hostname: &str, role: &str, status: &str) -> Node {
        serde_json::from_value(serde_json::json!({
            "id": id, "hostname": hostname, "role": role, "status": status,
            "address": "192.168.50.11", "mtu": 1500, "datapath": "ebpf",
            "version": "0.1.0", "routes": [],
        }))
        .unwrap()
    }

    fn listed(filters: &[&str]) -> String {
        let parse = Filter::with(&["datapath", "id", "name", "role", "status"]);
        let filters: Vec<_> = filters.iter().map(|f| parse(f).unwrap()).collect();
        let nodes = [
            node("abcdefghijklmnop", "n1", "manager", "ready"),
            node("bcdefghijklmnopa", "node-two", "worker", "down"),
        ];
        list(&nodes, &filters, Shape::default())
    }

    #[test]
    fn ls_shows_a_node_a_line() {
        assert_eq!(
            listed(&[]),
            "NODE ID        HOSTNAME   STATUS   ROLE      ADDRESS         DATAPATH   MTU    VERSION\n\
             abcdefghijkl   n1         ready    manager   192.168.50.11   ebpf       1500   0.1.0\n\
             bcdefghijklm   node-two   down     worker    192.168.50.11   ebpf       1500   0.1.0\n"
        );
    }

    #[test]
    fn ls_filters() {
        for (filter, lines) in [
            ("role=worker", 2),
            ("status=ready", 2),
            ("name=two", 2),
            ("id=abc", 2),
            ("datapath=ebpf", 3),
            ("datapath=kernel", 1),
        ] {
            assert_eq!(listed(&[filter]).lines().count(), lines, "{filter}");
        }
    }
}
