//! IPVS, the kernel's load balancer, over generic netlink: its virtual and real servers
//! and how it works in a namespace of our own, where all of it is ours.

mod client;
mod message;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::plan::{IPVS_SETTINGS, Ipvs, Key, Ns, RealServer, Socket, State, Value, VirtualServer};

use super::netns::Netns;
use super::{exchange, sysctl};

pub(super) use client::Client;
pub use client::Error;
use message::{Message, command};

/// Where the settings are that `plan` names.
const SETTINGS: &str = "ipv4/vs";

/// Whether IPVS is there in this namespace.
pub(super) async fn probe(netns: &Netns) -> Result<(), Error> {
    Client::open(netns).await.map(|_| ())
}

/// The client of a namespace, kept there for the next change.
async fn with<R>(
    netns: &Netns,
    work: impl AsyncFnOnce(&mut Client) -> Result<R, Error>,
) -> Result<R, Error> {
    let mut kept = netns.ipvs.lock().await;
    let client = match &mut *kept {
        Some(client) => client,
        None => kept.insert(Client::open(netns).await?),
    };
    let result = work(client).await;
    if !matches!(result, Ok(_) | Err(Error::Exchange(exchange::Error::Refused(_)))) {
        *kept = None;
    }
    result
}

/// Adds what IPVS has in a namespace of ours to `state`: nothing if there is no IPVS.
pub(super) async fn observe(netns: &Netns, ns: &Ns, state: &mut State) -> Result<()> {
    // Its module may have been unloaded and loaded again since, under another number.
    *netns.ipvs.lock().await = None;
    let seen = with(netns, async |client| {
        let timeouts = client.get(Message::new(command::GET_CONFIG)).await?.timeouts()?;
        Ok((timeouts, servers(client).await?))
    });
    let (timeouts, servers) = match seen.await {
        Err(Error::Missing) => return Ok(()),
        other => other.context("listing the servers of IPVS")?,
    };
    let ipvs = Ipvs { timeouts, settings: settings(netns).await? };
    if ipvs != Ipvs::default() {
        state.insert(Key::Ipvs(ns.clone()), Value::Ipvs(ipvs));
    }
    for (socket, server, dests) in servers {
        state.insert(Key::VirtualServer(ns.clone(), socket), Value::VirtualServer(server));
        state.extend(dests.into_iter().map(|(address, server)| {
            (Key::RealServer(ns.clone(), socket, address), Value::RealServer(server))
        }));
    }
    Ok(())
}

type Servers = Vec<(Socket, VirtualServer, Vec<(SocketAddrV4, RealServer)>)>;

async fn servers(client: &mut Client) -> Result<Servers, Error> {
    let mut servers = Vec::new();
    for message in client.dump(Message::new(command::GET_SERVICE)).await? {
        let Some((socket, server)) = message.virtual_server()? else { continue };
        let mut dests = Vec::new();
        for message in client.dump(Message::about(command::GET_DEST, socket, None)).await? {
            dests.extend(message.real_server()?.map(|dest| (dest.address, dest.server)));
        }
        servers.push((socket, server, dests));
    }
    Ok(servers)
}

/// Makes IPVS work in this way.
pub(super) async fn put(netns: &Netns, ipvs: &Ipvs) -> Result<()> {
    // First: these files are there once IPVS is.
    let timeouts = Message::new(command::SET_CONFIG).with_timeouts(ipvs.timeouts);
    with(netns, async |client| client.change(timeouts).await).await?;
    for (name, value) in &ipvs.settings {
        if !sysctl::set_number(netns, SETTINGS, name, *value).await? {
            anyhow::bail!("this kernel's IPVS is too old: it has no net.ipv4.vs.{name}");
        }
    }
    Ok(())
}

/// Makes IPVS work as it does in a new namespace.
pub(super) async fn reset(netns: &Netns) -> Result<()> {
    match with(netns, async |_| Ok(())).await {
        Err(Error::Missing) => Ok(()),
        other => {
            other?;
            put(netns, &Ipvs::default()).await
        }
    }
}

async fn settings(netns: &Netns) -> Result<BTreeMap<&'static str, u32>> {
    let mut settings = BTreeMap::new();
    for setting in IPVS_SETTINGS {
        if let Some(value) = sysctl::number(netns, SETTINGS, setting.name).await? {
            settings.insert(setting.name, value);
        }
    }
    Ok(settings)
}

/// Makes a virtual server, or makes it be as `server` says; its connections stay.
pub(super) async fn put_virtual(
    netns: &Netns,
    socket: Socket,
    server: &VirtualServer,
) -> Result<(), Error> {
    let message = |command| Message::about(command, socket, Some(server));
    let result =
        with(netns, async |client| match client.change(message(command::NEW_SERVICE)).await {
            Err(error) if error.is(Errno::EEXIST) => {
                client.change(message(command::SET_SERVICE)).await
            }
            other => other,
        });
    match result.await {
        // The server is there or new: what is not there is its scheduler.
        Err(error) if error.is(Errno::ENOENT) => Err(Error::NoScheduler(server.scheduler.clone())),
        other => other,
    }
}

/// Makes a real server of a virtual one, or makes it be as `server` says; its connections
/// stay.
pub(super) async fn put_real(
    netns: &Netns,
    socket: Socket,
    address: SocketAddrV4,
    server: &RealServer,
) -> Result<(), Error> {
    let message = |command| Message::about(command, socket, None).with_dest(address, Some(server));
    with(netns, async |client| match client.change(message(command::NEW_DEST)).await {
        Err(error) if error.is(Errno::EEXIST) => client.change(message(command::SET_DEST)).await,
        other => other,
    })
    .await
}

/// Removes a virtual server with its real servers; it being gone is success.
pub(super) async fn delete_virtual(netns: &Netns, socket: Socket) -> Result<(), Error> {
    delete(netns, Message::about(command::DEL_SERVICE, socket, None)).await
}

/// Removes a real server; it being gone is success.
pub(super) async fn delete_real(
    netns: &Netns,
    socket: Socket,
    address: SocketAddrV4,
) -> Result<(), Error> {
    delete(netns, Message::about(command::DEL_DEST, socket, None).with_dest(address, None)).await
}

async fn delete(netns: &Netns, message: Message) -> Result<(), Error> {
    match with(netns, async |client| client.change(message).await).await {
        Err(Error::Missing) => Ok(()),
        Err(error) if error.is(Errno::ESRCH) || error.is(Errno::ENOENT) => Ok(()),
        other => other,
    }
}
