//! `cargo xtask bench`: what the datapaths cost, measured beside what they compete with.
//!
//! ```text
//! lab ──> classic, docker, overlay: variants ──> measures, round after round
//!                                                    │ worker, udp: inside the namespaces
//! tables, picture <── report, svg <── goals, table <── stats ┘
//! ```
//!
//! With `--kernel` all of it runs in a test machine, whose kernel has IPVS and whose clock counts
//! instructions, and only the samples come back.
//!
//! Every variant is measured in every round and the order is reversed each round; what
//! is told are ratios within a round. So a noisy machine gives a wide spread and no
//! wrong answer. Judges nothing but the goals, and fails for no figure.
//!
//! What cannot be measured is left out and named, and the rest is told all the same: a run takes
//! long, and what others' datapaths cannot do is a result too. A run fails if something of
//! netagent's own was left out, for that is a defect, or if nothing was measured at all.

mod classic;
mod docker;
mod goals;
mod ipvs;
mod lab;
mod left_out;
pub(crate) mod machine;
mod measures;
mod mesh;
mod overlay;
mod processes;
mod programs;
mod progress;
mod report;
mod rounds;
pub mod scale;
mod stats;
mod svg;
mod table;
mod told;
mod udp;
pub mod worker;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use self::lab::Lab;
use self::left_out::LeftOut;
use self::machine::Machine;
use self::measures::{Effort, MEASURES, Measure};
use self::programs::Program;
use self::stats::Samples;
use self::told::Told;
use crate::build::{self, Profile};
use crate::command::find;
use crate::node::Host;
use crate::setup::{self, Need};
use crate::vm::{self, Line};

/// What is to be measured.
#[derive(Args, Debug)]
pub struct Options {
    /// Two short rounds: shows that all works, the figures are rough
    #[arg(long)]
    quick: bool,
    /// How many rounds; 10 are needed for a judgement
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Only this measure or variant, and what it is compared with; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Writes every single measurement there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// On this kernel, in a machine of QEMU without KVM: Debian's have IPVS, so that what Docker
    /// builds on it is measured, too; its clock counts instructions
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<Line>,
}

/// A way from a client to a server, set up and ready to be measured.
pub(crate) struct Variant {
    /// One of [`VARIANTS`].
    pub(crate) id: &'static str,
    pub(crate) client: Host,
    pub(crate) server: Host,
    /// The server's address, as the client calls it.
    pub(crate) target: Ipv4Addr,
    /// The ends of the wires between hosts; none on one host.
    pub(crate) wire: Vec<End>,
}

/// The end of a wire.
#[derive(Clone)]
pub(crate) struct End {
    pub(crate) host: Host,
    pub(crate) link: &'static str,
    /// Whether a host takes packets there: a switch only hands them on.
    pub(crate) is_host: bool,
}

/// Hosts, at the ends of wires.
pub(crate) fn ends<'a>(hosts: impl IntoIterator<Item = &'a Host>) -> Vec<End> {
    let end = |host: &Host| End { host: host.clone(), link: "eth0", is_host: true };
    hosts.into_iter().map(end).collect()
}

/// What variants there are.
pub(crate) struct Kind {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// The variant that it is compared with in the tables.
    pub(crate) base: &'static str,
    /// The variants of one maker are set up together.
    maker: Maker,
}

impl Kind {
    /// Whether it is a datapath of netagent.
    pub(crate) fn is_ours(&self) -> bool {
        self.title.starts_with("netagent")
    }
}

type Maker = fn(&Lab) -> Result<Vec<Variant>>;

const fn kind(id: &'static str, title: &'static str, base: &'static str, maker: Maker) -> Kind {
    Kind { id, title, base, maker }
}

