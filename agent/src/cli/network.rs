//! `netagent network`: overlay networks of the cluster, and which of them this
//! node's workloads are on.

use std::io::{IsTerminal as _, Write as _};
use std::net::Ipv4Addr;

use clap::{Args, Subcommand};
use ipnetwork::Ipv4Network;
use serde::Serialize;
use serde::de::IgnoredAny;

use super::filter::{self, Filter};
use super::output::{self, Shape};
use super::pairs::{pair, unique};
use super::{each, path};
use crate::api::client::Client;
use crate::api::types::{AddressUse, Connect, CreateNetwork, NetworkDetail, Pruned};
use crate::model::{Name, Network};

/// Verbs of `netagent network`.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    Create(Create),
    Ls(Ls),
    Inspect(Inspect),
    Rm(Rm),
    Prune(Prune),
    Connect(ConnectTo),
    Disconnect(Disconnect),
}

/// Create a network
///
/// Creates an overlay network: a subnet of its own that workloads on all nodes of
/// the cluster share, apart from every other network. Prints its identifier. Works on a
/// manager.
///
/// Without --subnet it gets the next free block of the cluster's address pool
/// (see `netagent cluster init`). A subnet that overlaps another network, or a
/// route of any node's host, is refused. Nothing is set up on a node before the
/// first workload there joins the network.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  A network with everything chosen for it:
      netagent network create mydrupal

  A subnet, its gateway, the part of it to allocate from, and an address kept
  for something that is not a workload:
      netagent network create --subnet 10.9.0.0/24 --gateway 10.9.0.9 \\
          --ip-range 10.9.0.128/25 --aux-address router=10.9.0.130 backend

  Without a way out, and with a smaller MTU:
      netagent network create --internal -o mtu=1400 db

  Encrypted between the nodes:
      netagent network create -o encrypted vault")]
pub(super) struct Create {
    /// Name of the network: letters, digits, '-' and '_', at most 63
    name: Name,
    /// Driver of the network; `overlay` is the only one
    #[arg(short, long, default_value = "overlay")]
    driver: String,
    /// Subnet; by default the next free block of the cluster's pool
    #[arg(long, value_name = "CIDR")]
    subnet: Option<Ipv4Network>,
    /// Gateway of the subnet; by default its first address
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<Ipv4Addr>,
    /// Part of the subnet from which addresses are allocated; by default all of it
    #[arg(long, value_name = "CIDR")]
    ip_range: Option<Ipv4Network>,
    /// Address of the subnet that is kept for others and never allocated
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = aux_address)]
    aux_address: Vec<(String, Ipv4Addr)>,
    /// No traffic between the network and anything outside it
    #[arg(long)]
    internal: bool,
    /// Accepted as Docker has it: every network can be attached to
    #[arg(long)]
    attachable: bool,
    /// Label to find the network by
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Option of the driver: `encrypted`, so that what the network carries between nodes is
    /// encrypted (by IPsec; every node's kernel must be able to), or `mtu=BYTES`, the MTU
    /// that workloads see (also under Docker's name `com.docker.network.driver.mtu`); by
    /// default, and at most, the smallest uplink MTU of the nodes less 50, or 84 if encrypted
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = pair)]
    opt: Vec<(String, String)>,
}

/// List the networks of the cluster
#[derive(Args, Debug)]
#[command(
    visible_alias = "list",
    after_long_help = "Filters:
  driver=DRIVER      exactly this driver
  id=TEXT            identifier starts with the text
  label=KEY[=VALUE]  has the label (with this value); several must all hold
  name=TEXT          name contains the text

Examples:
      netagent network ls
      netagent network ls --filter label=tier=db --format json
      netagent network rm $(netagent network ls -q --filter name=test-)"
)]
pub(super) struct Ls {
    #[command(flatten)]
    shape: Shape,
    /// Show only what matches
    #[arg(short, long, value_name = "KEY=VALUE",
          value_parser = Filter::with(&["driver", "id", "label", "name"]))]
    filter: Vec<Filter>,
}

/// Show networks in full, as JSON
///
/// Prints a JSON array with one object per network: its fields, the MTU that its
/// workloads see now (effective_mtu), and how many addresses there are and are
/// taken (addresses). With --verbose also its endpoints on all nodes, the nodes that have
/// endpoints on it (peers), and the services that are on it.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent network inspect mydrupal
      netagent network inspect -v mydrupal | jq '.[0].endpoints[].address'")]
pub(super) struct Inspect {
    /// Networks, by name or identifier
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// Also show endpoints, peers and services, on all nodes
    #[arg(short, long)]
    verbose: bool,
}

