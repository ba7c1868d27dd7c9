//! A node's own certificate, renewed with a new key after two thirds of its life. Connections
//! that are open go on with the old one; both are good until the old one ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::ensure;

use super::ca::{self, Credentials};
use super::member::{Member, Part};
use super::{Error, identity, tls};
use crate::api::types::{RenewalReply, RenewalRequest};

/// Longest sleep: clocks are set, and machines are suspended.
const LOOK: Duration = Duration::from_secs(60);
/// Pause after an attempt that failed.
const AGAIN: Duration = Duration::from_secs(5);

impl Member {
    /// Renews the certificate whenever it is time; never returns.
    pub(super) async fn keep_certificate(&self) {
        loop {
            let validity = match ca::validity(&self.credentials.borrow().certificate) {
                Ok(validity) => validity,
                Err(e) => {
                    tracing::error!("this node's certificate cannot be read: {e:#}");
                    return;
                }
            };
            let now = SystemTime::now();
            if let Ok(wait) = validity.renewal.duration_since(now) {
                // Not less than this: it may be due within the same moment.
                tokio::time::sleep(wait.clamp(Duration::from_millis(100), LOOK)).await;
                continue;
            }
            let expired = now >= validity.end && matches!(self.part, Part::Worker(_));
            let pause = if expired {
                tracing::error!("{}", expiry(validity.end, now));
                LOOK
            } else {
                AGAIN
            };
            // With a clock that was set back since, it may still be renewed.
            match self.renew().await {
                Ok(()) => tracing::info!("this node's certificate is renewed"),
                Err(e) => {
                    tracing::warn!("this node's certificate is not renewed yet: {e}");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), Error> {
        let (key, csr) = ca::request()?;
        let RenewalReply { certificate, ca } = match &self.part {
            Part::Manager(manager) => manager.renew(self.node(), &RenewalRequest { csr })?,
            Part::Worker(follower) => {
                // Fails only if the follower is gone, and then this task is too.
                let _ = follower.live().wait_for(|live| *live).await;
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
