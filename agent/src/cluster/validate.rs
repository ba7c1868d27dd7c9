//! Judges requests against the cluster as it is, and says what is wrong with what.
//! Pure: nothing is read and nothing changed here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netagent_common::ESP_IN_UDP_PORT;

use super::Error;
use super::allocate::{contains, overlap};
use crate::api::types::{CreateNetwork, InitRequest, NodeFacts, UpdateCluster};
use crate::model::{Certificate, Name, Network, Node, Snapshot};

/// Prefix lengths that a network may have.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=29;
/// MTUs that a network may have: what every IPv4 host takes (RFC 791), and the
/// largest that fits into a packet with a VXLAN header.
const MTUS: std::ops::RangeInclusive<u16> = 576..=u16::MAX - netagent_common::VXLAN_OVERHEAD;
/// The whole snapshot travels to every node. So there are bounds to the routes that
/// a node tells of, to the aliases of an endpoint, and to a network's labels and
/// reserved addresses, in number and, for labels, in bytes.
const MOST_ROUTES: usize = 1024;
const MOST_ALIASES: usize = 64;
const MOST_LABELS: usize = 64;
const LONGEST_LABEL: usize = 1024;
const MOST_RESERVED: usize = 256;
/// And to the published ports of a service, and the sources that one lets in.
pub(super) const MOST_PORTS: usize = 256;
pub(super) const MOST_SOURCES: usize = 256;
/// Seconds and packets after which keys may be renewed.
const ROTATIONS: std::ops::RangeInclusive<u64> = 5..=365 * 24 * 60 * 60;
const ROTATION_PACKETS: std::ops::RangeInclusive<u64> = 1000..=1 << 40;
/// Blocks in which no network can be (RFC 6890).
const SPECIAL: [(Ipv4Addr, u8, &str); 5] = [
    (Ipv4Addr::UNSPECIFIED, 8, "addresses that mean this host"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback addresses"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local addresses"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast addresses"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved addresses"),
];

/// Where subnets come from when a request names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Pool {
    /// Block from which they are taken.
    pub(super) block: Ipv4Network,
    /// Their prefix length.
    pub(super) prefix: u8,
}

/// The pool and the VXLAN port that a request to make a cluster asks for.
///
/// # Errors
/// If they cannot be.
pub(super) fn init(request: &InitRequest) -> Result<(Pool, u16), Error> {
    let ten = Ipv4Network::new(Ipv4Addr::new(10, 0, 0, 0), 8).expect("a constant block");
    let block = request.pool.unwrap_or(ten);
    aligned("pool", block)?;
    unspecial("pool", block)?;
    let prefix = request.pool_prefix.unwrap_or(24.max(block.prefix()));
    if !PREFIXES.contains(&prefix) || prefix < block.prefix() {
        return Err(Error::Invalid(format!(
            "pool {block} cannot be cut into subnets of /{prefix}: {} to 29 can be",
            block.prefix().max(*PREFIXES.start())
        )));
    }
    let port = request.data_path_port.unwrap_or(4789);
    if port < 1024 {
        return Err(Error::Invalid(format!("data path port {port} is below 1024")));
    }
    // Encrypted networks have the next.
    if [port, port.saturating_add(1)].contains(&ESP_IN_UDP_PORT) {
        return Err(Error::Invalid(format!(
            "data path port {port}: encrypted packets go by UDP port {ESP_IN_UDP_PORT} through NAT, \
             so it and the one before are not to be had"
        )));
    }
    Ok((Pool { block, prefix }, port))
}

/// Whether keys may be renewed as often as this.
///
/// # Errors
/// If that would be all the time, or in fact never.
pub(super) fn update(request: &UpdateCluster) -> Result<(), Error> {
    if let Some(seconds) = request.key_rotation.filter(|s| !ROTATIONS.contains(s)) {
        return Err(Error::Invalid(format!(
            "key rotation after {seconds} s: it is from {} s to {} days",
            ROTATIONS.start(),
            ROTATIONS.end() / (24 * 60 * 60)
        )));
    }
    if let Some(packets) = request.key_packets.filter(|p| !ROTATION_PACKETS.contains(p)) {
        return Err(Error::Invalid(format!(
            "key rotation after {packets} packets: it is from {} to {}",
            ROTATION_PACKETS.start(),
            ROTATION_PACKETS.end()
        )));
    }
    Ok(())
}