/// Remove networks
///
/// A network that still has endpoints is not removed; the error names them. Prints
/// what was removed, and goes on past what could not be. Works on a manager.
#[derive(Args, Debug)]
#[command(
    visible_alias = "remove",
    after_long_help = "Examples:
      netagent network rm mydrupal"
)]
pub(super) struct Rm {
    /// Networks, by name or identifier
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

/// Remove all networks that nothing uses
///
/// Removes every network that has no endpoints and no services, and prints their names.
/// Works on a manager.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent network prune
      netagent network prune --force")]
pub(super) struct Prune {
    /// Do not ask for confirmation
    #[arg(short, long)]
    force: bool,
}

/// Connect a running workload of this node to a network
///
/// The workload gets one more interface, at once and without being restarted. Its
/// name, and every --alias, resolve on that network from then on.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent network connect mydrupal web
      netagent network connect --ip 10.9.0.140 --alias db backend psql")]
pub(super) struct ConnectTo {
    /// Network, by name or identifier
    network: String,
    /// Workload of this node, by name or identifier
    workload: String,
    /// Address to have; by default one is allocated
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// Further name of the workload on this network
    #[arg(long, value_name = "NAME")]
    alias: Vec<Name>,
}

/// Disconnect a running workload of this node from a network
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent network disconnect mydrupal web")]
pub(super) struct Disconnect {
    /// Network, by name or identifier
    network: String,
    /// Workload of this node, by name or identifier
    workload: String,
}

/// Does what `verb` says.
pub(super) async fn run(verb: Verb, client: &Client) -> anyhow::Result<()> {
    match verb {
        Verb::Create(args) => {
            let network: Network = client.post("/v1/networks", &args.request()?).await?;
            output::print(&format!("{}\n", network.id))?;
        }
        Verb::Ls(args) => {
            let mut networks: Vec<Network> = client.get("/v1/networks").await?;
            networks.sort_by(|a, b| a.name.cmp(&b.name));
            output::print(&list(&networks, &args.filter, args.shape))?;
        }
        Verb::Inspect(args) => {
            let (found, result) = each(&args.networks, async |network| {
                Ok(client.get::<NetworkDetail>(&path(&["networks", network])).await?)
            })
            .await;
            let shown: Vec<_> = found.iter().map(|n| Inspected::new(n, args.verbose)).collect();
            output::print(&output::json(&shown))?;
            result?;
        }
        Verb::Rm(args) => {
            let remove = async |network: &str| {
                client.delete(&path(&["networks", network])).await?;
                Ok(output::print(&format!("{network}\n"))?)
            };
            each(&args.networks, remove).await.1?;
        }
        Verb::Prune(args) => {
            if !args.force
                && !confirmed("This removes all networks without endpoints and services.")?
            {
                anyhow::bail!("nothing was removed: not confirmed (--force does not ask)");
            }
            let pruned: Pruned = client.post("/v1/networks/prune", &()).await?;
            output::print(
                &pruned.networks.iter().map(|name| format!("{name}\n")).collect::<String>(),
            )?;
        }
        Verb::Connect(args) => {
            let ConnectTo { network, workload, ip, alias } = args;
            let body = Connect { workload, aliases: alias, address: ip };
            client.post::<_, IgnoredAny>(&path(&["networks", &network, "connect"]), &body).await?;
        }
        Verb::Disconnect(Disconnect { network, workload }) => {
            let body = Connect { workload, aliases: vec![], address: None };
            client
                .post::<_, IgnoredAny>(&path(&["networks", &network, "disconnect"]), &body)
                .await?;
        }
    }
    Ok(())
}

impl Create {
    fn request(self) -> anyhow::Result<CreateNetwork> {
        Ok(CreateNetwork {
            name: self.name,
            driver: self.driver,
            subnet: self.subnet,
            gateway: self.gateway,
            ip_range: self.ip_range,
            aux_addresses: unique("--aux-address", self.aux_address)?,
            internal: self.internal,
            labels: unique("--label", self.label)?,
            options: unique("--opt", self.opt)?,
        })
    }
}

fn aux_address(text: &str) -> Result<(String, Ipv4Addr), String> {
    let (name, address) = text.split_once('=').ok_or("an auxiliary address is NAME=ADDRESS")?;
    let address = address.parse().map_err(|_| format!("{address:?} is not an IPv4 address"))?;
    Ok((name.to_owned(), address))
}

fn list(networks: &[Network], filters: &[Filter], shape: Shape) -> String {
    let shown = networks.iter().filter(|network| {
        filter::pass(filters, |key, value| match key {
            "driver" => network.driver == value,
            "id" => network.id.as_str().starts_with(value),
            "label" => filter::has_label(&network.labels, value),
            _ => network.name.as_str().contains(&value.to_ascii_lowercase()),
        })
    });
    shape.list(
        &["NETWORK ID", "NAME", "DRIVER", "SUBNET", "VNI", "INTERNAL", "ENCRYPTED"],
        shown,
        |network| network.id.to_string(),
        |network| {
            vec![
                shape.id(&network.id),
                network.name.to_string(),
                network.driver.clone(),
                network.subnet.to_string(),
                network.vni.to_string(),
                output::yes_no(network.internal),
                output::yes_no(network.encrypted),
            ]
        },
    )
}

/// What `inspect` shows of one network.
#[derive(Serialize)]
#[serde(untagged)]
enum Inspected<'a> {
    Brief {
        #[serde(flatten)]
        network: &'a Network,
        effective_mtu: u16,
        addresses: AddressUse,
    },
    Verbose(&'a NetworkDetail),
}

impl<'a> Inspected<'a> {
    fn new(detail: &'a NetworkDetail, verbose: bool) -> Self {
        if verbose {
            return Self::Verbose(detail);
        }
        let NetworkDetail { network, effective_mtu, addresses, .. } = detail;
        Self::Brief { network, effective_mtu: *effective_mtu, addresses: *addresses }
    }
}

/// Asks on the terminal. Whoever cannot be asked has not confirmed.
fn confirmed(warning: &str) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(false);
    }
    let mut err = std::io::stderr();
    write!(err, "{warning}\nContinue? [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    stdin.read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{NetworkPeer, ServiceAddress};

    fn network() -> Network {
        serde_json::from_value(serde_json::json!({
            "id": "abcdefghijklmnop", "name": "mydrupal", "driver": "overlay", "vni": 4096,
            "subnet": "10.0.0.0/24", "gateway": "10.0.0.1", "ip_range": null,
            "aux_addresses": {}, "internal": false, "mtu": null,
            "labels": {"tier": "web"}, "created": "2026-11-20T10:00:00Z",
        }))
        .unwrap()
    }

    fn internal() -> Network {
        let mut network = network();
        network.id = "qrstuvwxyz234567".parse().unwrap();
        network.name = "backend-of-all".parse().unwrap();
        (network.internal, network.encrypted) = (true, true);
        network.labels.clear();
        network
    }

    fn listed(filters: &[&str]) -> String {
        let parse = Filter::with(&["driver", "id", "label", "name"]);
        let filters: Vec<_> = filters.iter().map(|f| parse(f).unwrap()).collect();
        list(&[network(), internal()], &filters, Shape::default())
    }

    #[test]
    fn ls_shows_a_network_a_line() {
        assert_eq!(
            listed(&[]),
            "NETWORK ID     NAME             DRIVER    SUBNET        VNI    INTERNAL   ENCRYPTED\n\
             abcdefghijkl   mydrupal         overlay   10.0.0.0/24   4096   no         no\n\
             qrstuvwxyz23   backend-of-all   overlay   10.0.0.0/24   4096   yes        yes\n"
        );
    }

    #[test]
    fn ls_filters() {
        for (filter, shown) in [
            ("name=MyDru", "mydrupal"),
            ("name=backend", "backend-of-all"),
            ("label=tier=web", "mydrupal"),
            ("id=qrs", "backend-of-all"),
        ] {
            let text = listed(&[filter]);
            assert_eq!(text.lines().count(), 2, "{filter}: {text}");
            assert!(text.contains(shown), "{filter}: {text}");
        }
        assert_eq!(listed(&["driver=bridge"]).lines().count(), 1);
    }

    #[test]
    fn inspect_shows_endpoints_only_when_verbose() {
        let detail = NetworkDetail {
            network: network(),
            effective_mtu: 1450,
            addresses: AddressUse { total: 253, used: 0 },
            endpoints: vec![],
            services: vec![ServiceAddress {
                service: "bcdefghijklmnopa".parse().unwrap(),
                name: "web".parse().unwrap(),
                vip: Some(Ipv4Addr::new(10, 0, 0, 9)),
            }],
            peers: vec![NetworkPeer {
                node: "abcdefghijklmnop".parse().unwrap(),
                hostname: "n1".to_owned(),
                address: Ipv4Addr::new(192, 168, 50, 11),
            }],
        };
        let inspected = |verbose| {
            let text = output::json(&Inspected::new(&detail, verbose));
            assert!(text.starts_with("{\n  \"id\": \"abcdefghijklmnop\",\n  \"name\""), "{text}");
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        let brief = inspected(false);
        assert_eq!(brief["name"], "mydrupal");
        assert_eq!(brief["effective_mtu"], 1450);
        assert_eq!(brief["addresses"]["total"], 253);
        for left_out in ["peers", "endpoints", "services"] {
            assert!(brief.get(left_out).is_none(), "{left_out}");
        }
        assert_eq!(inspected(true)["peers"][0]["hostname"], "n1");
        assert_eq!(inspected(true)["services"][0]["name"], "web");
    }

    #[test]
    fn auxiliary_addresses_have_names() {
        assert_eq!(aux_address("r=10.0.0.9").unwrap().1, Ipv4Addr::new(10, 0, 0, 9));
        assert!(aux_address("10.0.0.9").is_err());
        assert!(aux_address("r=10.0.0.999").is_err());
    }
}
