//! `cargo xtask vagrant-test`: the scenarios on three virtual machines, each with a
//! kernel and systemd of its own. With KVM and a box named by `NETAGENT_BOX` as Vagrant
//! does it anywhere; where neither is to be had, in a box of our own under emulation
//! (`NETAGENT_DRIVER=qemu`).

mod disk;
mod libvirt;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::build::{self, Profile};
use crate::command::{CommandExt, checkout};
use crate::node::Shell;
use crate::scenario::{self, Hosts};
use crate::setup::{self, Need};
use crate::wait::eventually;

/// Addresses of the machines on their private network, as the Vagrantfile has them.
const NODES: [(&str, Ipv4Addr); 3] = [
    ("n1", Ipv4Addr::new(192, 168, 56, 11)),
    ("n2", Ipv4Addr::new(192, 168, 56, 12)),
    ("n3", Ipv4Addr::new(192, 168, 56, 13)),
];
/// This host's address there.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 1);
/// Emulated machines boot in a minute or two.
const BOOT: Duration = Duration::from_secs(600);

/// Brings the machines up, runs the scenarios, reboots one, and destroys the machines
/// unless `keep`.
///
/// # Errors
/// If a tool is missing, or something is not as it must be.
pub fn test(keep: bool) -> Result<()> {
    let start = Instant::now();
    setup::ensure(Need::Vagrant)?;
    build::all(Profile::Release)?;
    let scratch = checkout().join("target/vagrant");
    fs::create_dir_all(&scratch)?;
    let emulated = std::env::var("NETAGENT_DRIVER").is_ok_and(|driver| driver == "qemu");
    let own_box = emulated && std::env::var_os("NETAGENT_BOX").is_none();
    if own_box {
        disk::ensure(&scratch)?;
    }
    let libvirt = libvirt::running(&scratch)?;
    let machines = Machines { own_box, scratch };
    let result = machines.test(&start);
    if keep {
        libvirt.leave();
        println!("The machines stay up: `cd vagrant; vagrant ssh n1`, `vagrant destroy -f`.");
    } else {
        machines.vagrant(&["destroy", "--force"]).run()?;
    }
    result
}

struct Machines {
    /// They are made from the box of `disk`.
    own_box: bool,
    scratch: PathBuf,
}

impl Machines {
    fn vagrant(&self, words: &[&str]) -> Command {
        let mut command = Command::new("vagrant");
        command.args(words).current_dir(checkout().join("vagrant"));
        if self.own_box {
            command.env("NETAGENT_BOX", disk::NAME);
        }
        command
    }

    fn test(&self, start: &Instant) -> Result<()> {
        let tell = |what: &str| println!("[{:4} s] {what}", start.elapsed().as_secs());
        tell("vagrant up");
        self.vagrant(&["up", "--no-parallel"]).run()?;
        let configuration = self.scratch.join("ssh-config");
        fs::write(&configuration, self.vagrant(&["ssh-config"]).read()?)?;
        let machines = NODES.map(|(name, _)| Machine { name, configuration: &configuration });
        let [n1, n2, n3] = &machines;
        tell("three machines are up, with an agent on each");

        let advertise = |address: Ipv4Addr| format!("--advertise-addr={address}");
        n1.read(&["netagent", "cluster", "init", &advertise(NODES[0].1)])?;
        let token = n1.read(&["netagent", "cluster", "join-token", "-q", "worker"])?;
        for (machine, (_, address)) in machines.iter().zip(NODES).skip(1) {
            let to = NODES[0].1.to_string();
            let join = ["netagent", "cluster", "join", "--token", token.trim()];
            machine.read(&[&join[..], &[&advertise(address), &to]].concat())?;
        }
        ready(n1)?;
        tell("they are one cluster");

        let restart =
            |number: usize| machines[number].read(&["systemctl", "restart", "netagent"]).map(drop);
        let nodes = [(n1 as &dyn Shell, NODES[0].1), (n2, NODES[1].1), (n3, NODES[2].1)];
        let hosts = Hosts { nodes, client: &Here, client_address: HOST, restart: &restart };
        let running = scenario::all(&hosts, &self.scratch, &tell)?;

        // A machine that is rebooted is a member again, by itself, and without residue.
        let _ = n2.exec(&["systemctl", "reboot"]);
        eventually("n2 goes", BOOT, || Ok(n2.read(&["true"]).is_err().then_some(())))?;
        eventually("n2 comes back", BOOT, || Ok(n2.read(&["netagent", "verify"]).ok()))?;
        ready(n1)?;
        let url = format!("http://{}:{}/", NODES[1].1, scenario::PORT);
        let get = ["curl", "--silent", "--fail", "--max-time", "30", "--output", "/dev/null", &url];
        eventually("n2 answers for n1's web server", BOOT, || Ok(Here.read(&get).ok()))?;
        tell("after a reboot a machine is a member again and answers on the published port");
        drop(running);

        for machine in machines.iter().rev() {
            machine.read(&["netagent", "cluster", "leave", "--force"])?;
            machine.read(&["systemctl", "stop", "netagent"])?;
            machine.read(&["netagent", "agent", "--teardown"])?;
            let left = machine.read(&["ip", "-o", "link"])?;
            ensure!(!left.contains("na-"), "links are left on {}: {left}", machine.name);
            let pins = machine.exec(&["ls", "/sys/fs/bpf/netagent"])?;
            ensure!(!pins.status.success(), "pins are left on {}", machine.name);
        }
        tell("torn down, they have nothing of it left");
        Ok(())
    }
}

fn ready(manager: &Machine<'_>) -> Result<()> {
    eventually("three nodes are ready", BOOT, || {
        let list = manager.read(&["netagent", "node", "ls"])?;
        Ok((list.matches(" ready ").count() == 3).then_some(()))
    })
}

/// A machine, reached by SSH.
struct Machine<'a> {
    name: &'static str,
    configuration: &'a Path,
}

impl Shell for Machine<'_> {
    fn command(&self, words: &[&str]) -> Command {
        let mut inner = Command::new("sudo");
        inner.args(words);
        let mut command = Command::new("ssh");
        command.arg("-F").arg(self.configuration).args([
            "-o",
            "ConnectTimeout=10",
            self.name,
            "--",
        ]);
        command.arg(inner.line());
        command
    }
}

/// This host.
struct Here;

impl Shell for Here {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    }
}
