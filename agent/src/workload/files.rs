//! The files that a workload sees instead of the host's: `/etc/resolv.conf` and
//! `/etc/hosts`. They are kept under the run directory, and are mounted by whoever
//! starts the workload.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::dns::SERVER;
use crate::model::{Workload, WorkloadId};

/// Directory under the run directory.
const DIRECTORY: &str = "workloads";

/// Where the files of one workload are.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    pub(super) fn of(run_dir: &Path, id: &WorkloadId) -> Self {
        Self { directory: run_dir.join(DIRECTORY).join(id.as_str()) }
    }

    pub(super) fn resolv_conf(&self) -> PathBuf {
        self.directory.join("resolv.conf")
    }

    pub(super) fn hosts(&self) -> PathBuf {
        self.directory.join("hosts")
    }

    /// Writes both. A file that is there is written over and not replaced: it may be
    /// mounted, and then another file under its name would not be seen.
    pub(super) fn write(&self, workload: &Workload, search: &[String]) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        fs::write(self.resolv_conf(), resolv_conf(search))?;
        fs::write(self.hosts(), hosts(workload))
    }

    /// Removes the files of all workloads but these.
    pub(super) fn sweep(run_dir: &Path, kept: &[Workload]) -> io::Result<()> {
        let entries = match fs::read_dir(run_dir.join(DIRECTORY)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !kept.iter().any(|w| entry.file_name() == w.id.as_str()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes both; they may be gone.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// Every name is asked as it is first (`ndots:0`): names of the cluster have no or one
/// dot, and would otherwise be looked for in the host's domains before.
fn resolv_conf(search: &[String]) -> String {
    let mut text = format!("nameserver {SERVER}\n");
    if !search.is_empty() {
        text += &format!("search {}\n", search.join(" "));
    }
    text + "options ndots:0\n"
}

fn hosts(workload: &Workload) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for attachment in &workload.attachments {
        text += &format!("{}\t{}\n", attachment.endpoint.address, workload.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::workload::tests::workload;

    #[test]
    fn the_files_name_the_server_and_the_workload() {
        let run_dir = tempfile::tempdir().unwrap();
        let workload = workload("psql", &["10.0.0.2", "10.0.1.2"]);
        let files = Files::of(run_dir.path(), &workload.id);
        files.write(&workload, &["corp.example".to_owned(), "example".to_owned()]).unwrap();
        assert_eq!(
            fs::read_to_string(files.resolv_conf()).unwrap(),
            "nameserver 127.0.0.11\nsearch corp.example example\noptions ndots:0\n"
        );
        assert_eq!(
            fs::read_to_string(files.hosts()).unwrap(),
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             10.0.0.2\tpsql\n10.0.1.2\tpsql\n"
        );
        let inode = fs::metadata(files.hosts()).unwrap().ino();
        files.write(&workload, &[]).unwrap();
        assert_eq!(fs::metadata(files.hosts()).unwrap().ino(), inode);
        assert!(!fs::read_to_string(files.resolv_conf()).unwrap().contains("search"));
        files.remove().unwrap();
        files.remove().unwrap();
        assert!(!files.hosts().exists());
    }
}
