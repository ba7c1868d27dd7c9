//! The processes that measure: servers and workers in a variant's namespaces, each on one CPU.
//! Knows how they are started and asked, and not what their figures mean.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::lab::PATIENCE;
use super::{Variant, machine};
use crate::command::CommandExt;
use crate::node::{Host, Shell};
use crate::wait::eventually;

/// CPU of every server.
pub(super) const SERVER: usize = 0;
/// CPU of a client that has one of its own.
pub(super) const CLIENT: usize = 1;

/// Ports of a server: iperf3, echo, datagrams.
pub(crate) const STREAM_PORT: u16 = 5201;
pub(crate) const ECHO_PORT: u16 = 5202;
pub(crate) const DATAGRAM_PORT: u16 = 5203;

/// A process that ends with this.
pub(crate) struct Background(pub(super) Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Servers that wait for their client without using a CPU, and can be reached.
pub(crate) fn serve(variant: &Variant) -> Result<[Background; 2]> {
    let cpu = SERVER.to_string();
    let port = STREAM_PORT.to_string();
    let iperf3 = ["taskset", "-c", &cpu, "iperf3", "--server", "--port", &port];
    let mut iperf3 = variant.server.command(&iperf3);
    iperf3.stdin(Stdio::null()).stdout(Stdio::null());
    let iperf3 = iperf3.spawn().with_context(|| format!("start `{}`", iperf3.line()))?;
    let (echo, _) = start(worker(&variant.server, "echo", SERVER, ECHO_PORT, 0.0))?;
    let servers = [Background(iperf3), echo];
    let listens = || {
        let filter = format!("sport = :{STREAM_PORT}");
        let listing = variant.server.read(&["ss", "-Hltn", &filter])?;
        Ok((!listing.is_empty()).then_some(()))
    };
    eventually("iperf3 to listen", PATIENCE, listens)?;
    answers(variant)?;
    Ok(servers)
}

/// Waits until the server can be reached: a swarm's hosts hear by gossip, and so late, what leads
/// from one to the other.
fn answers(variant: &Variant) -> Result<()> {
    let mut last = None;
    let answered = eventually("a byte to come back from the server", PATIENCE, || {
        let answer = ask(variant, "ping-pong", ECHO_PORT, 0.01);
        machine::go_on()?;
        match answer {
            Ok(_) => Ok(Some(())),
            Err(error) => {
                last = Some(error);
                Ok(None)
            }
        }
    });
    answered.map_err(|error| match last {
        Some(last) => last.context(error),
        None => error,
    })
}

/// A worker that is to run on a host. The program is this very process's, even if a
/// build replaces the file meanwhile.
pub(super) fn worker(host: &Host, work: &str, cpu: usize, port: u16, seconds: f64) -> Command {
    let program = format!("/proc/{}/exe", std::process::id());
    let mut command = host.command(&[&program, "bench-worker", work]);
    command.args(["--cpu", &cpu.to_string(), "--port", &port.to_string()]);
    command.args(["--seconds", &seconds.to_string()]);
    command
}

/// Starts a worker that says when it is ready; what it prints from then on.
pub(super) fn start(mut command: Command) -> Result<(Background, BufReader<ChildStdout>)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start `{}`", command.line()))?;
    let mut output = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let child = Background(child);
    let mut line = String::new();
    output.read_line(&mut line)?;
    if line != "ready\n" {
        bail!("`{}` did not begin", command.line());
    }
    Ok((child, output))
}

pub(super) fn read_number(mut output: BufReader<ChildStdout>) -> Result<f64> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    line.trim().parse().context("the receiver ended without a result")
}

/// A client whose result is a number.
pub(super) fn ask(variant: &Variant, work: &str, port: u16, seconds: f64) -> Result<f64> {
    let mut client = worker(&variant.client, work, SERVER, port, seconds);
    let text = client.args(["--to", &variant.target.to_string()]).read()?;
    text.parse().with_context(|| format!("`{}` said {text:?}", client.line()))
}
