//! A netlink socket inside a namespace: one request at a time, and one way to fail. Nothing of a
//! message is ever logged: it may hold a key.

use std::fmt::Debug;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::time::Duration;

use futures::future::poll_fn;
use netlink_packet_core::{
    DecodeError, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{AsyncSocket, Socket, TokioSocket};
use nix::errno::Errno;

/// The kernel answers in microseconds, unless it loads a module first.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why the kernel did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    Socket(#[from] io::Error),
    /// The namespace could not be entered.
    #[error("{0:#}")]
    Namespace(anyhow::Error),
}

/// A socket for requests of one protocol.
pub(super) struct Exchange {
    socket: TokioSocket,
    /// Of the last request: tells its answers from late ones to those before.
    sequence: u32,
}

impl Exchange {
    /// Takes what [`socket`] returned.
    pub(super) fn of(socket: Socket) -> Self {
        // SAFETY: the descriptor was just given up by `socket`, nobody else has it.
        let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
        Self { socket, sequence: 0 }
    }

    /// Sends a request with these flags; returns all of the answer.
    pub(super) async fn ask<M>(&mut self, flags: u16, message: M) -> Result<Vec<M>, Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
        NetlinkPayload<M>: From<M>,
    {
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
pub(super) fn socket(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    socket.set_cap_ack(true)?;
    Ok(socket)
}

/// Reads what came in one datagram; returns whether it was the end of the answer.
pub(super) fn read<M>(
    mut datagram: &[u8],
    sequence: u32,
    answer: &mut Vec<M>,
) -> Result<bool, Error>
where
    M: NetlinkDeserializable + Debug,
{
    while !datagram.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(datagram)?;
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
