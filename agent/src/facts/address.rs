//! Which of a host's addresses a node gets. Pure.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail};

use super::{Host, Link};
use crate::plan::LINK_PREFIX;

/// A node's address: as the other nodes know it, and as this host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The one that other nodes use.
    pub advertised: Ipv4Addr,
    /// The one that this host has, if that is another: the node is behind NAT.
    pub local: Option<Ipv4Addr>,
}

impl Addresses {
    /// One and the same.
    #[must_use]
    pub fn direct(address: Ipv4Addr) -> Self {
        Self { advertised: address, local: None }
    }

    /// The address that this host has.
    #[must_use]
    pub fn own(&self) -> Ipv4Addr {
        self.local.unwrap_or(self.advertised)
    }
}

impl Host {
    /// The address that other nodes shall use: `advertise` if this host has it,
    /// else the only address of `uplink`, or of the link with the default route,
    /// or of the whole host. With `local`, which this host has, `advertise` is that of a NAT
    /// before it.
    ///
    /// # Errors
    /// If there is none or more than one, naming them; if an address is not of this host that
    /// should be, or the other way round.
    pub fn choose_address(
        &self,
        advertise: Option<Ipv4Addr>,
        local: Option<Ipv4Addr>,
        uplink: Option<&str>,
    ) -> Result<Addresses> {
        match (advertise, local) {
            (Some(advertised), Some(own)) => self.behind_nat(advertised, own),
            (Some(address), None) => {
                if self.link_of(address).is_none() {
                    bail!(
                        "{address} is not an address of this host; it has {}. If that is the \
                         address of a NAT before this host, name its own, too: --local-addr",
                        self.list(self.candidates())
                    );
                }
                Ok(Addresses::direct(address))
            }
            (None, Some(own)) => bail!(
                "--local-addr {own} is for a host behind NAT: name the address by which the other \
                 nodes reach it, too: --advertise-addr"
            ),
            (None, None) => self.only_address(uplink).map(Addresses::direct),
        }
    }

    /// The link that has a node's own address.
    ///
    /// # Errors
    /// If none has.
    pub fn own_link(&self, addresses: Addresses) -> Result<&Link> {
        let (own, advertised) = (addresses.own(), addresses.advertised);
        self.link_of(own).with_context(|| match addresses.local {
            None => format!("no interface of this host has address {own}, which it advertises"),
            Some(_) => format!(
                "no interface of this host has address {own}, which it has behind the NAT at \
                 {advertised}"
            ),
        })
    }

    fn behind_nat(&self, advertised: Ipv4Addr, own: Ipv4Addr) -> Result<Addresses> {
        if self.link_of(own).is_none() {
            bail!(
                "--local-addr {own} is not an address of this host; it has {}",
                self.list(self.candidates())
            );
        }
        if own == advertised {
            return Ok(Addresses::direct(own));
        }
        if let Some(link) = self.link_of(advertised) {
            bail!(
                "this host has {advertised} itself ({}) and is not behind NAT: leave --local-addr \
                 out",
                link.name
            );
        }
        Ok(Addresses { advertised, local: Some(own) })
    }

    fn only_address(&self, uplink: Option<&str>) -> Result<Ipv4Addr> {
        let links: Vec<&Link> = match uplink {
            Some(name) => match self.links.iter().find(|l| l.name == name) {
                Some(link) => vec![link],
                None => bail!("this host has no interface {name}"),
            },
            None => match self.default_link() {
                Some(link) if !link.addresses.is_empty() => vec![link],
                _ => self.candidates().collect(),
            },
        };
        let addresses: Vec<_> = links.iter().flat_map(|l| &l.addresses).collect();
        match addresses[..] {
            [address] => Ok(*address),
            [] => bail!("no interface of this host has an address that other nodes could use"),
            _ => bail!(
                "which address shall the other nodes use? This host has {}: choose one with \
                 --advertise-addr",
                self.list(links.into_iter())
            ),
        }
    }

    fn default_link(&self) -> Option<&Link> {
        let route = self.routes.iter().find(|r| r.destination.prefix() == 0)?;
        self.links.iter().find(|l| Some(&l.name) == route.link.as_ref())
    }

    fn candidates(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|l| {
            l.up && !l.loopback && !l.addresses.is_empty() && !l.name.starts_with(LINK_PREFIX)
        })
    }

    fn list<'a>(&self, links: impl Iterator<Item = &'a Link>) -> String {
        let mut text = String::new();
        for (link, address) in links.flat_map(|l| l.addresses.iter().map(move |a| (l, a))) {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}{address} ({})", link.name);
        }
        if text.is_empty() { "none".to_owned() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 11);
    const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

    #[test]
    fn address_of_the_uplink() {
        let host = host();
        let own = Addresses::direct(OWN);
        assert_eq!(host.choose_address(None, None, None).unwrap(), own);
        assert_eq!(host.choose_address(None, None, Some("eth0")).unwrap(), own);
        assert_eq!(host.choose_address(Some(OWN), None, None).unwrap(), own);
        assert_eq!(host.link_of(OWN).unwrap().name, "eth0");
        host.choose_address(None, None, Some("eth7")).unwrap_err();
    }

    #[test]
    fn a_choice_is_left_to_the_user() {
        let mut host = host();
        host.routes.clear();
        let text = host.choose_address(None, None, None).unwrap_err().to_string();
        for part in ["192.168.50.11 (eth0)", "172.17.0.1 (docker0)", "--advertise-addr"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("na-abc") && !text.contains("127.0.0.1"), "{text}");
        host.links[1].addresses.push(Ipv4Addr::new(192, 168, 50, 12));
        let text = host.choose_address(None, None, Some("eth0")).unwrap_err().to_string();
        assert!(text.contains("192.168.50.12 (eth0)"), "{text}");
        host.links.clear();
        host.choose_address(None, None, None).unwrap_err();
    }

    #[test]
    fn behind_nat_both_addresses_are_named() {
        let host = host();
        let addresses = host.choose_address(Some(PUBLIC), Some(OWN), None).unwrap();
        assert_eq!(addresses, Addresses { advertised: PUBLIC, local: Some(OWN) });
        assert_eq!(addresses.own(), OWN);
        let same = host.choose_address(Some(OWN), Some(OWN), None).unwrap();
        assert_eq!(same, Addresses::direct(OWN), "without NAT it says nothing new");
        let other = Ipv4Addr::new(172, 17, 0, 1);
        for (advertise, local, parts) in [
            (Some(PUBLIC), None, ["192.168.50.11 (eth0)", "--local-addr"]),
            (Some(PUBLIC), Some(PUBLIC), ["192.168.50.11 (eth0)", "203.0.113.7"]),
            (None, Some(OWN), ["--local-addr 192.168.50.11", "--advertise-addr"]),
            (Some(OWN), Some(other), ["192.168.50.11 itself (eth0)", "not behind NAT"]),
        ] {
            let text = host.choose_address(advertise, local, None).unwrap_err().to_string();
            for part in parts {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}
