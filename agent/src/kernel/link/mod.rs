//! Links: what one looks like, and how each kind of ours is made and kept.

mod bridge;
mod observe;
mod veth;
mod view;
mod vxlan;

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkExtentMask, LinkMessage};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::model::Mac;
use crate::plan::{LINK_PREFIX, Link, Ns, Sysctl};

use super::netlink::{self, acknowledged, collected, removed};
use super::netns::{Namespaces, Netns};
use super::sysctl;

pub(super) use observe::{Scene, observe, scene};
pub(super) use view::{Kind, View};

/// Index of `lo`, the first link of every namespace.
const LOOPBACK: u32 = 1;

/// All links of a namespace.
pub(super) async fn all(netns: &Netns) -> Result<Vec<View>> {
    // Nobody reads the statistics, which are most of a link's message.
    let mask = vec![LinkExtentMask::SkipStats];
    let request = netns.netlink.link().get().set_filter_mask(AddressFamily::Unspec, mask);
    let links = collected(request.execute()).await.context("listing links")?;
    Ok(links.iter().filter_map(View::parse).collect())
}

/// One link.
pub(super) async fn by_name(netns: &Netns, name: &str) -> Result<Option<View>> {
    let request = netns.netlink.link().get().match_name(name.to_owned());
    one(collected(request.execute()).await).with_context(|| format!("looking up link {name}"))
}

/// One link.
pub(super) async fn by_index(netns: &Netns, index: u32) -> Result<Option<View>> {
    let request = netns.netlink.link().get().match_index(index);
    one(collected(request.execute()).await).with_context(|| format!("looking up link {index}"))
}

