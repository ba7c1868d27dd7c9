//! What is measured, and how: has iperf3 and workers work in a variant's namespaces and
//! reads what they tell. Knows nothing of what lies between the two.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::processes::{
    Background, CLIENT, DATAGRAM_PORT, ECHO_PORT, SERVER, STREAM_PORT, ask, read_number, start,
    worker,
};
use super::{End, Variant, udp};
use crate::command::{CommandExt, find};
use crate::node::Shell;

/// One thing to measure.
pub(crate) struct Measure {
    /// As `--only` and the JSON name it.
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
    /// Whether less is better.
    pub(crate) less_is_better: bool,
    /// What variants it is of.
    of: Of,
    take: fn(&Variant, Effort) -> Result<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    All,
    /// Those with a wire between the two.
    Wired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    PacketsPerSecond,
    GigabitsPerSecond,
    ConnectionsPerSecond,
    Microseconds,
    Nanoseconds,
    Instructions,
    Fraction,
}

/// How long to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Effort {
    /// Seconds of a worker.
    pub(crate) seconds: f64,
    /// What iperf3 does: so many seconds, or so many bytes where that would be too long.
    pub(crate) stream: [&'static str; 2],
}

impl Effort {
    pub(crate) const FULL: Self = Self { seconds: 1.0, stream: ["--time", "1"] };
    pub(crate) const QUICK: Self = Self { seconds: 0.25, stream: ["--bytes", "500M"] };
}

/// In the order in which they are shown.
pub(crate) const MEASURES: &[Measure] = &[
    Measure {
        id: "udp",
        title: "Small UDP packets, two CPUs",
        unit: Unit::PacketsPerSecond,
        less_is_better: false,
        of: Of::All,
        take: udp_flood,
    },
    Measure {
        id: "cost",
        title: "Time per small UDP packet, one CPU",
        unit: Unit::Nanoseconds,
        less_is_better: true,
        of: Of::All,
        take: udp_time,
    },
    Measure {
        id: "instructions",
        title: "Instructions per small UDP packet",
        unit: Unit::Instructions,
        less_is_better: true,
        of: Of::All,
        take: udp_instructions,
    },
    Measure {
        id: "rtt",
        title: "TCP round trip of one byte, one CPU",
        unit: Unit::Microseconds,
        less_is_better: true,
        of: Of::All,
        take: round_trip,
    },
    Measure {
        id: "connections",
        title: "TCP connections, one CPU",
        unit: Unit::ConnectionsPerSecond,
        less_is_better: false,
        of: Of::All,
        take: connections,
    },
    Measure {
        id: "tcp1",
        title: "TCP throughput, one CPU",
        unit: Unit::GigabitsPerSecond,
        less_is_better: false,
        of: Of::All,
        take: |variant, effort| stream(variant, effort, SERVER),
    },
    Measure {
        id: "tcp2",
        title: "TCP throughput, two CPUs",
        unit: Unit::GigabitsPerSecond,
        less_is_better: false,
        of: Of::All,
        take: |variant, effort| stream(variant, effort, CLIENT),
    },
    Measure {
        id: "tcp1-cut",
        title: "TCP throughput, one CPU, uplink without TSO",
        unit: Unit::GigabitsPerSecond,
        less_is_better: false,
        of: Of::Wired,
        take: |variant, effort| cut(variant, effort, SERVER),
    },
    Measure {
        id: "tcp2-cut",
        title: "TCP throughput, two CPUs, uplink without TSO",
        unit: Unit::GigabitsPerSecond,
        less_is_better: false,
        of: Of::Wired,
        take: |variant, effort| cut(variant, effort, CLIENT),
    },
    Measure {
        id: "udp-gso",
        title: "UDP, ten datagrams a call (UDP_SEGMENT)",
        unit: Unit::PacketsPerSecond,
        less_is_better: false,
        of: Of::All,
        take: gso_rate,
    },
    Measure {
        id: "udp-gso-arrived",
        title: "UDP_SEGMENT, paced: part that arrives",
        unit: Unit::Fraction,
        less_is_better: false,
        of: Of::All,
        take: gso_arrived,
    },
];

