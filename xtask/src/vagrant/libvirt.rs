//! libvirt's daemons: those of the system, or where no service manager runs them, our own
//! for as long as they are needed.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::CommandExt;
use crate::wait::eventually;

/// Daemons that were started here; they end with this.
pub(super) struct Daemons(Vec<Child>);

impl Daemons {
    /// Leaves them running.
    pub(super) fn leave(mut self) {
        self.0.clear();
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn answers() -> bool {
    Command::new("virsh").args(["--connect", "qemu:///system", "list"]).read().is_ok()
}

/// libvirt, answering.
///
/// # Errors
/// If it does not come up; its log is in `scratch`.
pub(super) fn running(scratch: &Path) -> Result<Daemons> {
    let mut daemons = Daemons(vec![]);
    if answers() {
        return Ok(daemons);
    }
    for name in ["virtlogd", "libvirtd"] {
        let log = scratch.join(format!("{name}.log"));
        let file = File::create(&log)?;
        println!("starting {name} (log: {})", log.display());
        let mut command = Command::new(name);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        daemons.0.push(command.spawn().with_context(|| format!("cannot start {name}"))?);
    }
    eventually("libvirtd answers", Duration::from_secs(30), || Ok(answers().then_some(())))?;
    Ok(daemons)
}