fn one(found: Result<Vec<LinkMessage>, netlink::Error>) -> Result<Option<View>, netlink::Error> {
    match found {
        Ok(links) => Ok(links.first().and_then(View::parse)),
        Err(error) if error.is(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Index of a link that must be there.
pub(super) async fn index(netns: &Netns, name: &str) -> Result<u32> {
    let view = by_name(netns, name).await?;
    Ok(view.with_context(|| format!("there is no link {name}"))?.index)
}

/// Makes the link `name` in `ns` be as `want` says, up. Changes it in place where that
/// can be done, else makes it anew; what rested on it is gone then. `outside` are the
/// namespaces that outer ends of our veths can be in.
pub(super) async fn put(
    namespaces: &mut Namespaces,
    outside: &[Arc<Netns>],
    ns: &Ns,
    name: &str,
    want: &Link,
) -> Result<()> {
    let netns = namespaces.need(ns).await?;
    let found = by_name(&netns, name).await?;
    if let Some(view) = &found
        && !(matches!(ns, Ns::At(_)) || view.is_ours())
    {
        bail!(
            "the host has a {} named {name} that is not ours: rename or remove it",
            view.kind.name()
        );
    }
    match want {
        Link::Veth { mac, mtu, master, peer_ns, peer, peer_mac } => {
            let peer_netns = namespaces.need(peer_ns).await?;
            let wanted = veth::Wanted {
                name,
                mac: *mac,
                mtu: *mtu,
                master: master.as_deref(),
                peer,
                peer_mac: *peer_mac,
            };
            veth::put(&netns, &peer_netns, outside, found, &wanted)
                .await
                .with_context(|| format!("the other end is {peer} in {peer_ns}"))
        }
        Link::VxlanExternal { port, mtu } => {
            vxlan::put_external(&netns, found, name, *port, *mtu).await
        }
        Link::Vxlan { vni, port, local, mtu, master } => {
            let wanted =
                vxlan::Wanted { name, vni: *vni, port: *port, local: *local, mtu: *mtu, master };
            vxlan::put(&namespaces.host(), &netns, found, &wanted).await
        }
        Link::Bridge { mac, mtu } => bridge::put(&netns, found, name, *mac, *mtu).await,
        Link::Broken(why) => bail!("nobody can want a broken link ({why})"),
    }
}

/// Removes a link of ours; it being gone, or another's having its name, is success.
pub(super) async fn delete(netns: &Netns, ns: &Ns, name: &str) -> Result<()> {
    match by_name(netns, name).await? {
        Some(view) if *ns != Ns::Host || view.is_ours() => remove(netns, &view).await,
        _ => Ok(()),
    }
}

async fn remove(netns: &Netns, view: &View) -> Result<()> {
    removed(netns.netlink.link().del(view.index).execute())
        .await
        .with_context(|| format!("removing link {}", view.name))
}

/// What is common to links of every kind; only what is `Some` matters.
#[derive(Default)]
struct Settings {
    mac: Option<Mac>,
    mtu: u16,
    /// Index of the bridge; `Some(None)`: of none.
    master: Option<Option<u32>>,
}

/// The request that makes `view` have `settings` and be up, if any is needed.
fn change(view: &View, settings: &Settings) -> Option<LinkMessage> {
    let mut request = LinkMessageBuilder::<LinkUnspec>::new().index(view.index);
    let mut needed = false;
    if let Some(mac) = settings.mac.filter(|mac| view.mac != Some(*mac)) {
        request = request.address(mac.0.to_vec());
        needed = true;
    }
    if view.mtu != u32::from(settings.mtu) {
        request = request.mtu(settings.mtu.into());
        needed = true;
    }
    match settings.master {
        Some(master) if master != view.master => {
            request = request.controller(master.unwrap_or(0));
            needed = true;
        }
        _ => {}
    }
    if !view.up {
        request = request.up();
        needed = true;
    }
    needed.then(|| request.build())
}

async fn settle(netns: &Netns, view: &View, settings: &Settings) -> Result<(), netlink::Error> {
    match change(view, settings) {
        Some(request) => acknowledged(netns.netlink.link().change(request).execute()).await,
        None => Ok(()),
    }
}

/// Readies a link that was just made and is still down.
async fn quiet(netns: &Netns, name: &str) -> Result<()> {
    sysctl::without_ipv6(netns, name).await?;
    // `net.ipv4.conf.default` may say otherwise; who forwards is for the plan to say.
    sysctl::set(netns, name, Sysctl::Forwarding, false).await?;
    Ok(())
}

/// Brings `lo` up, without which a namespace cannot even talk to itself.
pub(super) async fn loopback_up(netns: &Netns) -> Result<()> {
    let up = LinkMessageBuilder::<LinkUnspec>::new().index(LOOPBACK).up().build();
    acknowledged(netns.netlink.link().change(up).execute()).await.context("setting lo up")
}

/// Whether `view` in `netns` is the inner end of a veth of ours, whose outer end is in
/// one of `outside`.
pub(super) async fn is_inner_end(
    netns: &Netns,
    view: &View,
    outside: &[Arc<Netns>],
) -> Result<bool> {
    let (Kind::Veth, Some(peer), Some(id)) = (&view.kind, view.peer, view.peer_netns) else {
        return Ok(false);
    };
    for candidate in outside {
        if observe::id_of(netns, candidate).await? == Some(id) {
            let outer = by_index(candidate, peer).await?;
            return Ok(outer.is_some_and(|outer| outer.name.starts_with(LINK_PREFIX)));
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View {
            index: 7,
            name: "na-x".into(),
            kind: Kind::Veth,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: 1450,
            up: true,
            master: Some(3),
            peer: Some(2),
            peer_netns: Some(0),
            forwarding: false,
        }
    }

    fn settings() -> Settings {
        Settings { mac: view().mac, mtu: 1450, master: Some(Some(3)) }
    }

    #[test]
    fn asks_for_nothing_when_all_is_well() {
        assert_eq!(change(&view(), &settings()), None);
        assert_eq!(change(&view(), &Settings { master: None, mac: None, ..settings() }), None);
    }

    #[test]
    fn asks_for_what_differs_only() {
        let attributes = |v: &View, s: &Settings| change(v, s).unwrap().attributes.len();
        assert_eq!(attributes(&View { mtu: 1500, ..view() }, &settings()), 1);
        assert_eq!(attributes(&View { mac: None, ..view() }, &settings()), 1);
        assert_eq!(attributes(&View { master: None, ..view() }, &settings()), 1);
        assert_eq!(attributes(&view(), &Settings { master: Some(None), ..settings() }), 1);
        assert_eq!(attributes(&View { up: false, ..view() }, &settings()), 0);
    }
}