impl Measure {
    /// Whether it can be taken of this variant on this machine.
    pub(crate) fn is_of(&self, variant: &Variant) -> bool {
        (self.of == Of::All || !variant.wire.is_empty())
            && (self.unit != Unit::Instructions || counts_instructions())
    }

    /// Takes it.
    ///
    /// # Errors
    /// If a program fails or nothing arrives; of what and of whom the caller knows.
    pub(crate) fn take(&self, variant: &Variant, effort: Effort) -> Result<f64> {
        (self.take)(variant, effort)
    }
}

fn round_trip(variant: &Variant, effort: Effort) -> Result<f64> {
    ask(variant, "ping-pong", ECHO_PORT, effort.seconds)
}

fn connections(variant: &Variant, effort: Effort) -> Result<f64> {
    ask(variant, "connect", ECHO_PORT, effort.seconds)
}

fn udp_flood(variant: &Variant, effort: Effort) -> Result<f64> {
    receive_from(variant, "udp-flood", effort)
}

fn gso_rate(variant: &Variant, effort: Effort) -> Result<f64> {
    match receive_from(variant, "udp-gso", effort) {
        // What arrives at all is measured by itself.
        Err(_) if gso_arrived(variant, effort)? == 0.0 => Ok(0.0),
        rate => rate,
    }
}

fn receive_from(variant: &Variant, work: &str, effort: Effort) -> Result<f64> {
    let seconds = effort.seconds;
    let receiver = worker(&variant.server, "udp-receive", SERVER, DATAGRAM_PORT, seconds);
    let (_receiver, output) = start(receiver)?;
    // The sender goes on until the receiver has its result.
    let mut sender = worker(&variant.client, work, CLIENT, DATAGRAM_PORT, seconds + 10.0);
    sender.args(["--to", &variant.target.to_string()]);
    sender.stdin(Stdio::null()).stdout(Stdio::null());
    let _sender = Background(sender.spawn()?);
    read_number(output)
}

fn gso_arrived(variant: &Variant, _: Effort) -> Result<f64> {
    let (_receiver, output) =
        start(worker(&variant.server, "udp-count", SERVER, DATAGRAM_PORT, 0.0))?;
    let mut sender = worker(&variant.client, "udp-gso-paced", CLIENT, DATAGRAM_PORT, 10.0);
    let sent = sender.args(["--to", &variant.target.to_string()]).read()?;
    let sent: f64 = sent.parse().with_context(|| format!("the sender said {sent:?}"))?;
    if sent < (udp::PACED * udp::SEGMENTS) as f64 {
        bail!("only {sent} datagrams were sent");
    }
    Ok(read_number(output)? / sent)
}

