//! Keeps a workload's files mounted over `/etc/resolv.conf` and `/etc/hosts` as its
//! process sees them.
//!
//! It takes keeping: when the host replaces such a file by renaming another over it,
//! as DHCP clients and NetworkManager do, the kernel drops every mount on the old one
//! in all mount namespaces (`__detach_mounts`, fs/namespace.c), and the workload would
//! ask the host's resolvers from then on.
//!
//! A process that has changed its root sees other files than its mount namespace has at
//! the top, so both are entered. The agent's files need not be within the process's
//! reach: they come along as mounts that are nowhere attached yet.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chroot, fchdir};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::warn;

use super::files::Files;
use super::hold::start_time;

/// Pause after what failed, longer each time.
const AGAIN: Duration = Duration::from_millis(200);
/// Longest of these pauses, in times [`AGAIN`]: a process may have gone where there is
/// nothing to mount over, and stay.
const SELDOM: u32 = 50;
/// Failures in a row that are worth a word.
const PERSISTENT: u32 = 5;

/// The files of one workload and the process that is to see them.
#[derive(Clone, Debug)]
pub(super) struct Mounts {
    pid: i32,
    /// Start time of the process, so that another's files are never touched.
    start: u64,
    /// What is to be mounted over what.
    files: [(PathBuf, &'static str); 2],
}

impl Mounts {
    pub(super) fn new(pid: i32, start: u64, files: &Files) -> Self {
        let files = [(files.resolv_conf(), "/etc/resolv.conf"), (files.hosts(), "/etc/hosts")];
        Self { pid, start, files }
    }

    /// Mounts what is not mounted.
    ///
    /// # Errors
    /// If the process has no mount namespace of its own, or one of the files is not
    /// there to be mounted over.
    pub(super) async fn apply(&self) -> Result<()> {
        self.apart(|this| {
            let place = this.place()?;
            let sources = [Source::open(&this.files[0].0)?, Source::open(&this.files[1].0)?];
            place.enter()?;
            sources.iter().zip(&this.files).try_for_each(|(source, (_, target))| {
                cover(source, target).with_context(|| format!("{target} of process {}", this.pid))
            })
        })
        .await
    }

    /// Takes the mounts away, after the files were removed: the process sees the
    /// host's again.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) async fn remove(&self) -> Result<()> {
        self.apart(|this| {
            this.place()?.enter()?;
            this.files.iter().try_for_each(|(_, target)| uncover(target))?;
            // Where they are if it changed its root after they were mounted.
            chroot(".")?;
            this.files.iter().try_for_each(|(_, target)| uncover(target))
        })
        .await
    }

    /// Runs `work`, which changes namespace and root, on a thread of its own.
    async fn apart(&self, work: impl FnOnce(&Self) -> Result<()> + Send + 'static) -> Result<()> {
        let this = self.clone();
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new().name("mounts".to_owned()).spawn(move || {
            // The receiver is gone only if the caller was cancelled.
            let _ = sender.send(work(&this));
        })?;
        receiver.await.context("the thread in the mount namespace panicked")?
    }

    /// Mounts what is not mounted, now and whenever the mounts change, until the
    /// workload's files are removed.
    ///
    /// # Errors
    /// If the changes cannot be followed.
    pub(super) async fn keep(&self) -> Result<()> {
        let changes = File::open(format!("/proc/{}/mountinfo", self.pid))?;
        // SAFETY: a File is one open descriptor for as long as it lives, and the AsyncFd
        // owns it.
        let changes = unsafe { AsyncFd::register_with_interest(changes, Interest::PRIORITY) }?;
        let mut failed = 0;
        loop {
            let applied = self.apply().await;
            if self.files.iter().any(|(source, _)| !source.exists()) {
                return Ok(());
            }
            if let Err(error) = applied {
                // The kernel tells of the change while the file is still being replaced:
                // the first attempt may come too early.
                failed += 1;
                if failed == PERSISTENT {
                    warn!(pid = self.pid, "{error:#}; it is tried again");
                }
                sleep(AGAIN * failed.min(SELDOM)).await;
            } else {
                failed = 0;
                changes.ready(Interest::PRIORITY).await?.clear_ready();
            }
        }
    }

    /// Where the process lives now, if files may be mounted there.
    fn place(&self) -> Result<Place> {
        let path = format!("/proc/{}/ns/mnt", self.pid);
        let namespace = File::open(&path).with_context(|| path.clone())?;
        let root = open_directory(&format!("/proc/{}/root", self.pid))?;
        if start_time(self.pid) != Some(self.start) {
            bail!("process {} has ended", self.pid);
        }
        let inode = namespace.metadata()?.ino();
        for host in ["/proc/self/ns/mnt", "/proc/1/ns/mnt"] {
            if fs::metadata(host).is_ok_and(|found| found.ino() == inode) {
                bail!(
                    "process {} is in the host's mount namespace: mounting files there would \
                     change them for everybody",
                    self.pid
                );
            }
        }
        Ok(Place { namespace, root })
    }
}

/// A mount namespace and a root in it.
struct Place {
    namespace: File,
    root: File,
}

impl Place {
    /// Moves the calling thread there. The working directory becomes the namespace's
    /// own root.
    fn enter(self) -> Result<()> {
        // Root and working directory are the process's own affair, not the thread's.
        unshare(CloneFlags::CLONE_FS)?;
        setns(self.namespace, CloneFlags::CLONE_NEWNS).context("entering its mount namespace")?;
        let top = open_directory("/")?;
        fchdir(&self.root).and_then(|()| chroot(".")).and_then(|()| fchdir(&top))?;
        Ok(())
    }
}

/// Opens a directory to be gone to, and nothing else.
fn open_directory(path: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    options.open(path).with_context(|| path.to_owned())
}

/// One of the agent's files, as a mount that can be attached in any mount namespace.
struct Source {
    mount: OwnedFd,
    /// Device and inode of the file.
    identity: (u64, u64),
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let found = fs::metadata(path).with_context(|| path.display().to_string())?;
        let name = CString::new(path.as_os_str().as_bytes())?;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        // SAFETY: the kernel reads the name, which ends with a zero byte.
        let mount = unsafe {
            let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags);
            match i32::try_from(Errno::result(fd)?) {
                // A descriptor just returned by the kernel has no other owner.
                Ok(fd) => OwnedFd::from_raw_fd(fd),
                Err(error) => return Err(error.into()),
            }
        };
        Ok(Self { mount, identity: (found.dev(), found.ino()) })
    }

    /// Attaches it at `target`, unseen by all other mount namespaces. The working
    /// directory is the namespace's root.
    fn attach(&self, target: &Path) -> Result<()> {
        let flags = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        mount(None::<&str>, ".", None::<&str>, flags, None::<&str>)?;
        let name = CString::new(target.as_os_str().as_bytes())?;
        // SAFETY: the kernel reads two names, which end with a zero byte.
        let moved = unsafe {
            let (from, to) = (self.mount.as_raw_fd(), libc::AT_FDCWD);
            let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
            libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, name.as_ptr(), flags)
        };
        Errno::result(moved)?;
        // It has the propagation of the file system that the file is on.
        Ok(mount(None::<&str>, target, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?)
    }
}