/// In the order in which they are shown, and measured in every other round.
pub(crate) const VARIANTS: &[Kind] = &[
    kind("raw", "host to host", "raw", classic::raw),
    kind("bridge", "bridge+vxlan", "raw", classic::bridge),
    kind("docker-like", "Docker-like layout", "raw", classic::docker_like),
    kind("docker", "Docker's overlay", "raw", docker::docker),
    kind("kernel", "netagent, kernel", "raw", overlay::kernel),
    kind("ebpf", "netagent, eBPF", "raw", overlay::ebpf),
    kind("ebpf-vip", "netagent, virtual address", "ebpf", overlay::ebpf),
    kind("ipvs-vip", "netagent, virtual address, IPVS", "docker-vip", overlay::ipvs),
    kind("docker-vip", "Docker-like virtual address", "raw", ipvs::docker_vip),
    kind("bridge-same", "bridge, same host", "bridge-same", classic::bridge),
    kind("ebpf-same", "netagent, same host", "bridge-same", overlay::ebpf),
    kind("iptables", "DNAT and masquerading", "iptables", mesh::iptables),
    kind("published", "netagent, published port", "iptables", mesh::published),
    kind("docker-mesh", "Docker-like routing mesh", "iptables", ipvs::docker_mesh),
    kind("docker-service", "Docker's routing mesh", "iptables", docker::service),
    kind("published-ipvs", "netagent, published port, IPVS", "docker-mesh", mesh::published_ipvs),
];

/// The measures and kinds that are asked for.
struct Choice {
    measures: Vec<&'static Measure>,
    kinds: Vec<&'static Kind>,
}

impl Choice {
    fn of(only: &[String]) -> Result<Self> {
        let named = |id: &str| only.iter().any(|name| name == id);
        let is_known =
            |id: &str| MEASURES.iter().any(|m| m.id == id) || VARIANTS.iter().any(|v| v.id == id);
        if let Some(unknown) = only.iter().find(|name| !is_known(name)) {
            let measures: Vec<_> = MEASURES.iter().map(|measure| measure.id).collect();
            let variants: Vec<_> = VARIANTS.iter().map(|kind| kind.id).collect();
            bail!(
                "there is no measure or variant {unknown}; measures: {}; variants: {}",
                measures.join(", "),
                variants.join(", ")
            );
        }
        let all_measures = !MEASURES.iter().any(|measure| named(measure.id));
        let all_variants = !VARIANTS.iter().any(|kind| named(kind.id));
        let is_base = |id| VARIANTS.iter().any(|kind| named(kind.id) && kind.base == id);
        Ok(Self {
            measures: MEASURES.iter().filter(|m| all_measures || named(m.id)).collect(),
            kinds: VARIANTS
                .iter()
                .filter(|kind| all_variants || named(kind.id) || is_base(kind.id))
                .collect(),
        })
    }
}

/// What a run has found.
pub(crate) struct Run {
    pub(crate) machine: Machine,
    /// Whether that is an emulator's.
    pub(crate) emulated: bool,
    pub(crate) command: String,
    pub(crate) rounds: usize,
    /// Load of the machine before, by others.
    pub(crate) load: f64,
    pub(crate) samples: Samples,
    /// What our programs took while small packets were sent.
    pub(crate) programs: Vec<Program>,
    /// What could not be measured.
    pub(crate) left_out: Vec<LeftOut>,
}

impl Run {
    /// Fails if the run has.
    fn judge(&self) -> Result<()> {
        left_out::judge(&self.left_out, !self.samples.0.is_empty())
    }
}

/// Measures and reports. All that was made for it is removed, also after ^C.
///
/// # Errors
/// If nothing, or something of netagent's own, could not be measured: after what was measured
/// has been reported.
pub fn run(options: &Options) -> Result<()> {
    let run = match options.kernel {
        Some(kernel) => elsewhere(kernel, options)?,
        None => {
            setup::ensure(Need::Hosts)?;
            if Choice::of(&options.only)?.kinds.iter().any(|kind| kind.is_ours()) {
                build::all(Profile::Debug)?;
            }
            here(options, (Effort::FULL, 15))?
        }
    };
    report::all(&run, options)?;
    run.judge()
}

/// Measures where all is set up and built, and prints the samples alone: the part that runs in a
/// test machine.
///
/// # Errors
/// If there is no lab to measure in, or somebody wants us to end.
pub fn inside(options: &Options) -> Result<()> {
    // Instructions are counted there: neither more of them nor more rounds make it surer.
    let run = here(options, (Effort::QUICK, 3))?;
    println!("{SAMPLES}{}", serde_json::to_string(&Told::of(&run))?);
    Ok(())
}

/// Begins the line that [`inside`] prints.
const SAMPLES: &str = "bench: samples ";

