//! The controlling terminal, which one process group at a time may read: lent to the
//! command when it wants it, and taken back. Where there is no terminal, nothing is done.
//! Signals are blocked meanwhile, so nobody is stopped for reaching for it.

use std::fs::{File, OpenOptions};

use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// The terminal of this process and its command.
pub(super) struct Terminal {
    tty: Option<File>,
    own: Pid,
    command: Pid,
}

impl Terminal {
    /// That of this process. `command` is the process group of the command.
    pub(super) fn open(command: Pid) -> Self {
        let tty = OpenOptions::new().read(true).write(true).open("/dev/tty");
        Self { tty: tty.ok(), own: getpgrp(), command }
    }

    /// Lends it to the command, if it is ours.
    pub(super) fn lend(&self) -> bool {
        self.pass(self.own, self.command)
    }

    /// Takes it back from the command, if that has it.
    pub(super) fn take_back(&self) -> bool {
        self.pass(self.command, self.own)
    }

    fn pass(&self, from: Pid, to: Pid) -> bool {
        let Some(tty) = &self.tty else { return false };
        tcgetpgrp(tty) == Ok(from) && tcsetpgrp(tty, to).is_ok()
    }
}
