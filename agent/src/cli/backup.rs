//! `netagent cluster backup` and `restore`: the manager's state as a file.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use super::output;
use crate::api::client::Client;
use crate::{cluster, daemon};

/// Save the manager's state to a file
///
/// Works on a manager, while everything runs. The file holds all that the manager keeps:
/// networks, services, endpoints, members, join tokens, and the keys of the certificate
/// authority and of this node. Whoever has it is the cluster: it is made readable for its owner
/// only, so keep it that way. `netagent cluster restore` puts it back.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      netagent cluster backup /srv/backup/netagent-$(date -I)")]
pub(super) struct Backup {
    /// File to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the file if it exists
    #[arg(short, long)]
    force: bool,
}

/// Put back what `netagent cluster backup` has saved
///
/// Makes this host the manager that it was when the backup was made. It must have the address
/// that the manager had, and its agent must not run: stop it, restore, start it. The other
/// nodes follow by themselves. Workloads that run keep running, with their names and addresses,
/// also if they are younger than the backup; networks and services that are younger are lost, and
/// nodes that are younger must leave and join again. Everything in the file is checked before
/// anything is changed. Asks no agent; works on the data directory of this host.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
      systemctl stop netagent
      netagent cluster restore /srv/backup/netagent-2026-11-20
      systemctl start netagent")]
pub(super) struct Restore {
    /// File that `netagent cluster backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Give up what the data directory holds of a cluster
    #[arg(short, long)]
    force: bool,
    /// Data directory of the agent
    #[arg(
        long,
        env = "NETAGENT_DATA_DIR",
        value_name = "DIRECTORY",
        default_value = "/var/lib/netagent"
    )]
    data_dir: PathBuf,
}

impl Backup {
    /// Gives what to print.
    pub(super) async fn run(&self, agent: &Client) -> anyhow::Result<String> {
        let file = self.file.display();
        if !self.force && self.file.exists() {
            bail!("{file} exists: name another file, or replace it with --force");
        }
        let bytes = agent.bytes("/v1/cluster/backup").await?;
        write(&self.file, &bytes, self.force).with_context(|| format!("cannot write {file}"))?;
        Ok(format!("{file}: {} bytes. Keep it secret: it holds the cluster's keys.\n", bytes.len()))
    }
}

/// Whole or not at all, and for the owner's eyes only.
fn write(path: &Path, bytes: &[u8], force: bool) -> std::io::Result<()> {
    let beside = path.with_added_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let mut put = || {
        file.write_all(bytes)?;
        file.sync_all()?;
        if force {
            return fs::rename(&beside, path);
        }
        // Unlike renaming, this replaces nothing that has come meanwhile.
        fs::hard_link(&beside, path)?;
        fs::remove_file(&beside)
    };
    put().inspect_err(|_| {
        // The first error is the one to tell.
        let _ = fs::remove_file(&beside);
    })
}

impl Restore {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let _lock = daemon::lock(&self.data_dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let restore = cluster::backup::restore(&self.data_dir, &self.file, self.force);
        let report = runtime.block_on(restore)?;
        Ok(output::print(&format!(
            "This host is the manager of cluster {} again, as of {}.\nStart its agent: systemctl \
             start netagent\n",
            report.cluster, report.backup
        ))?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_the_owners_and_replaced_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        write(&path, b"1", false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        write(&path, b"2", false).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"1");
        write(&path, b"2", true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something is left beside");
    }
}
