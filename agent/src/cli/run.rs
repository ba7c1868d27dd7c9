//! `netagent run`: becomes the command, inside a network namespace that the agent
//! has attached. It must be single-threaded when it unshares, so the runtime that
//! speaks to the agent is made afterwards, on this thread, and dropped before exec.
//! For a workload that serves, a child does all this, and `parent` stays beside it.

mod drain;
mod parent;
mod service;
mod terminal;

use std::ffi::{CString, OsString};
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{self, PathBuf};
use std::process::{Command, ExitCode};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid, User, getpid, getppid, initgroups, setgid, sethostname, setuid};

use super::{Host, ask, complain, output};
use crate::api::types::{Attach, CreateWorkload, WorkloadReady};
use crate::model::Name;
use service::Service;

/// Exit status when netagent itself failed, as with `docker run`.
const FAILED: u8 = 125;
/// Exit status when the command cannot be started.
const CANNOT_INVOKE: u8 = 126;
/// Exit status when there is no such command.
const NOT_FOUND: u8 = 127;

/// Run a command on overlay networks
///
/// Gives the command a network namespace of its own with one interface (eth0, eth1, ...)
/// on each of the networks, a name that resolves on them, and becomes the command: the
/// process keeps its pid, its standard input and output, its terminal, and gets its signals
/// itself. File system, users and environment stay the host's, but for /etc/resolv.conf
/// and /etc/hosts, which name the DNS server and the addresses inside. (/sys stays the
/// host's too: /sys/class/net shows the host's interfaces.)
///
/// Address and name are released when the process ends, also if it leaves children behind:
/// a program that puts itself into the background must be told not to.
///
/// With --netns and no command, attaches a namespace that exists, prints the workload's name
/// and addresses, and returns: for containers and programs that something else starts. It is
/// released when the file is gone, or by `netagent endpoint rm`. Nothing is mounted then; the
/// DNS server inside is 127.0.0.11.
///
/// With --service, the workload is a backend of the service: it gets a share of the
/// connections to the service's name and published ports as long as it is healthy. With a
/// health check, it gets none before the first success.
///
/// netagent then stays the parent of the command. On SIGTERM, or SIGINT as by Ctrl-C, it first
/// drains: it has all nodes send new connections to other backends, waits until those that
/// there are have ended or --stop-grace is over, and only then passes the signal on. A second
/// signal skips the wait. All other signals are passed on at once, and netagent ends as the
/// command does, by the same status or signal; if netagent is killed, so is the command. A
/// command that reads the terminal gets it, and Ctrl-C itself. Under systemd, use
/// KillMode=mixed, or the command gets its SIGTERM at once. A command that ends by itself, or
/// crashes, is taken out of the service at once.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  A database and a web server, on any nodes of the cluster:
      netagent run --network mydrupal --name psql --user postgres -- postgres -D /srv/db
      netagent run --network mydrupal --name web -- nginx -g 'daemon off;'

  Two networks, with an alias and an address of its own on one of them:
      netagent run --network front --network back,alias=db,ip=10.0.1.50 -- ./server

  A backend of service web, on the service's networks, checked, and drained before it stops:
      netagent run --service web --health-http :80/ --stop-grace 1m -- nginx -g 'daemon off;'

  A look around:
      netagent run --network mydrupal -- ping psql

  A namespace that exists:
      ip netns add blue
      netagent run --network mydrupal --name blue --netns /run/netns/blue

Exit status:
  That of the command. 125 if netagent itself failed, 126 if the command cannot be started,
  127 if there is no such command.")]
