//! Bringing back what the cluster forgot when it was restored from a backup that is older
//! than a workload of this node: the endpoint is registered again as it was, so that nothing
//! changes for what runs. What cannot be brought back is said once, and stays as it is here.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::Workloads;
use crate::api::types::{CreateEndpoint, Serve};
use crate::cluster::Error;
use crate::model::{Endpoint, EndpointId, Snapshot, Workload};

/// How often it is tried again.
const AGAIN: Duration = Duration::from_secs(2);

impl Workloads {
    /// Registers forgotten endpoints whenever the snapshot lacks some; never returns.
    pub(super) async fn adopt_forgotten(self) {
        let mut snapshots = self.0.cluster.subscribe();
        let mut ticks = interval(AGAIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = BTreeSet::new();
        loop {
            ticks.tick().await;
            let snapshot = snapshots.borrow_and_update().clone();
            let mut failed = BTreeSet::new();
            for endpoint in forgotten(&snapshot, &self.list()) {
                if let Err(e) = self.adopt(&snapshot, &endpoint).await {
                    failed.insert(endpoint.id.clone());
                    if !told.contains(&endpoint.id) {
                        error!(
                            workload = %endpoint.name, address = %endpoint.address,
                            "the cluster was restored from a backup that does not know this \
                             workload, and it cannot be registered again: {e}; start it again"
                        );
                    }
                }
            }
            let waiting = !failed.is_empty();
            told = failed;
            if !waiting && snapshots.changed().await.is_err() {
                return;
            }
        }
    }

    async fn adopt(&self, snapshot: &Snapshot, endpoint: &Endpoint) -> Result<(), Error> {
        if !snapshot.networks.contains_key(&endpoint.network) {
            let text = "its network is younger than the backup, too, and gone with it";
            return Err(Error::NotFound(text.to_owned()));
        }
        let again = self.0.cluster.create_endpoint(&as_it_was(endpoint)).await?;
        info!(workload = %again.name, address = %again.address, "registered again");
        let keep = |list: &mut Vec<Workload>| {
            let attachments = list.iter_mut().flat_map(|w| &mut w.attachments);
            for attachment in attachments.filter(|a| a.endpoint.id == again.id) {
                attachment.endpoint = again.clone();
            }
            Ok(())
        };
        if let Err(e) = self.0.records.edit(keep).await {
            warn!(workload = %again.name, "its record is old: {e}");
        }
        Ok(())
    }
}

/// The request that makes an endpoint what it was.
fn as_it_was(endpoint: &Endpoint) -> CreateEndpoint {
    CreateEndpoint {
        network: endpoint.network.to_string(),
        node: endpoint.node.clone(),
        workload: endpoint.workload.clone(),
        name: endpoint.name.clone(),
        aliases: endpoint.aliases.clone(),
        address: Some(endpoint.address),
        serve: endpoint.task.as_ref().map(|task| Serve {
            service: task.service.to_string(),
            weight: task.weight,
            health: task.health,
        }),
        id: Some(endpoint.id.clone()),
    }
}

/// Endpoints of `workloads` that the cluster does not have because it was restored, and
/// not because somebody removed them.
fn forgotten(snapshot: &Snapshot, workloads: &[Workload]) -> Vec<Endpoint> {
    let Some(restored) = snapshot.cluster.as_ref().and_then(|c| c.restored.as_ref()) else {
        return Vec::new();
    };
    let known = |id: &EndpointId| snapshot.endpoints.contains_key(id);
    let all = workloads.iter().flat_map(|w| &w.attachments).map(|a| &a.endpoint);
    all.filter(|e| !known(&e.id) && restored.forgot(&e.created)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterInfo, Restored};
    use crate::workload::tests::workload;

    #[test]
    fn only_what_was_made_between_backup_and_restore_was_forgotten() {
        let made = |name: &str, created: &str| {
            let mut workload = workload(name, &["10.0.0.2"]);
            workload.attachments[0].endpoint.created = created.to_owned();
            workload
        };
        let workloads = [
            made("removed-long-ago", "2026-11-20T09:59:59Z"),
            made("forgotten", "2026-11-20T10:00:00Z"),
            made("known", "2026-11-20T11:00:00Z"),
            made("removed-since", "2026-11-20T12:00:01Z"),
        ];
        let mut snapshot = Snapshot::default();
        let known = &workloads[2].attachments[0].endpoint;
        snapshot.endpoints.insert(known.id.clone(), known.clone());
        assert_eq!(forgotten(&snapshot, &workloads), []);
        let restored = Some(Restored {
            backup: "2026-11-20T10:00:00Z".to_owned(),
            at: "2026-11-20T12:00:00Z".to_owned(),
        });
        let (id, created) = ("c".to_owned(), "2026-11-19T10:00:00Z".to_owned());
        snapshot.cluster = Some(ClusterInfo { id, data_path_port: 4789, created, restored });
        let found = forgotten(&snapshot, &workloads);
        assert_eq!(found, [workloads[1].attachments[0].endpoint.clone()]);
        assert_eq!(as_it_was(&found[0]).id, Some(found[0].id.clone()));
    }
}
