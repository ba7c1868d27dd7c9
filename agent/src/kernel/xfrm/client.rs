//! A netlink socket to the kernel's IPsec (XFRM) inside a namespace: one request at a time,
//! and one way to fail. Nothing of a message is ever logged: it may hold a key.

use std::os::fd::{FromRawFd, IntoRawFd};
use std::time::Duration;

use futures::future::poll_fn;
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_xfrm::XfrmMessage;
use netlink_sys::protocols::NETLINK_XFRM;
use netlink_sys::{AsyncSocket, Socket, TokioSocket};
use nix::errno::Errno;

use super::super::netns::Netns;

/// The kernel answers in microseconds, unless it loads a module first.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why the kernel's IPsec did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub(in crate::kernel) enum Error {
    /// It is not there.
    #[error("this kernel has no IPsec (CONFIG_XFRM_USER, module xfrm_user)")]
    Missing,
    /// The kernel refused.
    #[error("{}", .0.desc())]
    Refused(Errno),
    /// The kernel did not answer.
    #[error("the kernel did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The kernel's answer makes no sense to us.
    #[error("the kernel's answer cannot be read: {0}")]
    Malformed(#[from] DecodeError),
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The namespace could not be entered.
    #[error("{0:#}")]
    Namespace(anyhow::Error),
}

impl Error {
    /// Whether the kernel refused with this error.
    pub(super) fn is(&self, expected: Errno) -> bool {
        matches!(self, Self::Refused(errno) if *errno == expected)
    }
}

/// A socket in a namespace.
pub(in crate::kernel) struct Client {
    socket: TokioSocket,
    /// Of the last request: tells its answers from late ones to those before.
    sequence: u32,
}

impl Client {
    pub(super) async fn open(netns: &Netns) -> Result<Self, Error> {
        Self::of(netns.run(socket).await.map_err(Error::Namespace)?)
    }

    /// Of what [`socket`] returned.
    pub(super) fn of(socket: std::io::Result<Socket>) -> Result<Self, Error> {
        let socket = match socket {
            Err(error) if error.raw_os_error() == Some(nix::libc::EPROTONOSUPPORT) => {
                return Err(Error::Missing);
            }
            other => other?,
        };
        // SAFETY: the descriptor was just given up by `socket`, nobody else has it.
        let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a change; returns when the kernel has.
    pub(super) async fn change(&mut self, message: XfrmMessage) -> Result<(), Error> {
        self.exchange(NLM_F_ACK, message).await.map(|_| ())
    }

    /// Asks for one thing, none if it is not there.
    pub(super) async fn get(&mut self, message: XfrmMessage) -> Result<Option<XfrmMessage>, Error> {
        match self.exchange(NLM_F_ACK, message).await {
            Ok(mut answer) => Ok(answer.pop()),
            Err(error) if error.is(Errno::ESRCH) || error.is(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for all there is.
    pub(super) async fn dump(&mut self, message: XfrmMessage) -> Result<Vec<XfrmMessage>, Error> {
        self.exchange(NLM_F_DUMP, message).await
    }

    async fn exchange(
        &mut self,
        flags: u16,
        message: XfrmMessage,
    ) -> Result<Vec<XfrmMessage>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let answer = async {
            poll_fn(|context| self.socket.poll_send(context, &bytes)).await?;
            let mut answer = Vec::new();
            loop {
                let received = poll_fn(|context| self.socket.poll_recv_from_full(context)).await?;
                if read(&received.0, self.sequence, &mut answer)? {
                    return Ok(answer);
                }
            }
        };
        tokio::time::timeout(TIMEOUT, answer).await.map_err(|_| Error::Timeout)?
    }
}

/// A socket in the calling thread's namespace.
pub(super) fn socket() -> std::io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_XFRM)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    socket.set_cap_ack(true)?;
    Ok(socket)
}

/// Reads what came in one datagram; returns whether it was the end of the answer.
fn read(mut datagram: &[u8], sequence: u32, answer: &mut Vec<XfrmMessage>) -> Result<bool, Error> {
    while !datagram.is_empty() {
        let message = NetlinkMessage::<XfrmMessage>::deserialize(datagram)?;
        let length = usize::try_from(message.header.length).expect("it is within the datagram");
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::InnerMessage(message) => answer.push(message),
            NetlinkPayload::Done(done) => return refused(done.code).map(|()| true),
            NetlinkPayload::Error(error) => return refused(error.raw_code()).map(|()| true),
            _ => {}
        }
    }
    Ok(false)
}

/// `code` is 0 or a negative error.
fn refused(code: i32) -> Result<(), Error> {
    if code == 0 { Ok(()) } else { Err(Error::Refused(Errno::from_raw(code.saturating_neg()))) }
}
