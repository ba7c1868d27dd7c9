//! Messages of the generic netlink family `IPVS` (linux/ip_vs.h): what is sent, made of
//! what the plan wants, and what comes back, read into the same.
//!
//! Numbers are in the host's byte order but for addresses and ports, which stand as in a
//! packet. Attributes that a newer kernel adds are skipped.

use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_packet_core::{
    DecodeError, Emitable, NLA_F_NESTED, NLA_HEADER_SIZE, NlasIterator, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};

use crate::plan::{RealServer, Socket, Timeouts, VirtualServer};

/// `IPVS_CMD_*`.
pub(super) mod command {
    pub(in super::super) const NEW_SERVICE: u8 = 1;
    pub(in super::super) const SET_SERVICE: u8 = 2;
    pub(in super::super) const DEL_SERVICE: u8 = 3;
    pub(in super::super) const GET_SERVICE: u8 = 4;
    pub(in super::super) const NEW_DEST: u8 = 5;
    pub(in super::super) const SET_DEST: u8 = 6;
    pub(in super::super) const DEL_DEST: u8 = 7;
    pub(in super::super) const GET_DEST: u8 = 8;
    pub(in super::super) const SET_CONFIG: u8 = 12;
    pub(in super::super) const GET_CONFIG: u8 = 13;
}

/// `IPVS_CMD_ATTR_*`: what a message is about.
mod attribute {
    pub(super) const SERVICE: u16 = 1;
    pub(super) const DEST: u16 = 2;
    pub(super) const TIMEOUT_TCP: u16 = 4;
    pub(super) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(super) const TIMEOUT_UDP: u16 = 6;
}

/// `IPVS_SVC_ATTR_*`: of a virtual server.
mod service {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const ADDRESS: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const SCHEDULER: u16 = 6;
    pub(super) const FLAGS: u16 = 7;
    pub(super) const TIMEOUT: u16 = 8;
    pub(super) const NETMASK: u16 = 9;
}

/// `IPVS_DEST_ATTR_*`: of a real server.
mod dest {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const PORT: u16 = 2;
    pub(super) const METHOD: u16 = 3;
    pub(super) const WEIGHT: u16 = 4;
    pub(super) const UPPER: u16 = 5;
    pub(super) const LOWER: u16 = 6;
    pub(super) const ACTIVE: u16 = 7;
    pub(super) const INACTIVE: u16 = 8;
    pub(super) const FAMILY: u16 = 11;
}

/// `AF_INET`.
const INET: u16 = 2;
/// Bytes of `union nf_inet_addr`, of which IPv4 uses the first four.
const ADDRESS_SIZE: usize = 16;
/// Flag of every virtual server that the kernel has: it is in its table.
const HASHED: u32 = 0x2;

/// A message: a command and its attributes, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) command: u8,
    body: Vec<u8>,
}

/// A real server as the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dest {
    pub(super) address: SocketAddrV4,
    pub(super) server: RealServer,
    /// Connections that are established.
    pub(super) active: u32,
    /// Connections that are ending, and all of UDP.
    pub(super) inactive: u32,
}

impl Message {
    /// A request about nothing in particular.
    pub(super) fn new(command: u8) -> Self {
        Self { command, body: vec![] }
    }