/// What of a request to create a network does not depend on where its subnet is:
/// the driver, the options, the name. Returns the options.
///
/// # Errors
/// If it cannot be.
pub(super) fn network(request: &CreateNetwork, snapshot: &Snapshot) -> Result<Options, Error> {
    if request.driver != "overlay" {
        return Err(Error::Invalid(format!(
            "driver {:?} is unknown: overlay is the only one",
            request.driver
        )));
    }
    if snapshot.networks.values().any(|n| n.name == request.name) {
        return Err(Error::Conflict(format!("network {} exists", request.name)));
    }
    labels("network", &request.labels)?;
    if request.aux_addresses.len() > MOST_RESERVED {
        return Err(Error::Invalid(format!("a network has at most {MOST_RESERVED} aux-addresses")));
    }
    let options = options(&request.options)?;
    if options.encrypted {
        encrypted(&request.name, snapshot)?;
    }
    Ok(options)
}

/// Whether every member can carry an encrypted network.
fn encrypted(network: &Name, snapshot: &Snapshot) -> Result<(), Error> {
    let unable: Vec<_> = snapshot.nodes.values().filter_map(|node| unable(node)).collect();
    if unable.is_empty() {
        return Ok(());
    }
    Err(Error::Conflict(format!("network {network} cannot be encrypted: {}", unable.join("; "))))
}

/// Why a node cannot carry encrypted networks, if it cannot.
pub(super) fn unable(node: &Node) -> Option<String> {
    node.ipsec.missing.as_ref().map(|why| format!("node {}: {why}", node.hostname))
}

/// What the options of a request say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// The MTU that was chosen.
    pub(super) mtu: Option<u16>,
    /// Whether it shall be encrypted.
    pub(super) encrypted: bool,
}

/// Whether an object can have these labels.
///
/// # Errors
/// If they are too many or too long.
pub(super) fn labels(what: &str, labels: &BTreeMap<String, String>) -> Result<(), Error> {
    if labels.len() > MOST_LABELS || labels.iter().any(|(k, v)| k.len() + v.len() > LONGEST_LABEL) {
        return Err(Error::Invalid(format!(
            "a {what} has at most {MOST_LABELS} labels of {LONGEST_LABEL} bytes"
        )));
    }
    Ok(())
}

fn options(given: &BTreeMap<String, String>) -> Result<Options, Error> {
    let mut options = Options::default();
    for (key, value) in given {
        match key.as_str() {
            "mtu" | "com.docker.network.driver.mtu" => {
                let mtu = value.parse().ok().filter(|mtu| MTUS.contains(mtu)).ok_or_else(|| {
                    Error::Invalid(format!(
                        "{key}={value}: an MTU is a number from {} to {}",
                        MTUS.start(),
                        MTUS.end()
                    ))
                })?;
                if options.mtu.is_some_and(|other| other != mtu) {
                    return Err(Error::Invalid("two different MTUs are given".to_owned()));
                }
                options.mtu = Some(mtu);
            }
            "encrypted" => {
                options.encrypted = match value.as_str() {
                    "" | "true" => true,
                    "false" => false,
                    _ => {
                        return Err(Error::Invalid(format!(
                            "{key}={value}: it is true or false, or {key} alone"
                        )));
                    }
                }
            }
            _ => {
                return Err(Error::Invalid(format!(
                    "option {key:?} is unknown: there are mtu and encrypted"
                )));
            }
        }
    }
    Ok(options)
}

