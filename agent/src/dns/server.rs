//! The DNS server of one workload: two sockets that live in its namespace and are
//! served from the agent's process. What arrives is decided by
//! [`answer`](super::answer); here are sockets, bounds and time limits.
//!
//! The loops are our own rather than hickory-server's: that one opens a task for
//! every datagram and keeps every connection, and what is at the other end is any
//! program that runs in a workload.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode::ServFail;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::model::{Datapath, NetworkId, Snapshot};

use super::answer::{Action, Transport, answer};
use super::forward::{Forwarder, read_framed, write_framed};
use super::sockets::Sockets;
use super::zone::Zone;

/// Questions of one workload that may wait for the host's resolvers at one time.
/// More are answered SERVFAIL, so that one workload cannot starve the others.
const MAX_FORWARDED: usize = 128;
/// TCP connections of one workload at one time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 32;
/// Time that a TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after a socket error, so that one that lasts does not take a CPU.
const PAUSE: Duration = Duration::from_millis(100);

/// What the servers of all workloads share.
#[derive(Debug)]
pub struct Names {
    zone: ArcSwap<Zone>,
    forwarder: Forwarder,
}

impl Names {
    /// Follows `snapshot` for as long as it changes, for the workloads of a node with
    /// this `datapath`; forwards by `forwarder`.
    #[must_use]
    pub fn new(
        mut snapshot: watch::Receiver<Arc<Snapshot>>,
        datapath: Datapath,
        forwarder: Forwarder,
    ) -> Arc<Self> {
        let first = Zone::new(&snapshot.borrow_and_update().clone(), datapath);
        let names = Arc::new(Self { zone: ArcSwap::from_pointee(first), forwarder });
        let followed = Arc::downgrade(&names);
        tokio::spawn(async move {
            while snapshot.changed().await.is_ok() {
                let newest = snapshot.borrow_and_update().clone();
                let Some(names) = followed.upgrade() else { return };
                names.zone.store(Arc::new(Zone::new(&newest, datapath)));
            }
        });
        names
    }

    /// The search list that workloads are given.
    #[must_use]
    pub fn search(&self) -> Vec<String> {
        self.forwarder.search()
    }
}

/// The server of one workload; it ends when dropped.
#[derive(Debug)]
pub struct Server {
    asker: Arc<Asker>,
    tasks: JoinSet<()>,
}

/// Whose questions they are.
#[derive(Debug)]
struct Asker {
    names: Arc<Names>,
    networks: ArcSwap<Vec<NetworkId>>,
    forwarded: Arc<Semaphore>,
}

impl Server {
    /// Serves a workload on `networks`, in the order of its interfaces.
    ///
    /// # Errors
    /// When the sockets cannot be registered with the runtime.
    pub fn start(
        names: Arc<Names>,
        sockets: Sockets,
        networks: Vec<NetworkId>,
    ) -> io::Result<Self> {
        let udp = UdpSocket::from_std(sockets.udp)?;
        let tcp = TcpListener::from_std(sockets.tcp)?;
        let asker = Arc::new(Asker {
            names,
            networks: ArcSwap::from_pointee(networks),
            forwarded: Arc::new(Semaphore::new(MAX_FORWARDED)),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, Arc::clone(&asker)));
        tasks.spawn(serve_tcp(tcp, Arc::clone(&asker)));
        Ok(Self { asker, tasks })
    }

    /// Ends the service; the port is free when this returns.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// The workload's networks changed.
    pub fn set_networks(&self, networks: Vec<NetworkId>) {
        self.asker.networks.store(Arc::new(networks));
    }
}

impl Asker {
    fn decide(&self, packet: &[u8], transport: Transport) -> Action {
        let (zone, networks) = (self.names.zone.load(), self.networks.load());
        answer(packet, transport, &zone, &networks, &mut rand::rng())
    }
}

async fn serve_udp(socket: UdpSocket, asker: Arc<Asker>) {
    let socket = Arc::new(socket);
    let mut forwarding = JoinSet::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        while forwarding.try_join_next().is_some() {}
        let (len, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!("DNS over UDP: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        match asker.decide(&buffer[..len], Transport::Udp) {
            Action::Ignore => {}
            Action::Reply(reply) => send(&socket, &reply, client).await,
            Action::Forward(question) => {
                let Ok(permit) = Arc::clone(&asker.forwarded).try_acquire_owned() else {
                    send(&socket, &question.failure(ServFail), client).await;
                    continue;
                };
                let (socket, asker) = (Arc::clone(&socket), Arc::clone(&asker));
                forwarding.spawn(async move {
                    let reply = asker.names.forwarder.forward(&question).await;
                    send(&socket, &reply, client).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        debug!("DNS reply to {client}: {error}");
    }
}

async fn serve_tcp(listener: TcpListener, asker: Arc<Asker>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, client)) => {
                let asker = Arc::clone(&asker);
                connections.spawn(async move {
                    if let Err(error) = serve_connection(stream, &asker).await {
                        debug!("DNS over TCP with {client}: {error}");
                    }
                });
            }
            Err(error) => {
                debug!("DNS over TCP: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Answers one question after the other until the client has no more.
async fn serve_connection(mut stream: TcpStream, asker: &Asker) -> io::Result<()> {
    loop {
        let packet = match timeout(IDLE, read_framed(&mut stream)).await? {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            packet => packet?,
        };
        let reply = match asker.decide(&packet, Transport::Tcp) {
            Action::Ignore => return Ok(()),
            Action::Reply(reply) => reply,
            Action::Forward(question) => match asker.forwarded.try_acquire() {
                Ok(_permit) => asker.names.forwarder.forward(&question).await,
                Err(_) => question.failure(ServFail),
            },
        };
        timeout(IDLE, write_framed(&mut stream, &reply)).await??;
    }
}

#[cfg(test)]
mod tests;
