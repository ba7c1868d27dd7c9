//! What is on the wire between the demo's hosts, by tcpdump.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Network, follow, proved, show_line, show_output};
use crate::node::Shell;
use crate::playground::Playground;
use crate::process::Process;

/// UDP port of the overlay.
const VXLAN: &str = "4789";

/// tcpdump, writing what passes the bridge.
pub(super) struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    pub(super) fn start(playground: &Playground, scratch: &Path) -> Result<Self> {
        let file = scratch.join("wire.pcap");
        let log = scratch.join("tcpdump.log");
        let path = file.to_string_lossy();
        let options = ["--immediate-mode", "-U", "-Z", "root"];
        let words = [&["tcpdump", "-i", "br0", "-w", &path][..], &options, &["ip"]].concat();
        show_line("wire", &words);
        let mut command = playground.wire().command(&words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let child = command.spawn().context("cannot start tcpdump")?;
        Ok(Self { child: follow(child, &log, "listening on")?, file })
    }

    /// Ends it; the file that it wrote.
    pub(super) fn stop(mut self) -> Result<PathBuf> {
        let pid = i32::try_from(self.child.id())?;
        if let Some(process) = Process::of(pid) {
            process.end(Duration::from_secs(5))?;
        }
        let _ = self.child.wait();
        Ok(self.file)
    }
}

/// All that the two workloads said to each other was VXLAN of this network.
pub(super) fn check(playground: &Playground, file: &Path, network: &Network) -> Result<()> {
    let file = file.to_string_lossy();
    let shown = |filter: &[&str]| {
        let words = [&["tcpdump", "-nn", "-r", &file][..], filter].concat();
        show_line("wire", &words);
        playground.wire().read(&words)
    };
    // Without the probes by which nodes see to their paths, which have VNI 0.
    let overlay = shown(&[&format!("udp port {VXLAN} and udp[12:4] & 0xffffff00 != 0")])?;
    overlay.lines().take(6).for_each(show_output);
    println!("   | ...");
    let outer: Vec<&str> = overlay.lines().filter(|line| line.contains(": VXLAN, ")).collect();
    let vni = format!(" vni {}", network.vni);
    if let Some(other) = outer.iter().find(|line| !line.ends_with(&vni)) {
        bail!("a frame of another network: {other}");
    }
    let (server, client) = (playground.node(1).address, playground.node(3).address);
    for (from, to) in [(client, server), (server, client)] {
        let to = format!(" > {to}.{VXLAN}: ");
        let is_one = |line: &&&str| line.contains(&format!(" {from}.")) && line.contains(&to);
        ensure!(outer.iter().any(|line| is_one(&line)), "no frame from {from}{to}");
    }
    ensure!(overlay.contains(".5432: Flags [S]"), "no connection to the server was in them");
    let clear = shown(&["tcp", "port", "5432"])?;
    ensure!(clear.is_empty(), "PostgreSQL was on the wire outside the overlay:\n{clear}");
    proved(&format!(
        "all {} frames of networks to port {VXLAN} are VXLAN with VNI {}, as `network inspect` has \
         it; PostgreSQL is inside them and nowhere else",
        outer.len(),
        network.vni
    ));
    Ok(())
}
