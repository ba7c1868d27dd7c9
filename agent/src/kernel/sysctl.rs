//! Sysctls of links. `/proc/sys/net` shows the namespace of the thread that looks,
//! so all of this runs on threads inside the namespace.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::plan::Sysctl;

use super::netns::Netns;

const NET: &str = "/proc/sys/net";
/// Whether bridged packets pass iptables and nftables (br_netfilter, per namespace).
const BRIDGED: &str = "bridge/bridge-nf-call-iptables";

fn path(family: &str, link: &str, name: &str) -> PathBuf {
    [NET, family, "conf", link, name].iter().collect()
}

/// The value is on; `None` if there is no such sysctl.
fn read(path: PathBuf) -> Result<Option<bool>> {
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim() != "0")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Returns whether there is such a sysctl. What has the value already is not written.
fn write(path: PathBuf, on: bool) -> Result<bool> {
    match read(path.clone())? {
        None => return Ok(false),
        Some(value) if value == on => return Ok(true),
        Some(_) => {}
    }
    match std::fs::write(&path, if on { "1" } else { "0" }) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("writing {}", path.display())),
    }
}

/// Whether a switch of the link is on; `None` if there is no such link.
pub(super) async fn get(netns: &Netns, link: &str, switch: Sysctl) -> Result<Option<bool>> {
    let path = path("ipv4", link, &switch.to_string());
    netns.run(move || read(path)).await?
}

/// Sets a switch of the link; returns whether there is such a link.
pub(super) async fn set(netns: &Netns, link: &str, switch: Sysctl, on: bool) -> Result<bool> {
    let path = path("ipv4", link, &switch.to_string());
    netns.run(move || write(path, on)).await?
}

/// Turns IPv6 off on a link, or the kernel would speak it there (duplicate address
/// detection, router solicitations) to a network that carries none of it.
pub(super) async fn without_ipv6(netns: &Netns, link: &str) -> Result<()> {
    let path = path("ipv6", link, "disable_ipv6");
    // No such sysctl: a kernel without IPv6.
    netns.run(move || write(path, true)).await?.map(|_| ())
}

/// The number that `net.DIRECTORY.NAME` is; `None` if there is no such sysctl.
pub(super) async fn number(
    netns: &Netns,
    directory: &'static str,
    name: &'static str,
) -> Result<Option<u32>> {
    let path: PathBuf = [NET, directory, name].iter().collect();
    netns.run(move || read_number(&path)).await?
}

/// Sets it; returns whether there is such a sysctl. What has the value already is not
/// written.
pub(super) async fn set_number(
    netns: &Netns,
    directory: &'static str,
    name: &'static str,
    value: u32,
) -> Result<bool> {
    let path: PathBuf = [NET, directory, name].iter().collect();
    let work = move || match read_number(&path)? {
        None => Ok(false),
        Some(found) if found == value => Ok(true),
        Some(_) => std::fs::write(&path, value.to_string())
            .map(|()| true)
            .with_context(|| format!("writing {}", path.display())),
    };
    netns.run(work).await?
}

fn read_number(path: &Path) -> Result<Option<u32>> {
    let context = || format!("reading {}", path.display());
    match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map(Some).with_context(context),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(context),
    }
}

/// Whether bridged packets pass the firewall of this namespace.
pub(super) async fn bridged_filtered(netns: &Netns) -> Result<bool> {
    Ok(netns.run(|| read([NET, BRIDGED].iter().collect())).await??.unwrap_or(false))
}

/// Keeps bridged packets out of the firewall of this namespace.
pub(super) async fn bridged_unfiltered(netns: &Netns) -> Result<()> {
    netns.run(|| write([NET, BRIDGED].iter().collect(), false)).await?.map(|_| ())
}