    /// A request about a virtual server, to be as `server` says if it is to be.
    pub(super) fn about(command: u8, socket: Socket, server: Option<&VirtualServer>) -> Self {
        let mut nested = Attributes::default();
        nested.put(service::FAMILY, &INET.to_ne_bytes());
        nested.put(service::PROTOCOL, &u16::from(socket.protocol).to_ne_bytes());
        nested.put(service::ADDRESS, &address_bytes(socket.ip));
        nested.put(service::PORT, &socket.port.to_be_bytes());
        if let Some(VirtualServer { scheduler, flags, timeout, netmask }) = server {
            nested.put(service::SCHEDULER, &[scheduler.as_bytes(), &[0]].concat());
            // With a mask of the bits that are to be set: all.
            let flags = [flags.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
            nested.put(service::FLAGS, &flags);
            nested.put(service::TIMEOUT, &timeout.to_ne_bytes());
            nested.put(service::NETMASK, &netmask.octets());
        }
        Self::new(command).with(attribute::SERVICE | NLA_F_NESTED, &nested.0)
    }

    /// The same about one of its real servers.
    pub(super) fn with_dest(self, address: SocketAddrV4, server: Option<&RealServer>) -> Self {
        let mut nested = Attributes::default();
        nested.put(dest::FAMILY, &INET.to_ne_bytes());
        nested.put(dest::ADDRESS, &address_bytes(*address.ip()));
        nested.put(dest::PORT, &address.port().to_be_bytes());
        if let Some(RealServer { weight, method, upper, lower }) = server {
            nested.put(dest::METHOD, &method.to_ne_bytes());
            nested.put(dest::WEIGHT, &weight.to_ne_bytes());
            nested.put(dest::UPPER, &upper.to_ne_bytes());
            nested.put(dest::LOWER, &lower.to_ne_bytes());
        }
        self.with(attribute::DEST | NLA_F_NESTED, &nested.0)
    }

    /// The request that sets these timeouts.
    pub(super) fn with_timeouts(self, timeouts: Timeouts) -> Self {
        self.with(attribute::TIMEOUT_TCP, &timeouts.tcp.to_ne_bytes())
            .with(attribute::TIMEOUT_TCP_FIN, &timeouts.tcp_fin.to_ne_bytes())
            .with(attribute::TIMEOUT_UDP, &timeouts.udp.to_ne_bytes())
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let mut attributes = Attributes(self.body);
        attributes.put(kind, value);
        self.body = attributes.0;
        self
    }

    /// The virtual server that this tells of; `None` if it is one of IPv6 or of a firewall
    /// mark, which take no packet from ours.
    pub(super) fn virtual_server(&self) -> Result<Option<(Socket, VirtualServer)>, DecodeError> {
        let nested = find(&self.body, attribute::SERVICE)?;
        let mut of = Server::default();
        for attribute in NlasIterator::new(nested) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                service::FAMILY => of.family = Some(u16_at(value)?),
                service::PROTOCOL => of.protocol = Some(u16_at(value)?),
                service::ADDRESS => of.ip = Some(Ipv4Addr::from(array(value)?)),
                service::PORT => of.port = Some(u16::from_be_bytes(array(value)?)),
                service::SCHEDULER => {
                    let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    of.scheduler = Some(String::from_utf8_lossy(name).into_owned());
                }
                service::FLAGS => of.flags = u32_at(value)? & !HASHED,
                service::TIMEOUT => of.timeout = u32_at(value)?,
                service::NETMASK => of.netmask = Some(Ipv4Addr::from(array(value)?)),
                _ => {}
            }
        }
        Ok(of.into_virtual_server())
    }

    /// The real server that this tells of; `None` if it has an IPv6 address.
    pub(super) fn real_server(&self) -> Result<Option<Dest>, DecodeError> {
        let nested = find(&self.body, attribute::DEST)?;
        let (mut ip, mut port) = (None, None);
        let mut server = RealServer { weight: 0, method: 0, upper: 0, lower: 0 };
        let (mut active, mut inactive) = (0, 0);
        for attribute in NlasIterator::new(nested) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                dest::FAMILY if u16_at(value)? != INET => return Ok(None),
                dest::ADDRESS => ip = Some(Ipv4Addr::from(array(value)?)),
                dest::PORT => port = Some(u16::from_be_bytes(array(value)?)),
                dest::METHOD => server.method = u32_at(value)?,
                dest::WEIGHT => server.weight = u32_at(value)?,
                dest::UPPER => server.upper = u32_at(value)?,
                dest::LOWER => server.lower = u32_at(value)?,
                dest::ACTIVE => active = u32_at(value)?,
                dest::INACTIVE => inactive = u32_at(value)?,
                _ => {}
            }
        }
        let (Some(ip), Some(port)) = (ip, port) else {
            return Err("a real server without address or port".to_owned().into());
        };
        let address = SocketAddrV4::new(ip, port);
        Ok(Some(Dest { address, server, active, inactive }))
    }

    /// The timeouts that this tells of.
    pub(super) fn timeouts(&self) -> Result<Timeouts, DecodeError> {
        let number = |kind| u32_at(find(&self.body, kind)?);
        Ok(Timeouts {
            tcp: number(attribute::TIMEOUT_TCP)?,
            tcp_fin: number(attribute::TIMEOUT_TCP_FIN)?,
            udp: number(attribute::TIMEOUT_UDP)?,
        })
    }
}

/// What a virtual server is read into.
#[derive(Default)]
struct Server {
    family: Option<u16>,
    protocol: Option<u16>,
    ip: Option<Ipv4Addr>,
    port: Option<u16>,
    scheduler: Option<String>,
    flags: u32,
    timeout: u32,
    netmask: Option<Ipv4Addr>,
}

impl Server {
    fn into_virtual_server(self) -> Option<(Socket, VirtualServer)> {
        if self.family != Some(INET) {
            return None;
        }
        // One of a firewall mark has no address.
        let (ip, port) = (self.ip?, self.port?);
        let protocol = u8::try_from(self.protocol?).ok()?;
        let server = VirtualServer {
            scheduler: self.scheduler?,
            flags: self.flags,
            timeout: self.timeout,
            netmask: self.netmask?,
        };
        Some((Socket { ip, protocol, port }, server))
    }
}

/// Attributes being encoded.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn put(&mut self, kind: u16, value: &[u8]) {
        let length =
            u16::try_from(value.len() + NLA_HEADER_SIZE).expect("our attributes are short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Value of the attribute of this kind.
fn find(body: &[u8], kind: u16) -> Result<&[u8], DecodeError> {
    for attribute in NlasIterator::new(body) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            let length = usize::from(attribute.length());
            // `value` borrows from the item; this from the message.
            return Ok(&attribute.into_inner()[NLA_HEADER_SIZE..length]);
        }
    }
    Err(format!("no attribute {kind}").into())
}

fn address_bytes(ip: Ipv4Addr) -> [u8; ADDRESS_SIZE] {
    let mut bytes = [0; ADDRESS_SIZE];
    bytes[..4].copy_from_slice(&ip.octets());
    bytes
}

/// The first bytes of a value.
fn array<const N: usize>(value: &[u8]) -> Result<[u8; N], DecodeError> {
    value
        .first_chunk()
        .copied()
        .ok_or_else(|| format!("an attribute of {} bytes instead of {N}", value.len()).into())
}

fn u16_at(value: &[u8]) -> Result<u16, DecodeError> {
    array(value).map(u16::from_ne_bytes)
}

fn u32_at(value: &[u8]) -> Result<u32, DecodeError> {
    array(value).map(u32::from_ne_bytes)
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        "IPVS"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[..self.body.len()].copy_from_slice(&self.body);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(body: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self { command: header.cmd, body: body.to_vec() })
    }
}
