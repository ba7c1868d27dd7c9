//! Requests to IPVS inside a namespace, by generic netlink.

use std::fmt::Debug;

use netlink_packet_core::{DecodeError, Emitable, NLM_F_ACK, NLM_F_DUMP, ParseableParametrized};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use super::super::exchange::{self, Exchange};
use super::super::netns::Netns;
use super::message::Message;

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
    /// The exchange with it failed.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::Exchange(error.into())
    }
}

impl Error {
    /// Whether the kernel refused with this error.
    pub(super) fn is(&self, expected: Errno) -> bool {
        matches!(self, Self::Exchange(exchange::Error::Refused(errno)) if *errno == expected)
    }
}

/// A socket in a namespace that speaks to its IPVS.
pub(in crate::kernel) struct Client {
    exchange: Exchange,
    /// Number that the kernel gave the family `IPVS`.
    family: u16,
}

impl Client {
    /// Finds IPVS in this namespace. The kernel itself loads the module if it can.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none.
    pub(super) async fn open(netns: &Netns) -> Result<Self, Error> {
        let socket = netns.run(|| exchange::socket(NETLINK_GENERIC)).await;
        let socket =
            socket.map_err(exchange::Error::Namespace)?.map_err(exchange::Error::Socket)?;
        let mut client = Self { exchange: Exchange::of(socket), family: 0 };
        client.family = client.resolve().await?;
        Ok(client)
    }

    async fn resolve(&mut self) -> Result<u16, Error> {
        let request = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(Message::family_name().to_owned())],
        };
        let replies = match self.ask(NLM_F_ACK, request).await {
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
        self.ask(NLM_F_ACK, message).await.map(|_| ())
    }

    /// Asks for one thing.
    pub(super) async fn get(&mut self, message: Message) -> Result<Message, Error> {
        let reply = self.ask(NLM_F_ACK, message).await?.pop();
        reply.ok_or_else(|| DecodeError::from("no answer").into())
    }

    /// Asks for all there is.
    pub(super) async fn dump(&mut self, message: Message) -> Result<Vec<Message>, Error> {
        self.ask(NLM_F_DUMP, message).await
    }

    async fn ask<F>(&mut self, flags: u16, payload: F) -> Result<Vec<F>, Error>
    where
        F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Debug,
    {
        let mut message = GenlMessage::from_payload(payload);
        message.set_resolved_family_id(self.family);
        let answer = self.exchange.ask(flags, message).await?;
        Ok(answer.into_iter().map(|message| message.into_parts().1).collect())
    }
}