/// The worker that sends and receives: in the server's namespace, from the client's.
fn cost_worker(variant: &Variant, effort: Effort, prefix: &[&str]) -> Command {
    let own = worker(&variant.server, "udp-cost", SERVER, DATAGRAM_PORT, effort.seconds);
    let mut command = Command::new(own.get_program());
    let words: Vec<_> = own.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    // nsenter, its option, `--`; then what counts, then the worker.
    command.args(&words[..2]).args(prefix).args(&words[2..]);
    command.envs(own.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.args(["--to", &variant.target.to_string()]);
    command.arg("--from").arg(variant.client.netns_path());
    command
}

fn udp_time(variant: &Variant, effort: Effort) -> Result<f64> {
    let text = cost_worker(variant, effort, &[]).read()?;
    let (nanoseconds, _) = text.split_once(' ').context("the worker told no cost")?;
    Ok(nanoseconds.parse()?)
}

const PERF: &[&str] = &["perf", "stat", "--field-separator", ";", "--event", "instructions"];

/// Whether this machine counts them: many virtual ones do not.
fn counts_instructions() -> bool {
    static COUNTS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *COUNTS.get_or_init(|| {
        let mut try_it = Command::new(PERF[0]);
        try_it.args(&PERF[1..]).args(["--", "true"]);
        find("perf").is_some()
            && try_it.collect().is_ok_and(|output| instructions(&output.stderr).is_some())
    })
}

/// What `perf stat` counted.
fn instructions(stderr: &[u8]) -> Option<f64> {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().find(|line| line.contains(";instructions"))?;
    line.split(';').next()?.parse().ok()
}

/// All instructions that the kernel and the worker executed for it.
fn udp_instructions(variant: &Variant, effort: Effort) -> Result<f64> {
    let mut command = cost_worker(variant, effort, &[PERF, &["--"]].concat());
    let output = command.collect()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let datagrams: Option<f64> =
        said.trim().split_once(' ').and_then(|(_, datagrams)| datagrams.parse().ok());
    let (Some(datagrams), Some(counted)) = (datagrams, instructions(&output.stderr)) else {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}", command.line(), error.trim());
    };
    Ok(counted / datagrams)
}

/// TCP throughput with the client on this CPU.
fn stream(variant: &Variant, effort: Effort, cpu: usize) -> Result<f64> {
    // On one CPU client and server take turns. With iperf3's own 128 KiB a turn is one
    // write or several, by chance, and the throughput one of two; with this it is steady.
    let length = if cpu == SERVER { "1M" } else { "128K" };
    let (cpu, target) = (cpu.to_string(), variant.target.to_string());
    let port = STREAM_PORT.to_string();
    let iperf3 = ["taskset", "-c", &cpu, "iperf3", "--client", &target, "--port", &port];
    let patience = super::worker::PATIENCE.as_millis().to_string();
    let options = ["--congestion", "cubic", "--length", length, "--json"];
    let options = [&options[..], &["--connect-timeout", &patience]].concat();
    let text = variant.client.read(&[&iperf3[..], &options, &effort.stream].concat())?;
    throughput(&text).context("iperf3 told no throughput")
}

fn throughput(json: &str) -> Option<f64> {
    let report: Value = serde_json::from_str(json).ok()?;
    Some(report["end"]["sum_received"]["bits_per_second"].as_f64()? / 1e9)
}

/// The same while every segment crosses the wire by itself, as on a card that leaves
/// the cutting to the kernel.
fn cut(variant: &Variant, effort: Effort, cpu: usize) -> Result<f64> {
    let offloads = |tso: &str, gro: &str| -> Result<()> {
        for End { host, link, is_host } in &variant.wire {
            host.read(&["ethtool", "-K", link, "tso", tso])?;
            if *is_host {
                host.read(&["ethtool", "-K", link, "gro", gro])?;
            }
        }
        Ok(())
    };
    offloads("off", "on")?;
    let result = stream(variant, effort, cpu);
    offloads("on", "off")?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_has_a_name_of_its_own() {
        let mut ids: Vec<_> = MEASURES.iter().map(|measure| measure.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), MEASURES.len());
    }

    #[test]
    fn instructions_are_found_among_what_perf_says() {
        let said = b"some warning\n1234567;;instructions:u;100;100.00;;\n";
        assert_eq!(instructions(said), Some(1_234_567.0));
        assert_eq!(instructions(b"<not supported>;;instructions;0;100.00;;\n"), None);
        assert_eq!(instructions(b""), None);
    }

    #[test]
    fn throughput_is_what_was_received() {
        let json = r#"{"end":{"sum_sent":{"bits_per_second":3e9},
            "sum_received":{"bits_per_second":2.5e9}}}"#;
        assert_eq!(throughput(json), Some(2.5));
        assert_eq!(throughput(r#"{"error":"unable to connect"}"#), None);
    }
}