/// Whether a network can have this subnet.
///
/// # Errors
/// If not; an overlap is named.
pub(super) fn subnet(subnet: Ipv4Network, snapshot: &Snapshot) -> Result<(), Error> {
    aligned("subnet", subnet)?;
    if !PREFIXES.contains(&subnet.prefix()) {
        return Err(Error::Invalid(format!(
            "subnet {subnet}: the prefix length must be from {} to {}",
            PREFIXES.start(),
            PREFIXES.end()
        )));
    }
    unspecial("subnet", subnet)?;
    for network in snapshot.networks.values() {
        if overlap(network.subnet, subnet) {
            return Err(Error::Conflict(format!(
                "subnet {subnet} overlaps network {} ({})",
                network.name, network.subnet
            )));
        }
    }
    for node in snapshot.nodes.values() {
        if let Some(route) = node.routes.iter().find(|r| overlap(**r, subnet)) {
            return Err(Error::Conflict(format!(
                "subnet {subnet} overlaps {route}, which host {} routes itself",
                node.hostname
            )));
        }
        if let Some(address) = node.addresses().find(|a| subnet.contains(*a)) {
            return Err(Error::Conflict(format!(
                "subnet {subnet} contains {address}, the address of node {}",
                node.hostname
            )));
        }
    }
    Ok(())
}

/// What is in use, or routed by a host: no subnet may be there.
#[must_use]
pub(super) fn taken(snapshot: &Snapshot) -> Vec<Ipv4Network> {
    let nodes = snapshot.nodes.values();
    let routes = nodes.clone().flat_map(|n| n.routes.iter().copied());
    let addresses = nodes.flat_map(|node| node.addresses()).map(Ipv4Network::from);
    let special = SPECIAL.iter().filter_map(|(ip, prefix, _)| Ipv4Network::new(*ip, *prefix).ok());
    let networks = snapshot.networks.values().map(|n| n.subnet);
    networks.chain(routes).chain(addresses).chain(special).collect()
}

/// Gateway, range and reserved addresses of a network with this subnet. Returns
/// the gateway.
///
/// # Errors
/// If one of them does not fit.
pub(super) fn addresses(request: &CreateNetwork, subnet: Ipv4Network) -> Result<Ipv4Addr, Error> {
    let usable = |what: &str, address: Ipv4Addr| {
        if !subnet.contains(address) {
            return Err(Error::Invalid(format!("{what} {address} is not in subnet {subnet}")));
        }
        if address == subnet.network() || address == subnet.broadcast() {
            return Err(Error::Invalid(format!(
                "{what} {address} is the first or last address of subnet {subnet}"
            )));
        }
        Ok(())
    };
    let gateway = request.gateway.unwrap_or(Ipv4Addr::from_bits(subnet.network().to_bits() + 1));
    usable("gateway", gateway)?;
    if let Some(range) = request.ip_range {
        aligned("ip-range", range)?;
        if !contains(subnet, range) {
            return Err(Error::Invalid(format!("ip-range {range} is not in subnet {subnet}")));
        }
    }
    let mut seen = BTreeMap::new();
    for (name, address) in &request.aux_addresses {
        usable(&format!("aux-address {name}"), *address)?;
        if *address == gateway {
            return Err(Error::Invalid(format!(
                "aux-address {name} {address} is the gateway; choose another with --gateway"
            )));
        }
        if let Some(other) = seen.insert(*address, name) {
            return Err(Error::Invalid(format!(
                "aux-addresses {other} and {name} are both {address}"
            )));
        }
    }
    Ok(gateway)
}

/// Addresses of the network that no endpoint may have.
#[must_use]
pub(super) fn reserved(network: &Network) -> BTreeSet<Ipv4Addr> {
    network.aux_addresses.values().copied().chain([network.gateway]).collect()
}

/// The aliases that a request gives, each once.
///
/// # Errors
/// If there are too many.
pub(super) fn aliases(given: &[Name]) -> Result<Vec<Name>, Error> {
    let mut aliases = given.to_vec();
    aliases.sort();
    aliases.dedup();
    if aliases.len() > MOST_ALIASES {
        return Err(Error::Invalid(format!("{MOST_ALIASES} aliases are the most")));
    }
    Ok(aliases)
}

/// Whether an endpoint can have this address, apart from other endpoints.
///
/// # Errors
/// If not.
pub(super) fn address(address: Ipv4Addr, network: &Network) -> Result<(), Error> {
    let (name, subnet) = (&network.name, network.subnet);
    if !subnet.contains(address) {
        return Err(Error::Invalid(format!(
            "address {address} is not in network {name} ({subnet})"
        )));
    }
    if address == subnet.network() || address == subnet.broadcast() {
        return Err(Error::Invalid(format!(
            "address {address} is the first or last one of network {name} ({subnet})"
        )));
    }
    if address == network.gateway {
        return Err(Error::Conflict(format!("address {address} is network {name}'s gateway")));
    }
    match network.aux_addresses.iter().find(|(_, aux)| **aux == address) {
        Some((aux, _)) => {
            Err(Error::Conflict(format!("address {address} of network {name} is kept for {aux}")))
        }
        None => Ok(()),
    }
}

