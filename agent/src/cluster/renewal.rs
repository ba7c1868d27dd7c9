//! A node's own certificate, renewed with a new key after two thirds of its life, and when
//! the CA is replaced. Connections that are open go on with the old one; both are good until
//! the old one ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::ensure;

use super::ca::{self, Credentials};
use super::member::{Member, Part};
use super::{Error, identity, tls};
use crate::api::types::{RenewalReply, RenewalRequest};
use crate::model::Trust;

/// Longest sleep: clocks are set, and machines are suspended.
const LOOK: Duration = Duration::from_secs(60);
/// Pause after an attempt that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// What the cluster says to this node.
#[derive(Clone, Default, PartialEq)]
struct Word {
    /// None while no manager says anything: the copy on disk may be older than what is trusted.
    trust: Option<Trust>,
    /// Whether it is this node's turn, if the CA is being replaced.
    turn: bool,
    /// Whether this node signs certificates itself, by its own clock.
    signs: bool,
}

/// What comes next.
#[derive(Debug, PartialEq)]
enum Step {
    Wait(Duration),
    /// Trust these CAs, PEM.
    Trust(String),
    Renew,
}

/// What a node with these credentials does now. It trusts before it renews.
fn step(own: &Credentials, word: &Word, now: SystemTime) -> anyhow::Result<Step> {
    let validity = ca::validity(&own.certificate)?;
    let mut due = validity.renewal;
    if let Some(trust) = &word.trust {
        if own.ca != trust.pem() {
            return Ok(Step::Trust(trust.pem()));
        }
        let signed = ca::signer(&ca::certificate(&own.certificate)?, &trust.ca).is_ok();
        if word.turn && !signed {
            return Ok(Step::Renew);
        }
        if !signed {
            // A new one would be of the new CA before others know that. But it must not end.
            due += validity.end.duration_since(due).unwrap_or_default() / 2;
        }
    }
    // Signed while the clock was ahead: before its time, workers take it for no manager's.
    let early = word.signs && now < validity.begin;
    Ok(match due.duration_since(now) {
        // Not less than this: it may be due within the same moment.
        Ok(wait) if !early => Step::Wait(wait.clamp(Duration::from_millis(100), LOOK)),
        _ => Step::Renew,
    })
}

impl Member {
    /// Renews the certificate whenever it is time; never returns.
    pub(super) async fn keep_certificate(&self) {
        loop {
            let (word, now) = (self.word(), SystemTime::now());
            let step = step(&self.credentials.borrow(), &word, now);
            let done = match step {
                Err(e) => {
                    tracing::error!("this node's certificate cannot be read: {e:#}");
                    return;
                }
                Ok(Step::Wait(wait)) => {
                    // In time or not: it is looked at again.
                    let _ = tokio::time::timeout(wait, self.other_word(&word)).await;
                    continue;
                }
                Ok(Step::Trust(ca)) => {
                    let own = self.credentials.borrow().clone();
                    let done = self.adopt(Credentials { ca, ..own }).await;
                    done.map(|()| "this node trusts what the cluster says is its CA")
                }
                Ok(Step::Renew) => {
                    // With a clock that was set back since, one that ended may still be renewed.
                    self.renew().await.map(|()| "this node's certificate is renewed")
                }
            };
            match done {
                Ok(what) => tracing::info!("{what}"),
                Err(e) => {
                    tracing::warn!("this node's certificate is not renewed yet: {e}");
                    let pause = self.complain(now);
                    let _ = tokio::time::timeout(pause, self.other_word(&word)).await;
                }
            }
        }
    }

    /// Says that the certificate has ended, if so; how long to wait until the next attempt.
    fn complain(&self, now: SystemTime) -> Duration {
        match ca::validity(&self.credentials.borrow().certificate) {
            Ok(validity) if now >= validity.end && matches!(self.part, Part::Worker(_)) => {
                tracing::error!("{}", expiry(validity.end, now));
                LOOK
            }
            _ => AGAIN,
        }
    }

    /// What the cluster says now.
    fn word(&self) -> Word {
        if let Part::Worker(follower) = &self.part
            && !*follower.live().borrow()
        {
            return Word::default();
        }
        let snapshot = self.part.snapshots().borrow().clone();
        Word {
            trust: snapshot.trust.clone(),
            turn: snapshot.may_renew(self.node()),
            signs: matches!(self.part, Part::Manager(_)),
        }
    }

    /// Returns when the cluster says something else.
    async fn other_word(&self, known: &Word) {
        let mut snapshots = self.part.snapshots();
        let mut live = match &self.part {
            Part::Manager(_) => None,
            Part::Worker(follower) => Some(follower.live()),
        };
        while self.word() == *known {
            // No sender goes away before self does.
            tokio::select! {
                _ = snapshots.changed() => {}
                _ = async { live.as_mut()?.changed().await.ok() }, if live.is_some() => {}
            }
        }
    }

