//! Opens a DNS server's sockets; to be called on a thread that is in the workload's
//! namespace. A socket stays in the namespace that it was made in, whoever uses it.

use std::io;
use std::net::{TcpListener, UdpSocket};

use super::resolv_conf::SERVER;

/// Port of DNS.
const PORT: u16 = 53;

/// The two sockets of a DNS server.
#[derive(Debug)]
pub struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

impl Sockets {
    /// Binds 127.0.0.11:53 in the calling thread's namespace, whose loopback device
    /// must be up.
    ///
    /// # Errors
    /// `AddrInUse` if something else in the namespace serves the port.
    pub fn open() -> io::Result<Self> {
        Self::bind((SERVER, PORT).into())
    }

    pub(super) fn bind(address: std::net::SocketAddr) -> io::Result<Self> {
        let udp = UdpSocket::bind(address)?;
        let tcp = TcpListener::bind(udp.local_addr()?)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }
}
