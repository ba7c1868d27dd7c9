//! Network namespaces of workloads: checking that a path names one, and working
//! inside it, always on a thread of its own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};
use tokio::sync::oneshot;

use crate::cluster::Error;
use crate::dns::Sockets;

/// The agent's own namespace.
const OWN: &str = "/proc/self/ns/net";
/// Magic of the file system of namespaces (`NSFS_MAGIC`, linux/magic.h).
const NSFS: FsType = FsType(0x6e73_6673);

mod ioctl {
    // Type of a namespace, as its clone flag (linux/nsfs.h).
    nix::ioctl_none_bad!(ns_get_nstype, nix::request_code_none!(0xb7, 0x3));
    // Flags of an interface (linux/sockios.h).
    nix::ioctl_readwrite_bad!(get_flags, nix::libc::SIOCGIFFLAGS, nix::libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, nix::libc::SIOCSIFFLAGS, nix::libc::ifreq);
}

/// A workload's network namespace, held open.
#[derive(Clone, Debug)]
pub(super) struct Netns {
    file: Arc<File>,
    /// Inode of the namespace.
    pub(super) inode: u64,
}

impl Netns {
    /// Opens the network namespace that `path` names.
    ///
    /// # Errors
    /// If it names none, or the agent's own.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.display();
        let file = File::open(path)
            .map_err(|e| Error::Invalid(format!("cannot open the namespace {shown}: {e}")))?;
        if !is_network_namespace(&file) {
            return Err(Error::Invalid(format!(
                "{shown} is not a network namespace: `ip netns add NAME` makes one at \
                 /run/netns/NAME, and /proc/PID/ns/net is that of a process"
            )));
        }
        let inode = file.metadata().map_err(|e| Error::Internal(format!("{shown}: {e}")))?.ino();
        if super::hold::inode_of(Path::new(OWN)) == Some(inode) {
            return Err(Error::Invalid(format!(
                "{shown} is the namespace that the agent itself runs in; attaching it would take \
                 over the host's own network"
            )));
        }
        Ok(Self { file: Arc::new(file), inode })
    }

    /// The namespace's file, for a child process to enter.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Runs `work` inside the namespace.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = Arc::clone(&self.file);
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
            let entered = setns(&*file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            // The receiver is gone only if the caller was cancelled.
            let _ = sender.send(entered.and_then(|()| work()));
        })?;
        receiver.await.map_err(|_| io::Error::other("the thread in the namespace panicked"))?
    }

    /// Names of the interfaces inside.
    pub(super) async fn interfaces(&self) -> io::Result<Vec<String>> {
        self.run(|| {
            let interfaces = nix::net::if_::if_nameindex()?;
            Ok(interfaces.iter().map(|i| i.name().to_string_lossy().into_owned()).collect())
        })
        .await
    }

    /// Sockets for a DNS server inside. Brings up the loopback device, which the
    /// server's address needs, and every program expects.
    pub(super) async fn dns_sockets(&self) -> io::Result<Sockets> {
        self.run(|| {
            loopback_up()?;
            Sockets::open()
        })
        .await
    }
}

fn is_network_namespace(file: &File) -> bool {
    let on_nsfs = fstatfs(file).is_ok_and(|found| found.filesystem_type() == NSFS);
    // SAFETY: the request takes no argument, and the descriptor is open.
    on_nsfs && unsafe { ioctl::ns_get_nstype(file.as_raw_fd()) } == Ok(libc::CLONE_NEWNET)
}

/// Brings `lo` of the calling thread's namespace up.
fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an ifreq of zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: `request` is an ifreq whose name is terminated; the kernel writes the
    // flags, which then are the valid member of the union.
    unsafe {
        ioctl::get_flags(socket.as_raw_fd(), &raw mut request)?;
        if request.ifr_ifru.ifru_flags & libc::IFF_UP as libc::c_short == 0 {
            request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
            ioctl::set_flags(socket.as_raw_fd(), &raw const request)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &str) -> String {
        Netns::open(Path::new(path)).unwrap_err().to_string()
    }

    #[test]
    fn only_other_network_namespaces_are_taken() {
        assert!(refusal(OWN).contains("the host's own network"));
        assert!(refusal("/proc/self/ns/uts").contains("not a network namespace"));
        assert!(refusal("/proc/self/stat").contains("not a network namespace"));
        assert!(refusal("/proc").contains("not a network namespace"));
        assert!(refusal("/nonexistent").contains("/nonexistent"));
    }
}
