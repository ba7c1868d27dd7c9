//! A generic netlink socket inside a namespace: one request at a time, and one way to
//! fail.

use std::fmt::Debug;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::time::Duration;

use futures::future::poll_fn;
use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{AsyncSocket, Socket, TokioSocket};
use nix::errno::Errno;

use super::super::netns::Netns;
use super::message::Message;

/// The kernel answers in microseconds, unless it loads a module first.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why IPVS did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there, and loading its module at our request did not help.
    #[error(
        "this kernel has no IPVS (CONFIG_IP_VS; if it is a module, `modprobe ip_vs`): load it, \
         or start the agent with --lb ebpf"
    )]
    Missing,
    /// It is there, but not this scheduler.
    #[error(
        "this kernel's IPVS has no scheduler {0} (module ip_vs_{0}): load it, choose another \
         (`netagent service update --scheduler`), or start the agent with --lb ebpf"
    )]
    NoScheduler(String),
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

/// A socket in a namespace that speaks to its IPVS.
pub(in crate::kernel) struct Client {
    socket: TokioSocket,
    /// Number that the kernel gave the family `IPVS`.
    family: u16,
    /// Of the last request: tells its answers from late ones to those before.
    sequence: u32,
}

impl Client {
    /// Finds IPVS in this namespace. The kernel itself loads the module if it can.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none.
    pub(super) async fn open(netns: &Netns) -> Result<Self, Error> {
        let socket = netns
            .run(|| {
                let mut socket = Socket::new(NETLINK_GENERIC)?;
                socket.bind_auto()?;
                socket.set_non_blocking(true)?;
                socket.set_cap_ack(true)?;
                std::io::Result::Ok(socket)
            })
            .await
            .map_err(Error::Namespace)??;
        // SAFETY: the descriptor was just given up by `socket`, nobody else has it.
        let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
        let mut client = Self { socket, family: 0, sequence: 0 };
        client.family = client.resolve().await?;
        Ok(client)
    }

    async fn resolve(&mut self) -> Result<u16, Error> {
        let request = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(Message::family_name().to_owned())],
        };
        let replies = match self.exchange(NLM_F_ACK, request).await {
            Err(error) if error.is(Errno::ENOENT) => return Err(Error::Missing),
            other => other?,
        };
        let id = replies.iter().flat_map(|reply| &reply.nlas).find_map(|nla| match nla {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
        id.ok_or_else(|| DecodeError::from("a family without a number").into())
    }

    /// Makes a change; returns when the kernel has.
    pub(super) async fn change(&mut self, message: Message) -> Result<(), Error> {
        self.exchange(NLM_F_ACK, message).await.map(|_| ())
    }

    /// Asks for one thing.
    pub(super) async fn get(&mut self, message: Message) -> Result<Message, Error> {
        let reply = self.exchange(NLM_F_ACK, message).await?.pop();
        reply.ok_or_else(|| DecodeError::from("no answer").into())
    }

    /// Asks for all there is.
    pub(super) async fn dump(&mut self, message: Message) -> Result<Vec<Message>, Error> {
        self.exchange(NLM_F_DUMP, message).await
    }

    async fn exchange<F>(&mut self, flags: u16, payload: F) -> Result<Vec<F>, Error>
    where
        F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Debug,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = GenlMessage::from_payload(payload);
        message.set_resolved_family_id(self.family);
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

/// Reads what came in one datagram; returns whether it was the end of the answer.
pub(super) fn read<F>(
    mut datagram: &[u8],
    sequence: u32,
    answer: &mut Vec<F>,
) -> Result<bool, Error>
where
    F: ParseableParametrized<[u8], GenlHeader> + Debug,
{
    while !datagram.is_empty() {
        let message = NetlinkMessage::<GenlMessage<F>>::deserialize(datagram)?;
        let length = usize::try_from(message.header.length).expect("it is within the datagram");
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::InnerMessage(message) => answer.push(message.into_parts().1),
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
