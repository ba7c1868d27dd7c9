//! The syntax of published ports, Docker's and what is more: how they are asked for and
//! how they are shown.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::ValueEnum;
use ipnetwork::Ipv4Network;

use crate::api::types::{PortRef, Publish};
use crate::model::{Protocol, PublishMode, PublishedPort};

/// The ports that one `--publish` asks for:
/// `[ADDRESS:][PUBLISHED:]TARGET[/PROTOCOL]`, where a port may be a range `8000-8010`, or
/// `target=PORT,published=PORT,protocol=tcp,mode=ingress,addr=ADDRESS,allow=CIDR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports(pub(super) Vec<Publish>);

impl FromStr for Ports {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('=') { long(text).map(|port| vec![port]) } else { short(text) }.map(Self)
    }
}

/// The target that one `--publish-rm` names: `TARGET[/PROTOCOL]`, or
/// `target=PORT[,protocol=PROTOCOL]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target(pub(super) PortRef);

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('=') {
            let Publish { published, target, protocol, address, allow, .. } = long(text)?;
            if published.is_some() || address.is_some() || !allow.is_empty() {
                return Err("a port is withdrawn by its target and protocol alone".to_owned());
            }
            return Ok(Self(PortRef { target, protocol }));
        }
        let (target, protocol) = transport(text)?;
        Ok(Self(PortRef { target: port(target)?, protocol }))
    }
}

fn long(text: &str) -> Result<Publish, String> {
    let (mut published, mut target, mut address) = (None, None, None);
    let (mut of, mut mode) = (None, None);
    let mut allow = Vec::new();
    for option in text.split(',') {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match key {
            "published" => once(&mut published, key, port(value)?)?,
            "target" => once(&mut target, key, port(value)?)?,
            "protocol" => once(&mut of, key, protocol(value)?)?,
            "mode" => once(&mut mode, key, one_of::<PublishMode>(key, value)?)?,
            "addr" => once(&mut address, key, ip(value)?)?,
            "allow" => {
                for source in value.split(';') {
                    let block = source.parse::<Ipv4Network>();
                    allow.push(block.map_err(|_| format!("{source:?} is not an IPv4 CIDR block"))?);
                }
            }
            _ => {
                return Err(format!(
                    "{option:?} is none of published=PORT, target=PORT, protocol=tcp|udp|sctp, \
                     mode=ingress|host, addr=ADDRESS, allow=CIDR"
                ));
            }
        }
    }
    Ok(Publish {
        published,
        target: target.ok_or("target=PORT is missing: the port of the backends")?,
        protocol: of.unwrap_or_default(),
        mode: mode.unwrap_or_default(),
        address,
        allow,
    })
}

fn short(text: &str) -> Result<Vec<Publish>, String> {
    let (ports, protocol) = transport(text)?;
    let mut parts = ports.rsplitn(3, ':');
    let targets = range(parts.next().unwrap_or_default())?;
    let published = match parts.next() {
        None | Some("") => vec![None; targets.len()],
        Some(ports) => range(ports)?.map(Some).collect(),
    };
    let address = parts.next().map(ip).transpose()?;
    if published.len() != targets.len() {
        return Err(format!(
            "{} published ports cannot lead to {} targets: ranges must be as long as each other",
            published.len(),
            targets.len()
        ));
    }
    let publish = |(published, target)| Publish {
        published,
        target,
        protocol,
        mode: PublishMode::Ingress,
        address,
        allow: Vec::new(),
    };
    Ok(published.into_iter().zip(targets).map(publish).collect())
}

fn once<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{key}= is given twice")),
    }
}

/// The ports, and the transport behind the slash; TCP without.
fn transport(text: &str) -> Result<(&str, Protocol), String> {
    match text.rsplit_once('/') {
        Some((ports, name)) => Ok((ports, protocol(name)?)),
        None => Ok((text, Protocol::Tcp)),
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    one_of("protocol", text)
}

fn one_of<T: ValueEnum>(key: &str, text: &str) -> Result<T, String> {
    T::from_str(text, true).map_err(|_| {
        let names: Vec<_> = T::value_variants().iter().filter_map(T::to_possible_value).collect();
        let names: Vec<_> = names.iter().map(|name| name.get_name()).collect();
        format!("there is no {key} {text:?}: there is {}", names.join(", "))
    })
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("{text:?} runs backwards"));
    }
    Ok(first..=last)
}

fn port(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|port| *port > 0);
    number.ok_or_else(|| format!("{text:?} is not a port: 1 to 65535"))
}

fn ip(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IPv4 address"))
}