pub(super) struct Run {
    /// Network to be on, with further names and an address there if wanted; repeatable.
    /// The first that is not internal carries the default route
    #[arg(
        long,
        required_unless_present = "service_name",
        value_name = "NETWORK[,alias=NAME][,ip=ADDRESS]"
    )]
    network: Vec<Membership>,
    /// Name of the workload, unique on this node; by default a random one
    #[arg(long)]
    name: Option<Name>,
    /// Further name on all of the networks; repeatable
    #[arg(long, visible_alias = "network-alias", value_name = "NAME")]
    alias: Vec<Name>,
    /// Address on the network, if there is one network only
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// Use the network namespace that this file names, instead of a new one
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// Host name that the command sees; by default the name of the workload
    #[arg(long, value_name = "NAME", requires = "command")]
    hostname: Option<Name>,
    /// User to run the command as, by name or number, with all of the user's groups
    #[arg(short, long, value_name = "USER", requires = "command")]
    user: Option<String>,
    #[command(flatten)]
    service: Service,
    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "netns",
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

/// A network to be on, as `--network` has it.
#[derive(Clone, Debug)]
struct Membership(Attach);

impl FromStr for Membership {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (network, options) = text.split_once(',').unwrap_or((text, ""));
        let network = network.strip_prefix("name=").unwrap_or(network).to_owned();
        if network.is_empty() {
            return Err("the network's name comes first".to_owned());
        }
        let mut attach = Attach { network, aliases: Vec::new(), address: None };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("alias", alias)) => {
                    attach.aliases.push(alias.parse::<Name>().map_err(|e| e.to_string())?);
                }
                Some(("ip", ip)) => {
                    let ip = ip.parse().map_err(|_| format!("{ip:?} is not an IPv4 address"))?;
                    attach.address = Some(ip);
                }
                _ => return Err(format!("{option:?} is not alias=NAME or ip=ADDRESS")),
            }
        }
        Ok(Self(attach))
    }
}

impl Run {
    /// Becomes the command, or says why not by the exit status.
    pub(super) fn execute(self, host: &Host) -> ExitCode {
        let failed = |error: anyhow::Error| {
            complain(&error);
            ExitCode::from(FAILED)
        };
        if self.command.is_empty() {
            return self.attach(host).map_or_else(failed, |()| ExitCode::SUCCESS);
        }
        if self.service.name.is_none() {
            return self.become_command(host, None);
        }
        let child = |parent| self.become_command(host, Some(parent));
        parent::stay(host, self.service.stop_grace, child).unwrap_or_else(failed)
    }

    /// Becomes the command, which is to end with `parent`, if there is one. Gives an exit
    /// status if that fails.
    fn become_command(&self, host: &Host, parent: Option<Pid>) -> ExitCode {
        let mut command = match self.prepare(host, parent) {
            Ok(command) => command,
            Err(error) => {
                complain(&error);
                return ExitCode::from(FAILED);
            }
        };
        let error = command.exec();
        eprintln!("netagent: {}: {error}", command.get_program().to_string_lossy());
        ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_INVOKE })
    }

    /// Attaches the namespace that a file names, and prints who it is now.
    fn attach(&self, host: &Host) -> Result<()> {
        let netns = self.netns.as_ref().expect("required when there is no command");
        // Links are left as they are: those under /proc lead to no path.
        let netns = path::absolute(netns).with_context(|| netns.display().to_string())?;
        let ready = create(host, &self.request(None, Some(netns))?)?;
        let addresses = ready.workload.attachments.iter().map(|a| a.endpoint.address.to_string());
        let line: Vec<String> =
            std::iter::once(ready.workload.name.to_string()).chain(addresses).collect();
        Ok(output::print(&(line.join(" ") + "\n"))?)
    }

    /// Makes this process what the command is to be: namespaces, name and user. Network
    /// and files are the agent's doing.
    fn prepare(&self, host: &Host, parent: Option<Pid>) -> Result<Command> {
        parent.map_or(Ok(()), end_with)?;
        let user = self.user.as_deref().map(find_user).transpose()?;
        let request = self.request(Some(getpid().as_raw()), None)?;
        self.separate().context("this needs root")?;
        let ready = create(host, &request)?;
        let hostname = self.hostname.as_ref().unwrap_or(&ready.workload.name);
        sethostname(hostname.as_str()).context("setting the host name")?;

        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        if let Some(user) = user {
            become_user(&user).with_context(|| format!("becoming user {}", user.name))?;
            command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
            // Another user begins without (prctl(2)).
            parent.map_or(Ok(()), end_with)?;
        }
        Ok(command)
    }

    fn request(&self, pid: Option<i32>, netns: Option<PathBuf>) -> Result<CreateWorkload> {
        let mut networks: Vec<Attach> = self.network.iter().map(|m| m.0.clone()).collect();
        if networks.is_empty() && (self.ip.is_some() || !self.alias.is_empty()) {
            bail!("--ip and --alias are for networks that are named: use --network");
        }
        if let Some(ip) = self.ip {
            match networks.as_mut_slice() {
                [one] => one.address = Some(ip),
                _ => bail!("--ip is for one network; with several, use --network NAME,ip={ip}"),
            }
        }
        for network in &mut networks {
            network.aliases.extend(self.alias.iter().cloned());
        }
        Ok(CreateWorkload {
            name: self.name.clone(),
            pid,
            netns,
            mount: pid.is_some(),
            networks,
            serve: self.service.serve(),
            health_check: self.service.health_check(),
        })
    }

    /// Leaves the host's namespaces.
    fn separate(&self) -> Result<()> {
        let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
        match &self.netns {
            None => flags |= CloneFlags::CLONE_NEWNET,
            Some(path) => {
                let file = fs::File::open(path).with_context(|| path.display().to_string())?;
                setns(file, CloneFlags::CLONE_NEWNET).with_context(|| {
                    format!("entering {} as a network namespace", path.display())
                })?;
            }
        }
        unshare(flags).context("making namespaces")
    }
}

