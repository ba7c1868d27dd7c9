//! The machine that measures: what it is, how busy it is, and what is changed on it
//! while a run lasts.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::command::{CommandExt, checkout};

/// What results were measured on.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// UTC.
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    /// The source that was measured.
    pub(crate) commit: String,
}

impl Machine {
    /// This one, now.
    pub(crate) fn this() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let info = read("/proc/cpuinfo")?;
        let field =
            |line: &str| Some(line.strip_prefix("model name")?.split_once(": ")?.1.to_owned());
        let mut describe = Command::new("git");
        describe.args(["describe", "--always", "--dirty"]).current_dir(checkout());
        Ok(Self {
            date: Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).read()?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpu: info.lines().find_map(field).unwrap_or_else(|| "unknown CPU".to_owned()),
            cpus: std::thread::available_parallelism()?.get(),
            commit: describe.read().unwrap_or_else(|_| "unknown".to_owned()),
        })
    }
}

/// Processes that ran or waited to run, averaged over the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// A file of /proc that is put back when this is dropped.
pub(crate) struct Changed {
    path: &'static str,
    before: String,
}

impl Changed {
    fn to(path: &'static str, before: String, value: &str) -> Result<Self> {
        fs::write(path, value).with_context(|| format!("write {value} to {path}"))?;
        Ok(Self { path, before })
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.path, &self.before) {
            eprintln!("error: cannot write {} back to {}: {error}", self.before, self.path);
        }
    }
}

/// Puts this session before the others. `nice` alone acts only within a session where
/// the kernel groups processes by it. None where it does not.
pub(crate) fn prefer_this_session() -> Result<Option<Changed>> {
    let path = "/proc/self/autogroup";
    let text = fs::read_to_string(path).unwrap_or_default();
    let Some((_, before)) = text.trim().rsplit_once(' ') else { return Ok(None) };
    Changed::to(path, before.to_owned(), "-20").map(Some)
}

/// Has the kernel measure every run of an eBPF program; that costs some time itself.
pub(crate) fn count_bpf_time() -> Result<Changed> {
    let path = "/proc/sys/kernel/bpf_stats_enabled";
    let before = fs::read_to_string(path)?.trim().to_owned();
    Changed::to(path, before, "1")
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_: nix::libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on ^C and SIGTERM do not end us at once: what was made is to be removed.
pub(crate) fn catch_interrupts() -> Result<()> {
    let handler = SigHandler::Handler(note_interrupt);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Fails once somebody wants us to end.
pub(crate) fn go_on() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
