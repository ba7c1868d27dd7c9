//! From the links of all namespaces to those that are ours, as state.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use futures::StreamExt;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use crate::plan::{Key, LINK_PREFIX, Link, Ns, State, Sysctl, Value};

use super::super::netlink::collected;
use super::super::netns::Netns;
use super::super::sysctl;
use super::view::Vxlan;
use super::{Kind, View, all};

/// The links of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::kernel) struct Scene {
    pub(in crate::kernel) links: BTreeMap<u32, View>,
    /// Other namespaces by the identifiers that they have in this one.
    pub(in crate::kernel) ids: BTreeMap<i32, Ns>,
    /// Bridged packets pass this namespace's firewall.
    pub(in crate::kernel) bridged_filtered: bool,
}

/// What of the links is ours.
#[derive(Debug, Default)]
pub(in crate::kernel) struct Seen {
    /// Links and the forwarding of our own.
    pub(in crate::kernel) state: State,
    /// Names of our links by index, inner ends in workloads included.
    pub(in crate::kernel) links: BTreeMap<Ns, BTreeMap<u32, String>>,
}

/// The identifier of `other` in `netns`; `None` while it has none.
pub(in crate::kernel) async fn id_of(netns: &Netns, other: &Netns) -> Result<Option<i32>> {
    let mut message = NsidMessage::default();
    let fd = u32::try_from(other.fd()).expect("a descriptor is not negative");
    message.attributes = vec![NsidAttribute::Fd(fd)];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message));
    request.header.flags = NLM_F_REQUEST;
    let replies = netns.netlink.clone().request(request)?.map(|reply| match reply.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(message)) => Ok(Some(message)),
        NetlinkPayload::Error(error) => Err(rtnetlink::Error::NetlinkError(error)),
        _ => Ok(None),
    });
    let replies = collected(replies).await.context("asking for a namespace's identifier")?;
    Ok(replies.into_iter().flatten().flat_map(|message| message.attributes).find_map(|attribute| {
        match attribute {
            NsidAttribute::Id(id) if id >= 0 => Some(id),
            _ => None,
        }
    }))
}

/// Looks at one namespace. `others` are those in which the other ends of its veths can
/// be; none need be given for a workload's.
pub(in crate::kernel) async fn scene(
    netns: &Netns,
    others: impl Iterator<Item = (&Ns, &Netns)>,
) -> Result<Scene> {
    let links: BTreeMap<u32, View> = all(netns).await?.into_iter().map(|v| (v.index, v)).collect();
    let mut ids = BTreeMap::new();
    if links.values().any(|view| view.peer_netns.is_some()) {
        for (ns, other) in others {
            if let Some(id) = id_of(netns, other).await? {
                ids.insert(id, ns.clone());
            }
        }
    }
    let has_bridge = links.values().any(|view| view.kind == Kind::Bridge);
    let bridged_filtered = has_bridge && sysctl::bridged_filtered(netns).await?;
    Ok(Scene { links, ids, bridged_filtered })
}

/// Finds what is ours. Links of the host's namespace are by their name and kind, those
/// of the namespaces in `own` by their kind, and with a veth its other end, wherever it
/// is.
pub(in crate::kernel) fn observe(scenes: &BTreeMap<Ns, Scene>, own: &[Ns]) -> Seen {
    let mut seen = Seen::default();
    for (ns, scene) in scenes {
        if *ns != Ns::Host && !own.contains(ns) {
            continue;
        }
        for view in scene.links.values() {
            let ours = match (ns, &view.kind) {
                (Ns::Host, _) => view.is_ours(),
                // Another veth here is the inner end of one in the host's namespace.
                (Ns::At(_), Kind::Veth) => view.name.starts_with(LINK_PREFIX),
                // Tunnels that the kernel itself puts into every namespace stay out.
                (Ns::At(_), kind) => matches!(kind, Kind::Vxlan(_) | Kind::Bridge),
            };
            if !ours {
                continue;
            }
            let peer = other_end(scenes, ns, scene, view);
            let link = as_link(scene, view, peer).unwrap_or_else(Link::Broken);
            seen.state.insert(Key::Link(ns.clone(), view.name.clone()), Value::Link(link));
            for (ns, view) in [Some((ns, view)), peer].into_iter().flatten() {
                seen.links.entry(ns.clone()).or_default().insert(view.index, view.name.clone());
                // What a workload forwards is its own affair.
                if view.forwarding && (*ns == Ns::Host || own.contains(ns)) {
                    let name = view.name.clone();
                    let key = Key::Sysctl(ns.clone(), name, Sysctl::Forwarding);
                    seen.state.insert(key, Value::Present);
                }
            }
        }
    }
    seen
}

