//! The command line: one file per noun, one function per verb. A verb asks the
//! agent over its API, turns the reply into text by a pure function, and prints
//! it. It never touches the kernel or the store itself.

pub mod agent;
mod backup;
mod ca;
mod cluster;
mod completion;
pub mod duration;
mod endpoint;
mod filter;
mod man;
mod metrics;
mod network;
mod node;
mod output;
mod pairs;
mod run;
mod service;
mod verify;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use axum::http::StatusCode;
use clap::{Parser, Subcommand};

use crate::api::client::{Client, ClientError};

/// The network of a container cluster for plain Linux hosts
///
/// netagent gives the processes of several Linux hosts networks of their own that
/// span these hosts, and names on them, as Docker Swarm's overlay networks do. One
/// agent runs on each host; this command speaks to the agent of the host it runs on.
#[derive(Parser, Debug)]
#[command(
    name = "netagent",
    version,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_long_help = "Examples:
  On the first host, then on each other one with the token that init printed:
      netagent cluster init
      netagent cluster join --token TOKEN 192.0.2.11

  A network, and what is on it:
      netagent network create mydrupal
      netagent endpoint ls

  A service that every node answers for on port 80, and a workload behind it:
      netagent service create --name web --network mydrupal -p 80:8080
      netagent run --service web -- ./server

Exit status:
  0 if all was done, 1 if something was not (standard error says what), 2 if the
  command line was wrong."
)]
struct Cli {
    /// Socket of the agent to speak to
    #[arg(
        short = 'H',
        long,
        global = true,
        help_heading = "Global options",
        env = "NETAGENT_HOST",
        value_name = "unix://PATH",
        default_value = "unix:///run/netagent/netagent.sock"
    )]
    host: Host,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make, join and leave a cluster
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Manage the nodes of the cluster
    #[command(subcommand)]
    Node(node::Verb),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Verb),
    /// Manage services: one name and one address for any number of workloads
    #[command(subcommand)]
    Service(service::Verb),
    /// Manage endpoints: who has which address on which network
    #[command(subcommand)]
    Endpoint(endpoint::Verb),
    Run(run::Run),
    Agent(agent::AgentArgs),
    Metrics(metrics::Metrics),
    Verify(verify::Verify),
    Completion(completion::Completion),
    Man(man::Man),
}

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Host(PathBuf);

impl FromStr for Host {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self(path.into())),
            _ => Err("an agent's host is unix:// and the absolute path of its socket".to_owned()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

/// The whole program: parses the arguments, does what they say, and tells on
/// standard error what went wrong.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(status) => status,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// What needs no agent is done at once; the rest asks it.
fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { host, command } = cli;
    match command {
        // It has exit statuses of its own, and seldom returns.
        Command::Run(args) => return Ok(args.execute(&host)),
        Command::Agent(args) => crate::daemon::run(&args),
        Command::Completion(args) => args.run(),
        Command::Man(args) => args.run(),
        Command::Cluster(cluster::Verb::Restore(args)) => args.run(),
        Command::Cluster(verb) => ask(&host, async |agent| cluster::run(verb, agent).await),
        Command::Node(verb) => ask(&host, async |agent| node::run(verb, agent).await),
        Command::Network(verb) => ask(&host, async |agent| network::run(verb, agent).await),
        Command::Service(verb) => ask(&host, async |agent| service::run(verb, agent).await),
        Command::Endpoint(verb) => ask(&host, async |agent| endpoint::run(verb, agent).await),
        Command::Metrics(args) => ask(&host, async |agent| args.run(agent).await),
        Command::Verify(args) => ask(&host, async |agent| args.run(agent).await),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a conversation with the agent at `host`.
fn ask(host: &Host, verb: impl AsyncFnOnce(&Client) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { verb(&Client::unix(&host.0)).await })
}

fn complain(error: &anyhow::Error) {
    for line in explain(error).lines() {
        eprintln!("netagent: {line}");
    }
}

/// The error's text, with the remedy where only this side knows it.
fn explain(error: &anyhow::Error) -> String {
    let remedy = match error.downcast_ref() {
        Some(ClientError::Unreachable { .. }) if !nix::unistd::geteuid().is_root() => {
            "\nonly root may speak to the agent: try it with sudo"
        }
        Some(ClientError::Unreachable { .. }) => {
            "\nis the agent running? Start it with `systemctl start netagent` or `netagent agent`; \
             -H or NETAGENT_HOST choose another socket"
        }
        _ => "",
    };
    format!("{error:#}{remedy}")
}

/// Does `verb` for each of `names`, going on past failures. Gives what succeeded,
/// and all failures as one error.
async fn each<T>(
    names: &[String],
    verb: impl AsyncFn(&str) -> anyhow::Result<T>,
) -> (Vec<T>, anyhow::Result<()>) {
    let mut done = Vec::new();
    let mut failures = Vec::new();
    for name in names {
        match verb(name).await {
            Ok(item) => done.push(item),
            // Without an agent every name fails alike: say so once.
            Err(error) if is_unreachable(&error) => return (done, Err(error)),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let result =
        if failures.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(failures.join("\n"))) };
    (done, result)
}

fn is_unreachable(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::Unreachable { .. }))
}

/// Whether the agent knows no such thing.
fn is_not_found(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status: StatusCode::NOT_FOUND, .. })
}

/// Path of the API with these segments, whatever characters they hold.
fn path(segments: &[&str]) -> String {
    let mut path = "/v1".to_owned();
    for segment in segments {
        path.push('/');
        for byte in segment.bytes() {
            // Unreserved characters (RFC 3986, section 2.3) stand for themselves.
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                path.push(char::from(byte));
            } else {
                path += &format!("%{byte:02X}");
            }
        }
    }
    path
}

#[cfg(test)]
mod tests;
