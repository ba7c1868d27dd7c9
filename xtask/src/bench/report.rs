//! The results for people: tables at the prompt and in Markdown.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::goals::{GOALS, Goal, Reached};
use super::left_out::LeftOut;
use super::measures::Measure;
use super::programs::Program;
use super::stats::Summary;
use super::table::{Row, figure, ratio, tables};
use super::told::Told;
use super::{Options, Run, VARIANTS, svg};
use crate::command::checkout;

/// Prints the results and writes them down. Those of a whole run that has not failed become part
/// of the documentation; others lie beside what was built.
pub(super) fn all(run: &Run, options: &Options) -> Result<()> {
    let whole = options.is_whole() && run.judge().is_ok();
    let directory = checkout().join(if whole { "agent/docs/bench" } else { "target/bench" });
    let name = if options.kernel.is_some() { "ipvs" } else { "results" };
    let write = |ending: &str, text: &str| {
        let path = directory.join(format!("{name}.{ending}"));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    fs::create_dir_all(&directory)?;
    write("md", &markdown(run, name))?;
    write("svg", &svg::picture(&run.samples))?;
    if whole && options.kernel.is_none() {
        let path = checkout().join("README.md");
        let reading = || format!("cannot bring {} up to date", path.display());
        let text = fs::read_to_string(&path).with_context(reading)?;
        let text = between(&text, &in_brief(run)).context("it has no place for figures");
        fs::write(&path, text.with_context(reading)?).with_context(reading)?;
    }
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&Told::of(run))? + "\n";
        fs::write(path, json).with_context(|| format!("write {}", path.display()))?;
    }
    print!("{}", plain(run));
    println!("\nWritten to {}: {name}.md, {name}.svg", shown(&directory));
    Ok(())
}

/// Begins and ends the figures in README.md.
const MARKS: [&str; 2] = ["<!-- cargo xtask bench: -->\n", "<!-- :cargo xtask bench -->\n"];

/// The text with `new` between the marks; none if it has no marks.
fn between(text: &str, new: &str) -> Option<String> {
    let (head, rest) = text.split_once(MARKS[0])?;
    let (_, tail) = rest.split_once(MARKS[1])?;
    Some([head, MARKS[0], new, MARKS[1], tail].concat())
}

/// The goals' ratios alone.
fn in_brief(run: &Run) -> String {
    let mut text = format!(
        "`{}` on {}, {} rounds on {} CPUs, all variants in each round; ratios are medians of the \
         rounds:\n\n| eBPF datapath, as a ratio | |\n|---|---|\n",
        run.command, run.machine.date, run.rounds, run.machine.cpus
    );
    for goal in GOALS {
        let measured = goal.measured(&run.samples);
        let measured =
            measured.map_or("not measured".to_owned(), |summary| format!("{:.2}", summary.median));
        let _ = writeln!(text, "| {} | {measured} |", goal.title);
    }
    text
}

fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(checkout()).unwrap_or(path).display()
}

fn direction(measure: &Measure) -> &'static str {
    if measure.less_is_better { "less is better" } else { "more is better" }
}

/// What is said of a goal: measured, and reached.
fn judgement(goal: &Goal, run: &Run) -> (String, &'static str) {
    match goal.measured(&run.samples) {
        None => ("not measured".to_owned(), ""),
        Some(summary) => (ratio(summary), goal.reached(summary.median).word()),
    }
}

/// How steady the machine was: the spread of the bare wire's own figures.
fn noise(run: &Run) -> String {
    let spread = |id: &str| {
        let Summary { median, p10, p90, .. } = Summary::of(&run.samples.values(id, "raw"))?;
        Some(format!(
            "{id} {:+.0}/{:+.0} %",
            (p10 / median - 1.0) * 1e2,
            (p90 / median - 1.0) * 1e2
        ))
    };
    let spreads: Vec<_> = ["udp", "cost", "rtt", "connections", "tcp1", "tcp2"]
        .into_iter()
        .filter_map(spread)
        .collect();
    let load = run.load;
    let load = match load > 0.5 {
        true => format!("The machine was busy with other work too: load {load:.1} before the run."),
        false => format!("Load {load:.1} before the run."),
    };
    if spreads.is_empty() {
        return load;
    }
    let spreads = spreads.join(", ");
    format!("{load} Spread (p10/p90) of the bare wire's own figures over the rounds: {spreads}.")
}

fn plain(run: &Run) -> String {
    let mut text = String::new();
    for (measure, rows) in tables(&run.samples) {
        let _ = writeln!(text, "\n{} ({})", measure.title, direction(measure));
        for Row { kind, value, ratio: r } in rows {
            let (value, ratio) =
                (figure(value.median, measure.unit), r.map_or(String::new(), ratio));
            let _ = writeln!(text, "  {:28} {value:>14}   {ratio}", kind.title);
        }
    }
    let _ = writeln!(text, "\nGoals of the eBPF datapath (median of {} rounds)", run.rounds);
    for goal in GOALS {
        let (measured, reached) = judgement(goal, run);
        let aims = format!("{:.2} / {:.2}", goal.ambitious, goal.stretch);
        let _ = writeln!(text, "  {:44} {measured:18} of {aims:12} {reached}", goal.title);
    }
    if !run.programs.is_empty() {
        let _ = writeln!(text, "\neBPF programs while small packets are sent (ns per run)");
    }
    for Program { variant, name, nanoseconds, .. } in &run.programs {
        let _ = writeln!(text, "  {variant:12} {name:28} {nanoseconds:>5.0}");
    }
    if !run.left_out.is_empty() {
        let _ = writeln!(text, "\nLeft out");
    }
    for left_out in &run.left_out {
        let _ = writeln!(text, "  {left_out}");
    }
    let _ = writeln!(text, "\n{}", noise(run));
    text
}

