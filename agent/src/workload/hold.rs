//! What keeps a workload: telling whether it is still there, and being told when
//! its process ends.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::model::{Hold, Workload};

/// Whether what keeps `workload` is still there.
pub(super) fn is_held(workload: &Workload) -> bool {
    match workload.hold {
        Hold::Process { pid, start } => start_time(pid) == Some(start),
        // A path whose namespace was unmounted is an ordinary file with another inode.
        Hold::Path { inode } => inode_of(&workload.netns) == Some(inode),
    }
}

/// The inode of the namespace that `path` names.
pub(super) fn inode_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

/// When the process started, in clock ticks since boot; None if there is none, or
/// if it has ended and only waits for its parent to notice.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads `/proc/PID/stat` (proc_pid_stat(5)). The second field, the command, may hold
/// anything, parentheses and blanks too; no later field holds a parenthesis.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    // Numbered as in the manual, where the state is field 3.
    let fields: Vec<&str> = rest.split(' ').collect();
    let field = |number: usize| fields.get(number - 3);
    // A process may go on in other threads after its first one has ended.
    let over = matches!(*field(3)?, "Z" | "X") && *field(20)? == "1";
    if over { None } else { field(22)?.parse().ok() }
}

/// Waits until the process ends that had this pid and start time.
///
/// # Errors
/// If the kernel gives no descriptor for the process.
pub(super) async fn ended(pid: i32, start: u64) -> io::Result<()> {
    let process = match open_process(pid) {
        Ok(process) => process,
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(()),
        Err(error) => return Err(error),
    };
    // Looked at after the descriptor was opened: else it might be another's.
    if start_time(pid) != Some(start) {
        return Ok(());
    }
    // SAFETY: an OwnedFd is one open descriptor for as long as it lives, and the
    // AsyncFd owns it.
    let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }?;
    process.readable().await.map(drop)
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2)).
fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: a descriptor just returned by the kernel has no other owner.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_command_name() {
        let tail = "S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 8192 1 18446744073709551615";
        for name in ["sh", "a b", ") S 1 (", "x) Z 9 9 9"] {
            assert_eq!(parse_stat(&format!("42 ({name}) {tail}\n")), Some(4711), "{name}");
        }
        let zombie = format!("42 (sh) {}\n", tail.replacen('S', "Z", 1));
        assert_eq!(parse_stat(&zombie), None);
        assert_eq!(parse_stat(&zombie.replace("20 0 1 0", "20 0 2 0")), Some(4711));
        assert_eq!(parse_stat("42 (sh) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[tokio::test]
    async fn a_process_is_there_until_it_ends() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start = start_time(pid).unwrap();
        let ends = ended(pid, start);
        tokio::pin!(ends);
        assert!(futures::poll!(&mut ends).is_pending());
        // Its input ends, and so does it; nobody has waited for it yet.
        drop(child.stdin.take());
        ends.await.unwrap();
        assert_eq!(start_time(pid), None, "a zombie holds nothing");
        child.wait().unwrap();
        assert_eq!(start_time(pid), None);
        ended(pid, start).await.unwrap();
    }

    #[tokio::test]
    async fn a_reused_pid_is_another_process() {
        let own = nix::unistd::getpid().as_raw();
        let start = start_time(own).unwrap();
        ended(own, start + 1).await.unwrap();
    }
}