/// Measures in a test machine.
fn elsewhere(kernel: Line, options: &Options) -> Result<Run> {
    Choice::of(&options.only)?;
    setup::ensure(Need::Machines)?;
    build::all(Profile::Debug)?;
    let mut tools = docker::tools()?;
    tools.extend(["taskset", "sysctl", "nproc"].iter().filter_map(|name| find(name)));
    let mut told = None;
    let words = format!("bench-inside{}", options.measured());
    vm::command(kernel, &words, tools, |line| match line.strip_prefix(SAMPLES) {
        Some(json) => told = Some(json.to_owned()),
        None => println!("{line}"),
    })?;
    let told = told.context("it told no samples")?;
    let mut run = serde_json::from_str::<Told>(&told)?.into_run()?;
    // There is no checkout there, and no other time.
    let Machine { date, commit, .. } = Machine::this()?;
    run.machine = Machine { date, commit, ..run.machine };
    (run.emulated, run.command) = (true, options.line());
    Ok(run)
}

/// Measures with this effort, and in so many rounds unless others are asked for.
fn here(options: &Options, (effort, rounds): (Effort, u32)) -> Result<Run> {
    let choice = Choice::of(&options.only)?;
    let machine = Machine::this()?;
    ensure!(machine.cpus >= 2, "this needs two CPUs, one for the client and one for the server");
    let (effort, rounds) = match options.quick {
        true => (Effort::QUICK, 2),
        false => (effort, rounds),
    };
    let rounds = usize::try_from(options.rounds.unwrap_or(rounds)).context("so many rounds")?;
    machine::catch_interrupts()?;
    let load = machine::load();
    let lab = Lab::new()?;
    let _session = machine::prefer_this_session()?;
    let mut left_out = Vec::new();
    let variants = rounds::set_up(&choice.kinds, &mut left_out, |maker| maker(&lab))?;
    let (variants, _servers) = rounds::serve(variants, &mut left_out)?;
    let take = |measure: &Measure, variant: &Variant| measure.take(variant, effort);
    let samples = rounds::measure(&choice.measures, &variants, rounds, &mut left_out, take)?;
    let programs = rounds::programs(&variants, effort, &mut left_out)?;
    let command = options.line();
    Ok(Run { machine, emulated: false, command, rounds, load, samples, programs, left_out })
}

impl Options {
    /// As one would type it.
    fn line(&self) -> String {
        let kernel = self.kernel.and_then(|kernel| kernel.to_possible_value());
        let kernel = kernel.map(|kernel| format!(" --kernel {}", kernel.get_name()));
        format!("cargo xtask bench{}{}", kernel.unwrap_or_default(), self.measured())
    }

    /// What is to be measured, as one would type it.
    fn measured(&self) -> String {
        let mut line = String::new();
        if self.quick {
            line += " --quick";
        }
        if let Some(rounds) = self.rounds {
            line += &format!(" --rounds {rounds}");
        }
        for name in &self.only {
            line += &format!(" --only {name}");
        }
        line
    }

    /// Whether it is a whole run, whose results belong into the documentation.
    fn is_whole(&self) -> bool {
        !self.quick && self.only.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(only: &[&str]) -> (Vec<&'static str>, Vec<&'static str>) {
        let only: Vec<_> = only.iter().map(|name| (*name).to_owned()).collect();
        let choice = Choice::of(&only).unwrap();
        let measures = choice.measures.iter().map(|measure| measure.id).collect();
        (measures, choice.kinds.iter().map(|kind| kind.id).collect())
    }

    #[test]
    fn a_variant_brings_its_base() {
        let (measures, kinds) = ids(&["bridge", "udp"]);
        assert_eq!(measures, ["udp"]);
        assert_eq!(kinds, ["raw", "bridge"]);
    }

    #[test]
    fn naming_no_measure_means_all() {
        let (measures, kinds) = ids(&["bridge-same"]);
        assert_eq!(measures.len(), MEASURES.len());
        assert_eq!(kinds, ["bridge-same"]);
        assert_eq!(ids(&[]).1.len(), VARIANTS.len());
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_that_are() {
        let error = Choice::of(&["warp".to_owned()]).err().unwrap().to_string();
        assert!(error.contains("warp") && error.contains("udp") && error.contains("bridge"));
    }
}
