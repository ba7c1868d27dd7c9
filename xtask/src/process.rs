//! Processes of the playground: found again after their parent has gone, and ended.
//! A process is a pid with its start time, so that a reused pid is never taken for
//! it; and every process that a playground starts carries a mark in its environment,
//! which its descendants inherit. Touches no process without one or the other.

use std::time::Duration;

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};

use crate::wait::eventually;

/// Variable whose value names the playground that a process belongs to.
pub(crate) const MARK: &str = "NETAGENT_PLAYGROUND";

/// One process, now and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process identifier.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

impl Process {
    /// The process that has this pid now; none if there is none or it has ended and
    /// only waits for its parent to ask.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = Stat::of(pid)?;
        // Of several threads the first may end first; the others still hold its files.
        let ended = stat.state == 'Z' && stat.threads == 1;
        (!ended).then_some(Self { pid, start: stat.start })
    }

    /// This process.
    pub fn me() -> Self {
        let me = getpid().as_raw();
        Self::of(me).expect("/proc is mounted and has this process")
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        // A child of ours is a zombie until it is waited for; of others we cannot.
        let _ = waitpid(self.to_pid(), Some(WaitPidFlag::WNOHANG));
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal, unless it has ended.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(self.to_pid(), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => bail!("cannot send {signal} to process {}: {error}", self.pid),
        }
    }

    /// Kills it at once and waits until it is gone.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let gone = || Ok((!self.is_alive()).then_some(()));
        eventually(&format!("process {} to be gone", self.pid), Duration::from_secs(10), gone)
    }

    /// Asks it to end, and kills it if it has not done so within `patience`.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn end(self, patience: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let gone = || Ok((!self.is_alive()).then_some(()));
        eventually("it to end", patience, gone).or_else(|_| self.kill())
    }

    /// Processes with this mark, but for ourselves and our ancestors: one may well
    /// take a playground down from a shell that it was started in.
    pub(crate) fn marked(mark: &str) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let ours = ancestors();
        let variable = format!("{MARK}={mark}");
        let is_marked = |process: &Self| {
            std::fs::read(format!("/proc/{}/environ", process.pid)).is_ok_and(|environment| {
                environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
            })
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| !ours.contains(pid))
            .filter_map(Self::of)
            .filter(is_marked)
            .collect()
    }

    fn to_pid(self) -> Pid {
        Pid::from_raw(self.pid)
    }
}

/// What `/proc/PID/stat` tells.
struct Stat {
    state: char,
    parent: i32,
    threads: u32,
    start: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name, in parentheses, may hold anything.
        let mut fields = text.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let threads = fields.nth(15)?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        Some(Self { state, parent, threads, start })
    }
}

fn ancestors() -> Vec<i32> {
    let parent = |pid: &i32| Stat::of(*pid).map(|stat| stat.parent);
    std::iter::successors(Some(getpid().as_raw()), parent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_ended_child_is_not_alive_and_its_pid_means_nothing() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id().try_into().unwrap()).unwrap();
        assert!(process.is_alive());
        assert!(!Process { start: process.start + 1, ..process }.is_alive());
        process.end(Duration::from_secs(10)).unwrap();
        assert!(!process.is_alive());
        let _ = child.wait();
    }

    #[test]
    fn a_mark_is_inherited_and_finds_no_one_else() {
        let mark = format!("test of process {}", getpid());
        let mut child =
            Command::new("sh").args(["-c", "sleep 60 & wait"]).env(MARK, &mark).spawn().unwrap();
        let both = || Ok(Some(Process::marked(&mark)).filter(|found| found.len() == 2));
        let found = eventually("shell and sleep", Duration::from_secs(10), both).unwrap();
        for process in found {
            process.kill().unwrap();
        }
        let _ = child.wait();
        assert_eq!(Process::marked(&mark), []);
    }

    #[test]
    fn a_process_knows_its_ancestors() {
        let ours = ancestors();
        assert_eq!(ours[0], getpid().as_raw());
        assert!(ours.len() > 1, "{ours:?}");
    }
}
