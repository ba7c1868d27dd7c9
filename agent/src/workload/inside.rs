//! Commands run where a workload's process lives: in its namespaces, at its root, as
//! its user, with its environment. It never runs anything with more rights than the
//! process has: what `/bin/sh` is there may be the process's own choice.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::sync::Arc;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid, chroot, fchdir, setgid, setgroups, setuid};
use tokio::process::Command;

use super::hold::start_time;
use super::netns::Netns;
use crate::model::Hold;

/// Where a process lives.
struct Surroundings {
    mounts: File,
    names: File,
    root: File,
    user: Credentials,
    environment: Vec<(OsString, OsString)>,
}

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Credentials {
    user: Uid,
    group: Gid,
    groups: Vec<Gid>,
}

/// Kills a group of processes when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // It may have ended in this moment.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

/// Runs `script` with `/bin/sh -c` to its end. Dropping the future kills it with all
/// that it has started in its process group. Of a workload without a process, only the
/// network namespace is known.
///
/// # Errors
/// In words, if it cannot be run or does not exit with 0.
pub(super) async fn run(script: &str, hold: &Hold, netns: &Netns) -> Result<(), String> {
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", script]).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let around = match hold {
        Hold::Process { pid, start } => {
            let around = Surroundings::of(*pid, *start);
            Some(around.map_err(|e| format!("looking at process {pid}: {e}"))?)
        }
        Hold::Path { .. } => None,
    };
    if let Some(around) = &around {
        command.env_clear().envs(around.environment.iter().map(|(name, value)| (name, value)));
    }
    let network = netns.file();
    let enter = move || enter(&network, around.as_ref());
    // SAFETY: `enter` does system calls on what was opened before, and allocates nothing.
    unsafe { command.pre_exec(enter) };
    let child = Command::from(command).kill_on_drop(true).spawn();
    let mut child = child.map_err(|e| format!("running /bin/sh: {e}"))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let status = child.wait().await;
    group.0 = None;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the command ended with {status}")),
        Err(error) => Err(format!("waiting for the command: {error}")),
    }
}

/// Moves the calling process, which has one thread, to where the command is to run.
fn enter(network: &Arc<File>, around: Option<&Surroundings>) -> io::Result<()> {
    setns(&**network, CloneFlags::CLONE_NEWNET)?;
    let Some(around) = around else { return Ok(()) };
    setns(&around.names, CloneFlags::CLONE_NEWUTS)?;
    setns(&around.mounts, CloneFlags::CLONE_NEWNS)?;
    fchdir(&around.root)?;
    chroot(".")?;
    setgroups(&around.user.groups)?;
    setgid(around.user.group)?;
    setuid(around.user.user)?;
    Ok(())
}

impl Surroundings {
    fn of(pid: i32, start: u64) -> io::Result<Self> {
        let file = |name: &str| format!("/proc/{pid}/{name}");
        let mut directory = OpenOptions::new();
        directory.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
        let status = fs::read_to_string(file("status"))?;
        let user = parse_status(&status);
        let around = Self {
            mounts: File::open(file("ns/mnt"))?,
            names: File::open(file("ns/uts"))?,
            root: directory.open(file("root"))?,
            user: user.ok_or_else(|| io::Error::other("its status names no user"))?,
            environment: parse_environment(&fs::read(file("environ"))?),
        };
        // Else the pid was another's by the time these were opened.
        if start_time(pid) != Some(start) {
            return Err(io::Error::other("it has ended"));
        }
        Ok(around)
    }
}

/// Reads the effective user and groups of `/proc/PID/status` (proc_pid_status(5)).
fn parse_status(status: &str) -> Option<Credentials> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    // Real, effective, saved, of the file system.
    let effective = |name| field(name)?.split_whitespace().nth(1)?.parse().ok();
    let groups = field("Groups:")?.split_whitespace().map(|g| g.parse().ok().map(Gid::from_raw));
    Some(Credentials {
        user: Uid::from_raw(effective("Uid:")?),
        group: Gid::from_raw(effective("Gid:")?),
        groups: groups.collect::<Option<_>>()?,
    })
}

/// Reads `/proc/PID/environ`: `NAME=VALUE`, each ended by a zero byte.
fn parse_environment(bytes: &[u8]) -> Vec<(OsString, OsString)> {
    let variable = |entry: &[u8]| {
        let at = entry.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
        let text = |part: &[u8]| OsString::from_vec(part.to_vec());
        Some((text(&entry[..at]), text(&entry[at + 1..])))
    };
    bytes.split(|byte| *byte == 0).filter_map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_a_process_is() {
        let status = "Name:\tpostgres\nUid:\t0\t110\t110\t110\nGid:\t0\t115\t115\t115\n\
                      FDSize:\t64\nGroups:\t108 115 \nThreads:\t1\n";
        let found = parse_status(status).unwrap();
        assert_eq!((found.user, found.group), (Uid::from_raw(110), Gid::from_raw(115)));
        assert_eq!(found.groups, [108, 115].map(Gid::from_raw));
        let alone = status.replace("108 115 ", "");
        assert_eq!(parse_status(&alone).unwrap().groups, []);
        assert_eq!(parse_status("Uid:\t0\t0\t0\t0\n"), None);
        let own = fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(parse_status(&own).unwrap().user, nix::unistd::geteuid());
    }

    #[test]
    fn an_environment_is_what_has_names() {
        let found = parse_environment(b"PATH=/bin\0X=a=b\0EMPTY=\0junk\0=x\0");
        let found: Vec<_> =
            found.iter().map(|(n, v)| (n.to_str().unwrap(), v.to_str().unwrap())).collect();
        assert_eq!(found, [("PATH", "/bin"), ("X", "a=b"), ("EMPTY", "")]);
        assert!(parse_environment(b"").is_empty());
    }
}