/// The other end of a veth, if it is in a namespace that was looked at.
fn other_end<'a>(
    scenes: &'a BTreeMap<Ns, Scene>,
    ns: &'a Ns,
    scene: &'a Scene,
    view: &View,
) -> Option<(&'a Ns, &'a View)> {
    if view.kind != Kind::Veth {
        return None;
    }
    let ns = match view.peer_netns {
        None => ns,
        Some(id) => scene.ids.get(&id)?,
    };
    Some((ns, scenes.get(ns)?.links.get(&view.peer?)?))
}

/// A link of ours as state, or what is wrong with it.
fn as_link(scene: &Scene, view: &View, peer: Option<(&Ns, &View)>) -> Result<Link, String> {
    if !view.up {
        return Err("it is down".into());
    }
    let mtu = u16::try_from(view.mtu).map_err(|_| format!("its MTU is {}", view.mtu))?;
    let mac = view.mac.ok_or("it has no MAC address");
    let master = view.master.map(|index| name_of(scene, index));
    match &view.kind {
        Kind::Veth => {
            let (peer_ns, peer) = peer.ok_or("its other end is in none of our namespaces")?;
            if !peer.up {
                return Err("its other end is down".into());
            }
            if peer.mtu != view.mtu {
                return Err(format!("its MTU is {mtu} here and {} at the other end", peer.mtu));
            }
            Ok(Link::Veth {
                mac: mac?,
                mtu,
                master,
                peer_ns: peer_ns.clone(),
                peer: peer.name.clone(),
                peer_mac: peer.mac.ok_or("its other end has no MAC address")?,
            })
        }
        Kind::Bridge if scene.bridged_filtered => {
            Err("what it bridges passes the firewall (bridge-nf-call-iptables)".into())
        }
        Kind::Bridge => Ok(Link::Bridge { mac: mac?, mtu }),
        Kind::Vxlan(attributes) => vxlan(scene, view, attributes, mtu, master),
        other => Err(format!("it is a {}", other.name())),
    }
}

fn vxlan(
    scene: &Scene,
    view: &View,
    attributes: &Vxlan,
    mtu: u16,
    master: Option<String>,
) -> Result<Link, String> {
    if attributes.learning {
        return Err("it learns addresses".into());
    }
    let socket = view.peer_netns.map(|id| scene.ids.get(&id));
    if attributes.external {
        return match (attributes.proxy, socket) {
            (false, None) => Ok(Link::VxlanExternal { port: attributes.port, mtu }),
            (true, _) => Err("it answers ARP".into()),
            (_, Some(_)) => Err("its socket is in another namespace".into()),
        };
    }
    if !attributes.proxy {
        return Err("it does not answer ARP".into());
    }
    if socket != Some(Some(&Ns::Host)) {
        return Err("its socket is not in the host's namespace".into());
    }
    Ok(Link::Vxlan {
        vni: crate::model::Vni(attributes.vni),
        port: attributes.port,
        local: attributes.local.ok_or("it has no source address")?,
        mtu,
        master: master.ok_or("it is a port of no bridge")?,
    })
}

