//! `netagent node`: the members of the cluster.

use clap::{Args, Subcommand};

use super::filter::{self, Filter};
use super::output::{self, Shape};
use super::{each, path};
use crate::api::client::Client;
use crate::api::types::NodeDetail;
use crate::model::{Path, Reach};

/// Verbs of `netagent node`.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    Ls(Ls),
    Inspect(Inspect),
    Rm(Rm),
}

/// List the nodes of the cluster
///
/// The status is the manager's word: whether the node's agent answers it. The path, its
/// round trip and its MTU are what the node that is asked, this one, finds out by itself: it
/// sends probes inside the tunnel, which the other node's datapath answers without its
/// agent. A node that cannot be reached from here gets no new connections from here while
/// another backend is left. A node with the kernel datapath neither probes nor is probed.
#[derive(Args, Debug)]
#[command(
    visible_alias = "list",
    after_long_help = "Filters:
  datapath=ebpf|kernel   runs this datapath
  id=TEXT                identifier starts with the text
  name=TEXT              host name contains the text
  path=reachable|unreachable|unknown|unprobed
                         packets get there and back, as seen from this node
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
          value_parser = Filter::with(&["datapath", "id", "name", "path", "role", "status"]))]
    filter: Vec<Filter>,
}

/// Show nodes in full, as JSON
///
/// Prints a JSON array with one object per node: role, status, address of its
/// agent and tunnel end, behind NAT also the one that its host has, MTU of its uplink, datapath, version, the routes of its
/// host that no network may overlap, and the path to it from this node: whether packets get
/// there and back, whether its own probes arrive here, round trip, the largest packet that
/// passes, and what is wrong.
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
            let mut nodes: Vec<NodeDetail> = client.get("/v1/nodes").await?;
            nodes.sort_by(|a, b| {
                (&a.node.hostname, &a.node.id).cmp(&(&b.node.hostname, &b.node.id))
            });
            output::print(&list(&nodes, &args.filter, args.shape))?;
        }
        Verb::Inspect(args) => {
            let get =
                async |node: &str| Ok(client.get::<NodeDetail>(&path(&["nodes", node])).await?);
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

fn list(nodes: &[NodeDetail], filters: &[Filter], shape: Shape) -> String {
    let shown = nodes.iter().filter(|NodeDetail { node, path }| {
        filter::pass(filters, |key, value| match key {
            "path" => path.as_ref().is_some_and(|path| path.reach.to_string() == value),
            "datapath" => node.datapath.to_string() == value,
            "id" => node.id.as_str().starts_with(value),
            "role" => node.role.to_string() == value,
            "status" => node.status.to_string() == value,
            _ => node.hostname.contains(value),
        })
    });
    shape.list(
        &[
            "NODE ID",
            "HOSTNAME",
            "STATUS",
            "PATH",
            "ROUND TRIP",
            "PATH MTU",
            "ROLE",
            "ADDRESS",
            "DATAPATH",
            "MTU",
            "VERSION",
        ],
        shown,
        |detail| detail.node.id.to_string(),
        |NodeDetail { node, path }| {
            let [reach, round_trip, mtu] = cells(path.as_ref());
            vec![
                shape.id(&node.id),
                node.hostname.clone(),
                node.status.to_string(),
                reach,
                round_trip,
                mtu,
                node.role.to_string(),
                node.address.to_string(),
                node.datapath.to_string(),
                node.mtu.to_string(),
                node.version.clone(),
            ]
        },
    )
}

/// Reachability, round trip and MTU of a path; dashes for what is not known or not now true.
fn cells(path: Option<&Path>) -> [String; 3] {
    let Some(path) = path else { return ["-"; 3].map(str::to_owned) };
    let up = path.reach == Reach::Reachable;
    let or_dash = |cell: Option<String>| cell.filter(|_| up).unwrap_or_else(|| "-".to_owned());
    [
        path.reach.to_string(),
        or_dash(path.round_trip_us.map(|us| format!("{:.2} ms", f64::from(us) / 1000.0))),
        or_dash(path.mtu.map(|mtu| mtu.to_string())),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::Node;

    pub(in crate::cli) fn node(id: &str, hostname: &str, role: &str, status: &str) -> Node {
        serde_json::from_value(serde_json::json!({
            "id": id, "hostname": hostname, "role": role, "status": status,
            "address": "192.168.50.11", "mtu": 1500, "datapath": "ebpf",
            "version": "0.1.0", "routes": [],
        }))
        .unwrap()
    }

    fn listed(filters: &[&str]) -> String {
        let parse = Filter::with(&["datapath", "id", "name", "path", "role", "status"]);
        let filters: Vec<_> = filters.iter().map(|f| parse(f).unwrap()).collect();
        let mut nodes = [
            node("abcdefghijklmnop", "n1", "manager", "ready"),
            node("bcdefghijklmnopa", "node-two", "worker", "down"),
            node("cdefghijklmnopab", "n3", "worker", "ready"),
        ]
        .map(|node| NodeDetail { node, path: None });
        let path = Path {
            reach: Reach::Reachable,
            round_trip_us: Some(1234),
            mtu: Some(1500),
            ..Path::UNPROBED
        };
        let down = Path { reach: Reach::Unreachable, ..path.clone() };
        (nodes[1].path, nodes[2].path) = (Some(down), Some(path));
        list(&nodes, &filters, Shape::default())
    }

    #[test]
    fn ls_shows_a_node_a_line() {
        assert_eq!(
            listed(&[]),
            "NODE ID        HOSTNAME   STATUS   PATH          ROUND TRIP   PATH MTU   ROLE      \
             ADDRESS         DATAPATH   MTU    VERSION\n\
             abcdefghijkl   n1         ready    -             -            -          manager   \
             192.168.50.11   ebpf       1500   0.1.0\n\
             bcdefghijklm   node-two   down     unreachable   -            -          worker    \
             192.168.50.11   ebpf       1500   0.1.0\n\
             cdefghijklmn   n3         ready    reachable     1.23 ms      1500       worker    \
             192.168.50.11   ebpf       1500   0.1.0\n"
        );
    }

    #[test]
    fn ls_filters() {
        for (filter, lines) in [
            ("role=worker", 3),
            ("status=ready", 3),
            ("path=unreachable", 2),
            ("name=two", 2),
            ("id=abc", 2),
            ("datapath=ebpf", 4),
            ("datapath=kernel", 1),
        ] {
            assert_eq!(listed(&[filter]).lines().count(), lines, "{filter}");
        }
    }
}
