use std::net::Ipv4Addr;

use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};

use crate::model::Mac;
use crate::plan::LINK_PREFIX;

/// What we care about in a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct View {
    pub(in crate::kernel) index: u32,
    pub(in crate::kernel) name: String,
    pub(in crate::kernel) kind: Kind,
    /// None for links without Ethernet addresses.
    pub(in crate::kernel) mac: Option<Mac>,
    /// Bytes.
    pub(in crate::kernel) mtu: u32,
    /// Administratively.
    pub(in crate::kernel) up: bool,
    /// Index of the bridge.
    pub(in crate::kernel) master: Option<u32>,
    /// Index of a veth's other end, in the other end's namespace.
    pub(in crate::kernel) peer: Option<u32>,
    /// Namespace of a veth's other end or of a vxlan's socket, if it is another one:
    /// an identifier local to the link's own namespace, negative if there is none.
    pub(in crate::kernel) peer_netns: Option<i32>,
    /// IPv4 packets that come in here may be forwarded.
    pub(in crate::kernel) forwarding: bool,
}

/// Kind of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kernel) enum Kind {
    Veth,
    Bridge,
    Vxlan(Vxlan),
    /// By the kernel's name; a physical link has none.
    Other(String),
}

/// Attributes of a vxlan link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::kernel) struct Vxlan {
    pub(super) vni: u32,
    /// UDP port, host order.
    pub(super) port: u16,
    pub(super) local: Option<Ipv4Addr>,
    pub(super) learning: bool,
    pub(super) proxy: bool,
    /// Collect metadata.
    pub(super) external: bool,
}

impl Kind {
    /// For people.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Veth => "veth",
            Self::Bridge => "bridge",
            Self::Vxlan(_) => "vxlan",
            Self::Other(name) => name,
        }
    }
}

impl View {
    /// Reads the kernel's message; `None` if it has no name.
    pub(super) fn parse(message: &LinkMessage) -> Option<Self> {
        let mut view = Self {
            index: message.header.index,
            name: String::new(),
            kind: Kind::Other("physical link".into()),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            master: None,
            peer: None,
            peer_netns: None,
            forwarding: false,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => view.name.clone_from(name),
                LinkAttribute::Address(bytes) => {
                    view.mac = bytes.as_slice().try_into().ok().map(Mac);
                }
                LinkAttribute::Mtu(mtu) => view.mtu = *mtu,
                LinkAttribute::Controller(index) => view.master = Some(*index),
                LinkAttribute::Link(index) => view.peer = Some(*index),
                LinkAttribute::LinkNetNsId(id) => view.peer_netns = Some(*id),
                LinkAttribute::LinkInfo(info) => view.kind = kind(info),
                LinkAttribute::AfSpecUnspec(families) => view.forwarding = forwarding(families),
                _ => {}
            }
        }
        (!view.name.is_empty()).then_some(view)
    }

    /// Whether a link of the host's namespace carries our mark: the name, on a kind
    /// that we make.
    pub(in crate::kernel) fn is_ours(&self) -> bool {
        self.name.starts_with(LINK_PREFIX) && matches!(self.kind, Kind::Veth | Kind::Vxlan(_))
    }
}

fn kind(info: &[LinkInfo]) -> Kind {
    let mut kind = Kind::Other("link of no known kind".into());
    for part in info {
        match part {
            LinkInfo::Kind(InfoKind::Veth) => kind = Kind::Veth,
            LinkInfo::Kind(InfoKind::Bridge) => kind = Kind::Bridge,
            LinkInfo::Kind(InfoKind::Vxlan) => kind = Kind::Vxlan(Vxlan::default()),
            LinkInfo::Kind(other) => kind = Kind::Other(format!("{other:?}").to_lowercase()),
            LinkInfo::Data(InfoData::Vxlan(attributes)) => kind = Kind::Vxlan(vxlan(attributes)),
            _ => {}
        }
    }
    kind
}

fn vxlan(attributes: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(ip) => vxlan.local = Some(*ip),
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::Proxy(on) => vxlan.proxy = *on,
            InfoVxlan::CollectMetadata(on) => vxlan.external = *on,
            _ => {}
        }
    }
    vxlan
}

fn forwarding(families: &[AfSpecUnspec]) -> bool {
    families.iter().any(|family| match family {
        AfSpecUnspec::Inet(parts) => parts
            .iter()
            .any(|part| matches!(part, AfSpecInet::DevConf(conf) if conf.forwarding != 0)),
        _ => false,
    })
}
