//! What users of a cluster do while something breaks: requests, datagrams and connections
//! that stay, each way, and what became of them. Opens its sockets from threads inside
//! network namespaces; makes none, and judges nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Result, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};

/// Who waits longer than this has lost his request, or his datagram.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two requests.
const REQUESTS: Duration = Duration::from_millis(25);
/// Time between two datagrams of a flow.
const DATAGRAMS: Duration = Duration::from_millis(10);
/// Time between two lines on a connection that stays.
const LINES: Duration = Duration::from_millis(50);
/// Flows of datagrams, and connections that stay: enough for every backend to have some.
const EACH: usize = 4;

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A TCP connection of its own, a line there and back.
    Request,
    /// A datagram there and back, in a flow that lasts.
    Datagram,
    /// A TCP connection that stays: it counts once when it begins.
    Connection,
}

/// Something that was tried, and whether it came to its end.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// When it was tried; of a connection that was lost, when that was seen.
    pub(crate) at: Instant,
    pub(crate) lost: bool,
}

/// Load that runs until it is dropped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    events: Mutex<Vec<Event>>,
    standing: AtomicUsize,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, kind: Kind, at: Instant, lost: bool) {
        self.events().push(Event { kind, at, lost });
    }
}

impl Load {
    /// Begins to call the echo service at these places, each from inside a namespace.
    ///
    /// # Errors
    /// If a namespace is not there.
    pub(crate) fn start(ways: &[(PathBuf, SocketAddrV4)]) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut load = Self { shared, threads: Vec::new() };
        for (netns, to) in ways {
            load.inside(netns, *to, requests)?;
            for _ in 0..EACH {
                load.inside(netns, *to, datagrams)?;
                load.inside(netns, *to, connection)?;
            }
        }
        Ok(load)
    }

    /// What was tried since this was last called, and has come to its end.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.shared.events())
    }

    /// Connections that stay, at this moment.
    pub(crate) fn standing(&self) -> usize {
        self.shared.standing.load(Ordering::Relaxed)
    }

    fn inside(
        &mut self,
        netns: &Path,
        to: SocketAddrV4,
        work: fn(&Arc<Shared>, SocketAddrV4),
    ) -> anyhow::Result<()> {
        let file = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
        let shared = self.shared.clone();
        self.threads.push(spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            work(&shared, to);
        }));
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Requests at a steady pace, however long one takes: a thread is in its parent's namespaces.
fn requests(shared: &Arc<Shared>, to: SocketAddrV4) {
    while shared.goes_on() {
        let shared = shared.clone();
        spawn(move || {
            let at = Instant::now();
            let lost = request(to).is_err();
            shared.note(Kind::Request, at, lost);
        });
        sleep(REQUESTS);
    }
}

fn request(to: SocketAddrV4) -> Result<()> {
    let stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    (&stream).write_all(b"?\n")?;
    let mut line = String::new();
    match BufReader::new(stream).read_line(&mut line)? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// One flow of numbered datagrams.
fn datagrams(shared: &Arc<Shared>, to: SocketAddrV4) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    socket.set_read_timeout(Some(DATAGRAMS)).expect("it is no zero");
    let (mut next, mut out) = (0_u64, BTreeMap::new());
    let mut due = Instant::now();
    while shared.goes_on() {
        let now = Instant::now();
        if now >= due {
            due = now + DATAGRAMS;
            // What cannot be sent does not come back either.
            let _ = socket.send_to(&next.to_be_bytes(), to);
            out.insert(next, now);
            next += 1;
        }
        let mut bytes = [0; 8];
        if let Ok((8, from)) = socket.recv_from(&mut bytes)
            && from == SocketAddr::from(to)
            && let Some(at) = out.remove(&u64::from_be_bytes(bytes))
        {
            shared.note(Kind::Datagram, at, false);
        }
        while let Some(oldest) = out.first_entry()
            && oldest.get().elapsed() > PATIENCE
        {
            shared.note(Kind::Datagram, oldest.remove(), true);
        }
    }
}

/// One connection; another when it is lost. Silence is not a loss: TCP waits.
fn connection(shared: &Arc<Shared>, to: SocketAddrV4) {
    while shared.goes_on() {
        let Ok(stream) = TcpStream::connect_timeout(&to.into(), PATIENCE) else {
            sleep(LINES);
            continue;
        };
        shared.note(Kind::Connection, Instant::now(), false);
        shared.standing.fetch_add(1, Ordering::Relaxed);
        if converse(shared, &stream).is_err() {
            shared.note(Kind::Connection, Instant::now(), true);
        }
        shared.standing.fetch_sub(1, Ordering::Relaxed);
    }
}

fn converse(shared: &Shared, mut stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while shared.goes_on() {
        stream.write_all(b"?\n")?;
        loop {
            match reader.read_line(&mut line) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock && shared.goes_on() => {}
                Err(_) if !shared.goes_on() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        line.clear();
        sleep(LINES);
    }
    Ok(())
}

/// The other end: echoes lines and datagrams at `port`. Does not return.
///
/// # Errors
/// If the port is taken.
pub fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    spawn(move || {
        let mut bytes = [0; 64];
        // A client that is gone is no reason to end.
        while let Ok((n, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..n], from);
        }
    });
    for stream in listener.incoming() {
        spawn(move || -> Result<()> {
            let mut stream = stream?;
            let mut reader = BufReader::new(stream.try_clone()?);
            let mut line = String::new();
            while reader.read_line(&mut line)? > 0 {
                stream.write_all(line.as_bytes())?;
                line.clear();
            }
            Ok(())
        });
    }
    Ok(())
}
