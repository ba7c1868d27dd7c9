//! Replaces the CA. A new one signs from the first step on; the former is trusted, without
//! its key, until all have renewed. Each step is one transaction, and what comes next
//! follows from what is stored alone, so a manager may be killed, or restored, in between.

use super::Error;
use super::ca::{self, Authority};
use super::decide::Decision;
use super::view::{self, View};
use crate::model::{CaRotation, Trust};

/// `next` signs from here on; `current` is the CA's certificate so far, PEM. Where a rotation
/// is under way, that one goes on.
pub(super) fn begin(view: &View, current: &str, next: &Authority) -> Decision<()> {
    let trust = view.snapshot.trust.as_ref();
    if trust.is_some_and(|trust| trust.former.is_some()) {
        return Ok((vec![], ()));
    }
    let digest = hex::encode(ca::digest(&ca::certificate(&next.certificate)?));
    let former = trust.map_or_else(|| current.to_owned(), |trust| trust.ca.clone());
    let trust = Trust { ca: next.certificate.clone(), digest, former: Some(former), forced: false };
    Ok((vec![view::put(view::CA, next), view::put(view::TRUST, &trust)], ()))
}

/// Waits for no worker any more.
pub(super) fn force(view: &View) -> Decision<()> {
    match &view.snapshot.trust {
        Some(trust) if trust.former.is_some() => {
            let trust = Trust { forced: true, ..trust.clone() };
            Ok((vec![view::put(view::TRUST, &trust)], ()))
        }
        _ => Err(Error::Conflict(
            "no rotation of the CA is under way that could be ended: `netagent cluster ca rotate` \
             begins one"
                .to_owned(),
        )),
    }
}

/// The former CA is trusted no more, once it need not be.
pub(super) fn advance(view: &View) -> Decision<()> {
    let done = view.snapshot.trust.as_ref().filter(|_| view.snapshot.is_former_ca_done());
    let ops = done.map(|trust| {
        let trust = Trust { former: None, forced: false, ..trust.clone() };
        view::put(view::TRUST, &trust)
    });
    Ok((ops.into_iter().collect(), ()))
}

/// What to tell who asks for a rotation.
pub(super) fn progress(view: &View) -> CaRotation {
    let nodes = view.snapshot.nodes.len();
    let over = CaRotation { renewed: nodes, waiting: vec![], over: true };
    view.snapshot.ca_rotation().unwrap_or(over)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Certificate, Role};
    use crate::plan::fixture;
    use crate::store::{Batch, Event, Kv, Op};

    fn commit(view: &mut View, (ops, ()): (Vec<Op>, ())) -> usize {
        let revision = view.snapshot.revision + 1;
        let event = |op| match op {
            Op::Put(key, value) => {
                Event::Put(Kv { key, value, create_revision: revision, mod_revision: revision })
            }
            Op::Delete(key) => Event::Delete(key),
        };
        let events: Vec<_> = ops.into_iter().map(event).collect();
        let count = events.len();
        view.apply(Batch { revision, events }).unwrap();
        count
    }

    fn all_renew(view: &mut View) {
        let snapshot = Arc::make_mut(&mut view.snapshot);
        let ca = snapshot.trust.as_ref().unwrap().digest.clone();
        for node in snapshot.nodes_mut() {
            node.certificate = Some(Certificate { expires: String::new(), ca: ca.clone() });
        }
    }

    #[test]
    fn one_after_the_other_and_only_what_is_due() {
        let [old, next, third] = [(); 3].map(|()| Authority::new("c").unwrap());
        let mut view = View::default();
        let mut node = fixture::node(1);
        node.role = Role::Manager;
        Arc::make_mut(&mut view.snapshot).nodes.insert(node.id.clone(), node.into());
        force(&view).unwrap_err();
        assert_eq!(commit(&mut view.clone(), advance(&view).unwrap()), 0);

        let first = begin(&view, &old.certificate, &next).unwrap();
        assert_eq!(commit(&mut view, first), 2);
        let trust = view.snapshot.trust.clone().unwrap();
        assert_eq!((&trust.ca, trust.former.as_ref()), (&next.certificate, Some(&old.certificate)));
        // A second wish joins the first, and nothing ends before all are ready.
        assert_eq!(begin(&view, &next.certificate, &third).unwrap().0.len(), 0);
        assert_eq!(advance(&view).unwrap().0.len(), 0);
        all_renew(&mut view);
        let last = advance(&view).unwrap();
        assert_eq!(commit(&mut view, last), 1);
        assert_eq!(view.snapshot.trust.as_ref().unwrap().pem(), next.certificate);
        assert_eq!(advance(&view).unwrap().0.len(), 0);
        force(&view).unwrap_err();

        // The next time, what is trusted says which was the last.
        let again = begin(&view, "", &third).unwrap();
        commit(&mut view, again);
        let forced = force(&view).unwrap();
        commit(&mut view, forced);
        let trust = view.snapshot.trust.clone().unwrap();
        assert_eq!(trust.pem(), format!("{}{}", third.certificate, next.certificate));
        assert!(trust.forced);
    }
}
