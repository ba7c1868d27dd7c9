//! `netagent service ps`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use crate::api::client::Client;
use crate::api::types::ServiceDetail;
use crate::cli::filter::{self, Filter};
use crate::cli::output::{self, Shape};
use crate::cli::{each, path};
use crate::model::{Endpoint, Name, Node, NodeId, NodeStatus, Task, WorkloadId};

/// List the tasks of services
///
/// One line for each workload that serves one of the services. STATE is healthy, starting (its
/// first check has not succeeded), unhealthy or draining (it is about to end; its connections
/// go on). Only healthy tasks of a weight above 0 get new connections. A task on a node that
/// is down gets none as long as another is left.
#[derive(Args, Debug)]
#[command(after_long_help = "Filters:
  name=TEXT   name of the workload contains the text
  node=NODE   runs on this node (host name or identifier)
  state=healthy|starting|unhealthy|draining
              is in this state

Examples:
      netagent service ps web
      netagent service ps --filter state=unhealthy web api")]
pub(in crate::cli) struct Ps {
    /// Services, by name or identifier
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    shape: Shape,
    /// Show only what matches
    #[arg(short, long, value_name = "KEY=VALUE",
          value_parser = Filter::with(&["name", "node", "state"]))]
    filter: Vec<Filter>,
}

/// One running instance of a service: a workload, with all its endpoints that serve.
#[derive(Serialize)]
struct Row {
    workload: WorkloadId,
    name: Name,
    service: Name,
    node: NodeId,
    /// Host name; the identifier of a node that has just been removed.
    hostname: String,
    node_ready: bool,
    addresses: Vec<Ipv4Addr>,
    weight: u16,
    state: String,
    created: String,
}

impl Ps {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<()> {
        let get = async |service: &str| {
            Ok(client.get::<ServiceDetail>(&path(&["services", service])).await?)
        };
        let (services, result) = each(&self.services, get).await;
        let nodes: Vec<Node> = client.get("/v1/nodes").await?;
        let rows = rows(&services, &nodes);
        output::print(&list(&rows, &self.filter, self.shape, SystemTime::now()))?;
        result
    }
}

fn rows(services: &[ServiceDetail], nodes: &[Node]) -> Vec<Row> {
    let nodes: BTreeMap<_, _> = nodes.iter().map(|node| (&node.id, node)).collect();
    let mut rows: Vec<Row> = Vec::new();
    for ServiceDetail { service, tasks } in services {
        let first = rows.len();
        for Endpoint { workload, name, node, address, task, created, .. } in tasks {
            let Some(task) = task else { continue };
            if let Some(row) = rows[first..].iter_mut().find(|row| row.workload == *workload) {
                row.addresses.push(*address);
                continue;
            }
            let known = nodes.get(node);
            rows.push(Row {
                workload: workload.clone(),
                name: name.clone(),
                service: service.name.clone(),
                node: node.clone(),
                hostname: known.map_or(node.to_string(), |node| node.hostname.clone()),
                node_ready: known.is_some_and(|node| node.status == NodeStatus::Ready),
                addresses: vec![*address],
                weight: task.weight,
                state: state(task),
                created: created.clone(),
            });
        }
        rows[first..].sort_by(|a, b| (&a.name, &a.hostname).cmp(&(&b.name, &b.hostname)));
    }
    rows
}

fn state(task: &Task) -> String {
    if task.draining { "draining".to_owned() } else { task.health.to_string() }
}

fn list(rows: &[Row], filters: &[Filter], shape: Shape, now: SystemTime) -> String {
    let shown = rows.iter().filter(|row| {
        filter::pass(filters, |key, value| match key {
            "node" => row.hostname == value || row.node.is_meant_by(value),
            "state" => row.state == value,
            _ => row.name.as_str().contains(&value.to_ascii_lowercase()),
        })
    });
    shape.list(
        &["WORKLOAD ID", "NAME", "SERVICE", "NODE", "ADDRESS", "WEIGHT", "STATE", "AGE"],
        shown,
        |row| row.workload.to_string(),
        |row| {
            let addresses: Vec<_> = row.addresses.iter().map(Ipv4Addr::to_string).collect();
            let down = if row.node_ready { "" } else { " (node down)" };
            vec![
                shape.id(&row.workload),
                row.name.to_string(),
                row.service.to_string(),
                row.hostname.clone(),
                addresses.join(","),
                row.weight.to_string(),
                format!("{}{down}", row.state),
                age(&row.created, now),
            ]
        },
    )
}

