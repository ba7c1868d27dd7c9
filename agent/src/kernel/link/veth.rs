//! A veth whose other end is in another namespace, made there from the start.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use crate::model::Mac;

use super::{
    Kind, Netns, Settings, View, acknowledged, by_index, by_name, is_inner_end, quiet, remove,
    settle,
};

/// A veth; see `plan::Link::Veth`.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) mac: Mac,
    pub(super) mtu: u16,
    pub(super) master: Option<&'a str>,
    pub(super) peer: &'a str,
    pub(super) peer_mac: Mac,
}

pub(super) async fn put(
    netns: &Netns,
    peer_netns: &Netns,
    outside: &[Arc<Netns>],
    found: Option<View>,
    wanted: &Wanted<'_>,
) -> Result<()> {
    let master = match wanted.master {
        Some(bridge) => Some(super::index(netns, bridge).await?),
        None => None,
    };
    let ends = match found {
        Some(view) => match other_end(netns, &view, peer_netns, wanted.peer).await? {
            Some(peer) => Some((view, peer)),
            None => {
                remove(netns, &view).await?;
                None
            }
        },
        None => None,
    };
    match ends {
        Some((view, peer)) => finish(netns, &view, peer_netns, &peer, master, wanted).await,
        None => {
            let (view, peer) = create(netns, peer_netns, outside, wanted).await?;
            let finished = finish(netns, &view, peer_netns, &peer, master, wanted).await;
            if finished.is_err() {
                // Half a link is worse than none; the first error is the one to tell.
                let _ = remove(netns, &view).await;
            }
            finished
        }
    }
}

/// The other end of `view`, if `view` is a veth whose other end has this name in this
/// namespace.
async fn other_end(
    netns: &Netns,
    view: &View,
    peer_netns: &Netns,
    name: &str,
) -> Result<Option<View>> {
    let (Kind::Veth, Some(index), Some(id)) = (&view.kind, view.peer, view.peer_netns) else {
        return Ok(None);
    };
    if super::observe::id_of(netns, peer_netns).await? != Some(id) {
        return Ok(None);
    }
    Ok(by_index(peer_netns, index).await?.filter(|peer| peer.name == name))
}

async fn create(
    netns: &Netns,
    peer_netns: &Netns,
    outside: &[Arc<Netns>],
    wanted: &Wanted<'_>,
) -> Result<(View, View)> {
    if let Some(taken) = by_name(peer_netns, wanted.peer).await? {
        // The kernel takes a namespace down some time after its end, and its veths
        // with it; meanwhile these lead to no namespace.
        let orphan = taken.kind == Kind::Veth && taken.peer_netns.is_some_and(|id| id < 0);
        // One of ours under this name is of an endpoint that is no longer wanted.
        if !orphan && !is_inner_end(peer_netns, &taken, outside).await? {
            bail!(
                "a {} of that name is there already and is not ours: rename or remove it",
                taken.kind.name()
            );
        }
        remove(peer_netns, &taken).await?;
    }
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(wanted.peer.to_owned()),
        LinkAttribute::Address(wanted.peer_mac.0.to_vec()),
        LinkAttribute::Mtu(wanted.mtu.into()),
        LinkAttribute::NetNsFd(peer_netns.fd()),
    ];
    let mut request = LinkMessage::default();
    request.attributes = vec![
        LinkAttribute::IfName(wanted.name.to_owned()),
        LinkAttribute::Address(wanted.mac.0.to_vec()),
        LinkAttribute::Mtu(wanted.mtu.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    match acknowledged(netns.netlink.link().add(request).execute()).await {
        Err(error) if error.is(Errno::EOPNOTSUPP) => {
            Err(error).context("this kernel has no veth (CONFIG_VETH, module veth)")?;
        }
        other => other.context("creating the veth")?,
    }
    let gone = || "vanished while it was being made";
    let view = by_name(netns, wanted.name).await?.with_context(gone)?;
    let peer = by_name(peer_netns, wanted.peer).await?.with_context(gone)?;
    quiet(netns, wanted.name).await?;
    Ok((view, peer))
}

async fn finish(
    netns: &Netns,
    view: &View,
    peer_netns: &Netns,
    peer: &View,
    master: Option<u32>,
    wanted: &Wanted<'_>,
) -> Result<()> {
    super::sysctl::without_ipv6(peer_netns, &peer.name).await?;
    super::loopback_up(peer_netns).await?;
    let inner = Settings { mac: Some(wanted.peer_mac), mtu: wanted.mtu, master: None };
    settle(peer_netns, peer, &inner).await.context("configuring the other end")?;
    let outer = Settings { mac: Some(wanted.mac), mtu: wanted.mtu, master: Some(master) };
    settle(netns, view, &outer).await.context("configuring the veth")
}
