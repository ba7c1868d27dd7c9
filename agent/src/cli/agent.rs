//! `netagent agent`: the arguments of the daemon. What it does with them is
//! `daemon`'s.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::model::Datapath;

/// Run the agent of this host
///
/// Runs in the foreground until it gets SIGTERM or SIGINT; systemd usually starts it.
/// Stopping it changes nothing for workloads that run: their packets flow on, and an
/// agent that is started again takes everything over as it finds it. While it is stopped,
/// names do not resolve in the workloads of this host. Logs go to standard error; RUST_LOG
/// chooses what is logged (RUST_LOG=debug). Must be run as root.
///
/// Several agents can run on one host if each has its own network namespace and its own
/// three directories.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(after_long_help = "Examples:
      netagent agent
      netagent agent --datapath kernel --uplink eth1

  Before uninstalling, with no agent running: remove all that agents left in the kernel.
      netagent agent --teardown")]
pub struct AgentArgs {
    /// How to carry packets; nodes of one cluster may differ
    #[arg(long, value_enum, env = "NETAGENT_DATAPATH", default_value_t, value_name = "DATAPATH")]
    pub datapath: Datapath,
    /// Who chooses the backend of a new connection to a published port of a service. Other
    /// ports are balanced by the eBPF programs either way
    #[arg(long, value_enum, env = "NETAGENT_LB", default_value_t, value_name = "BALANCER")]
    pub lb: Balancer,
    /// Interface that carries the traffic between nodes; by default the one that has the
    /// node's advertised address
    #[arg(long, env = "NETAGENT_UPLINK", value_name = "INTERFACE")]
    pub uplink: Option<String>,
    /// Directory for what must survive a reboot: membership, keys, the cluster's state
    #[arg(
        long,
        env = "NETAGENT_DATA_DIR",
        value_name = "DIRECTORY",
        default_value = "/var/lib/netagent"
    )]
    pub data_dir: PathBuf,
    /// Directory for the socket and for files that live as long as the host is up
    #[arg(
        long,
        env = "NETAGENT_RUN_DIR",
        value_name = "DIRECTORY",
        default_value = "/run/netagent"
    )]
    pub run_dir: PathBuf,
    /// Directory under which eBPF maps and links are pinned; on a bpf file system, which is
    /// mounted if missing
    #[arg(
        long,
        env = "NETAGENT_BPF_DIR",
        value_name = "DIRECTORY",
        default_value = "/sys/fs/bpf/netagent"
    )]
    pub bpf_dir: PathBuf,
    /// Entries of the table of flows to services, up to three a flow; by default as many as
    /// the memory allows: one per 256 KiB, from 16384 to 1048576. A table that is there
    /// keeps its size until the host restarts or --teardown
    #[arg(long, env = "NETAGENT_MAX_FLOWS", value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1024..=1 << 24))]
    pub max_flows: Option<u32>,
    /// Name of this node; by default the host name
    #[arg(long, env = "NETAGENT_HOSTNAME", value_name = "NAME")]
    pub hostname: Option<String>,
    /// Remove all that agents made in the kernel (links, pins, rules, namespaces), then exit
    #[arg(long)]
    pub teardown: bool,
    /// How to log
    #[arg(long, value_enum, env = "NETAGENT_LOG_FORMAT", default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Who chooses the backend of a new connection to a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Balancer {
    /// IPVS if the kernel has it, else the eBPF programs.
    #[default]
    Auto,
    /// The kernel's IPVS, in a namespace of its own.
    Ipvs,
    /// The eBPF programs.
    Ebpf,
}

/// How the daemon logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line of text per event.
    #[default]
    Text,
    /// A JSON object per event.
    Json,
}
