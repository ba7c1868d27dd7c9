//! The host's `/etc/resolv.conf`, as far as it concerns workloads: which resolvers
//! to ask, and the search list that they get. See resolv.conf(5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Where workloads find their DNS server. Never a resolver to forward to: a host
/// file that names it (an agent inside a container, or inside a workload) would
/// lead questions in a circle.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;
/// As many as the C library would ask (`MAXNS`, resolv.h).
const MAX_SERVERS: usize = 3;

/// What a `resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Resolvers in order.
    pub servers: Vec<SocketAddr>,
    /// Domains that clients append to names.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of the file. As the C library does, ignores what it does not
    /// know, and takes the last of several `search` or `domain` lines.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => conf.servers.extend(words.next().and_then(server)),
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("domain") => conf.search = words.take(1).map(str::to_owned).collect(),
                _ => {}
            }
        }
        conf.servers.retain(|server| server.ip() != IpAddr::V4(SERVER));
        conf.servers.truncate(MAX_SERVERS);
        conf
    }
}

/// An address, with the interface it is on if it is link-local (`fe80::1%eth0`).
fn server(text: &str) -> Option<SocketAddr> {
    let Some((address, link)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let index = link.parse().or_else(|_| nix::net::if_::if_nametoindex(link)).ok()?;
    Some(SocketAddrV6::new(address, PORT, 0, index).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Vec<String> {
        ResolvConf::parse(text).servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_and_search_list_are_read() {
        let text = "# a comment\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 \n;nameserver 1.1.1.1\n\
                    search old.example\noptions ndots:5\nsearch corp.example lab.example\n";
        assert_eq!(servers(text), ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(ResolvConf::parse(text).search, ["corp.example", "lab.example"]);
        assert_eq!(ResolvConf::parse("domain corp.example\n").search, ["corp.example"]);
    }

    #[test]
    fn our_own_server_is_never_asked() {
        assert_eq!(servers("nameserver 127.0.0.11\nnameserver 127.0.0.53"), ["127.0.0.53:53"]);
        assert!(servers("nameserver 127.0.0.11").is_empty());
    }

    #[test]
    fn a_link_local_server_keeps_its_interface() {
        assert_eq!(servers("nameserver fe80::1%7"), ["[fe80::1%7]:53"]);
        assert_eq!(servers("nameserver fe80::1%lo"), ["[fe80::1%1]:53"]);
    }

    #[test]
    fn nonsense_is_ignored_and_three_are_enough() {
        assert!(
            servers("nameserver\nnameserver nobody\nnameserver fe80::1%no-such-link").is_empty()
        );
        let many: String = (1..9).map(|n| format!("nameserver 192.0.2.{n}\n")).collect();
        assert_eq!(servers(&many).len(), 3);
    }
}
