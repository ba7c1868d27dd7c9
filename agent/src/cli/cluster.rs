//! `netagent cluster`: the membership of this node.

use std::net::Ipv4Addr;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use ipnetwork::Ipv4Network;
use serde::de::IgnoredAny;

use super::backup::{Backup, Restore};
use super::ca::Ca;
use super::output::{self, Format};
use super::{duration, path};
use crate::api::client::Client;
use crate::api::types::{
    ClusterStatus, InitRequest, JoinRequest, JoinToken, LeaveRequest, Membership, RotatedKey,
    UpdateCluster,
};
use crate::model::{Node, Role};

/// Verbs of `netagent cluster`.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    Init(Init),
    Join(Join),
    JoinToken(Token),
    Leave(Leave),
    Info(Info),
    Update(Update),
    Ca(Ca),
    Backup(Backup),
    Restore(Restore),
    RotateKey(RotateKey),
}

/// Make this node the manager of a new cluster
///
/// Makes a certificate authority and join tokens, takes this node in, and prints the
/// command that adds a worker. Other nodes reach this one on TCP port 2377; overlay traffic
/// uses the UDP port given by --data-path-port. What is chosen here holds for the life of
/// the cluster.
///
/// Behind NAT, give the address at which the others find this node, and with --local-addr the one
/// that its host has. The NAT is to forward TCP port 2377, the data path's UDP port and, for
/// encrypted networks, UDP port 4500 to it, and to send what comes from it with the advertised
/// address. It keeps its address for as long as it is in the cluster.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent cluster init
      netagent cluster init --advertise-addr 192.0.2.11
      netagent cluster init --advertise-addr 203.0.113.7 --local-addr 10.0.0.11
      netagent cluster init --default-addr-pool 172.24.0.0/13 --default-addr-pool-mask-length 22")]
pub(super) struct Init {
    /// Address of this host that other nodes use, for the API and for the overlay; needed
    /// if the host has several
    #[arg(long, value_name = "ADDRESS")]
    advertise_addr: Option<Ipv4Addr>,
    /// Address that this host has itself, where --advertise-addr is that of a NAT before it
    #[arg(long, value_name = "ADDRESS", requires = "advertise_addr")]
    local_addr: Option<Ipv4Addr>,
    /// Pool from which networks get their subnets [default: 10.0.0.0/8]
    #[arg(long, value_name = "CIDR")]
    default_addr_pool: Option<Ipv4Network>,
    /// Prefix length of these subnets [default: 24]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(8..=29))]
    default_addr_pool_mask_length: Option<u8>,
    /// UDP port of the overlay (VXLAN) on every node [default: 4789]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=49151))]
    data_path_port: Option<u16>,
}

/// Join this node to a cluster
///
/// The token proves the manager to this node (it holds the digest of the cluster's CA) and
/// this node to the manager, and says in which role the node joins. `netagent cluster
/// join-token` prints it, on a manager.
///
/// Behind NAT, give the address at which the others find this node, and with --local-addr the one
/// that its host has. The NAT is to forward the data path's UDP port (4789) and, for encrypted
/// networks, UDP port 4500 to it, and to send what comes from it with the advertised address.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent cluster join --token TOKEN 192.0.2.11:2377
      netagent cluster join --token TOKEN --advertise-addr 203.0.113.8 --local-addr 10.0.0.12 \\
          192.0.2.11:2377")]
pub(super) struct Join {
    /// Join token
    #[arg(long)]
    token: String,
    /// Manager to join; port 2377 if none is given
    #[arg(value_name = "MANAGER[:PORT]")]
    manager: String,
    /// Address of this host that other nodes use; by default the one it reaches the
    /// manager from
    #[arg(long, value_name = "ADDRESS")]
    advertise_addr: Option<Ipv4Addr>,
    /// Address that this host has itself, where --advertise-addr is that of a NAT before it
    #[arg(long, value_name = "ADDRESS", requires = "advertise_addr")]
    local_addr: Option<Ipv4Addr>,
}

/// Show the token and the command with which nodes join
///
/// Works on a manager. Whoever has the token can join, so keep it secret; --rotate
/// makes a new one and the old one useless. Nodes that have joined are not affected.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent cluster join-token worker
      netagent cluster join-token --rotate -q worker")]
pub(super) struct Token {
    /// Role in which nodes join with the token
    #[arg(value_enum)]
    role: TokenRole,
    /// Replace the token by a new one
    #[arg(long)]
    rotate: bool,
    /// Print the token only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TokenRole {
    Worker,
    Manager,
}

impl From<TokenRole> for Role {
    fn from(role: TokenRole) -> Self {
        match role {
            TokenRole::Worker => Self::Worker,
            TokenRole::Manager => Self::Manager,
        }
    }
}

/// Leave the cluster
///
/// Takes this node out of its cluster and removes what the cluster had in its kernel. Refused
/// while workloads run here, while no manager answers, or on the manager itself; --force leaves
/// nevertheless. When the manager leaves, the cluster's state is lost.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent cluster leave")]
pub(super) struct Leave {
    /// Leave although workloads run, no manager answers, or this is the manager
    #[arg(short, long)]
    force: bool,
}

