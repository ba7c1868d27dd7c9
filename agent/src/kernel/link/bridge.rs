//! The bridge of a network, in the bridges' namespace.

use anyhow::{Context, Result};
use nix::errno::Errno;
use rtnetlink::LinkBridge;

use crate::model::Mac;

use super::super::sysctl;
use super::{Kind, Netns, Settings, View, acknowledged, by_name, quiet, remove, settle};

pub(super) async fn put(
    netns: &Netns,
    found: Option<View>,
    name: &str,
    mac: Mac,
    mtu: u16,
) -> Result<()> {
    sysctl::bridged_unfiltered(netns).await?;
    let settings = Settings { mac: Some(mac), mtu, master: None };
    if let Some(view) = found {
        if view.kind == Kind::Bridge {
            return settle(netns, &view, &settings).await.context("configuring the bridge");
        }
        remove(netns, &view).await?;
    }
    // Multicast snooping would need a querier to work; the networks carry none.
    let request = LinkBridge::new(name).down().mcast_snooping(false).build();
    match acknowledged(netns.netlink.link().add(request).execute()).await {
        Err(error) if error.is(Errno::EOPNOTSUPP) => {
            Err(error).context("this kernel has no bridge (CONFIG_BRIDGE, module bridge)")?;
        }
        other => other.context("creating the bridge")?,
    }
    let view = by_name(netns, name).await?.context("vanished while it was being made")?;
    quiet(netns, name).await?;
    let settled = settle(netns, &view, &settings).await;
    if settled.is_err() {
        // Half a link is worse than none; the first error is the one to tell.
        let _ = remove(netns, &view).await;
    }
    settled.context("configuring the bridge")
}