/// Mounts `source` over `target`, unless it is.
fn cover(source: &Source, target: &str) -> Result<()> {
    uncover(target)?;
    let target = fs::canonicalize(target)
        .context("it must exist for the workload's to be mounted over it; an empty file will do")?;
    let found = fs::metadata(&target)?;
    if (found.dev(), found.ino()) == source.identity {
        return Ok(());
    }
    source.attach(&target).with_context(|| format!("mounting over {}", target.display()))
}

/// Takes mounts of removed files away from `target`. A file that has no name any more
/// and is yet found by one is found through a mount: one that we made.
fn uncover(target: &str) -> Result<()> {
    while fs::metadata(target).is_ok_and(|found| found.nlink() == 0) {
        let path = fs::canonicalize(target)?;
        match umount2(&path, MntFlags::MNT_DETACH) {
            // No mount: a file that is just being replaced.
            Err(Errno::EINVAL) => break,
            unmounted => unmounted.with_context(|| format!("unmounting {}", path.display()))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::WorkloadId;

    #[tokio::test]
    async fn the_hosts_own_files_are_never_covered() {
        let files = Files::of(Path::new("/nonexistent"), &WorkloadId::new());
        let pid = std::process::id().cast_signed();
        let start = start_time(pid).unwrap();
        let error = Mounts::new(pid, start, &files).apply().await.unwrap_err();
        assert!(error.to_string().contains("the host's mount namespace"), "{error:#}");
        let error = Mounts::new(pid, start + 1, &files).apply().await.unwrap_err();
        assert!(error.to_string().contains("has ended"), "{error:#}");
    }
}
