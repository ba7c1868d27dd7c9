//! Asks the host's resolvers, from the host's own namespace, on behalf of workloads.
//! Keeps nothing: what is worth caching is cached by those resolvers.

use std::fs::Metadata;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::answer::{Question, Verdict};
use super::resolv_conf::ResolvConf;

/// Time after which an answer is given up. Less than the five seconds of the C
/// library, so that a client hears of the failure instead of guessing it.
const DEADLINE: Duration = Duration::from_millis(4500);
/// Time after which the next resolver is asked as well.
const PATIENCE: Duration = Duration::from_secs(1);
/// Questions of all workloads that may be open at one time, each with a socket.
const MAX_OPEN: usize = 1024;

/// The way to the host's resolvers.
#[derive(Debug)]
pub struct Forwarder {
    path: PathBuf,
    upstream: ArcSwap<Upstream>,
    open: Semaphore,
}

/// The resolvers as one version of the file named them.
#[derive(Debug)]
struct Upstream {
    version: Option<Version>,
    servers: Vec<SocketAddr>,
    /// Index of the one that answered last: a dead one costs time only once.
    first: AtomicUsize,
}

/// Changes whenever a file is written to or replaced: device, inode, size, and
/// time of change.
type Version = (u64, u64, u64, i64, i64);

fn version(metadata: &Metadata) -> Version {
    (metadata.dev(), metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec())
}

impl Forwarder {
    /// A forwarder to the resolvers in the file at `path`, in resolv.conf(5)'s form.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let upstream = ArcSwap::from_pointee(Upstream::read(&path));
        Self { path, upstream, open: Semaphore::new(MAX_OPEN) }
    }

    /// The search list that goes with the resolvers.
    #[must_use]
    pub fn search(&self) -> Vec<String> {
        std::fs::read_to_string(&self.path)
            .map(|text| ResolvConf::parse(&text).search)
            .unwrap_or_default()
    }

    /// The answer to `question`; SERVFAIL if nobody has one.
    pub async fn forward(&self, question: &Question) -> Vec<u8> {
        let Ok(_permit) = self.open.try_acquire() else {
            debug!("too many DNS questions are waiting for the host's resolvers");
            return question.failure(ResponseCode::ServFail);
        };
        let upstream = self.upstream();
        match ask(&upstream.servers, &upstream.first, question).await {
            Some(response) => question.relay(response),
            None => question.failure(ResponseCode::ServFail),
        }
    }

    /// The resolvers as the file names them now.
    fn upstream(&self) -> Arc<Upstream> {
        let known = self.upstream.load_full();
        let now = std::fs::metadata(&self.path).as_ref().map(version).ok();
        if known.version == now {
            return known;
        }
        let fresh = Arc::new(Upstream::read(&self.path));
        self.upstream.store(Arc::clone(&fresh));
        fresh
    }
}

impl Upstream {
    fn read(path: &PathBuf) -> Self {
        // The version is taken first: a change in between is found the next time.
        let version = std::fs::metadata(path).as_ref().map(version).ok();
        let servers = match std::fs::read_to_string(path) {
            Ok(text) => ResolvConf::parse(&text).servers,
            Err(error) => {
                warn!("cannot read {}: {error}; names outside the cluster fail", path.display());
                Vec::new()
            }
        };
        if servers.is_empty() && version.is_some() {
            warn!("{} names no resolver: names outside the cluster fail", path.display());
        }
        Self { version, servers, first: AtomicUsize::new(0) }
    }
}

/// The first good response of `servers`, beginning with number `first`, or else a bad
/// one, or none. The next server is asked when one fails, and as well when one takes
/// long; a late answer is still taken. Those that were silent are asked once more,
/// since a datagram may have been lost.
async fn ask(servers: &[SocketAddr], first: &AtomicUsize, question: &Question) -> Option<Vec<u8>> {
    let deadline = Instant::now() + DEADLINE;
    let start = first.load(Ordering::Relaxed);
    let order = (0..servers.len()).map(|i| (start + i) % servers.len());
    let mut left: Vec<usize> = order.clone().chain(order).rev().collect();
    let mut open = FuturesUnordered::new();
    let mut bad = None;
    let mut next = Instant::now();
    loop {
        if left.is_empty() && open.is_empty() {
            return bad;
        }
        tokio::select! {
            () = sleep_until(deadline) => return bad,
            () = sleep_until(next), if !left.is_empty() => {
                let index = left.pop().expect("there are some left");
                next = Instant::now() + PATIENCE;
                open.push(async move { (index, attempt(servers[index], question).await) });
            }
            Some((index, result)) = open.next(), if !open.is_empty() => {
                match result {
                    Ok(response) if Verdict::of(&response) != Verdict::Failure => {
                        first.store(index, Ordering::Relaxed);
                        return Some(response);
                    }
                    Ok(response) => bad = Some(response),
                    Err(error) => debug!("resolver {}: {error}", servers[index]),
                }
                left.retain(|other| *other != index);
                next = Instant::now();
            }
        }
    }
}

/// One server's response: over UDP, and if that is truncated, over TCP.
async fn attempt(server: SocketAddr, question: &Question) -> io::Result<Vec<u8>> {
    let response = over_udp(server, question).await?;
    if Verdict::of(&response) != Verdict::Truncated {
        return Ok(response);
    }
    match over_tcp(server, question).await {
        Ok(whole) => Ok(whole),
        Err(error) => {
            debug!("resolver {server} truncated its answer and gives no other: {error}");
            Ok(response)
        }
    }
}

async fn over_udp(server: SocketAddr, question: &Question) -> io::Result<Vec<u8>> {
    // A port of its own for each question, and a random id: hard to forge.
    let any = if server.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let id = rand::random();
    socket.send(&question.forwarded(id)).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if question.is_answered_by(&buffer[..len], id) {
            buffer.truncate(len);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Question) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let id = rand::random();
    write_framed(&mut stream, &question.forwarded(id)).await?;
    let response = read_framed(&mut stream).await?;
    if question.is_answered_by(&response, id) {
        Ok(response)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"))
    }
}

/// Reads a message as TCP carries it: two bytes of length, big-endian, before it.
pub(super) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; usize::from(len)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message as TCP carries it, in one segment if it fits.
pub(super) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "message over 65535 bytes"))?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend(len.to_be_bytes());
    framed.extend(message);
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests;
