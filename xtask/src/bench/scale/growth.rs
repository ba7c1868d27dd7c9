//! What grows with endpoints, services, backends and flows, taken apart: the program `growth`
//! of the tests crate plans, programs and looks at one host, and has the kernel run the
//! datapath's program on single packets.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::super::lab::{Lab, UNDERLAY};
use super::super::machine;
use super::Helper;
use crate::command::CommandExt;
use crate::node::Shell;

/// What is grown, how it is shown, and how far.
const KINDS: &[(&str, &str, &[usize])] = &[
    ("endpoints", "endpoints", &[10, 100, 1_000, 10_000, 100_000]),
    ("services", "services, a backend each", &[1, 10, 100, 1_000, 10_000]),
    ("backends-wrr", "backends of one service, in turn", &[1, 10, 100, 1_000]),
    ("backends-wlc", "backends of one service, least connections", &[1, 10, 100, 1_000]),
    ("backends-mh", "backends of one service, Maglev", &[1, 10, 100, 1_000]),
    ("flows", "flows", &[1_000, 10_000, 100_000, 1_000_000]),
];

/// What was found with so many of a kind.
pub(super) struct Row {
    pub(super) kind: &'static str,
    pub(super) title: &'static str,
    pub(super) count: usize,
    found: Value,
}

impl Row {
    fn seconds(&self, of: &str, part: &str) -> f64 {
        self.found[of][part].as_f64().unwrap_or(f64::NAN)
    }

    /// From a change of the snapshot to a kernel that has it, in s.
    pub(super) fn one(&self) -> f64 {
        ["copy", "plan", "compare", "program"].iter().map(|part| self.seconds("one", part)).sum()
    }

    /// Of a packet, in ns.
    pub(super) fn packet(&self) -> f64 {
        self.found["packet"]["median"].as_f64().unwrap_or(f64::NAN)
    }

    /// Bytes of all maps.
    pub(super) fn memory(&self) -> f64 {
        let maps = self.found["maps"].as_object();
        maps.into_iter().flatten().filter_map(|(_, bytes)| bytes.as_f64()).sum()
    }
}

/// Measures all of it; the small half if it is to be quick.
pub(super) fn measure(helper: &Helper, quick: bool) -> Result<Vec<Row>> {
    let _session = machine::prefer_this_session()?;
    let mut rows = Vec::new();
    for (kind, title, counts) in KINDS {
        let counts = if quick { &counts[..counts.len().div_ceil(2)] } else { counts };
        for count in counts {
            machine::go_on()?;
            eprintln!("bench: {count} {title}");
            let found = one(helper, kind, *count)
                .with_context(|| format!("measuring with {count} {title}"))?;
            rows.push(Row { kind, title, count: *count, found });
        }
    }
    Ok(rows)
}

fn one(helper: &Helper, kind: &str, count: usize) -> Result<Value> {
    let lab = Lab::new()?;
    let [host, other] = lab.wired("grow")?;
    let workload = lab.host("grow-w")?;
    drop(other);
    let node = lab.node(&host, UNDERLAY[0], crate::node::Datapath::Ebpf);
    fs::create_dir_all(&node.directory)?;
    let program = helper.path("growth");
    let mut words = vec![program.to_string_lossy().into_owned(), kind.to_owned()];
    words.push(count.to_string());
    words.extend(
        [workload.netns_path(), node.directory, node.pins].map(|path| path.display().to_string()),
    );
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    Ok(serde_json::from_str(&host.command(&words).read()?)?)
}

/// The rows, and what they mean.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut kind = "";
    for row in rows {
        if row.kind != kind {
            kind = row.kind;
            let _ = write!(
                text,
                "\n| {} | plan, ms | program, ms | look, ms | one more: copy | plan | compare | \
                 program, µs | packet, ns | maps, MiB |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
                row.title
            );
        }
        let whole = |part| row.seconds("whole", part) * 1e3;
        let one = |part| row.seconds("one", part) * 1e6;
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} |",
            row.count,
            whole("plan") + whole("compare"),
            whole("program"),
            whole("look"),
            one("copy"),
            one("plan"),
            one("compare"),
            one("program"),
            row.packet(),
            row.memory() / f64::from(1 << 20),
        );
    }
    text + "\nOne host with one workload; what grows is on another. *Plan* makes the state that the \
            kernel should have and compares it with what it has, *program* writes it into a kernel \
            that has nothing of it, *look* reads all of it back. *One more* is one endpoint more \
            (with services, one backend more): the snapshot copied, planned, compared, programmed. \
            A packet is what `netagent_from_endpoint` takes for one, as the kernel tells of a run \
            by itself, clock included; each goes to another endpoint or service than the one \
            before. With backends, each begins a flow; with services and flows, each is of one that is known.\n"
}
