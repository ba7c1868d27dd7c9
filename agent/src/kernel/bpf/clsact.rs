//! Programs at hooks of kernels without TCX, which is before 6.6: filters of the classifier
//! `bpf` in direct-action mode, at a `clsact` qdisc. There is no link to be
//! pinned, so the filter alone holds its program. It is ours by its priority, its handle and
//! its program's name. Filters of others are left alone, and so is a qdisc that was there
//! before, or that others have come to use.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::programs::SchedClassifier;
use futures::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use nix::errno::Errno;
use rtnetlink::Handle;

use crate::plan::{Hook, Key, LINK_PREFIX, State, Value};

use super::super::ledger::Ledger;
use super::super::netlink::{acknowledged, collected, removed};
use super::hook::digest_of;
use super::pins::{Pinned, program_name};

/// Of our filters among those of a link: before those that `tc` numbers itself.
const PRIORITY: u16 = 110;
/// Handles of our filters begin with this.
const HANDLES: u32 = 0x6e61_0000;
/// Programs of netagent, of this build or another.
const NAME: &str = "netagent_";
/// All protocols, as it stands in a header (`ETH_P_ALL`).
const PROTOCOLS: [u8; 2] = [0, 3];

const INGRESS: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };
const EGRESS: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_EGRESS };
const QDISC: TcHandle = TcHandle { major: u16::MAX, minor: 0 };

fn handle(hook: Hook) -> u32 {
    let number = match hook {
        Hook::FromEndpoint => 1,
        Hook::FromOverlay => 2,
        Hook::FromUplink => 3,
        Hook::FromHost => 4,
        Hook::FromLb => 5,
        Hook::ToUplink => 6,
    };
    HANDLES | number
}

fn parent(hook: Hook) -> TcHandle {
    if hook.is_egress() { EGRESS } else { INGRESS }
}

/// One of our filters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Of its interface.
    index: u32,
    hook: Hook,
    /// Identifier of its program.
    program: u32,
}

/// What there is in a namespace.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Interfaces with a qdisc that takes such filters.
    qdiscs: BTreeSet<u32>,
    filters: Vec<Filter>,
}

impl Found {
    pub(super) fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }
}

/// Looks for our filters.
pub(super) async fn look(netlink: &Handle) -> Result<Found> {
    let qdiscs = match collected(netlink.qdisc().get().execute()).await {
        // A kernel without traffic control has none.
        Err(error) if error.is(Errno::EOPNOTSUPP) => return Ok(Found::default()),
        other => other.context("listing qdiscs")?,
    };
    let mut found = Found::default();
    for qdisc in qdiscs.iter().filter(|qdisc| qdisc.header.parent == TcHandle::CLSACT) {
        let index = qdisc.header.index;
        for side in [INGRESS, EGRESS] {
            let filters = list(netlink, index, side).await?;
            found.filters.extend(filters.iter().filter_map(parse));
        }
        found.qdiscs.extend(u32::try_from(index));
    }
    Ok(found)
}

/// The filters of an interface, ours and others.
async fn list(netlink: &Handle, index: i32, parent: TcHandle) -> Result<Vec<TcMessage>> {
    let request = netlink.traffic_filter(index).get();
    let request = if parent == INGRESS { request.ingress() } else { request.egress() };
    match collected(request.execute()).await {
        // The interface went, or the qdisc.
        Err(error) if error.is_gone() || error.is(Errno::EINVAL) => Ok(vec![]),
        // The classifier tells of itself before its filters.
        Ok(mut all) => {
            all.retain(|message| message.header.handle != TcHandle::UNSPEC);
            Ok(all)
        }
        Err(error) => Err(error).context("listing filters"),
    }
}

/// What is at a place of ours, if it is ours.
fn parse(message: &TcMessage) -> Option<Filter> {
    let hook = Hook::ALL.into_iter().find(|hook| is_at(message, *hook))?;
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let (mut ours, mut program) = (false, None);
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => ours = name.starts_with(NAME),
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
            _ => {}
        }
    }
    let index = u32::try_from(message.header.index).ok()?;
    Some(Filter { index, hook, program: program.filter(|_| ours)? })
}

fn is_at(message: &TcMessage, hook: Hook) -> bool {
    message.header.handle == handle(hook).into() && message.header.info >> 16 == u32::from(PRIORITY)
}

/// Adds the hooks in use to `state`; returns the digests of the objects in use. `names` has
/// the host's links by index.
pub(super) fn observe(
    found: &Found,
    names: &BTreeMap<u32, String>,
    programs: &[Pinned],
    state: &mut State,
) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for filter in &found.filters {
        let Some(link) = names.get(&filter.index) else { continue };
        let digest = digest_of(programs, filter.program, filter.hook);
        used.insert(digest.clone());
        state.insert(Key::Hook(link.clone(), filter.hook), Value::Program(digest));
    }
    used
}

/// Strikes qdiscs out of the ledger that are gone.
pub(super) fn forget(
    found: &Found,
    names: &BTreeMap<u32, String>,
    ledger: &mut Ledger,
) -> Result<()> {
    let there: BTreeSet<&String> =
        found.qdiscs.iter().filter_map(|index| names.get(index)).collect();
    ledger.change(|entries| entries.qdiscs.retain(|link| there.contains(link)))
}

/// A hook of a link.
pub(super) struct At<'a> {
    /// Of the link's namespace.
    pub(super) netlink: &'a Handle,
    pub(super) link: &'a str,
    /// Of the link.
    pub(super) index: u32,
    pub(super) hook: Hook,
}

