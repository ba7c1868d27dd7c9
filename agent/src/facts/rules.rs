//! Tells when somebody changes our nftables table, as `nft flush ruleset` or a firewall that
//! loads its rules anew does. Reads what the kernel announces; what is to be done about it is
//! the reconcile loop's affair.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use nix::libc;
use tokio::sync::watch;
use tracing::debug;

use crate::plan::NFT_TABLE;

/// Changes of nftables (`NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;
/// Messages of nftables (`NFNL_SUBSYS_NFTABLES`), the upper byte of their type.
const NFTABLES: u8 = 10;
/// Bytes of a netlink header, and of that and nftables' own.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
/// The attribute that names the table, of tables, chains, rules and sets alike
/// (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, ..).
const TABLE: u16 = 1;

/// Follows the network namespace that the calling process is in until nobody listens. A kernel
/// without nftables has nothing to tell.
pub(super) async fn follow(changed: watch::Sender<()>) {
    if let Err(error) = tell(&changed).await {
        debug!(%error, "changes of the rules are seen by the next full pass");
    }
}

async fn tell(changed: &watch::Sender<()>) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(GROUP)?;
    loop {
        let is_ours = match socket.recv_from_full().await {
            Ok((bytes, _)) => is_ours(&bytes),
            // Too many to be told.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => true,
            Err(error) => return Err(error),
        };
        if is_ours && changed.send(()).is_err() {
            return Ok(());
        }
    }
}

/// Whether one of these messages is about our table. Pure.
fn is_ours(mut bytes: &[u8]) -> bool {
    while let Some(length) = bytes.first_chunk().map(|b| u32::from_ne_bytes(*b) as usize) {
        let Some(message) = bytes.get(..length).filter(|m| m.len() >= HEADER) else { return false };
        // The type is in the machine's order; its upper byte is the subsystem.
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let attributes = message.get(HEADERS..).unwrap_or_default();
        if (kind >> 8) as u8 == NFTABLES && table(attributes) == Some(NFT_TABLE.as_bytes()) {
            return true;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// The name of the table among these attributes.
fn table(mut attributes: &[u8]) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let attribute = attributes.get(..length)?;
        if u16::from_ne_bytes(*attribute.get(2..)?.first_chunk()?) == TABLE {
            return attribute.get(4..)?.strip_suffix(&[0]);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of nftables with these attributes.
    fn message(kind: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; HEADERS];
        for (number, value) in attributes {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(number.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let length = body.len() as u32;
        body[..4].copy_from_slice(&length.to_ne_bytes());
        body[4..6].copy_from_slice(&(u16::from(NFTABLES) << 8 | u16::from(kind)).to_ne_bytes());
        body
    }

    #[test]
    fn only_our_table_is_ours() {
        const DELTABLE: u8 = 2;
        const DELRULE: u8 = 8;
        const NEWGEN: u8 = 15;
        let ours = message(DELTABLE, &[(2, &[0; 4]), (TABLE, b"netagent\0")]);
        assert!(is_ours(&ours));
        let theirs = message(DELRULE, &[(TABLE, b"filter\0"), (3, b"netagent\0")]);
        let generation = message(NEWGEN, &[(1, &7_u32.to_be_bytes())]);
        assert!(!is_ours(&theirs) && !is_ours(&generation));
        assert!(is_ours(&[theirs, ours.clone(), generation].concat()));
        for end in 0..ours.len() {
            assert!(!is_ours(&ours[..end]), "broken off at {end}");
        }
        let mut other = ours;
        other[5] = 1;
        other[4] = 1;
        assert!(!is_ours(&other), "of another subsystem");
    }
}