/// Docker's way to show them: `*:8080->80/tcp`, a comma between two.
pub(super) fn shown(ports: &[PublishedPort]) -> String {
    let mut sorted: Vec<_> = ports.iter().collect();
    sorted.sort_by_key(|p| (p.published, p.protocol, p.address));
    let text = |port: &&PublishedPort| {
        let PublishedPort { published, target, protocol, mode, address, .. } = port;
        let address = address.map_or("*".to_owned(), |address| address.to_string());
        let host = if *mode == PublishMode::Host { " (host)" } else { "" };
        format!("{address}:{published}->{target}/{protocol}{host}")
    };
    sorted.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn publish(published: Option<u16>, target: u16) -> Publish {
        Publish {
            published,
            target,
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
            address: None,
            allow: vec![],
        }
    }

    fn parse(text: &str) -> Vec<Publish> {
        text.parse::<Ports>().unwrap_or_else(|e| panic!("{text}: {e}")).0
    }

    fn refusal(text: &str) -> String {
        text.parse::<Ports>().expect_err(text)
    }

    #[test]
    fn the_short_form() {
        let address = Some(Ipv4Addr::new(192, 168, 50, 11));
        assert_eq!(parse("80"), [publish(None, 80)]);
        assert_eq!(parse("8080:80"), [publish(Some(8080), 80)]);
        let udp = Publish { protocol: Protocol::Udp, ..publish(Some(53), 5353) };
        assert_eq!(parse("53:5353/udp"), [udp]);
        assert_eq!(
            parse("192.168.50.11:8080:80"),
            [Publish { address, ..publish(Some(8080), 80) }]
        );
        assert_eq!(parse("192.168.50.11::80"), [Publish { address, ..publish(None, 80) }]);
        assert_eq!(
            parse("8000-8002:80-82"),
            [publish(Some(8000), 80), publish(Some(8001), 81), publish(Some(8002), 82)]
        );
        assert_eq!(parse("80-81"), [publish(None, 80), publish(None, 81)]);
    }

    #[test]
    fn the_long_form() {
        assert_eq!(parse("target=80"), [publish(None, 80)]);
        assert_eq!(
            parse(
                "published=8080,target=80,protocol=sctp,mode=host,addr=192.168.50.11,\
                 allow=10.0.0.0/8;192.0.2.1,allow=198.51.100.0/24"
            ),
            [Publish {
                published: Some(8080),
                target: 80,
                protocol: Protocol::Sctp,
                mode: PublishMode::Host,
                address: Some(Ipv4Addr::new(192, 168, 50, 11)),
                allow: ["10.0.0.0/8", "192.0.2.1/32", "198.51.100.0/24"]
                    .map(|block| block.parse().unwrap())
                    .to_vec(),
            }]
        );
    }

    #[test]
    fn what_is_no_port_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "\"\" is not a port"),
            ("0:80", "\"0\" is not a port: 1 to 65535"),
            ("8080:80/icmp", "there is no protocol \"icmp\": there is tcp, udp, sctp"),
            ("8000-8010:80", "11 published ports cannot lead to 1 targets"),
            ("82-80:80-82", "runs backwards"),
            ("[::1]:8080:80", "\"[::1]\" is not an IPv4 address"),
            ("published=8080", "target=PORT is missing"),
            ("target=80,target=81", "target= is given twice"),
            ("target=80,published=", "\"\" is not a port"),
            ("target=80,mode=both", "there is no mode \"both\": there is ingress, host"),
            ("target=80,allow=10.0.0.0/33", "\"10.0.0.0/33\" is not an IPv4 CIDR block"),
            ("target=80,source=10.0.0.0/8", "\"source=10.0.0.0/8\" is none of published=PORT"),
        ] {
            let refusal = refusal(text);
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }

    #[test]
    fn a_target_names_what_to_withdraw() {
        let target = |text: &str| text.parse::<Target>().map(|target| target.0);
        let udp = PortRef { target: 53, protocol: Protocol::Udp };
        assert_eq!(target("80"), Ok(PortRef { target: 80, protocol: Protocol::Tcp }));
        assert_eq!(target("53/udp").as_ref(), Ok(&udp));
        assert_eq!(target("target=53,protocol=udp"), Ok(udp));
        assert!(target("8080:80").unwrap_err().contains("is not a port"));
        assert!(target("published=8080,target=80").unwrap_err().contains("by its target"));
    }

    #[test]
    fn ports_are_shown_as_docker_does() {
        let port = |published, protocol, mode, address: Option<&str>| PublishedPort {
            published,
            target: 80,
            protocol,
            mode,
            address: address.map(|a| a.parse().unwrap()),
            allow: vec![],
        };
        assert_eq!(
            shown(&[
                port(9090, Protocol::Udp, PublishMode::Host, None),
                port(8080, Protocol::Tcp, PublishMode::Ingress, Some("192.168.50.11")),
                port(8080, Protocol::Tcp, PublishMode::Ingress, None),
            ]),
            "*:8080->80/tcp, 192.168.50.11:8080->80/tcp, *:9090->80/udp (host)"
        );
        assert_eq!(shown(&[]), "");
    }

    proptest! {
        /// Whatever is typed: no panic, and never more ports than there are.
        #[test]
        fn anything_may_be_typed(text in "[0-9:/=,;.a-z-]{0,30}") {
            if let Ok(Ports(ports)) = text.parse::<Ports>() {
                prop_assert!(!ports.is_empty() && ports.len() < 65536);
                prop_assert!(ports.iter().all(|p| p.target > 0 && p.published != Some(0)));
            }
            let _ = text.parse::<Target>();
        }
    }
}
