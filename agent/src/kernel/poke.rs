//! Telling a TCP client that its connection has lost its backend, without knowing where in
//! the connection it is: it gets one segment that can hardly be the next one, answers with
//! an acknowledgement of what it has (RFC 9293, 3.10.7.4), and that finds another backend,
//! which knows no such connection and resets it. So even a client that only waits
//! learns it at once.

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use tracing::debug;

use crate::model::Mac;
use crate::plan::flow::{Orphan, Place};

/// Half of the space of sequence numbers: of two that are so far apart no window holds both.
const APART: u32 = 1 << 31;
const TTL: u8 = 64;
const TCP: u8 = 6;
const ACK: u8 = 0x10;
const DONT_FRAGMENT: u16 = 0x4000;
const IPV4: usize = 20;
const LENGTH: usize = 40;

/// Sends to all of them; returns how many it was sent to. A client that cannot be sent to
/// is gone itself.
pub(super) fn poke(orphans: &[Orphan]) -> Result<usize> {
    if orphans.is_empty() {
        return Ok(0);
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let routed = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)
        .context("opening a raw socket")?;
    let frames = socket(AddressFamily::Packet, SockType::Datagram, flags, None)
        .context("opening a packet socket")?;
    let mut sent = 0;
    for orphan in orphans {
        let sequence = rand::random();
        let send = |sequence| {
            let segment = segment(orphan, sequence);
            match orphan.place {
                Place::Routed => route(&routed, orphan.client, &segment),
                Place::Port(index) => put(&frames, index, orphan.client.0, &segment),
            }
        };
        match send(sequence).and_then(|()| send(sequence.wrapping_add(APART))) {
            Ok(()) => sent += 1,
            Err(error) => debug!(?orphan, %error, "not told that its backend is gone"),
        }
    }
    Ok(sent)
}

/// By the host's routes.
fn route(socket: &OwnedFd, to: (Ipv4Addr, u16), packet: &[u8]) -> io::Result<()> {
    let to = SockaddrIn::from(SocketAddrV4::new(to.0, 0));
    sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty())?;
    Ok(())
}

/// Into the workload behind interface `index`.
fn put(socket: &OwnedFd, index: u32, to: Ipv4Addr, packet: &[u8]) -> io::Result<()> {
    let Mac(mac) = Mac::of(to);
    // SAFETY: it is plain numbers, for which 0 is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    address.sll_halen = mac.len() as u8;
    address.sll_addr[..mac.len()].copy_from_slice(&mac);
    // SAFETY: packet and address are there until it returns, with these lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A bare acknowledgement from whom the client called, as an IPv4 packet.
fn segment(orphan: &Orphan, sequence: u32) -> [u8; LENGTH] {
    let (client, called) = (orphan.client, orphan.called);
    let mut packet = [0; LENGTH];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(LENGTH as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
    packet[8] = TTL;
    packet[9] = TCP;
    packet[12..16].copy_from_slice(&called.0.octets());
    packet[16..20].copy_from_slice(&client.0.octets());
    let sum = checksum(&packet[..IPV4], 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());

    let segment = &mut packet[IPV4..];
    segment[0..2].copy_from_slice(&called.1.to_be_bytes());
    segment[2..4].copy_from_slice(&client.1.to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    // What is acknowledged is as unlikely as what is sent.
    segment[8..12].copy_from_slice(&sequence.rotate_left(16).to_be_bytes());
    segment[12] = ((LENGTH - IPV4) as u8 / 4) << 4;
    segment[13] = ACK;
    let addresses = [called.0.octets(), client.0.octets()].concat();
    let pseudo = checksum_of(&addresses) + u32::from(TCP) + (LENGTH - IPV4) as u32;
    let sum = checksum(segment, pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn checksum_of(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum()
}

/// RFC 1071, of an even number of bytes; `sum` is that of what comes before.
fn checksum(bytes: &[u8], sum: u32) -> u16 {
    let mut sum = sum + checksum_of(bytes);
    while sum > u32::from(u16::MAX) {
        sum = (sum & u32::from(u16::MAX)) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_well_formed() {
        let orphan = Orphan {
            client: (Ipv4Addr::new(10, 0, 0, 2), 40_000),
            called: (Ipv4Addr::new(10, 0, 0, 200), 80),
            place: Place::Routed,
        };
        let packet = segment(&orphan, 0x0102_0304);
        assert_eq!(checksum(&packet[..20], 0), 0, "a header with its checksum sums to nothing");
        let mut pseudo = vec![10, 0, 0, 200, 10, 0, 0, 2, 0, 6, 0, 20];
        pseudo.extend(&packet[20..]);
        assert_eq!(checksum(&pseudo, 0), 0);
        assert_eq!(packet[20..24], [0, 80, 156, 64]);
        assert_eq!(packet[33], ACK);
    }
}
