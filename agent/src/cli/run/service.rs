//! The options of `netagent run` for a workload that serves.

use std::time::Duration;

use clap::{ArgGroup, Args};

use crate::api::types::Serve;
use crate::cli::duration::duration;
use crate::model::{Health, HealthCheck};

#[derive(Args, Debug)]
#[command(
    next_help_heading = "Service",
    group = ArgGroup::new("check").args(["health_cmd", "health_tcp", "health_http"])
)]
pub(super) struct Service {
    /// Service to serve, as one of its backends, on those of its networks that the workload
    /// is on; without --network, that is all of them
    #[arg(long = "service", id = "service_name", value_name = "SERVICE")]
    pub(super) name: Option<String>,
    /// Share of new connections beside that of the other backends; 0 for none
    #[arg(long, value_name = "WEIGHT", default_value_t = 1, requires = "service_name")]
    weight: u16,
    /// Healthy if this command exits with 0; /bin/sh runs it where the workload's process
    /// lives: in its namespaces, at its root, as its user, with its environment
    ///
    /// With --netns and no command there is no such process: then as root, in the network
    /// namespace. What it prints goes nowhere; a command that is late is killed with all
    /// that it has started.
    #[arg(long, value_name = "COMMAND", requires = "service_name")]
    health_cmd: Option<String>,
    /// Healthy if this port takes a connection
    ///
    /// Asked are the addresses at which the workload serves, from inside its namespace:
    /// a server that listens on 127.0.0.1 alone is one that no client reaches. Of
    /// several addresses, one that answers is enough.
    #[arg(long, value_name = "PORT", requires = "service_name",
          value_parser = clap::value_parser!(u16).range(1..))]
    health_tcp: Option<u16>,
    /// Healthy if GET of this path at this port is answered with 2xx or 3xx; asked are the
    /// same addresses as with --health-tcp
    #[arg(long, value_name = ":PORT/PATH", requires = "service_name")]
    health_http: Option<String>,
    /// Time between two checks; until the first success, a second at most
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration,
          requires = "check")]
    health_interval: Duration,
    /// Time after which a check has failed
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration,
          requires = "check")]
    health_timeout: Duration,
    /// Failures in a row that make the workload unhealthy; one success makes it healthy
    #[arg(long, value_name = "NUMBER", default_value_t = 3, requires = "check",
          value_parser = clap::value_parser!(u32).range(1..))]
    health_retries: u32,
    /// Time after the start in which failures do not count, until the first success
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration,
          requires = "check")]
    health_start_period: Duration,
    /// Longest wait for connections to end before the command is told to stop
    ///
    /// Of UDP, those count that had a packet within the last half minute. Of services
    /// without a virtual address (dnsrr) no connections are known, and none are waited for.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration,
          requires = "service_name", requires = "command")]
    pub(super) stop_grace: Duration,
}

impl Service {
    /// What to ask for.
    pub(super) fn serve(&self) -> Option<Serve> {
        let service = self.name.clone()?;
        Some(Serve { service, weight: self.weight, health: Health::default() })
    }

    /// The check, if there is to be one.
    pub(super) fn health_check(&self) -> Option<HealthCheck> {
        let (command, tcp, http) =
            (self.health_cmd.clone(), self.health_tcp, self.health_http.clone());
        if command.is_none() && tcp.is_none() && http.is_none() {
            return None;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(HealthCheck {
            command,
            tcp,
            http,
            interval_ms: millis(self.health_interval),
            timeout_ms: millis(self.health_timeout),
            retries: self.health_retries,
            start_period_ms: millis(self.health_start_period),
        })
    }
}
