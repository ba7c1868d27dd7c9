//! Probes of the tunnel's path to other nodes: sends requests as VXLAN, and reads what the
//! uplink's program says of those that came in. Decides nothing.

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use netagent_common::{PROBE_ETHERTYPE, PROBE_VNI, Probe, Probed, maps as names};
use nix::libc;
use nix::time::{ClockId, clock_gettime};

use crate::model::Mac;
use crate::plan::path::{Id, SMALLEST};

use super::maps::of;
use super::pins::{Pins, map_info, open_map};

/// Bytes of the IPv4 and UDP headers in front of VXLAN's.
const IP_AND_UDP: u16 = 28;
/// The flag of a valid VNI (RFC 7348, section 5).
const VNI_VALID: u8 = 0x08;

/// The probes of the datapath under one BPF directory.
pub struct Probes {
    pins: Pins,
    /// With the number of the map that it reads.
    ring: Option<(u32, RingBuf<MapData>)>,
    /// With the address that it sends from.
    socket: Option<(Ipv4Addr, UdpSocket)>,
}

impl Probes {
    /// Those of the programs under `bpf_dir`, whether there are any yet or not.
    #[must_use]
    pub fn new(bpf_dir: &Path) -> Self {
        let pins = Pins { root: bpf_dir.to_owned(), digest: String::new() };
        Self { pins, ring: None, socket: None }
    }

    /// What came in since the last look; `None` where no datapath is loaded that could
    /// answer or hear answers.
    ///
    /// # Errors
    /// If the datapath is there and cannot be read.
    pub fn read(&mut self) -> Result<Option<Vec<Probed>>> {
        let Some(id) = map_info(&self.pins, names::PROBED)?.map(|info| info.id()) else {
            self.ring = None;
            return Ok(None);
        };
        let mut ring = match self.ring.take() {
            Some((same, ring)) if same == id => ring,
            _ => of(names::PROBED, open_map(&self.pins, names::PROBED)?.try_into())?,
        };
        let mut records = Vec::new();
        while let Some(record) = ring.next() {
            anyhow::ensure!(record.len() == size_of::<Probed>(), "a record of another netagent");
            // SAFETY: it has that length, and every bit pattern is a value.
            records.push(unsafe { record.as_ptr().cast::<Probed>().read_unaligned() });
        }
        self.ring = Some((id, ring));
        Ok(Some(records))
    }

    /// Sends a request with number `id` as an IP packet of `size` bytes; returns when, as a
    /// time of the clock that [`Probed::at`] goes by.
    ///
    /// # Errors
    /// If the host does not send it.
    pub fn send(
        &mut self,
        from: Ipv4Addr,
        to: SocketAddrV4,
        id: Id,
        size: u16,
    ) -> Result<Duration> {
        let socket = match self.socket.take() {
            Some((same, socket)) if same == from => socket,
            _ => open(from).with_context(|| format!("opening a UDP socket at {from}"))?,
        };
        let packet = packet(from, *to.ip(), id, size);
        let at = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let sent = socket.send_to(&packet, to);
        self.socket = Some((from, socket));
        sent.with_context(|| format!("sending to {to}"))?;
        Ok(at)
    }
}

/// A socket whose packets are as the datapath's are: not to be fragmented, whatever the host
/// believes the path's MTU to be, and without a UDP checksum.
fn open(from: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddrV4::new(from, 0))?;
    socket.set_nonblocking(true)?;
    set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
    Ok(socket)
}

fn set(socket: &UdpSocket, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is there until it returns, with this length.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What is in the UDP datagram: VXLAN, Ethernet, the request, zeros.
fn packet(from: Ipv4Addr, to: Ipv4Addr, id: Id, size: u16) -> Vec<u8> {
    let [_, vni @ ..] = PROBE_VNI.to_be_bytes();
    let mut packet = vec![VNI_VALID, 0, 0, 0];
    packet.extend(vni);
    packet.push(0);
    packet.extend(Mac::of(to).0);
    packet.extend(Mac::of(from).0);
    packet.extend(PROBE_ETHERTYPE);
    packet.extend(Probe::request(id).bytes());
    packet.resize(usize::from(size.max(SMALLEST) - IP_AND_UDP), 0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_the_size_that_was_asked_for() {
        let [from, to] = [1, 2].map(|last| Ipv4Addr::new(192, 0, 2, last));
        for size in [SMALLEST, 1500] {
            let packet = packet(from, to, [7; 8], size);
            assert_eq!(packet.len(), usize::from(size) - 28);
            assert_eq!(packet[..8], [8, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(packet[20..22], PROBE_ETHERTYPE);
            assert_eq!(packet[22..34], Probe::request([7; 8]).bytes());
            assert!(packet[34..].iter().all(|byte| *byte == 0));
        }
        assert_eq!(packet(from, to, [7; 8], 0).len(), 34);
    }
}
