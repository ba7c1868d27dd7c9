//! One test machine: QEMU without KVM, which is everywhere, and with nothing but memory,
//! processors and two serial ports. The console goes to a file, what the tests print to
//! the caller.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::CommandExt;
use crate::setup::QEMU;

/// Longest that a machine may take to come up, and that it may then say nothing.
const BOOT: Duration = Duration::from_secs(60);
const SILENCE: Duration = Duration::from_secs(900);
/// Boots that may fail before their first process: some emulators lose a few.
const BOOTS: usize = 5;

/// What the first process says once it runs, and at the end.
const UP: &str = "vm: up ";
const DONE: &str = "vm: done";

/// A machine that can be started.
pub(super) struct Machine {
    /// The kernel's image.
    pub(super) image: PathBuf,
    /// The first file system.
    pub(super) initrd: PathBuf,
    /// File for what the kernel says.
    pub(super) console: PathBuf,
    pub(super) clock: Clock,
}

/// What its clock counts.
#[derive(Clone, Copy)]
pub(super) enum Clock {
    /// Time that passes.
    Time,
    /// Instructions that its processors have executed, a nanosecond each, one processor after the
    /// other. So what is measured there is the same however busy this machine is.
    Instructions,
}

/// How a machine has ended.
enum End {
    Done,
    /// Before its first process; another boot may do better.
    NeverUp(String),
    Broken(String),
}

impl Machine {
    /// Boots it, gives each line that it prints to `read`, and waits until it has ended.
    ///
    /// # Errors
    /// If it never comes up, or ends in the midst of its tests; the error carries the end
    /// of the console.
    pub(super) fn run(&self, mut read: impl FnMut(&str)) -> Result<()> {
        for boot in 1.. {
            let why = match self.boot(&mut read)? {
                End::Done => return Ok(()),
                End::NeverUp(why) if boot < BOOTS => {
                    eprintln!("vm: boot {boot} of {BOOTS} {why} before its first process; again");
                    continue;
                }
                End::NeverUp(why) => format!("none of {BOOTS} boots came up; the last {why}"),
                End::Broken(why) => format!("the machine {why}"),
            };
            return Err(anyhow::Error::msg(self.console_end()).context(why));
        }
        unreachable!("the last boot returns")
    }

    fn boot(&self, read: &mut impl FnMut(&str)) -> Result<End> {
        let mut command = self.command();
        let line = command.line();
        let child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        let mut guard = Guard(child);
        let output = guard.0.stdout.take().expect("stdout is a pipe");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        let (mut up, mut done) = (false, false);
        let mut patience = BOOT;
        let start = Instant::now();
        let why = loop {
            match lines.recv_timeout(patience) {
                Ok(line) if line == DONE => done = true,
                Ok(line) if !up => {
                    up = line.contains(UP);
                    patience = if up { SILENCE } else { BOOT.saturating_sub(start.elapsed()) };
                }
                Ok(line) => read(&line),
                Err(RecvTimeoutError::Timeout) => {
                    break format!("said nothing for {} s", patience.as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    break format!("ended ({})", guard.0.wait()?);
                }
            }
        };
        Ok(match (up, done) {
            (_, true) => End::Done,
            (true, false) => End::Broken(why),
            (false, false) => End::NeverUp(why),
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(QEMU);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-M", "q35", "-cpu", "max", "-smp", "2", "-m", "2560", "-accel"]);
        match self.clock {
            Clock::Time => command.arg("tcg,thread=multi"),
            // Without sleep, as time in which nobody works is nobody's.
            Clock::Instructions => {
                command.args(["tcg,thread=single", "-icount", "shift=0,sleep=off"])
            }
        };
        command.arg("-kernel").arg(&self.image).arg("-initrd").arg(&self.initrd);
        // A panic or an oops ends it, at once.
        let kernel = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off random.trust_cpu=on \
                      tsc=reliable";
        command.args(["-append", kernel]);
        command.args(["-serial", &format!("file:{}", self.console.display()), "-serial", "stdio"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    fn console_end(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("{} ends with:\n{end}", self.console.display())
    }
}

/// Ends with the machine, however we leave.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Already gone is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
