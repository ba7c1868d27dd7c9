//! Network namespaces: a handle on each one that is worked in, and the making and
//! removing of the named ones that are ours.
//!
//! Nothing here ever changes the namespace of a thread that it did not start
//! itself: what must run inside a namespace gets a thread of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, TokioSocket};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};
use tokio::sync::oneshot;

use crate::plan::Ns;

/// Where named namespaces are, as iproute2 has it.
pub(super) const NAMED: &str = "/run/netns";
/// The namespace of the calling thread (`/proc/self` would be the process's).
const OWN: &str = "/proc/thread-self/ns/net";
/// Magic of the file system of namespaces (`NSFS_MAGIC`, linux/magic.h).
const NSFS: FsType = FsType(0x6e73_6673);

/// A network namespace held open, with a netlink socket inside it.
pub(super) struct Netns {
    file: Arc<File>,
    identity: Identity,
    /// Netlink requests for this namespace.
    pub(super) netlink: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
    /// A socket to the namespace's IPVS, once one was needed. Here, because it keeps the
    /// namespace alive.
    pub(super) ipvs: tokio::sync::Mutex<Option<super::ipvs::Client>>,
}

/// Device and inode of a namespace's file: equal for one namespace under any path.
type Identity = (u64, u64);

impl Netns {
    /// Takes hold of the namespace that `file` is.
    async fn hold(file: File) -> Result<Self> {
        let metadata = file.metadata().context("stat of the namespace")?;
        let file = Arc::new(file);
        let socket = run(Arc::clone(&file), || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            // Lets the kernel filter dumps and explain refusals in words.
            socket.set_netlink_get_strict_chk(true)?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            std::io::Result::Ok(socket)
        })
        .await?
        .context("opening a netlink socket")?;
        // SAFETY: the descriptor was just given up by `socket`, nobody else has it.
        let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
        let (connection, netlink, _) = rtnetlink::from_socket(socket);
        let connection = tokio::spawn(connection);
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { file, identity, netlink, connection, ipvs: tokio::sync::Mutex::default() })
    }

    /// Runs `work` on a thread of its own inside this namespace.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        run(Arc::clone(&self.file), work).await
    }

    /// Descriptor of the namespace, valid as long as `self`.
    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The namespace's file, for a child process to enter.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The socket keeps the namespace alive.
        self.connection.abort();
    }
}

async fn run<T: Send + 'static>(
    namespace: Arc<File>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            let entered = setns(&*namespace, CloneFlags::CLONE_NEWNET);
            // The receiver is gone only if the caller was cancelled.
            let _ = sender.send(entered.map(|()| work()));
        })
        .context("starting a thread")?;
    receiver
        .await
        .context("the thread inside the namespace panicked")?
        .context("entering the namespace (this needs root)")
}

/// The namespaces at work.
pub(super) struct Namespaces {
    host: Arc<Netns>,
    others: BTreeMap<PathBuf, Arc<Netns>>,
}

impl Namespaces {
    /// The host's namespace is that of the calling thread.
    pub(super) async fn open() -> Result<Self> {
        let file = File::open(OWN).with_context(|| format!("opening {OWN}"))?;
        let host = Netns::hold(file).await.context("the host's namespace")?;
        Ok(Self { host: Arc::new(host), others: BTreeMap::new() })
    }

    /// The host's.
    pub(super) fn host(&self) -> Arc<Netns> {
        Arc::clone(&self.host)
    }

    /// The namespace, or `None` if there is none at that path (any more), or only the
    /// host's own: that is no workload's to be changed.
    pub(super) async fn get(&mut self, ns: &Ns) -> Result<Option<Arc<Netns>>> {
        let path = match ns {
            Ns::Host => return Ok(Some(self.host())),
            Ns::At(path) => path,
        };
        let Some(file) = open(path)? else {
            self.others.remove(path);
            return Ok(None);
        };
        let metadata = file.metadata().with_context(|| format!("stat of {}", path.display()))?;
        let identity = (metadata.dev(), metadata.ino());
        if identity == self.host.identity {
            return Ok(None);
        }
        if let Some(known) = self.others.get(path).filter(|n| n.identity == identity) {
            return Ok(Some(Arc::clone(known)));
        }
        let opened = Netns::hold(file).await.with_context(|| path.display().to_string())?;
        let opened = Arc::new(opened);
        self.others.insert(path.clone(), Arc::clone(&opened));
        Ok(Some(opened))
    }

    /// Like [`Self::get`], for what cannot be done without the namespace.
    pub(super) async fn need(&mut self, ns: &Ns) -> Result<Arc<Netns>> {
        let found = self.get(ns).await?;
        found.with_context(|| format!("{ns} is no network namespace, or it is the host's own"))
    }

    /// Lets go of all namespaces but these; a namespace lives while it is held.
    pub(super) fn keep(&mut self, wanted: impl Fn(&Path) -> bool) {
        self.others.retain(|path, _| wanted(path));
    }
}

/// Opens the namespace at `path`; `None` if there is none, as when its process ended.
fn open(path: &Path) -> Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    // A name in /run/netns whose mount is gone is an ordinary empty file.
    let found = fstatfs(&file).with_context(|| format!("statfs of {}", path.display()))?;
    Ok((found.filesystem_type() == NSFS).then_some(file))
}

/// Path of a named namespace.
pub(super) fn path_of(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// Whether a namespace of this name exists.
pub(super) fn exists(name: &str) -> Result<bool> {
    Ok(open(&path_of(name))?.is_some())
}

/// Creates a named namespace as `ip netns add` does; it being there is success.
pub(super) async fn create(name: &str) -> Result<()> {
    if exists(name)? {
        return Ok(());
    }
    let path = path_of(name);
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            // The receiver is gone only if the caller was cancelled.
            let _ = sender.send(mount_new(&path));
        })
        .context("starting a thread")?;
    receiver.await.context("the thread that makes the namespace panicked")?
}

/// Moves the calling thread into a new namespace and mounts that at `path`.
fn mount_new(path: &Path) -> Result<()> {
    share_directory().with_context(|| format!("preparing {NAMED}"))?;
    File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mounted = unshare(CloneFlags::CLONE_NEWNET).context("unshare").and_then(|()| {
        mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("mounting the namespace at {}", path.display()))
    });
    if mounted.is_err() {
        // What brought us here is the error to tell.
        let _ = std::fs::remove_file(path);
    }
    mounted
}

/// Makes [`NAMED`] a shared mount point as iproute2 does, so that the namespaces in
/// it are seen, and can be removed, in every mount namespace.
fn share_directory() -> Result<()> {
    std::fs::create_dir_all(NAMED)?;
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, NAMED, None::<&str>, flags, None::<&str>)
    };
    match share() {
        // It is no mount point yet.
        Err(nix::Error::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(NAMED), NAMED, None::<&str>, flags, None::<&str>)?;
            Ok(share()?)
        }
        other => Ok(other?),
    }
}

/// Removes a named namespace; it being gone is success.
pub(super) fn delete(name: &str) -> Result<()> {
    let path = path_of(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("unmounting {}", path.display())),
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