/// Change what holds for the whole cluster
///
/// Works on a manager.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent cluster update --cert-expiry 30d
      netagent cluster update --key-rotation 6h")]
#[group(required = true, multiple = true)]
pub(super) struct Update {
    /// How long certificates of nodes are valid that are signed from now on, at joining and
    /// at every renewal: 1m to 7300d; 90d unless it was changed. A node renews its own by
    /// itself after two thirds of that; one that is away for longer has to join again
    #[arg(long, value_name = "TIME", value_parser = duration::seconds)]
    cert_expiry: Option<u32>,
    /// Time after which the keys of encrypted networks are renewed, without losing a packet: 5s to
    /// 365d; 12h unless it was changed
    #[arg(long, value_name = "TIME", value_parser = duration::seconds)]
    key_rotation: Option<u32>,
    /// Packets from one node to another after which these keys are renewed, if that is sooner: 1000
    /// to 2^40; 2^30 unless it was changed
    #[arg(long, value_name = "NUMBER")]
    key_packets: Option<u64>,
}

/// Show what this node knows of its cluster
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent cluster info
      netagent cluster info --format json | jq .manager_reachable")]
pub(super) struct Info {
    /// How to print: lines of text, or one line of JSON
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

/// Renew the keys of encrypted networks now
///
/// Every node makes itself ready to receive by the new keys before any sends by them; so no
/// packet is lost. Works on a manager.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent cluster rotate-key")]
pub(super) struct RotateKey {}

/// Does what `verb` says.
pub(super) async fn run(verb: Verb, client: &Client) -> anyhow::Result<()> {
    let text = match verb {
        Verb::Init(args) => {
            let request = InitRequest {
                advertise: args.advertise_addr,
                local: args.local_addr,
                pool: args.default_addr_pool,
                pool_prefix: args.default_addr_pool_mask_length,
                data_path_port: args.data_path_port,
            };
            let membership: Membership = client.post("/v1/cluster/init", &request).await?;
            let token: JoinToken = client.get("/v1/cluster/join-token/worker").await?;
            format!(
                "This node, {}, is now the manager of a new cluster.\n\n{}",
                membership.node,
                invitation(&token)
            )
        }
        Verb::Join(args) => {
            let request = JoinRequest {
                token: args.token,
                manager: args.manager,
                advertise: args.advertise_addr,
                local: args.local_addr,
            };
            let membership: Membership = client.post("/v1/cluster/join", &request).await?;
            format!("This node, {}, joined as a {}.\n", membership.node, membership.role)
        }
        Verb::JoinToken(args) => {
            let path = path(&["cluster", "join-token", &Role::from(args.role).to_string()]);
            let token: JoinToken = if args.rotate {
                client.post(&path, &()).await?
            } else {
                client.get(&path).await?
            };
            if args.quiet { token.token + "\n" } else { invitation(&token) }
        }
        Verb::Leave(args) => {
            let request = LeaveRequest { force: args.force };
            client.post::<_, IgnoredAny>("/v1/cluster/leave", &request).await?;
            "This node left the cluster.\n".to_owned()
        }
        Verb::RotateKey(RotateKey {}) => {
            let RotatedKey { epoch } = client.post("/v1/cluster/rotate-key", &()).await?;
            format!("The keys of epoch {epoch} replace those before.\n")
        }
        Verb::Info(args) => {
            let status: ClusterStatus = client.get("/v1/cluster").await?;
            match args.format {
                Format::Table => info(&status),
                Format::Json => output::json_line(&status),
            }
        }
        Verb::Update(args) => {
            let request = UpdateCluster {
                cert_expiry: args.cert_expiry,
                key_rotation: args.key_rotation.map(u64::from),
                key_packets: args.key_packets,
            };
            client.patch::<_, ()>("/v1/cluster", &request).await?;
            String::new()
        }
        Verb::Ca(args) => args.run(client).await?,
        Verb::Backup(args) => args.run(client).await?,
        // No agent may run meanwhile: it is done without one.
        Verb::Restore(_) => unreachable!("dispatched before an agent is asked"),
    };
    Ok(output::print(&text)?)
}

/// How to join with `token`.
fn invitation(token: &JoinToken) -> String {
    format!(
        "To add a {} to the cluster, run there:\n\n    netagent cluster join --token {} {}\n",
        token.role, token.token, token.manager
    )
}

fn info(status: &ClusterStatus) -> String {
    let mut facts = vec![("Agent version", status.version.clone())];
    match &status.cluster {
        None => facts.push(("Cluster", "none (`netagent cluster init` or `join`)".to_owned())),
        Some(cluster) => facts.extend([
            ("Cluster", cluster.id.clone()),
            ("Created", cluster.created.clone()),
            ("Data path port", cluster.data_path_port.to_string()),
        ]),
    }
    if let Some(restored) = status.cluster.as_ref().and_then(|c| c.restored.as_ref()) {
        facts.push(("Restored", format!("{}, from a backup of {}", restored.at, restored.backup)));
    }
    facts.extend(status.ca_rotation.as_ref().map(|r| ("CA rotation", r.to_string())));
    if let Some(keys) = &status.keys {
        let made = UNIX_EPOCH + Duration::from_secs(keys.made);
        let every = keys.rotation.map_or(String::new(), |seconds| {
            let every = humantime::format_duration(Duration::from_secs(seconds));
            format!(", renewed after {every} or {} packets", keys.packets)
        });
        let made = humantime::format_rfc3339_seconds(made);
        facts.push(("Keys", format!("epoch {}, of {made}{every}", keys.epoch)));
    }
    if let Some(node) = &status.node {
        facts.extend([
            ("Node", node.id.to_string()),
            ("Host name", node.hostname.clone()),
            ("Role", node.role.to_string()),
            ("Address", address(node)),
            ("Uplink MTU", node.mtu.to_string()),
            ("Datapath", node.datapath.to_string()),
            ("Manager reachable", output::yes_no(status.manager_reachable)),
            ("Applied revision", status.applied.to_string()),
        ]);
        let expires = status.certificate_expires.clone();
        facts.extend(expires.map(|time| ("Certificate until", time)));
    } else if status.cluster.is_some() {
        let removed = "none: it was removed from the cluster (`netagent cluster leave` and `join`)";
        facts.push(("Node", removed.to_owned()));
    }
    output::facts(facts)
}

/// A node's address, and behind NAT its host's own.
fn address(node: &Node) -> String {
    match node.local_address {
        None => node.address.to_string(),
        Some(own) => format!("{}, by NAT to {own}", node.address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::node::tests::node;
    use crate::model::ClusterInfo;

    #[test]
    fn invitation_is_a_command_to_paste() {
        let token = JoinToken {
            role: Role::Worker,
            token: "TOKEN".to_owned(),
            manager: "192.168.50.11:2377".to_owned(),
        };
        assert_eq!(
            invitation(&token),
            "To add a worker to the cluster, run there:\n\n    \
             netagent cluster join --token TOKEN 192.168.50.11:2377\n"
        );
    }

    #[test]
    fn info_of_a_member() {
        let status = ClusterStatus {
            version: "0.1.0".to_owned(),
            cluster: Some(ClusterInfo {
                id: "cccccccccccccccc".to_owned(),
                data_path_port: 4789,
                created: "2026-11-20T10:00:00Z".to_owned(),
                restored: None,
            }),
            node: Some(node("abcdefghijklmnop", "n1", "manager", "ready")),
            manager_reachable: true,
            applied: 7,
            certificate_expires: Some("2027-02-18T10:00:00Z".to_owned()),
            ca_rotation: None,
            keys: None,
        };
        assert_eq!(
            info(&status),
            "Agent version:     0.1.0\n\
             Cluster:           cccccccccccccccc\n\
             Created:           2026-11-20T10:00:00Z\n\
             Data path port:    4789\n\
             Node:              abcdefghijklmnop\n\
             Host name:         n1\n\
             Role:              manager\n\
             Address:           192.168.50.11\n\
             Uplink MTU:        1500\n\
             Datapath:          ebpf\n\
             Manager reachable: yes\n\
             Applied revision:  7\n\
             Certificate until: 2027-02-18T10:00:00Z\n"
        );
    }

    #[test]
    fn info_of_a_node_behind_nat() {
        let mut node = node("abcdefghijklmnop", "n1", "manager", "ready");
        assert_eq!(address(&node), "192.168.50.11");
        node.local_address = Some(Ipv4Addr::new(10, 0, 0, 11));
        assert_eq!(address(&node), "192.168.50.11, by NAT to 10.0.0.11");
    }

    #[test]
    fn info_of_a_node_that_was_removed() {
        let cluster = ClusterInfo {
            id: "cccccccccccccccc".to_owned(),
            data_path_port: 4789,
            created: "2026-11-20T10:00:00Z".to_owned(),
            restored: None,
        };
        let status = ClusterStatus {
            version: "0.1.0".to_owned(),
            cluster: Some(cluster),
            node: None,
            manager_reachable: false,
            applied: 0,
            certificate_expires: None,
            ca_rotation: None,
            keys: None,
        };
        let text = info(&status);
        assert!(text.contains("none: it was removed from the cluster"), "{text}");
    }

    #[test]
    fn info_of_a_node_in_no_cluster() {
        let status = ClusterStatus {
            version: "0.1.0".to_owned(),
            cluster: None,
            node: None,
            manager_reachable: false,
            applied: 0,
            certificate_expires: None,
            ca_rotation: None,
            keys: None,
        };
        assert_eq!(
            info(&status),
            "Agent version: 0.1.0\nCluster:       none (`netagent cluster init` or `join`)\n"
        );
    }
}