fn name_of(scene: &Scene, index: u32) -> String {
    scene.links.get(&index).map_or_else(|| format!("#{index}"), |view| view.name.clone())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::Mac;

    fn workload() -> Ns {
        Ns::At("/proc/42/ns/net".into())
    }

    fn bridges() -> Ns {
        Ns::At("/run/netns/na-node".into())
    }

    fn view(index: u32, name: &str, kind: Kind) -> View {
        View {
            index,
            name: name.into(),
            kind,
            mac: Some(Mac([2, 0, 0, 0, 0, u8::try_from(index).unwrap()])),
            mtu: 1450,
            up: true,
            master: None,
            peer: None,
            peer_netns: None,
            forwarding: false,
        }
    }

    fn veth(index: u32, name: &str, peer: u32, id: i32) -> View {
        View { peer: Some(peer), peer_netns: Some(id), ..view(index, name, Kind::Veth) }
    }

    fn scene(links: impl IntoIterator<Item = View>, ids: &[(i32, Ns)]) -> Scene {
        Scene {
            links: links.into_iter().map(|v| (v.index, v)).collect(),
            ids: ids.iter().cloned().collect(),
            bridged_filtered: false,
        }
    }

    /// Host: lo, eth0, na-a <-> eth0 of the workload; somebody's veth and na-named dummy.
    fn world() -> BTreeMap<Ns, Scene> {
        let host = scene(
            [
                view(1, "lo", Kind::Other("physical link".into())),
                View { forwarding: true, ..view(2, "eth0", Kind::Other("physical link".into())) },
                veth(3, "na-a", 2, 0),
                veth(4, "veth12", 9, 0),
                view(5, "na-dummy", Kind::Other("dummy".into())),
            ],
            &[(0, workload())],
        );
        let inner = View { forwarding: true, ..veth(2, "eth0", 3, 5) };
        BTreeMap::from([(Ns::Host, host), (workload(), scene([inner], &[]))])
    }

    fn edit(world: &mut BTreeMap<Ns, Scene>, ns: &Ns, index: u32, edit: impl Fn(&mut View)) {
        edit(world.get_mut(ns).unwrap().links.get_mut(&index).unwrap());
    }

    fn na_a(world: &BTreeMap<Ns, Scene>) -> Link {
        match &observe(world, &[]).state[&Key::Link(Ns::Host, "na-a".into())] {
            Value::Link(link) => link.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ours_are_ours_and_others_are_not() {
        let seen = observe(&world(), &[]);
        assert_eq!(seen.state.len(), 1, "{:?}", seen.state);
        let Link::Veth { peer_ns, peer, mtu, .. } = na_a(&world()) else { panic!() };
        assert_eq!((peer_ns, peer.as_str(), mtu), (workload(), "eth0", 1450));
        assert_eq!(seen.links[&Ns::Host], BTreeMap::from([(3, "na-a".into())]));
        assert_eq!(seen.links[&workload()], BTreeMap::from([(2, "eth0".into())]));
    }

    #[test]
    fn what_is_not_as_it_should_be_is_broken() {
        let broken = |ns: &Ns, index, change: fn(&mut View)| {
            let mut world = world();
            edit(&mut world, ns, index, change);
            matches!(na_a(&world), Link::Broken(_))
        };
        assert!(!broken(&Ns::Host, 3, |_| {}));
        assert!(broken(&Ns::Host, 3, |v| v.up = false));
        assert!(broken(&Ns::Host, 3, |v| v.mtu = 1400));
        assert!(broken(&Ns::Host, 3, |v| v.peer_netns = Some(7)));
        assert!(broken(&Ns::Host, 3, |v| v.peer = Some(8)));
        assert!(broken(&workload(), 2, |v| v.up = false));
        assert!(broken(&workload(), 2, |v| v.mtu = 1400));
    }

    #[test]
    fn forwarding_is_told_of_our_links_only() {
        let mut world = world();
        edit(&mut world, &Ns::Host, 3, |v| v.forwarding = true);
        let state = observe(&world, &[]).state;
        let told: Vec<_> = state.keys().filter(|k| matches!(k, Key::Sysctl(..))).collect();
        assert_eq!(told, [&Key::Sysctl(Ns::Host, "na-a".into(), Sysctl::Forwarding)]);
    }

    #[test]
    fn what_is_in_the_bridges_namespace_is_ours() {
        let vxlan = Vxlan {
            vni: 4096,
            port: 4789,
            local: Some(Ipv4Addr::new(192, 168, 50, 11)),
            proxy: true,
            ..Vxlan::default()
        };
        let host = scene([veth(3, "na-egress", 2, 1)], &[(1, bridges())]);
        let inside = scene(
            [
                view(1, "lo", Kind::Other("physical link".into())),
                View { forwarding: true, ..veth(2, "egress", 3, 0) },
                view(3, "br4096", Kind::Bridge),
                View {
                    master: Some(3),
                    peer_netns: Some(0),
                    ..view(4, "vx4096", Kind::Vxlan(vxlan))
                },
                view(5, "stray", Kind::Vxlan(Vxlan { learning: true, ..Vxlan::default() })),
                view(6, "tunl0", Kind::Other("ipip".into())),
            ],
            &[(0, Ns::Host)],
        );
        let mut world = BTreeMap::from([(Ns::Host, host), (bridges(), inside)]);
        let seen = observe(&world, &[bridges()]);
        let names: Vec<_> = seen.state.keys().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "link na-egress",
                "link br4096 in /run/netns/na-node",
                "link stray in /run/netns/na-node",
                "link vx4096 in /run/netns/na-node",
                "forwarding on egress in /run/netns/na-node",
            ]
        );
        let link = |seen: &Seen, name: &str| match &seen.state[&Key::Link(bridges(), name.into())] {
            Value::Link(link) => link.clone(),
            other => panic!("{other:?}"),
        };
        let Link::Vxlan { master, vni, .. } = link(&seen, "vx4096") else { panic!() };
        assert_eq!((master.as_str(), vni.0), ("br4096", 4096));
        assert!(matches!(link(&seen, "stray"), Link::Broken(_)));

        edit(&mut world, &bridges(), 4, |v| v.peer_netns = None);
        world.get_mut(&bridges()).unwrap().bridged_filtered = true;
        let seen = observe(&world, &[bridges()]);
        assert!(matches!(link(&seen, "vx4096"), Link::Broken(_)));
        assert!(matches!(link(&seen, "br4096"), Link::Broken(_)));
    }
}