/// How long ago something was created, in the largest unit that fills one: `45s`, `3h`.
fn age(created: &str, now: SystemTime) -> String {
    let Ok(created) = humantime::parse_rfc3339(created) else { return String::new() };
    // The clocks of two nodes may differ.
    let age = now.duration_since(created).unwrap_or(Duration::ZERO).as_secs();
    let units = [("d", 86400), ("h", 3600), ("m", 60)];
    let (unit, length) = units.into_iter().find(|(_, s)| age >= *s).unwrap_or(("s", 1));
    format!("{}{unit}", age / length)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{service, task};
    use super::*;
    use crate::cli::node::tests::node;
    use crate::model::Health;

    fn web() -> ServiceDetail {
        let id = "abcdefghijklmnop";
        let mut second = task(id, "b", "10.0.0.3");
        second.node = "bbbbbbbbbbbbbbbb".parse().unwrap();
        second.task.as_mut().unwrap().health = Health::Unhealthy;
        let mut third = task(id, "c", "10.0.0.4");
        third.node = "cccccccccccccccc".parse().unwrap();
        let task_of_third = third.task.as_mut().unwrap();
        (task_of_third.weight, task_of_third.draining) = (5, true);
        let tasks = vec![second, task(id, "a", "10.0.0.2"), third, task(id, "a", "10.0.1.2")];
        ServiceDetail { service: service(id, "web"), tasks }
    }

    fn shown(filters: &[&str], shape: Shape) -> String {
        let parse = Filter::with(&["name", "node", "state"]);
        let filters: Vec<_> = filters.iter().map(|f| parse(f).unwrap()).collect();
        let nodes = [
            node("aaaaaaaaaaaaaaaa", "n1", "manager", "ready"),
            node("bbbbbbbbbbbbbbbb", "n2", "worker", "down"),
        ];
        let now = humantime::parse_rfc3339("2026-11-20T10:07:30Z").unwrap();
        list(&rows(&[web()], &nodes), &filters, shape, now)
    }

    #[test]
    fn ps_shows_a_workload_a_line() {
        assert_eq!(
            shown(&[], Shape::default()),
            "WORKLOAD ID    NAME   SERVICE   NODE               ADDRESS             WEIGHT   STATE                   AGE\n\
             awwwwwwwwwww   a      web       n1                 10.0.0.2,10.0.1.2   1        healthy                 7m\n\
             bwwwwwwwwwww   b      web       n2                 10.0.0.3            1        unhealthy (node down)   7m\n\
             cwwwwwwwwwww   c      web       cccccccccccccccc   10.0.0.4            5        draining (node down)    7m\n"
        );
    }

    #[test]
    fn ps_in_json_has_a_task_a_line() {
        let shape = Shape { format: output::Format::Json, ..Shape::default() };
        let text = shown(&["name=b"], shape);
        let row: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(row["hostname"], "n2");
        assert_eq!(row["node_ready"], false);
        assert_eq!(row["addresses"][0], "10.0.0.3");
        assert_eq!(row["state"], "unhealthy");
    }

    #[test]
    fn ps_filters() {
        for (filter, lines) in
            [("name=A", 2), ("node=n2", 2), ("state=draining", 2), ("state=starting", 1)]
        {
            assert_eq!(shown(&[filter], Shape::default()).lines().count(), lines, "{filter}");
        }
    }

    #[test]
    fn ages_are_short() {
        let created = "2026-11-20T10:00:00Z";
        let start = humantime::parse_rfc3339(created).unwrap();
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (86400, "1d"), (3_000_000, "34d")]
        {
            assert_eq!(age(created, start + Duration::from_secs(seconds)), text);
        }
        assert_eq!(age(created, start - Duration::from_secs(5)), "0s", "clocks differ");
    }
}
