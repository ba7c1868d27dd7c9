//! `netagent cluster ca`: the cluster's certificate authority.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::output;
use crate::api::client::Client;
use crate::api::types::{ClusterStatus, RotateCa};
use crate::model::CaRotation;

/// How often it is asked how far a rotation has come.
const LOOK: Duration = Duration::from_millis(300);

/// Manage the cluster's certificate authority
#[derive(Args, Debug)]
pub(super) struct Ca {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Rotate(Rotate),
}

/// Replace the CA by a new one
///
/// For when its key, or a backup, may have been copied. Nodes trust both CAs and renew
/// their certificates by themselves, which takes seconds; when all have, the former CA is
/// trusted no more, and nor are the certificates that it signed. Connections and packets flow
/// on. A node that is away is waited for, for as long as it takes: `netagent cluster info`
/// names it. Prints how far it has come until it is over; ended with Ctrl-C, the command only
/// stops to look. Join tokens are others afterwards, and older backups are worth nothing: the
/// nodes would not know their manager. Works on a manager.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent cluster ca rotate
      netagent cluster ca rotate --force")]
struct Rotate {
    /// End the rotation that is under way: nodes that have not renewed are named, and must
    /// join again
    #[arg(long)]
    force: bool,
    /// Do not wait for its end
    #[arg(short, long)]
    detach: bool,
}

impl Ca {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<String> {
        let Verb::Rotate(Rotate { force, detach }) = self.verb;
        let begun: CaRotation = client.post("/v1/cluster/ca/rotate", &RotateCa { force }).await?;
        output::print(&format!("CA rotation: {begun}\n"))?;
        let mut last = Some(begun);
        while !detach && !is_over(last.as_ref()) {
            tokio::time::sleep(LOOK).await;
            let status: ClusterStatus = client.get("/v1/cluster").await?;
            if let Some(new) = status.ca_rotation.as_ref().filter(|new| Some(*new) != last.as_ref())
            {
                output::print(&format!("CA rotation: {new}\n"))?;
            }
            last = status.ca_rotation;
        }
        Ok(match (detach, last) {
            (true, _) => String::new(),
            (false, None) => "The CA is replaced, and with it the join tokens.\n".to_owned(),
            (false, Some(_)) => {
                "The CA is replaced, and with it the join tokens. On each of these \
                                 nodes: `netagent cluster leave --force`, then join again.\n"
                    .to_owned()
            }
        })
    }
}

/// Whether there is nothing more to wait for.
fn is_over(rotation: Option<&CaRotation>) -> bool {
    rotation.is_none_or(|rotation| rotation.over)
}
