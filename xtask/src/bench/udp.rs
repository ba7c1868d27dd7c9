//! The UDP measurements of a worker. The receiver polls: one that sleeps would measure
//! how fast a machine wakes a process, not what the path can carry.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt, sockopt,
};

use super::worker::{On, To, ready};

/// Bytes of payload in a small datagram.
const SMALL: usize = 64;
/// Bytes of payload in each datagram of a packet of many: fits every variant's MTU.
const SEGMENT: u16 = 1200;
/// Datagrams in a packet of many.
pub(super) const SEGMENTS: usize = 10;
/// Packets of many that are sent with pauses.
pub(super) const PACED: usize = 400;
/// Datagrams in one call.
const BATCH: usize = 32;
/// Bytes that wait for the receiver at most, as the kernel accounts them.
const BUFFER: usize = 16 << 20;
/// How long the receiver leaves an empty queue alone, awake: asking it all the time takes
/// its lock from the sender's CPU, and that would be measured.
const PAUSE: Duration = Duration::from_micros(50);
/// How long the receiver waits for the first datagram.
const PATIENCE: Duration = Duration::from_secs(5);

/// Buffers for a call that carries many datagrams.
struct Batch {
    headers: MultiHeaders<SockaddrIn>,
    buffers: Vec<[u8; 2048]>,
}

impl Batch {
    fn new() -> Self {
        Self { headers: MultiHeaders::preallocate(BATCH, None), buffers: vec![[0; 2048]; BATCH] }
    }

    /// Sends to whom the socket is connected; how many were sent.
    fn send(&mut self, socket: &UdpSocket) -> Result<usize> {
        let slices: Vec<_> =
            self.buffers.iter().map(|buffer| [IoSlice::new(&buffer[..SMALL])]).collect();
        let fd = socket.as_raw_fd();
        let none = [None::<SockaddrIn>; BATCH];
        match sendmmsg(fd, &mut self.headers, &slices, none, [], MsgFlags::empty()) {
            Ok(sent) => Ok(sent.count()),
            // The queue is full, or an ICMP error of an earlier one.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED) => Ok(0),
            Err(error) => Err(error).context("cannot send datagrams"),
        }
    }

    /// How many there were, at most [`BATCH`].
    fn receive(&mut self, socket: &UdpSocket, flags: MsgFlags) -> Result<usize> {
        let mut slices: Vec<_> =
            self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut self.headers, &mut slices, flags, None) {
            Ok(received) => Ok(received.count()),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(error) => Err(error).context("cannot receive datagrams"),
        }
    }
}

fn receiver(on: &On) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, on.port))?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    Ok(socket)
}

fn sender(to: SocketAddrV4) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    Ok(socket)
}

/// Datagrams per second. The first fifth of the time is for warming up.
pub(super) fn receive(on: &On) -> Result<f64> {
    let socket = receiver(on)?;
    let mut batch = Batch::new();
    ready()?;
    wait_for_first(&socket, &mut batch)?;
    let begin = Instant::now();
    let mut counted_from = None;
    let mut datagrams = 0;
    while begin.elapsed() < on.duration() {
        if counted_from.is_none() && begin.elapsed() > on.duration() / 5 {
            (datagrams, counted_from) = (0, Some(Instant::now()));
        }
        let received = batch.receive(&socket, MsgFlags::MSG_DONTWAIT)?;
        datagrams += received;
        if received < BATCH {
            let pause = Instant::now();
            while pause.elapsed() < PAUSE {
                std::hint::spin_loop();
            }
        }
    }
    let counted = counted_from.context("the time is too short")?.elapsed();
    Ok(datagrams as f64 / counted.as_secs_f64())
}

/// Datagrams until none has come for a while, that is to say of the paced sender, which
/// begins by sending a single one. None at all is a result too.
pub(super) fn count(on: &On) -> Result<usize> {
    let socket = receiver(on)?;
    let mut batch = Batch::new();
    ready()?;
    wait_for_first(&socket, &mut batch)?;
    let (mut datagrams, mut last) = (0, Instant::now());
    while last.elapsed() < Duration::from_millis(200) {
        let received = batch.receive(&socket, MsgFlags::MSG_DONTWAIT)?;
        if received > 0 {
            (datagrams, last) = (datagrams + received, Instant::now());
        }
    }
    Ok(datagrams)
}

fn wait_for_first(socket: &UdpSocket, batch: &mut Batch) -> Result<()> {
    let begin = Instant::now();
    while batch.receive(socket, MsgFlags::MSG_DONTWAIT)? == 0 {
        ensure!(begin.elapsed() < PATIENCE, "no datagram arrives at port {socket:?}");
    }
    Ok(())
}

/// Sends as fast as it can. The receiver ends it; the time is for when that has failed.
pub(super) fn flood(to: &To) -> Result<()> {
    let socket = sender(to.address())?;
    let mut batch = Batch::new();
    let begin = Instant::now();
    while begin.elapsed() < to.on.duration() {
        batch.send(&socket)?;
    }
    Ok(())
}

/// Sends packets of many datagrams: all the time, or [`PACED`] of them with pauses;
/// how many datagrams it sent.
pub(super) fn gso(to: &To, pause: Duration) -> Result<usize> {
    let socket = sender(to.address())?;
    if !pause.is_zero() {
        // So that the receiver begins to count, and neighbours are known.
        socket.send(&[0])?;
        std::thread::sleep(Duration::from_millis(20));
    }
    setsockopt(&socket, sockopt::UdpGsoSegment, &i32::from(SEGMENT))?;
    let packet = vec![0; usize::from(SEGMENT) * SEGMENTS];
    let begin = Instant::now();
    let mut packets = 0;
    while begin.elapsed() < to.on.duration() {
        match socket.send(&packet) {
            Ok(_) => packets += 1,
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).context("cannot send with UDP_SEGMENT"),
        }
        if !pause.is_zero() {
            if packets == PACED {
                break;
            }
            std::thread::sleep(pause);
        }
    }
    Ok(packets * SEGMENTS)
}

/// What a datagram costs.
pub(super) struct Cost {
    /// Of one datagram.
    pub(super) nanoseconds: f64,
    /// How many there were.
    pub(super) datagrams: usize,
}

/// Sends a batch from the namespace that `enter` enters and receives it in this one,
/// again and again: one thread, so one CPU does all the work there is.
pub(super) fn cost(to: &To, enter: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let inbox = receiver(&to.on)?;
    inbox.set_read_timeout(Some(Duration::from_millis(100)))?;
    enter()?;
    let outbox = sender(to.address())?;
    let mut batch = Batch::new();
    let begin = Instant::now();
    let (mut datagrams, mut lost) = (0, 0);
    while begin.elapsed() < to.on.duration() {
        let sent = batch.send(&outbox)?;
        let mut received = 0;
        while received < sent {
            match batch.receive(&inbox, MsgFlags::MSG_WAITFORONE)? {
                0 => break,
                more => received += more,
            }
        }
        datagrams += received;
        lost += sent - received;
    }
    ensure!(
        datagrams > 0 && lost <= datagrams / 100,
        "{lost} datagrams were lost and {datagrams} arrived: no cost can be told"
    );
    Ok(Cost { nanoseconds: begin.elapsed().as_secs_f64() * 1e9 / datagrams as f64, datagrams })
}
