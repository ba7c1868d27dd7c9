//! Sets variants up and measures them, round after round. What fails is left out of the rest of
//! the run and named; only ^C ends it. Knows nothing of what is measured, nor how.

use anyhow::Result;

use super::left_out::{self, LeftOut};
use super::measures::{Effort, MEASURES, Measure};
use super::processes::{self, Background};
use super::programs::{self, Program};
use super::progress::Progress;
use super::stats::{Sample, Samples};
use super::{Kind, Maker, Variant, machine};

/// Sets these variants up, in their order, by giving `make` each of their makers once.
///
/// # Errors
/// If somebody wants us to end.
pub(super) fn set_up(
    kinds: &[&'static Kind],
    left_out: &mut Vec<LeftOut>,
    mut make: impl FnMut(Maker) -> Result<Vec<Variant>>,
) -> Result<Vec<Variant>> {
    let mut makers: Vec<Maker> = Vec::new();
    for kind in kinds {
        if !makers.iter().any(|maker| std::ptr::fn_addr_eq(*maker, kind.maker)) {
            makers.push(kind.maker);
        }
    }
    let mut variants = Vec::new();
    for maker in makers {
        machine::go_on()?;
        let of_it = kinds.iter().filter(|kind| std::ptr::fn_addr_eq(maker, kind.maker));
        let titles: Vec<_> = of_it.clone().map(|kind| kind.title).collect();
        eprintln!("bench: setting up {}", titles.join("; "));
        match make(maker) {
            Ok(made) => variants.extend(made),
            Err(error) => {
                machine::go_on()?;
                for kind in of_it {
                    note(left_out, LeftOut::new(left_out::SET_UP, kind.id, &error));
                }
            }
        }
    }
    let place = |variant: &Variant| kinds.iter().position(|kind| kind.id == variant.id);
    variants.retain(|variant| place(variant).is_some());
    variants.sort_by_key(place);
    Ok(variants)
}

/// Starts the servers of the variants; leaves those that have none out.
///
/// # Errors
/// If somebody wants us to end.
pub(super) fn serve(
    variants: Vec<Variant>,
    left_out: &mut Vec<LeftOut>,
) -> Result<(Vec<Variant>, Vec<[Background; 2]>)> {
    let (mut served, mut servers) = (Vec::new(), Vec::new());
    for variant in variants {
        machine::go_on()?;
        match processes::serve(&variant) {
            Ok(server) => {
                served.push(variant);
                servers.push(server);
            }
            Err(error) => {
                machine::go_on()?;
                note(left_out, LeftOut::new(left_out::SET_UP, variant.id, &error));
            }
        }
    }
    Ok((served, servers))
}

/// Has `take` measure. What fails twice in a row is not tried again, and what was measured of it
/// before is dropped: medians of fewer rounds, those that went well, would look like the others.
///
/// # Errors
/// If somebody wants us to end.
pub(super) fn measure(
    measures: &[&'static Measure],
    variants: &[Variant],
    rounds: usize,
    left_out: &mut Vec<LeftOut>,
    mut take: impl FnMut(&Measure, &Variant) -> Result<f64>,
) -> Result<Samples> {
    let steps = |measure: &&'static Measure| variants.iter().filter(|v| measure.is_of(v)).count();
    let mut progress = Progress::of(rounds * measures.iter().map(steps).sum::<usize>());
    let mut samples = Samples::default();
    for round in 0..rounds {
        for measure in measures {
            progress.part(&format!("round {} of {rounds}: {}", round + 1, measure.title));
            let mut variants: Vec<_> = variants.iter().filter(|v| measure.is_of(v)).collect();
            if round % 2 == 1 {
                variants.reverse();
            }
            for variant in variants {
                machine::go_on()?;
                progress.step(&format!("{}, {}", measure.title, variant.id));
                let (measure, variant, taken) = (measure.id, variant.id, || take(measure, variant));
                if left_out::is(left_out, measure, variant) {
                    continue;
                }
                match twice(measure, variant, &progress, taken)? {
                    Ok(value) => samples.0.push(Sample { round, measure, variant, value }),
                    Err(error) => {
                        let error = error.context(format!("in round {}", round + 1));
                        let one = LeftOut::new(measure, variant, &error);
                        progress.say(&format!("left out: {one}"));
                        left_out.push(one);
                        samples.0.retain(|s| s.measure != measure || s.variant != variant);
                    }
                }
            }
        }
    }
    Ok(samples)
}

/// What `take` returns, or if it fails, what it returns once more.
fn twice(
    measure: &str,
    variant: &str,
    progress: &Progress,
    mut take: impl FnMut() -> Result<f64>,
) -> Result<Result<f64>> {
    let mut taken = take();
    if let Err(error) = &taken {
        machine::go_on()?;
        progress.say(&format!("once more: {measure} of {variant}: {error:#}"));
        taken = take();
        if taken.is_err() {
            machine::go_on()?;
        }
    }
    Ok(taken)
}

/// What our programs take while small packets are sent.
///
/// # Errors
/// If somebody wants us to end.
pub(super) fn programs(
    variants: &[Variant],
    effort: Effort,
    left_out: &mut Vec<LeftOut>,
) -> Result<Vec<Program>> {
    let packets = &MEASURES[0];
    let mut programs = Vec::new();
    for variant in variants.iter().filter(|variant| variant.id.starts_with("ebpf")) {
        if left_out::is(left_out, packets.id, variant.id) {
            continue;
        }
        machine::go_on()?;
        match programs::of(variant, packets, effort) {
            Ok(of_it) => programs.extend(of_it),
            Err(error) => {
                machine::go_on()?;
                note(left_out, LeftOut::new(left_out::PROGRAMS, variant.id, &error));
            }
        }
    }
    Ok(programs)
}

fn note(left_out: &mut Vec<LeftOut>, one: LeftOut) {
    eprintln!("bench: left out: {one}");
    left_out.push(one);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use anyhow::bail;

    use super::super::VARIANTS;
    use super::*;
    use crate::node::Host;

    fn variant(id: &'static str) -> Variant {
        let host =
            |end: &str| Host { name: end.to_owned(), netns: end.to_owned(), mark: String::new() };
        let (client, server) = (host("client"), host("server"));
        Variant { id, client, server, target: Ipv4Addr::LOCALHOST, wire: Vec::new() }
    }

    fn kinds(ids: &[&str]) -> Vec<&'static Kind> {
        VARIANTS.iter().filter(|kind| ids.contains(&kind.id)).collect()
    }

    fn measures(ids: &[&str]) -> Vec<&'static Measure> {
        MEASURES.iter().filter(|measure| ids.contains(&measure.id)).collect()
    }

    #[test]
    fn a_maker_that_fails_leaves_its_variants_out_and_no_other() {
        let kinds = kinds(&["raw", "ebpf", "ebpf-vip", "kernel"]);
        let ours = kinds.iter().find(|kind| kind.id == "ebpf").unwrap().maker;
        let mut ids = vec!["raw", "kernel"].into_iter();
        let mut left_out = Vec::new();
        let variants = set_up(&kinds, &mut left_out, |maker| {
            if std::ptr::fn_addr_eq(maker, ours) {
                bail!("no such thing");
            }
            Ok(ids.next().into_iter().map(variant).collect())
        });
        let ids: Vec<_> = variants.unwrap().iter().map(|variant| variant.id).collect();
        assert_eq!(ids, ["raw", "kernel"]);
        let left_out: Vec<_> = left_out.iter().map(ToString::to_string).collect();
        let expected = ["set-up of ebpf: no such thing", "set-up of ebpf-vip: no such thing"];
        assert_eq!(left_out, expected);
    }

    #[test]
    fn what_fails_twice_is_not_tried_again_and_the_rest_goes_on() {
        let variants = ["raw", "docker"].map(variant);
        let (mut left_out, mut rtts) = (Vec::new(), 0);
        let samples =
            measure(&measures(&["udp", "rtt"]), &variants, 4, &mut left_out, |measure, variant| {
                if (measure.id, variant.id) == ("rtt", "docker") {
                    rtts += 1;
                    if rtts > 1 {
                        bail!("no answer");
                    }
                }
                Ok(7.0)
            })
            .unwrap();
        // Round 1 went well, both tries of round 2 did not.
        assert_eq!(rtts, 3);
        let count = |measure, variant| samples.values(measure, variant).len();
        assert_eq!([count("udp", "raw"), count("udp", "docker"), count("rtt", "raw")], [4; 3]);
        assert_eq!(count("rtt", "docker"), 0);
        assert_eq!(left_out.len(), 1);
        assert_eq!(left_out[0].to_string(), "rtt of docker: in round 2: no answer");
    }

    #[test]
    fn what_fails_once_is_measured() {
        let (mut left_out, mut tries) = (Vec::new(), 0);
        let samples = measure(&measures(&["udp"]), &[variant("raw")], 2, &mut left_out, |_, _| {
            tries += 1;
            if tries == 1 {
                bail!("no answer");
            }
            Ok(7.0)
        })
        .unwrap();
        assert_eq!((samples.values("udp", "raw").len(), tries), (2, 3));
        assert!(left_out.is_empty());
    }
}
