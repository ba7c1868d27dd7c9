//! Stays beside the command of a workload that serves, so that its connections are
//! drained before it is told to stop. Signals, exit status and terminal are passed
//! through: the command is hardly to be told from one that runs by itself.
//!
//! ```text
//!   who sends a signal ──> netagent run ──> command, in a process group of its own
//!                              │ SIGTERM, SIGINT: first drained
//!                            agent
//! ```
//!
//! The command has a process group of its own because the terminal sends Ctrl-C to all of
//! the foreground's: it would end before it is drained.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, setpgid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::drain;
use super::terminal::Terminal;
use crate::api::client::Client;
use crate::cli::{Host, complain};

/// A signal on its way to the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    number: i32,
    /// It is for the whole process group, as those of the terminal are.
    group: bool,
}

/// What is done about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// The command has changed its state.
    Look,
    /// Pass it on once drained.
    Drain(Message),
    /// Pass it on.
    Pass(Message),
    /// It is this process's own.
    Nothing,
}

/// Decides. `stopping`: the command has been, or is about to be, told to stop.
fn action(info: &siginfo, own: Pid, stopping: bool) -> Action {
    let number = info.ssi_signo.cast_signed();
    let message = Message { number, group: info.ssi_code == libc::SI_KERNEL };
    match number {
        libc::SIGCHLD => Action::Look,
        // As when standard error is closed while we write.
        _ if info.ssi_pid.cast_signed() == own.as_raw() && !message.group => Action::Nothing,
        libc::SIGTERM | libc::SIGINT if !stopping => Action::Drain(message),
        _ => Action::Pass(message),
    }
}

/// Runs `command` in a child process, which is given its parent, and stays until that
/// has ended: then as its exit status, or by the signal that ended it. In the child, it
/// returns if the command could not be started.
///
/// # Errors
/// If there can be no child.
pub(super) fn stay(
    host: &Host,
    grace: Duration,
    command: impl FnOnce(Pid) -> ExitCode,
) -> Result<ExitCode> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler of ours is replaced. Where our parent ignores the end of its
    // children, we would not learn of that of ours.
    unsafe { sigaction(Signal::SIGCHLD, &default) }?;
    let all = SigSet::all();
    let before = SigSet::thread_get_mask()?;
    all.thread_block()?;
    let own = getpid();
    // SAFETY: this process has one thread, so the child may do whatever we may.
    let child = match unsafe { fork() }.context("starting a process")? {
        ForkResult::Child => {
            // The parent does the same: whoever is first.
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            before.thread_set_mask()?;
            return Ok(command(own));
        }
        ForkResult::Parent { child } => child,
    };
    let _ = setpgid(child, child);
    let mut parent = Parent { child, own, terminal: Terminal::open(child) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(parent.watch(&Client::unix(&host.0), grace));
    parent.terminal.take_back();
    end_as(status?)
}

struct Parent {
    child: Pid,
    own: Pid,
    terminal: Terminal,
}

