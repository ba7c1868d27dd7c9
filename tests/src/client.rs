//! Clients of services, in this process: a thread enters a network namespace and opens
//! its sockets there.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Result, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

/// Longest that a client waits for an answer.
pub const ANSWER: Duration = Duration::from_secs(5);

/// Runs `work` on a thread of its own inside a network namespace.
///
/// # Panics
/// If the namespace cannot be entered, or `work` panics.
pub fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(netns).expect("a network namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("entering a network namespace");
            work()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A connection to a `test-backend`.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
    /// Name of the backend.
    pub backend: String,
    /// Whom the backend sees.
    pub seen: SocketAddr,
}

impl Connection {
    /// Connects and hears who answers.
    ///
    /// # Errors
    /// Of the connection, and if the backend says nothing within [`ANSWER`].
    pub fn open(to: SocketAddrV4) -> Result<Self> {
        Self::greeted(TcpStream::connect_timeout(&to.into(), ANSWER)?)
    }

    /// The same from a port chosen here, which may be used for several destinations at once.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn open_from(port: u16, to: SocketAddrV4) -> Result<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        let at = |address: SocketAddrV4| SockaddrIn::from(address);
        use std::os::fd::AsRawFd as _;
        bind(socket.as_raw_fd(), &at(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
        setsockopt(&socket, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
        connect(socket.as_raw_fd(), &at(to))?;
        Self::greeted(TcpStream::from(socket))
    }

    fn greeted(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(ANSWER))?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let (backend, seen) = line
            .trim_end()
            .split_once(' ')
            .ok_or_else(|| std::io::Error::other(format!("greeted with {line:?}")))?;
        let seen = seen.parse().map_err(std::io::Error::other)?;
        Ok(Self { backend: backend.to_owned(), seen, reader })
    }

    /// Sends a line and hears it again.
    ///
    /// # Errors
    /// If the connection is gone, or nothing comes within [`ANSWER`].
    pub fn echo(&mut self, word: &str) -> Result<()> {
        writeln!(self.reader.get_mut(), "{word}")?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        if line.trim_end() == word { Ok(()) } else { Err(std::io::Error::other(line)) }
    }

    /// Waits until the other side ends the connection; how it did.
    ///
    /// # Errors
    /// The reset, or a timeout.
    pub fn ended(&mut self) -> Result<usize> {
        self.reader.read_line(&mut String::new())
    }
}

/// Asks a `test-backend` by UDP; its name and whom it sees.
///
/// # Errors
/// If no answer comes within `patience`.
pub fn ask(socket: &UdpSocket, to: SocketAddrV4, patience: Duration) -> Result<(String, String)> {
    socket.set_read_timeout(Some(patience))?;
    socket.send_to(b"?", to)?;
    let mut bytes = [0; 4096];
    loop {
        let (n, from) = socket.recv_from(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
        let mut words = text.split(' ').map(str::to_owned);
        if from != SocketAddr::from(to) {
            return Err(std::io::Error::other(format!("answered from {from}, asked {to}")));
        }
        if let (Some(name), Some(seen)) = (words.next(), words.next()) {
            return Ok((name, seen));
        }
    }
}
