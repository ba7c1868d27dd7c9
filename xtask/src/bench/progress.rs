//! How far a run is: a bar on a terminal, elsewhere a line for each measure of a round.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const WIDTH: usize = 24;

pub(crate) struct Progress {
    begin: Instant,
    done: usize,
    all: usize,
    terminal: bool,
}

impl Progress {
    pub(crate) fn of(all: usize) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = std::io::stderr().is_terminal() && !dumb;
        Self { begin: Instant::now(), done: 0, all, terminal }
    }

    /// One step begins.
    pub(crate) fn step(&mut self, what: &str) {
        if self.terminal {
            eprint!("\r{}\x1b[K", line(self.done, self.all, self.begin.elapsed(), what));
            let _ = std::io::stderr().flush();
        }
        self.done += 1;
    }

    /// Says something that stays to be read.
    pub(crate) fn say(&self, text: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}bench: {text}");
    }

    /// Several steps begin, which are one `part`.
    pub(crate) fn part(&self, part: &str) {
        if !self.terminal {
            self.say(part);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn line(done: usize, all: usize, elapsed: Duration, what: &str) -> String {
    let full = WIDTH * done / all.max(1);
    let bar = format!("{}{}", "█".repeat(full), "░".repeat(WIDTH - full));
    let left = match done {
        0 => String::new(),
        done => {
            let left = elapsed.as_secs_f64() / done as f64 * (all - done) as f64;
            format!(", {}:{:02} left", left as u64 / 60, left as u64 % 60)
        }
    };
    format!("{bar} {done}/{all}{left}: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_grows_and_the_rest_is_estimated() {
        let begin = line(0, 4, Duration::ZERO, "raw udp");
        assert_eq!(begin, format!("{} 0/4: raw udp", "░".repeat(24)));
        let half = line(2, 4, Duration::from_secs(65), "raw udp");
        assert_eq!(half, format!("{}{} 2/4, 1:05 left: raw udp", "█".repeat(12), "░".repeat(12)));
    }
}