impl Parent {
    /// Passes signals on until the command has ended.
    async fn watch(&mut self, agent: &Client, grace: Duration) -> Result<ExitStatus> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&SigSet::all(), flags)?;
        // SAFETY: a SignalFd is one open descriptor for as long as it lives, and the
        // AsyncFd owns it.
        let signals = unsafe { AsyncFd::register_with_interest(signals, Interest::READABLE) }?;
        let mut draining = None;
        let mut stopping = false;
        loop {
            let drained = async {
                match &mut draining {
                    Some((message, drain)) => (*message, drain.await),
                    None => std::future::pending().await,
                }
            };
            let info = tokio::select! {
                info = next(&signals) => info?,
                (message, result) = drained => {
                    if let Err(error) = result {
                        complain(&error);
                    }
                    draining = None;
                    self.send(message);
                    continue;
                }
            };
            match action(&info, self.own, stopping) {
                Action::Look => {
                    if let Some(status) = self.look()? {
                        return Ok(status);
                    }
                }
                Action::Drain(message) => {
                    stopping = true;
                    let drain = drain::drain(agent, self.child, grace);
                    draining = Some((message, Box::pin(drain)));
                }
                Action::Pass(message) => {
                    // A second one skips the wait.
                    if matches!(message.number, libc::SIGTERM | libc::SIGINT) {
                        draining = None;
                    }
                    self.send(message);
                }
                Action::Nothing => {}
            }
        }
    }

    fn send(&self, message: Message) {
        let pid = self.child.as_raw();
        let to = if message.group { -pid } else { pid };
        // SAFETY: kill takes two integers. The child has not been waited for, so its
        // number is still its own; it may have ended, which is well.
        unsafe { libc::kill(to, message.number) };
    }

    /// The command has ended, or stopped, or gone on. Gives its status at its end.
    fn look(&mut self) -> Result<Option<ExitStatus>> {
        loop {
            let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
            match waitpid(self.child, Some(flags)) {
                Ok(WaitStatus::Exited(_, code)) => {
                    return Ok(Some(ExitStatus::from_raw(code << 8)));
                }
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    return Ok(Some(ExitStatus::from_raw(signal as i32)));
                }
                Ok(WaitStatus::Stopped(_, signal)) => self.stopped(signal)?,
                Ok(_) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for the command"),
            }
        }
    }

    /// A command that wants the terminal gets it, and with it Ctrl-C, as long as it is
    /// ours to give. If the shell is to have it, we stop as the command has.
    fn stopped(&mut self, signal: Signal) -> Result<()> {
        let go_on = Message { number: libc::SIGCONT, group: true };
        match signal {
            Signal::SIGTTIN | Signal::SIGTTOU if self.terminal.lend() => self.send(go_on),
            Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU => {
                let lent = self.terminal.take_back();
                raise(signal)?;
                let mut stop = SigSet::empty();
                stop.add(signal);
                stop.thread_unblock()?;
                // Here we stop, until somebody sends SIGCONT, which is passed on later.
                stop.thread_block()?;
                if lent {
                    self.terminal.lend();
                }
                // Without a shell above us nobody stops, or would ever send it.
                if signal == Signal::SIGTSTP {
                    self.send(go_on);
                }
            }
            // By somebody who knows why.
            _ => {}
        }
        Ok(())
    }
}

/// The next signal to this process.
async fn next(signals: &AsyncFd<SignalFd>) -> Result<siginfo> {
    loop {
        let mut ready = signals.readable().await?;
        match signals.get_ref().read_signal()? {
            Some(info) => return Ok(info),
            None => ready.clear_ready(),
        }
    }
}

/// Ends as the command has.
fn end_as(status: ExitStatus) -> Result<ExitCode> {
    let signal = match (status.code(), status.signal()) {
        (Some(code), _) => return Ok(ExitCode::from(u8::try_from(code)?)),
        (None, signal) => Signal::try_from(signal.unwrap_or(libc::SIGKILL))?,
    };
    // The command has left its own memory behind, if it is to.
    set_dumpable(false)?;
    if signal != Signal::SIGKILL {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler of ours is replaced.
        unsafe { sigaction(signal, &default) }?;
    }
    raise(signal)?;
    SigSet::all().thread_unblock()?;
    // Not reached: a signal that ended the command ends us.
    Ok(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(signal: i32, code: i32, pid: i32) -> siginfo {
        // SAFETY: a siginfo of zeroes is a valid value.
        let mut info: siginfo = unsafe { std::mem::zeroed() };
        (info.ssi_signo, info.ssi_code) = (signal.cast_unsigned(), code);
        info.ssi_pid = pid.cast_unsigned();
        info
    }

    #[test]
    fn the_first_signal_to_stop_drains() {
        let own = Pid::from_raw(7);
        let sent = |signal, stopping| action(&info(signal, libc::SI_USER, 1), own, stopping);
        let message = |number, group| Message { number, group };
        for signal in [libc::SIGTERM, libc::SIGINT] {
            assert_eq!(sent(signal, false), Action::Drain(message(signal, false)));
            assert_eq!(sent(signal, true), Action::Pass(message(signal, false)));
        }
        for signal in [libc::SIGHUP, libc::SIGUSR1, libc::SIGQUIT, libc::SIGCONT, libc::SIGRTMIN()]
        {
            assert_eq!(sent(signal, false), Action::Pass(message(signal, false)));
        }
        assert_eq!(sent(libc::SIGCHLD, false), Action::Look);
    }

    #[test]
    fn what_the_terminal_sends_is_for_the_group() {
        let own = Pid::from_raw(7);
        let typed = |signal| action(&info(signal, libc::SI_KERNEL, 0), own, false);
        assert_eq!(typed(libc::SIGINT), Action::Drain(Message { number: 2, group: true }));
        assert_eq!(typed(libc::SIGQUIT), Action::Pass(Message { number: 3, group: true }));
        let broken_pipe = info(libc::SIGPIPE, libc::SI_USER, 7);
        assert_eq!(action(&broken_pipe, own, false), Action::Nothing);
    }
}