/// What the figures of a test machine are worth.
const EMULATED: &str = "\n\nThe machine is emulated, by QEMU without KVM, and its clock counts \
    instructions, a nanosecond each, one CPU after the other. So a ratio says how much more is \
    executed, the same in every run; caches, waiting, and what two CPUs do at once are not in it.";

fn goals(run: &Run) -> String {
    let mut text = "\n## Goals of the eBPF datapath\n\n\
         | ratio | measured | ambitious | stretch | limit seen | reached |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for goal in GOALS {
        let (measured, reached) = judgement(goal, run);
        let reached = if reached == Reached::Missed.word() {
            "**missed**".to_owned()
        } else {
            reached.to_owned()
        };
        let Goal { title, ambitious, stretch, limit, .. } = goal;
        let _ = writeln!(
            text,
            "| {title} | {measured} | {ambitious:.2} | {stretch:.2} | {limit} | {reached} |"
        );
    }
    text
}

fn markdown(run: &Run, name: &str) -> String {
    let machine = &run.machine;
    let mut text = format!(
        "# Measured\n\n\
         `{}` on {}: {}, {} CPUs, Linux {}, commit {}.\n\n\
         Medians of {} rounds. Every variant is measured in every round, the order reversed each \
         round; a ratio is the median of the ratios within the rounds, with the tenth and the \
         ninetieth percentile. {}\n\n\
         Client and server are pinned: on one CPU both share it, so the figure is what the whole \
         path costs; on two CPUs each has its own. TCP uses cubic. The wire is a veth pair.{}\n\n\
         ![The ratios]({name}.svg)\n",
        run.command,
        machine.date,
        machine.cpu,
        machine.cpus,
        machine.kernel,
        machine.commit,
        run.rounds,
        noise(run),
        if run.emulated { EMULATED } else { "" },
    );
    if !run.left_out.is_empty() {
        text += "\n## Left out\n\nWhat could not be measured is in no table, of no round:\n\n";
    }
    for LeftOut { what, variant, reason } in &run.left_out {
        let _ = writeln!(text, "- `{what}` of `{variant}`: {reason}");
    }
    if !run.emulated {
        text += &goals(run);
    }
    for (measure, rows) in tables(&run.samples) {
        let _ = write!(
            text,
            "\n## {} ({})\n\n| variant | median | ratio | compared with |\n|---|---|---|---|\n",
            measure.title,
            direction(measure)
        );
        for Row { kind, value, ratio: r } in rows {
            let value = figure(value.median, measure.unit);
            let base =
                VARIANTS.iter().find(|base| base.id == kind.base).map_or("", |base| base.title);
            let (ratio, base) = r.map_or((String::new(), ""), |r| (ratio(r), base));
            let _ = writeln!(text, "| {} | {value} | {ratio} | {base} |", kind.title);
        }
    }
    if !run.programs.is_empty() {
        text += "\n## Programs\n\nTime per run while small packets are sent, as the kernel counts \
                 it; counting adds some.\n\n| variant | program | ns per run |\n|---|---|---|\n";
    }
    for Program { variant, name, nanoseconds, .. } in &run.programs {
        let _ = writeln!(text, "| {variant} | `{name}` | {nanoseconds:.0} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::told::tests::run;
    use super::*;

    #[test]
    fn figures_are_replaced_and_nothing_else() {
        let text = format!("before\n{}old\n{}after\n", MARKS[0], MARKS[1]);
        let expected = format!("before\n{}new\n{}after\n", MARKS[0], MARKS[1]);
        assert_eq!(between(&text, "new\n").unwrap(), expected);
        assert_eq!(between("no marks\n", "new\n"), None);
    }

    #[test]
    fn what_was_left_out_is_named_and_the_rest_is_told() {
        let mut run = run();
        run.samples.0.retain(|sample| sample.measure != "rtt" || sample.variant != "raw");
        let (markdown, plain) = (markdown(&run, "results"), plain(&run));
        for line in ["- `rtt` of `docker`: no answer\n", "- `set-up` of `kernel`: no answer\n"] {
            assert!(markdown.contains(line), "{markdown}");
        }
        assert!(plain.contains("\n  rtt of docker: no answer\n"), "{plain}");
        // A figure whose base is not there has no ratio, and a goal no measurement.
        assert!(markdown.contains("\n| bridge+vxlan | 6.6 us |  |  |\n"), "{markdown}");
        assert!(markdown.contains("| added round trip ÷ what bridge+vxlan adds | not measured |"));
        assert!(
            in_brief(&run).contains("| added round trip ÷ what bridge+vxlan adds | not measured |")
        );
        run.left_out.clear();
        assert!(!super::markdown(&run, "results").contains("Left out"));
    }

    #[test]
    fn the_readme_has_a_place_for_them() {
        let readme = fs::read_to_string(checkout().join("README.md")).unwrap();
        assert!(between(&readme, "").is_some());
    }
}
