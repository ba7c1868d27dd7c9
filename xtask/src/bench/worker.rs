//! What runs inside the namespaces: `xtask bench-worker ...`, one measurement each. The
//! result is one line on stdout; a server says `ready` first. Every worker binds itself
//! to one CPU. Makes no namespace and starts nothing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use super::stats::{percentile, sorted};
use super::udp;

/// How long a server may take to answer: long enough for a SYN that is sent again after 1 s and
/// after 3 (RFC 6298), and no two minutes, as the kernel would wait for one that never is.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Work to be done in a namespace.
#[derive(Subcommand)]
pub enum Work {
    /// Echoes what comes over TCP, one connection after the other
    Echo(On),
    /// Median time in us that one byte takes there and back
    PingPong(To),
    /// Connections per second: set up, a byte each way, closed
    Connect(To),
    /// Datagrams per second that arrive, from the first one on
    UdpReceive(On),
    /// Datagrams that arrive until none does any more
    UdpCount(On),
    /// Sends datagrams as fast as it can
    UdpFlood(To),
    /// Sends packets of many datagrams (UDP_SEGMENT) as fast as it can
    UdpGso(To),
    /// Sends so many packets of many datagrams with pauses between them
    UdpGsoPaced(To),
    /// Time in ns that a datagram takes from a call in one namespace to a call in this
    /// one, all of it on one CPU
    UdpCost(From),
}

/// Where a worker works.
#[derive(Args)]
pub struct On {
    /// Its CPU
    #[arg(long)]
    cpu: usize,
    /// Its own port
    #[arg(long)]
    pub(super) port: u16,
    /// How long
    #[arg(long, default_value_t = 0.0)]
    pub(super) seconds: f64,
}

/// Whom it works with.
#[derive(Args)]
pub struct To {
    #[command(flatten)]
    pub(super) on: On,
    /// The other one's address
    #[arg(long)]
    to: Ipv4Addr,
}

/// Whom it works with, from a namespace that is not its own.
#[derive(Args)]
pub struct From {
    #[command(flatten)]
    to: To,
    /// The namespace to send from
    #[arg(long)]
    from: PathBuf,
}

impl To {
    pub(super) fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.to, self.on.port)
    }
}

impl On {
    pub(super) fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    fn bind_to_cpu(&self) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(self.cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set)
            .with_context(|| format!("cannot run on CPU {}", self.cpu))
    }
}

/// Does it.
///
/// # Errors
/// If a socket fails or nothing arrives.
pub fn run(work: &Work) -> Result<()> {
    let on = match work {
        Work::Echo(on) | Work::UdpReceive(on) | Work::UdpCount(on) => on,
        Work::PingPong(to) | Work::Connect(to) => &to.on,
        Work::UdpFlood(to) | Work::UdpGso(to) | Work::UdpGsoPaced(to) => &to.on,
        Work::UdpCost(from) => &from.to.on,
    };
    on.bind_to_cpu()?;
    match work {
        Work::Echo(on) => echo(on),
        Work::PingPong(to) => ping_pong(to).map(say),
        Work::Connect(to) => connect(to).map(say),
        Work::UdpReceive(on) => udp::receive(on).map(say),
        Work::UdpCount(on) => udp::count(on).map(say),
        Work::UdpFlood(to) => udp::flood(to),
        Work::UdpGso(to) => udp::gso(to, Duration::ZERO).map(say),
        Work::UdpGsoPaced(to) => udp::gso(to, Duration::from_micros(500)).map(say),
        Work::UdpCost(From { to, from }) => {
            let enter = || -> Result<()> {
                let from = File::open(from).with_context(|| format!("open {}", from.display()))?;
                Ok(setns(from, CloneFlags::CLONE_NEWNET)?)
            };
            let cost = udp::cost(to, enter)?;
            println!("{} {}", cost.nanoseconds, cost.datagrams);
            Ok(())
        }
    }
}

fn say(value: impl std::fmt::Display) {
    println!("{value}");
}

/// Says that the other side may begin.
pub(super) fn ready() -> Result<()> {
    println!("ready");
    Ok(std::io::stdout().flush()?)
}

fn echo(on: &On) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, on.port))?;
    ready()?;
    for stream in listener.incoming() {
        // A client that was killed is no reason to end.
        let _ = stream.map_err(Into::into).and_then(echo_one);
    }
    Ok(())
}

fn echo_one(mut stream: TcpStream) -> Result<()> {
    tune(&stream)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// The default of some systems (bbr) paces by timers: not what is to be measured.
fn tune(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::TcpCongestion, &"cubic".into())?;
    Ok(())
}

/// A connection to the server.
fn call(to: &To) -> Result<TcpStream> {
    let address = to.address();
    let stream = TcpStream::connect_timeout(&address.into(), PATIENCE)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ping_pong(to: &To) -> Result<f64> {
    let mut stream = call(to)?;
    tune(&stream)?;
    let mut times = Vec::with_capacity(1 << 18);
    let end = Instant::now() + to.on.duration();
    let mut byte = [0];
    let mut before = Instant::now();
    while before < end {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        let after = Instant::now();
        times.push((after - before).as_secs_f64() * 1e6);
        before = after;
    }
    percentile(&sorted(&times), 0.5).context("no byte came back")
}

fn connect(to: &To) -> Result<f64> {
    // Without this the closed connections of the last minute would hold all ports.
    // Of this namespace alone.
    fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0")?;
    let begin = Instant::now();
    let mut connections = 0_u32;
    while begin.elapsed() < to.on.duration() {
        let mut stream = call(to).with_context(|| format!("after {connections} connections"))?;
        let mut byte = [0];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        connections += 1;
    }
    ensure!(connections > 0, "no connection came about");
    Ok(f64::from(connections) / begin.elapsed().as_secs_f64())
}
