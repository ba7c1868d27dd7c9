//! Requests to the kernel's IPsec (XFRM) inside a namespace.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_xfrm::XfrmMessage;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_XFRM;
use nix::errno::Errno;

use super::super::exchange::{self, Exchange};
use super::super::netns::Netns;

/// Why the kernel's IPsec did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub(in crate::kernel) enum Error {
    /// It is not there.
    #[error("this kernel has no IPsec (CONFIG_XFRM_USER, module xfrm_user)")]
    Missing,
    /// The exchange with it failed.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
}

impl Error {
    /// Whether the kernel refused with this error.
    pub(super) fn is(&self, expected: Errno) -> bool {
        matches!(self, Self::Exchange(exchange::Error::Refused(errno)) if *errno == expected)
    }
}

/// A socket in a namespace.
pub(in crate::kernel) struct Client(Exchange);

impl Client {
    pub(super) async fn open(netns: &Netns) -> Result<Self, Error> {
        Self::of(netns.run(socket).await.map_err(exchange::Error::Namespace)?)
    }

    /// Of what [`socket`] returned.
    pub(super) fn of(socket: std::io::Result<Socket>) -> Result<Self, Error> {
        match socket {
            Err(error) if error.raw_os_error() == Some(nix::libc::EPROTONOSUPPORT) => {
                Err(Error::Missing)
            }
            other => Ok(Self(Exchange::of(other.map_err(exchange::Error::Socket)?))),
        }
    }

    /// Makes a change; returns when the kernel has.
    pub(super) async fn change(&mut self, message: XfrmMessage) -> Result<(), Error> {
        self.0.ask(NLM_F_ACK, message).await?;
        Ok(())
    }

    /// Asks for one thing, none if it is not there.
    pub(super) async fn get(&mut self, message: XfrmMessage) -> Result<Option<XfrmMessage>, Error> {
        match self.0.ask(NLM_F_ACK, message).await.map_err(Error::from) {
            Ok(mut answer) => Ok(answer.pop()),
            Err(error) if error.is(Errno::ESRCH) || error.is(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for all there is.
    pub(super) async fn dump(&mut self, message: XfrmMessage) -> Result<Vec<XfrmMessage>, Error> {
        Ok(self.0.ask(NLM_F_DUMP, message).await?)
    }
}

/// A socket in the calling thread's namespace.
pub(super) fn socket() -> std::io::Result<Socket> {
    exchange::socket(NETLINK_XFRM)
}
