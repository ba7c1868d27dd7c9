//! `netagent service ls`.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::publish::shown;
use crate::api::client::Client;
use crate::cli::filter::{self, Filter};
use crate::cli::output::{self, Shape};
use crate::model::{Endpoint, EndpointMode, Network, NetworkId, Service, ServiceId, WorkloadId};

/// List the services of the cluster
///
/// TASKS has how many of the service's tasks may take new connections, and how many there
/// are: those that are unhealthy, starting, draining or of weight 0 may not.
#[derive(Args, Debug)]
#[command(
    visible_alias = "list",
    after_long_help = "Filters:
  id=TEXT            identifier starts with the text
  label=KEY[=VALUE]  has the label (with this value); several must all hold
  mode=vip|dnsrr     name resolves to a virtual address, or to the backends
  name=TEXT          name contains the text
  network=NETWORK    is on this network (name or identifier)

Examples:
      netagent service ls
      netagent service ls --filter network=mydrupal --format json
      netagent service rm $(netagent service ls -q --filter name=test-)"
)]
pub(in crate::cli) struct Ls {
    #[command(flatten)]
    shape: Shape,
    /// Show only what matches
    #[arg(short, long, value_name = "KEY=VALUE",
          value_parser = Filter::with(&["id", "label", "mode", "name", "network"]))]
    filter: Vec<Filter>,
}

/// A service, and how many tasks it has.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    service: &'a Service,
    /// That may take new connections.
    tasks_ready: usize,
    tasks_total: usize,
}

impl Ls {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<()> {
        let services: Vec<Service> = client.get("/v1/services").await?;
        let endpoints: Vec<Endpoint> = client.get("/v1/endpoints").await?;
        let networks: Vec<Network> = client.get("/v1/networks").await?;
        let networks = networks.into_iter().map(|n| (n.id, n.name.to_string())).collect();
        Ok(output::print(&list(
            &listed(&services, &endpoints),
            &networks,
            &self.filter,
            self.shape,
        ))?)
    }
}

/// Services with their tasks counted, in order of name. A task is a workload: it may have
/// endpoints on several networks.
fn listed<'a>(services: &'a [Service], endpoints: &[Endpoint]) -> Vec<Listed<'a>> {
    let mut tasks: BTreeMap<&ServiceId, BTreeMap<&WorkloadId, bool>> = BTreeMap::new();
    for endpoint in endpoints {
        let Some(task) = &endpoint.task else { continue };
        let of_service = tasks.entry(&task.service).or_default();
        *of_service.entry(&endpoint.workload).or_default() |= task.is_eligible();
    }
    let listed = |service: &'a Service| {
        let ready: Vec<_> = tasks.get(&service.id).into_iter().flat_map(BTreeMap::values).collect();
        let tasks_ready = ready.iter().filter(|ready| ***ready).count();
        Listed { service, tasks_ready, tasks_total: ready.len() }
    };
    let mut listed: Vec<_> = services.iter().map(listed).collect();
    listed.sort_by_key(|listed| &listed.service.name);
    listed
}

fn list(
    services: &[Listed<'_>],
    networks: &BTreeMap<NetworkId, String>,
    filters: &[Filter],
    shape: Shape,
) -> String {
    let shown_services = services.iter().filter(|Listed { service, .. }| {
        filter::pass(filters, |key, value| match key {
            "id" => service.id.as_str().starts_with(value),
            "label" => filter::has_label(&service.labels, value),
            "mode" => mode(service.endpoint_mode) == value,
            "network" => service.networks.iter().any(|on| {
                networks.get(&on.network).is_some_and(|name| *name == value.to_ascii_lowercase())
                    || on.network.is_meant_by(value)
            }),
            _ => service.name.as_str().contains(&value.to_ascii_lowercase()),
        })
    });
    shape.list(
        &["ID", "NAME", "MODE", "TASKS", "VIP", "PORTS"],
        shown_services,
        |listed| listed.service.id.to_string(),
        |Listed { service, tasks_ready, tasks_total }| {
            let vips = service.networks.iter().filter_map(|on| on.vip);
            vec![
                shape.id(&service.id),
                service.name.to_string(),
                mode(service.endpoint_mode).to_owned(),
                format!("{tasks_ready}/{tasks_total}"),
                vips.map(|vip| vip.to_string()).collect::<Vec<_>>().join(","),
                shown(&service.ports),
            ]
        },
    )
}

fn mode(mode: EndpointMode) -> &'static str {
    match mode {
        EndpointMode::Vip => "vip",
        EndpointMode::Dnsrr => "dnsrr",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{service, task};
    use super::*;

    fn shown(filters: &[&str], shape: Shape) -> String {
        let web = service("abcdefghijklmnop", "web");
        let mut api = service("bcdefghijklmnopa", "api");
        api.endpoint_mode = EndpointMode::Dnsrr;
        api.networks[0].vip = None;
        api.networks[0].network = "mmmmmmmmmmmmmmmm".parse().unwrap();
        api.ports.clear();
        api.labels.clear();
        let mut draining = task("abcdefghijklmnop", "b", "10.0.0.3");
        draining.task.as_mut().unwrap().draining = true;
        let twice = task("abcdefghijklmnop", "a", "10.0.1.2");
        let endpoints = [task("abcdefghijklmnop", "a", "10.0.0.2"), draining, twice];
        let parse = Filter::with(&["id", "label", "mode", "name", "network"]);
        let filters: Vec<_> = filters.iter().map(|f| parse(f).unwrap()).collect();
        let networks = [("nnnnnnnnnnnnnnnn".parse().unwrap(), "mydrupal".to_owned())].into();
        list(&listed(&[web, api], &endpoints), &networks, &filters, shape)
    }

    #[test]
    fn ls_shows_a_service_a_line() {
        assert_eq!(
            shown(&[], Shape::default()),
            "ID             NAME   MODE    TASKS   VIP        PORTS\n\
             bcdefghijklm   api    dnsrr   0/0\n\
             abcdefghijkl   web    vip     1/2     10.0.0.5   *:8080->80/tcp\n"
        );
    }

    #[test]
    fn ls_counts_tasks_in_json() {
        let shape = Shape { format: output::Format::Json, ..Shape::default() };
        let line = shown(&["name=web"], shape);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["tasks_ready"], 1);
        assert_eq!(json["tasks_total"], 2);
        assert_eq!(json["networks"][0]["vip"], "10.0.0.5");
        assert_eq!(json["ports"][0]["published"], 8080);
    }

    #[test]
    fn ls_filters() {
        for (filter, name) in [
            ("name=WE", "web"),
            ("id=bcd", "api"),
            ("mode=dnsrr", "api"),
            ("label=tier=front", "web"),
            ("network=MyDrupal", "web"),
            ("network=mmmmmmmmmmmm", "api"),
        ] {
            let text = shown(&[filter], Shape::default());
            assert_eq!(text.lines().count(), 2, "{filter}: {text}");
            assert!(text.contains(name), "{filter}: {text}");
        }
    }
}
