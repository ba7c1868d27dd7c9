//! One host of the playground: a network namespace, and an agent in it. Runs
//! commands there, and starts and ends the agent. Makes no namespace.

use std::fs::{self, OpenOptions};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::CommandExt;
use crate::process::{MARK, Process};
use crate::wait::eventually;

/// How a node carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// eBPF programs.
    Ebpf,
    /// A bridge and a vxlan device per network.
    Kernel,
}

impl Datapath {
    /// As the agent's `--datapath` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Kernel => "kernel",
        }
    }
}

/// Where commands run.
pub trait Shell {
    /// A command that will run there.
    fn command(&self, words: &[&str]) -> Command;

    /// Runs a command to its end, whether it succeeds or not.
    ///
    /// # Errors
    /// If it cannot be started.
    fn exec(&self, words: &[&str]) -> Result<Output> {
        self.command(words).collect()
    }

    /// Runs a command that must succeed; what it printed to stdout.
    ///
    /// # Errors
    /// If it fails; the error carries the command line and its stderr.
    fn read(&self, words: &[&str]) -> Result<String> {
        self.command(words).read()
    }

    /// Starts a command in the background; it ends with the playground at the latest.
    ///
    /// # Errors
    /// If it cannot be started.
    fn spawn(&self, words: &[&str]) -> Result<Child> {
        let mut command = self.command(words);
        command.stdin(Stdio::null());
        command.spawn().with_context(|| format!("cannot start `{}`", command.line()))
    }
}

/// A network namespace of the playground, with or without an agent.
#[derive(Clone, Debug)]
pub struct Host {
    /// `n1`, `client` or `wire`.
    pub name: String,
    /// Its network namespace, as `ip netns` names it.
    pub netns: String,
    pub(crate) mark: String,
}

impl Host {
    /// Path of its network namespace.
    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.netns)
    }
}

impl Shell for Host {
    /// In its network namespace and no other namespace: `ip netns exec` would hide
    /// bpffs and the cgroups.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns_path().display())).arg("--").args(words);
        command.env(MARK, &self.mark);
        command
    }
}

/// A host with an agent.
#[derive(Clone, Debug)]
pub struct Node {
    /// The host.
    pub host: Host,
    /// Its address on the underlay.
    pub address: Ipv4Addr,
    /// Its agent's datapath.
    pub datapath: Datapath,
    /// Its agent's binary.
    pub binary: PathBuf,
    /// Directory of everything of this node but its pins.
    pub directory: PathBuf,
    /// Directory of its agent's pins.
    pub pins: PathBuf,
    /// Further options of its agent.
    pub options: &'static [&'static str],
}

impl Shell for Node {
    /// With the agent's binary on `PATH`, and with this node's agent as the one that
    /// the CLI asks.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.host.command(words);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = self.binary.parent().map(Path::to_owned);
        let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)));
        command.env("PATH", path.expect("directories of PATH and the checkout hold no colon"));
        command.env("NETAGENT_HOST", format!("unix://{}", self.socket().display()));
        command
    }
}

impl Node {
    /// Runs `netagent` with these arguments to its end, whether it succeeds or not.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn netagent(&self, arguments: &[&str]) -> Result<Output> {
        self.exec(&[&["netagent"], arguments].concat())
    }

    /// Runs a workload attached to `network` that must succeed; what it printed.
    ///
    /// # Errors
    /// If it fails; the error carries the command line and its stderr.
    pub fn run(&self, network: &str, words: &[&str]) -> Result<String> {
        self.read(&[&["netagent", "run", "--network", network, "--"], words].concat())
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.host.name
    }

    /// Socket of its agent.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("run/netagent.sock")
    }

    /// File that its agent's log is appended to.
    pub fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// Its agent, while that runs.
    pub fn agent(&self) -> Option<Process> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        let (pid, start) = text.trim().split_once(' ')?;
        let process = Process { pid: pid.parse().ok()?, start: start.parse().ok()? };
        process.is_alive().then_some(process)
    }

    /// Starts its agent and waits until that answers. Does nothing if it runs.
    ///
    /// # Errors
    /// If the binary is missing, or the agent ends or does not answer; the error
    /// carries the end of its log.
    pub fn start_agent(&self) -> Result<()> {
        self.begin_agent()?;
        let ended = || self.has_ended();
        let process = self.agent().with_context(ended)?;
        let answers = || {
            if !process.is_alive() {
                bail!(ended());
            }
            Ok(UnixStream::connect(self.socket()).ok().map(drop))
        };
        let what = format!("the agent of {} to answer at {}", self.name(), self.socket().display());
        eventually(&what, Duration::from_secs(30), answers)
            .with_context(|| format!("log: {}", self.log().display()))
    }

    /// Starts its agent and does not wait. Does nothing if it runs.
    ///
    /// # Errors
    /// If the binary is missing or the agent ends at once.
    pub fn begin_agent(&self) -> Result<()> {
        if self.agent().is_some() {
            return Ok(());
        }
        if !self.binary.exists() {
            bail!("{} is missing: run `cargo xtask build`", self.binary.display());
        }
        fs::create_dir_all(&self.directory)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = self.agent_command();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Not of the terminal's group: ^C is for whoever started us.
        command.process_group(0);
        let child =
            command.spawn().with_context(|| format!("cannot start `{}`", command.line()))?;
        let pid = i32::try_from(child.id()).context("a pid fits an i32")?;
        let process = Process::of(pid).with_context(|| self.has_ended())?;
        fs::write(self.pid_file(), format!("{} {}\n", process.pid, process.start))
            .with_context(|| format!("cannot write {}", self.pid_file().display()))
    }

    fn has_ended(&self) -> String {
        let said = self.log_end();
        format!("the agent of {} has ended; its log ends with:\n{said}", self.name())
    }

    /// Kills its agent as `kill -9` does; what it has set up stays.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill_agent(&self) -> Result<()> {
        self.agent().map_or(Ok(()), Process::kill)
    }

    /// Asks its agent to end and waits until it has; what it has set up stays.
    ///
    /// # Errors
    /// If it can be neither ended nor killed.
    pub fn stop_agent(&self) -> Result<()> {
        self.agent().map_or(Ok(()), |agent| agent.end(Duration::from_secs(10)))
    }

    /// Ends its agent and removes every trace of it, as `netagent agent --teardown` does.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn teardown(&self) -> Result<()> {
        self.stop_agent()?;
        self.agent_command().arg("--teardown").read().map(drop)
    }

    /// The last lines of its agent's log.
    pub fn log_end(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn agent_command(&self) -> Command {
        let binary = self.binary.to_string_lossy();
        let mut command = self.command(&[&binary, "agent", "--uplink", "eth0"]);
        command.args(["--hostname", self.name(), "--datapath", self.datapath.name()]);
        command.arg("--data-dir").arg(self.directory.join("data"));
        command.arg("--run-dir").arg(self.directory.join("run"));
        command.arg("--bpf-dir").arg(&self.pins);
        command.args(self.options);
        command
    }

    fn pid_file(&self) -> PathBuf {
        self.directory.join("agent.pid")
    }
}