    async fn renew(&self) -> Result<(), Error> {
        let (key, csr) = ca::request()?;
        let RenewalReply { certificate, ca } = match &self.part {
            Part::Manager(manager) => manager.renew(self.node(), &RenewalRequest { csr }).await?,
            Part::Worker(follower) => {
                // One whose certificate has ended can follow nobody, and asks all the same: so it
                // learns why.
                let end = ca::validity(&self.credentials.borrow().certificate)?.end;
                let left = end.duration_since(SystemTime::now()).unwrap_or_default();
                // Fails only if the follower is gone, and then this task is too.
                let _ = tokio::time::timeout(left, follower.live().wait_for(|live| *live)).await;
                let path = format!("/v1/nodes/{}/certificate", self.node());
                follower.client().post(&path, &RenewalRequest { csr }).await?
            }
        };
        let new = Credentials { certificate, key, ca };
        let check = || {
            let subject = ca::subject(&ca::certificate(&new.certificate)?)?;
            ensure!(subject.node == *self.node(), "the new certificate names another node");
            ensure!(ca::fits(&new.certificate, &new.key), "the new certificate has another key");
            Ok(())
        };
        check()?;
        self.adopt(new).await
    }

    /// Puts new credentials on disk and in use.
    async fn adopt(&self, new: Credentials) -> Result<(), Error> {
        let (dir, written) = (self.dir.clone(), new.clone());
        let write = move || dir.within(|path| identity::renew(path, &written));
        tokio::task::spawn_blocking(write).await.map_err(anyhow::Error::from)??;
        match &self.part {
            Part::Manager(manager) => manager.show(&new)?,
            Part::Worker(follower) => follower.show(Arc::new(tls::member(&new)?)),
        }
        self.credentials.send_replace(new);
        Ok(())
    }
}

/// What to say of a certificate that ended.
fn expiry(end: SystemTime, now: SystemTime) -> String {
    let show = |time| humantime::format_rfc3339_seconds(time);
    format!(
        "this node's certificate ended at {}, and it is {} by this host's clock. If the clock is \
         right, the node was away too long: `netagent cluster leave --force`, then join again",
        show(end),
        show(now)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ca::{Authority, Subject};
    use crate::model::{NodeId, Role};

    /// A node trusts first, renews when it is its turn, and then forgets the former CA.
    #[test]
    fn a_new_ca_is_taken_up_step_by_step() {
        let [old, new] = [(); 2].map(|()| Authority::new("c").unwrap());
        let subject = Subject { node: NodeId::new(), role: Role::Worker, cluster: "c".to_owned() };
        let mut own = old.issue(&subject).unwrap();
        let now = SystemTime::now();
        let mut trust = Trust {
            ca: new.certificate.clone(),
            digest: String::new(),
            former: Some(old.certificate),
            forced: false,
        };
        let word = |trust: &Trust, turn| Word { trust: Some(trust.clone()), turn, signs: false };
        let next = |own: &Credentials, word: &Word| step(own, word, now).unwrap();
        let wait = Step::Wait(LOOK);
        assert_eq!(next(&own, &Word::default()), wait);
        for turn in [false, true] {
            assert_eq!(next(&own, &word(&trust, turn)), Step::Trust(trust.pem()));
        }
        own.ca = trust.pem();
        assert_eq!(next(&own, &word(&trust, false)), wait);
        assert_eq!(next(&own, &word(&trust, true)), Step::Renew);
        own = Credentials { ca: own.ca, ..new.issue(&subject).unwrap() };
        assert_eq!(next(&own, &word(&trust, true)), wait);
        trust.former = None;
        assert_eq!(next(&own, &word(&trust, true)), Step::Trust(new.certificate));
        own.ca = trust.pem();
        assert_eq!(next(&own, &word(&trust, true)), wait);
        // Without a manager nothing is taken back.
        assert_eq!(next(&own, &Word::default()), wait);
    }

    #[test]
    fn a_manager_renews_its_certificate_of_a_time_to_come() {
        let authority = Authority::new("c").unwrap();
        let subject = Subject { node: NodeId::new(), role: Role::Manager, cluster: "c".to_owned() };
        let own = authority.issue(&subject).unwrap();
        let ago = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3600);
        let next = |signs, now| step(&own, &Word { signs, ..Word::default() }, now).unwrap();
        assert_eq!((next(true, ago(23)), next(true, ago(25))), (Step::Wait(LOOK), Step::Renew));
        assert_eq!(next(false, ago(25)), Step::Wait(LOOK), "whose clock is behind cannot say");
    }

    #[test]
    fn who_has_to_wait_for_others_does_not_let_its_certificate_end() {
        let [old, new] = [(); 2].map(|()| Authority::new("c").unwrap());
        let subject = Subject { node: NodeId::new(), role: Role::Manager, cluster: "c".to_owned() };
        let mut own = old.issue(&subject).unwrap();
        let trust = Trust {
            ca: new.certificate,
            digest: String::new(),
            former: Some(old.certificate),
            forced: false,
        };
        own.ca = trust.pem();
        let (waits, alone) = (Word { trust: Some(trust), ..Word::default() }, Word::default());
        let after = |days: u64| SystemTime::now() + Duration::from_secs(days * 24 * 3600);
        for (word, day, expected) in [
            (&alone, 59, Step::Wait(LOOK)),
            (&alone, 61, Step::Renew),
            (&waits, 74, Step::Wait(LOOK)),
            (&waits, 76, Step::Renew),
        ] {
            assert_eq!(step(&own, word, after(day)).unwrap(), expected, "day {day}");
        }
    }
}
