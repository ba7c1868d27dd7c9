//! IPsec (XFRM) in the host's namespace: the associations and policies of encrypted
//! networks. Ours are told by `reqid` and priority; those of others are never touched.
//!
//! An association that is gone, or altered, is not made again: its sequence numbers, and with
//! them the nonces of AES-GCM, would begin from the start under the same key, and the
//! receiver would take all that comes for replays. Instead this node begins a new generation,
//! from which other keys follow on all nodes. What was made is in the ledger, and stays there
//! after it was removed: another node that goes and comes again must not bring it back.

mod client;
mod message;
mod probe;
mod watch;

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use netlink_packet_xfrm::{XfrmMessage, policy, state};
use nix::errno::Errno;

use crate::model::Ipsec;
use crate::plan::{self, Association, Key, Policy, State, Value, Way};

use super::ledger::Ledger;
use super::netns::Netns;

use client::{Client, Error};

pub(super) use probe::missing;
pub use watch::follow;

/// IPsec of the host's namespace.
pub(super) struct Xfrm {
    client: Option<Client>,
    /// What this kernel does for encrypted networks.
    facts: tokio::sync::watch::Sender<Ipsec>,
}

impl Xfrm {
    /// Of the generation that the ledger has, or a new one.
    pub(super) fn new(ledger: &Ledger) -> Self {
        let generation = ledger.entries().generation.unwrap_or_else(rand::random);
        let missing = Some("its kernel was not asked for IPsec".to_owned());
        let facts = Ipsec { missing, generation, worn: None };
        Self { client: None, facts: tokio::sync::watch::Sender::new(facts) }
    }

    pub(super) fn facts(&self) -> &tokio::sync::watch::Sender<Ipsec> {
        &self.facts
    }

    fn generation(&self) -> u64 {
        self.facts.borrow().generation
    }

    async fn client(&mut self, host: &Netns) -> Result<&mut Client, Error> {
        match &mut self.client {
            Some(client) => Ok(client),
            none => Ok(none.insert(Client::open(host).await?)),
        }
    }

    /// Adds what of ours there is to `state`.
    pub(super) async fn observe(&mut self, host: &Netns, state: &mut State) -> Result<()> {
        // A socket that failed is not asked again.
        self.client = None;
        let client = match self.client(host).await {
            Err(Error::Missing) => return Ok(()),
            other => other?,
        };
        let associations = associations(client).await.context("listing IPsec associations")?;
        let policies = policies(client).await.context("listing IPsec policies")?;
        state.extend(policies.iter().filter_map(message::read_policy));
        let (generation, mut worn) = (self.generation(), None);
        for found in &associations {
            let Some((key, value, used_up)) = message::read_association(found, generation) else {
                continue;
            };
            if let (Key::Association(_, index), true) = (&key, used_up) {
                worn = Some(plan::epoch_of(*index));
            }
            state.insert(key, value);
        }
        self.facts.send_if_modified(|facts| std::mem::replace(&mut facts.worn, worn) != worn);
        Ok(())
    }

    /// Makes an association, once.
    pub(super) async fn put_association(
        &mut self,
        host: &Netns,
        ledger: &mut Ledger,
        (to, index): (Ipv4Addr, u32),
        want: &Association,
    ) -> Result<()> {
        if want.generation != self.generation() {
            bail!("its keys are of a former generation; those of the new one are on their way");
        }
        let generation = self.generation();
        let made = ledger.entries().has_made(to, index);
        let client = self.client(host).await?;
        let id = XfrmMessage::GetSa(message::association_id(to, index));
        let found = match client.get(id).await? {
            Some(XfrmMessage::AddSa(found)) => message::read_association(&found, generation),
            _ => None,
        };
        let is_it = matches!(&found, Some((_, Value::Association(is), _)) if is == want);
        if made && !is_it {
            self.begin_anew(ledger)?;
            bail!(
                "it was removed or altered, and with it the count of what was sent: this node \
                 begins anew with other keys"
            );
        }
        ledger.change(|entries| entries.make(generation, to, index))?;
        if is_it {
            return Ok(());
        }
        let make = || XfrmMessage::AddSa(message::association(to, index, want));
        match client.change(make()).await {
            // What the kernel itself made while a packet waited for this one.
            Err(error) if error.is(Errno::EEXIST) => {
                delete(client, to, index).await?;
                Ok(client.change(make()).await?)
            }
            other => Ok(other?),
        }
    }

    /// Removes an association; it being gone is success.
    pub(super) async fn delete_association(
        &mut self,
        host: &Netns,
        ledger: &mut Ledger,
        (to, index): (Ipv4Addr, u32),
    ) -> Result<()> {
        let client = match self.client(host).await {
            Err(Error::Missing) => return self.begin_anew(ledger),
            client => client?,
        };
        delete(client, to, index).await?;
        if ledger.entries().associations.is_empty() {
            return Ok(());
        }
        let left = associations(client).await.context("listing IPsec associations")?;
        // With the last one there is nothing left that the past would have to be known for.
        if left.iter().any(message::is_ours) { Ok(()) } else { self.begin_anew(ledger) }
    }

    /// Begins a generation: no key that was used can be made any more.
    fn begin_anew(&mut self, ledger: &mut Ledger) -> Result<()> {
        ledger.change(|entries| {
            entries.associations.clear();
            entries.generation = None;
        })?;
        self.facts.send_modify(|facts| facts.generation = rand::random());
        Ok(())
    }

    /// Makes a policy, or makes it be as `want` says.
    pub(super) async fn put_policy(
        &mut self,
        host: &Netns,
        (way, other): (Way, Option<Ipv4Addr>),
        want: &Policy,
    ) -> Result<()> {
        let request = XfrmMessage::UpdatePolicy(message::policy(way, other, want));
        Ok(self.client(host).await?.change(request).await?)
    }

    /// Removes a policy; it being gone is success.
    pub(super) async fn delete_policy(
        &mut self,
        host: &Netns,
        way: Way,
        other: Option<Ipv4Addr>,
    ) -> Result<()> {
        let client = match self.client(host).await {
            Err(Error::Missing) => return Ok(()),
            client => client?,
        };
        let key = Key::Policy(way, other);
        for found in policies(client).await.context("listing IPsec policies")? {
            if message::read_policy(&found).is_some_and(|(is, _)| is == key) {
                let request = XfrmMessage::DeletePolicy(message::policy_id(&found));
                gone(client.change(request).await)?;
            }
        }
        Ok(())
    }
}

async fn delete(client: &mut Client, to: Ipv4Addr, index: u32) -> Result<(), Error> {
    let request = XfrmMessage::DeleteSa(message::association_id(to, index));
    gone(client.change(request).await)
}

fn gone(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if error.is(Errno::ESRCH) || error.is(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

async fn associations(client: &mut Client) -> Result<Vec<state::ModifyMessage>, Error> {
    let request = XfrmMessage::GetDumpSa(state::GetDumpMessage::default());
    let all = client.dump(request).await?.into_iter();
    Ok(all
        .filter_map(|message| match message {
            XfrmMessage::AddSa(found) => Some(found),
            _ => None,
        })
        .collect())
}

async fn policies(client: &mut Client) -> Result<Vec<policy::ModifyMessage>, Error> {
    let request = XfrmMessage::GetPolicy(policy::DelGetMessage::default());
    let all = client.dump(request).await?.into_iter();
    Ok(all
        .filter_map(|message| match message {
            XfrmMessage::AddPolicy(found) => Some(found),
            _ => None,
        })
        .collect())
}