/// Attaches the program pinned at `pin`, in the place of another of ours if there is one: no
/// packet passes in between.
pub(super) async fn put(at: &At<'_>, ledger: &mut Ledger, pin: &Path) -> Result<()> {
    let At { netlink, link, hook, .. } = *at;
    let index = at.index()?;
    let program =
        SchedClassifier::from_pin(pin).with_context(|| format!("opening {}", pin.display()))?;
    make_qdisc(at, ledger).await.context("making the clsact qdisc")?;
    let there = list(netlink, index, parent(hook)).await?;
    let side = if hook.is_egress() { "egress" } else { "ingress" };
    ensure!(
        there.iter().all(|other| !is_at(other, hook) || parse(other).is_some()),
        "a filter that is not ours has our place: remove it (`tc filter del dev {link} {side} \
         prio {PRIORITY}`)"
    );
    let descriptor = program.fd()?.as_fd().as_raw_fd();
    let mut message = filter(index, hook);
    message.attributes = vec![
        TcAttribute::Kind("bpf".into()),
        TcAttribute::Options(
            [
                TcFilterBpfOption::ProgFd(descriptor.cast_unsigned()),
                TcFilterBpfOption::ProgName(program_name(hook).into()),
                TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
            ]
            .map(TcOption::Bpf)
            .into(),
        ),
    ];
    let message = RouteNetlinkMessage::NewTrafficFilter(message);
    acknowledged(request(netlink, message, NLM_F_CREATE))
        .await
        .context("attaching the program (clsact)")
}

/// Detaches the program. With the last filter goes the qdisc, if we made it.
pub(super) async fn delete(at: &At<'_>, ledger: &mut Ledger) -> Result<()> {
    let At { netlink, link, hook, .. } = *at;
    let index = at.index()?;
    let there = list(netlink, index, parent(hook)).await?;
    if there.iter().filter_map(parse).any(|filter| filter.hook == hook) {
        let message = RouteNetlinkMessage::DelTrafficFilter(filter(index, hook));
        removed(request(netlink, message, 0)).await.context("detaching the program (clsact)")?;
    }
    if !ledger.entries().qdiscs.contains(link) {
        return Ok(());
    }
    let mut rest = list(netlink, index, INGRESS).await?;
    rest.append(&mut list(netlink, index, EGRESS).await?);
    if rest.is_empty() {
        let message = RouteNetlinkMessage::DelQueueDiscipline(qdisc(index));
        removed(request(netlink, message, 0)).await.context("removing the clsact qdisc")?;
    } else if rest.iter().all(|filter| parse(filter).is_some()) {
        // There is another hook of ours.
        return Ok(());
    }
    ledger.change(|entries| entries.qdiscs.remove(link))
}

/// Makes the qdisc unless there is one. That of a link of ours goes with the link; any other
/// is in the ledger before it is made.
async fn make_qdisc(at: &At<'_>, ledger: &mut Ledger) -> Result<()> {
    let link = at.link;
    let known = link.starts_with(LINK_PREFIX) || ledger.entries().qdiscs.contains(link);
    if !known {
        ledger.change(|entries| entries.qdiscs.insert(link.to_owned()))?;
    }
    let mut message = qdisc(at.index()?);
    message.attributes = vec![TcAttribute::Kind("clsact".into())];
    let message = RouteNetlinkMessage::NewQueueDiscipline(message);
    let made = acknowledged(request(at.netlink, message, NLM_F_CREATE | NLM_F_EXCL)).await;
    if made.is_err() && !known {
        ledger.change(|entries| entries.qdiscs.remove(link))?;
    }
    match made {
        Err(error) if error.is(Errno::EEXIST) => Ok(()),
        other => Ok(other?),
    }
}

impl At<'_> {
    fn index(&self) -> Result<i32> {
        i32::try_from(self.index).context("an interface's index is positive")
    }
}

fn qdisc(index: i32) -> TcMessage {
    let mut message = TcMessage::with_index(index);
    message.header.handle = QDISC;
    message.header.parent = TcHandle::CLSACT;
    message
}

fn filter(index: i32, hook: Hook) -> TcMessage {
    let mut message = TcMessage::with_index(index);
    message.header.handle = handle(hook).into();
    message.header.parent = parent(hook);
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(u16::from_ne_bytes(PROTOCOLS));
    message
}

/// Sends a request that the crate has no words for.
async fn request(
    netlink: &Handle,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<(), rtnetlink::Error> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut replies = netlink.clone().request(message)?;
    while let Some(reply) = replies.next().await {
        if let NetlinkPayload::Error(error) = reply.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(hook: Hook, name: &str) -> TcMessage {
        let mut message = filter(7, hook);
        let options = [TcFilterBpfOption::ProgName(name.into()), TcFilterBpfOption::ProgId(9)];
        message.attributes = vec![TcAttribute::Options(options.map(TcOption::Bpf).into())];
        message
    }

    #[test]
    fn every_hook_has_a_place_of_its_own() {
        for hook in Hook::ALL {
            assert_eq!(
                parse(&observed(hook, program_name(hook))),
                Some(Filter { index: 7, hook, program: 9 })
            );
        }
    }

    #[test]
    fn another_place_or_name_is_not_ours() {
        for (handle, priority) in [(1, u32::from(PRIORITY)), (HANDLES | 1, 1), (HANDLES, 110)] {
            let mut message = observed(Hook::FromUplink, NAME);
            message.header.handle = handle.into();
            message.header.info = priority << 16;
            assert_eq!(parse(&message), None);
        }
        assert_eq!(parse(&observed(Hook::FromUplink, "cil_from_netdev")), None);
    }
}
