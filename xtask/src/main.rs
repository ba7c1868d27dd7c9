//! `cargo xtask`: reads the command line and calls the library.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use xtask::build::{self, Profile};
use xtask::cluster::{self, Mix};
use xtask::setup::{self, Need};
use xtask::{bench, chaos, demo, faults, install, lint, test, vagrant, vm};

/// Builds, tries and tests netagent.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what the other commands need and is missing; they all do this first
    Setup,
    /// Builds the eBPF programs and the agent that carries them
    Build {
        /// Optimised, as it is installed
        #[arg(long)]
        release: bool,
    },
    /// Builds the eBPF programs alone
    BuildEbpf,
    /// Writes down what this kernel's verifier says of the programs (ebpf/verified.md)
    Verified,
    /// Installs the release build, its manual, completions and systemd unit
    Install {
        /// Where to
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
    },
    /// Hosts on this machine to try netagent on: namespaces n1, n2, .. and a client
    Cluster {
        #[command(subcommand)]
        verb: Cluster,
    },
    /// Shows an overlay network carrying PostgreSQL between two hosts of a playground
    Demo {
        /// Take everything down afterwards and fail if a step failed
        #[arg(long)]
        check: bool,
    },
    /// Runs the tests and counts them; the last line is `N passed, N failed, N skipped`
    Test {
        /// Suites: unit, a target of the `tests` crate, or vm; all of these if none is named.
        /// Besides, faults: what users notice of each, measured in 35 minutes
        suites: Vec<String>,
    },
    /// Runs tests on Debian's kernels, in machines of QEMU
    VmTest {
        /// Kernels; all if none is named
        #[arg(long = "kernel", value_name = "KERNEL")]
        kernels: Vec<vm::Line>,
        /// Targets of the `tests` crate, or TARGET::NAME for some tests of one
        suites: Vec<String>,
    },
    /// Runs the scenarios on three virtual machines by Vagrant; see vagrant/README.md
    VagrantTest {
        /// Leave the machines up
        #[arg(long)]
        keep: bool,
    },
    /// Measures the datapaths beside what they compete with; takes about half an hour
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        #[command(flatten)]
        options: bench::Options,
        #[command(subcommand)]
        verb: Option<Bench>,
    },
    /// What `bench --kernel` runs in its machine
    #[command(hide = true)]
    BenchInside(bench::Options),
    /// One measurement, inside a namespace
    #[command(hide = true)]
    BenchWorker {
        #[command(subcommand)]
        work: bench::worker::Work,
    },
    /// Breaks a cluster in every way and measures what users notice; `test faults` is the whole table
    Faults(faults::Options),
    /// Kills, freezes and cuts at random while workloads come and go; all must come right
    Chaos(chaos::Options),
    /// Echoes lines and datagrams at a port
    #[command(hide = true)]
    LoadServer {
        /// The port
        port: u16,
    },
    /// Checks form and lints
    Lint,
}

#[derive(Subcommand)]
enum Bench {
    /// Cost as endpoints, services, backends, flows and nodes grow; takes about twenty minutes
    Scale(bench::scale::Options),
}

#[derive(Subcommand)]
enum Cluster {
    /// Makes the hosts, starts an agent on each, and has them form a cluster
    Up {
        /// How many
        #[arg(long, default_value_t = 3, value_parser = 1..=80)]
        nodes: i64,
        /// How they carry packets
        #[arg(long, value_enum, default_value = "ebpf")]
        datapath: Mix,
    },
    /// Shows the hosts, their agents, and the members
    Status,
    /// Runs a command on a host: n1, n2, .., client, or wire (the bridge, and the outside)
    Exec {
        /// The host
        host: String,
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Takes them down and removes every trace
    Down,
}

fn main() -> ExitCode {
    wait_for_slow_readers();
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Who gave us a pipe that does not block gets what fits into it and us an error for the
/// rest, which would end a run of tests for nothing but their output.
fn wait_for_slow_readers() {
    fn block(fd: impl AsFd) -> nix::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).map(drop)
    }
    // A descriptor that is closed needs nothing.
    let _ = (block(std::io::stdout()), block(std::io::stderr()));
}

/// Whether all is well; what is not has been said.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Setup => setup::ensure(Need::Machines)?,
        Command::Build { release } => {
            build::all(Profile::of(release))?;
        }
        Command::BuildEbpf => build::ebpf()?,
        Command::Verified => test::write_verified()?,
        Command::Install { prefix } => install::all(&prefix)?,
        Command::Cluster { verb } => match verb {
            Cluster::Up { nodes, datapath } => {
                cluster::up(
                    usize::try_from(nodes).expect("clap keeps it within 1..=80"),
                    datapath,
                )?;
            }
            Cluster::Status => cluster::status()?,
            Cluster::Exec { host, command } => cluster::exec(&host, &command)?,
            Cluster::Down => cluster::down()?,
        },
        Command::Demo { check } => return demo::run(check),
        Command::Test { suites } => return test::run(&suites),
        Command::VmTest { kernels, suites } => return vm::run(&kernels, &suites),
        Command::VagrantTest { keep } => vagrant::test(keep)?,
        Command::Bench { verb: Some(Bench::Scale(options)), .. } => bench::scale::run(&options)?,
        Command::Bench { options, verb: None } => bench::run(&options)?,
        Command::BenchInside(options) => bench::inside(&options)?,
        Command::BenchWorker { work } => bench::worker::run(&work)?,
        Command::Faults(options) => faults::run(&options)?,
        Command::Chaos(options) => chaos::run(&options)?,
        Command::LoadServer { port } => faults::serve(port)?,
        Command::Lint => lint::all()?,
    }
    Ok(true)
}