pub(super) fn aligned(what: &str, block: Ipv4Network) -> Result<(), Error> {
    if block.ip() == block.network() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{what} {block} has bits set behind the prefix: {}/{} is the block",
        block.network(),
        block.prefix()
    )))
}

fn unspecial(what: &str, block: Ipv4Network) -> Result<(), Error> {
    for (address, prefix, meaning) in SPECIAL {
        let special = Ipv4Network::new(address, prefix).expect("a constant block");
        if overlap(special, block) {
            return Err(Error::Invalid(format!("{what} {block} has {meaning} ({special})")));
        }
    }
    Ok(())
}

/// What a node says of itself.
///
/// # Errors
/// If it cannot be true, or would fill the store.
pub(super) fn facts(facts: &NodeFacts) -> Result<(), Error> {
    let plain = |text: &str| {
        !text.is_empty() && text.len() <= 253 && text.chars().all(|c| c.is_ascii_graphic())
    };
    if !plain(&facts.hostname) || !plain(&facts.version) {
        return Err(Error::Invalid(format!(
            "host name {:?}, version {:?}: both are 1 to 253 visible ASCII characters",
            facts.hostname, facts.version
        )));
    }
    if let Some(Certificate { expires, ca }) = &facts.certificate
        && (expires.len() > 40 || ca.len() > 64 || !plain(&format!("{expires}{ca}")))
    {
        return Err(Error::Invalid(
            "a certificate's end is a time, and its CA a digest".to_owned(),
        ));
    }
    if facts.routes.len() > MOST_ROUTES {
        return Err(Error::Invalid(format!(
            "host {} has {} routes of its own: {MOST_ROUTES} are the most that a node can tell of",
            facts.hostname,
            facts.routes.len()
        )));
    }
    let is_none = |a: &Ipv4Addr| a.is_unspecified() || a.is_multicast() || a.is_broadcast();
    match own(facts).find(is_none) {
        Some(address) => Err(Error::Invalid(format!("{address} is not an address of a host"))),
        None => Ok(()),
    }
}

/// The addresses of a host: two if it is behind NAT.
fn own(facts: &NodeFacts) -> impl Iterator<Item = Ipv4Addr> {
    [Some(facts.address), facts.local_address].into_iter().flatten()
}

/// Whether a host with these facts can become a member.
///
/// # Errors
/// If it clashes with a member or a network, naming it.
pub(super) fn newcomer(facts: &NodeFacts, snapshot: &Snapshot) -> Result<(), Error> {
    self::facts(facts)?;
    if let Some(node) = snapshot.nodes.values().find(|n| n.address == facts.address) {
        return Err(Error::Conflict(format!(
            "address {} is that of node {} ({}): if that node is gone, remove it first with \
             `netagent node rm {}`",
            facts.address, node.hostname, node.status, node.id
        )));
    }
    let hides = |node: &Node| {
        facts.local_address == Some(node.address) || node.local_address == Some(facts.address)
    };
    if let Some(node) = snapshot.nodes.values().find(|node| hides(node)) {
        return Err(Error::Conflict(format!(
            "host {} ({}) and node {} ({}) could not reach each other: behind NAT, one of them has \
             the address itself that the other advertises",
            facts.hostname, facts.address, node.hostname, node.address
        )));
    }
    for network in snapshot.networks.values() {
        if let Some(address) = own(facts).find(|a| network.subnet.contains(*a)) {
            return Err(Error::Conflict(format!(
                "address {address} lies in network {} ({})",
                network.name, network.subnet
            )));
        }
        if let Some(route) = facts.routes.iter().find(|r| overlap(**r, network.subnet)) {
            return Err(Error::Conflict(format!(
                "host {} routes {route} itself, which overlaps network {} ({})",
                facts.hostname, network.name, network.subnet
            )));
        }
    }
    Ok(())
}