fn create(host: &Host, request: &CreateWorkload) -> Result<WorkloadReady> {
    let mut reply = None;
    ask(host, async |agent| {
        let ready: WorkloadReady = agent.post("/v1/workloads", request).await?;
        reply = Some(ready);
        Ok(())
    })?;
    let ready = reply.expect("set when the agent answered");
    for warning in &ready.warnings {
        eprintln!("netagent: warning: {warning}");
    }
    Ok(ready)
}

fn find_user(wanted: &str) -> Result<User> {
    let by_name = User::from_name(wanted).with_context(|| format!("looking up user {wanted}"))?;
    match (by_name, wanted.parse()) {
        (Some(user), _) => Ok(user),
        (None, Ok(uid)) => User::from_uid(Uid::from_raw(uid))?
            .with_context(|| format!("there is no user with the number {wanted}")),
        (None, Err(_)) => bail!("there is no user {wanted}"),
    }
}

/// Has the kernel kill this process when `parent` ends. A command that gets more rights
/// by being executed loses that again.
fn end_with(parent: Pid) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("asking to end with netagent")?;
    // It may have ended before we asked.
    if getppid() != parent {
        bail!("netagent has ended");
    }
    Ok(())
}

fn become_user(user: &User) -> Result<()> {
    initgroups(&CString::new(user.name.as_str())?, user.gid)?;
    setgid(user.gid)?;
    Ok(setuid(user.uid)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_with_names_and_an_address() {
        let parse = |text: &str| text.parse::<Membership>().map(|m| m.0);
        let plain = parse("back").unwrap();
        assert_eq!((plain.network.as_str(), plain.aliases.len(), plain.address), ("back", 0, None));
        let full = parse("name=back,alias=db,ip=10.0.1.50,alias=SQL").unwrap();
        let aliases: Vec<_> = full.aliases.iter().map(Name::as_str).collect();
        assert_eq!(full.network, "back");
        assert_eq!(aliases, ["db", "sql"]);
        assert_eq!(full.address, Some(Ipv4Addr::new(10, 0, 1, 50)));
        for wrong in ["", ",alias=a", "a,b", "a,alias=-", "a,ip=::1", "a,IP=10.0.0.1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(find_user("root").unwrap().uid, Uid::from_raw(0));
        assert_eq!(find_user("0").unwrap().name, "root");
        assert!(find_user("no-such-user").is_err());
        assert!(find_user("4294967294").is_err());
    }
}
