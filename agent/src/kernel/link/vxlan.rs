//! vxlan links: the one of all networks (collect metadata) and the one of each.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use netlink_packet_route::link::LinkMessage;
use nix::errno::Errno;
use rtnetlink::LinkVxlan;

use crate::model::Vni;

use super::super::netlink;
use super::view::Vxlan;
use super::{Kind, Netns, Settings, View, acknowledged, by_name, quiet, remove, settle};

/// A vxlan link of one network; see `plan::Link::Vxlan`.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) vni: Vni,
    pub(super) port: u16,
    pub(super) local: Ipv4Addr,
    pub(super) mtu: u16,
    pub(super) master: &'a str,
}

pub(super) async fn put_external(
    host: &Netns,
    found: Option<View>,
    name: &str,
    port: u16,
    mtu: u16,
) -> Result<()> {
    let wanted = Vxlan { port, external: true, ..Vxlan::default() };
    let request = LinkVxlan::new(name, 0).port(port).learning(false).collect_metadata(true).build();
    ensure(host, host, found, name, &wanted, request, &Settings { mtu, ..Settings::default() })
        .await
}

pub(super) async fn put(
    host: &Netns,
    netns: &Netns,
    found: Option<View>,
    wanted: &Wanted<'_>,
) -> Result<()> {
    let &Wanted { name, vni, port, local, mtu, master } = wanted;
    let master = super::index(netns, master).await?;
    let attributes = Vxlan {
        vni: vni.0,
        port,
        local: Some(local),
        learning: false,
        proxy: true,
        external: false,
    };
    // Asked for in the host's namespace, where its socket stays, and put into the other.
    let request = LinkVxlan::new(name, vni.0)
        .port(port)
        .local(local)
        .learning(false)
        .proxy(true)
        // RFC 7348 wants none, and nodes of the eBPF datapath leave a packet that has one
        // to their kernels.
        .udp_csum(false)
        .setns_by_fd(netns.fd())
        .build();
    let settings = Settings { mac: None, mtu, master: Some(Some(master)) };
    ensure(host, netns, found, name, &attributes, request, &settings).await
}

/// Keeps the link that was found if it is the wanted one, else makes it by `request`.
async fn ensure(
    host: &Netns,
    netns: &Netns,
    found: Option<View>,
    name: &str,
    wanted: &Vxlan,
    request: LinkMessage,
    settings: &Settings,
) -> Result<()> {
    if let Some(view) = found {
        if same(&view, wanted) && socket_in(host, netns, &view).await? {
            return settle(netns, &view, settings).await.map_err(|e| refused(e, wanted.port));
        }
        remove(netns, &view).await?;
    }
    acknowledged(host.netlink.link().add(request).execute())
        .await
        .map_err(|e| refused(e, wanted.port))?;
    let view = by_name(netns, name).await?.context("vanished while it was being made")?;
    quiet(netns, name).await?;
    let settled = settle(netns, &view, settings).await;
    if settled.is_err() {
        // Half a link is worse than none; the first error is the one to tell.
        let _ = remove(netns, &view).await;
    }
    settled.map_err(|e| refused(e, wanted.port))
}

/// Whether the attributes that cannot be changed in place are those wanted.
fn same(view: &View, wanted: &Vxlan) -> bool {
    matches!(&view.kind, Kind::Vxlan(attributes) if attributes == wanted)
}

/// Whether the UDP socket of a link in `netns` is in the host's namespace.
async fn socket_in(host: &Netns, netns: &Netns, view: &View) -> Result<bool> {
    Ok(match view.peer_netns {
        None => netns.fd() == host.fd(),
        id => super::observe::id_of(netns, host).await? == id,
    })
}

fn refused(error: netlink::Error, port: u16) -> anyhow::Error {
    if error.is(Errno::EADDRINUSE) || error.is(Errno::EEXIST) {
        return anyhow::Error::new(error).context(format!(
            "another VXLAN device or program on this host uses UDP port {port}: remove it (see \
             `ip -d link show type vxlan` and `ss -lunp`), or give the cluster another port with \
             `netagent cluster init --data-path-port`"
        ));
    }
    if error.is(Errno::EOPNOTSUPP) {
        return anyhow::Error::new(error)
            .context("this kernel has no vxlan (CONFIG_VXLAN, module vxlan)");
    }
    anyhow::Error::new(error).context("configuring the vxlan device")
}
