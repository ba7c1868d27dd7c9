//! The figures put in order: a table a measure, a row a variant. Pure.

use super::measures::{MEASURES, Measure, Unit};
use super::stats::{Samples, Summary};
use super::{Kind, VARIANTS};

/// A figure as a person reads it, with its unit.
pub(crate) fn figure(value: f64, unit: Unit) -> String {
    match unit {
        Unit::PacketsPerSecond => format!("{:.0} k/s", value / 1e3),
        Unit::GigabitsPerSecond => format!("{value:.2} Gbit/s"),
        Unit::ConnectionsPerSecond => format!("{value:.0} /s"),
        Unit::Microseconds => format!("{value:.1} us"),
        Unit::Nanoseconds => format!("{value:.0} ns"),
        Unit::Instructions => format!("{value:.0}"),
        Unit::Fraction => format!("{:.1} %", value * 100.0),
    }
}

/// A ratio with its spread.
pub(crate) fn ratio(summary: Summary) -> String {
    let Summary { median, p10, p90, .. } = summary;
    format!("{median:.2} [{p10:.2}-{p90:.2}]")
}

/// One line of a table: a variant's figure and its ratio to its base.
pub(crate) struct Row {
    pub(crate) kind: &'static Kind,
    pub(crate) value: Summary,
    /// None of the base itself.
    pub(crate) ratio: Option<Summary>,
}

/// What was measured of it, in the order of [`VARIANTS`].
fn rows(samples: &Samples, measure: &Measure) -> Vec<Row> {
    let row = |kind: &'static Kind| {
        let value = Summary::of(&samples.values(measure.id, kind.id))?;
        let ratios = match kind.id == kind.base {
            true => Vec::new(),
            false => samples.ratios(measure.id, kind.id, kind.base),
        };
        Some(Row { kind, value, ratio: Summary::of(&ratios) })
    };
    VARIANTS.iter().filter_map(row).collect()
}

/// All that was measured, in the order of [`MEASURES`].
pub(crate) fn tables(samples: &Samples) -> impl Iterator<Item = (&'static Measure, Vec<Row>)> {
    MEASURES
        .iter()
        .map(|measure| (measure, rows(samples, measure)))
        .filter(|(_, rows)| !rows.is_empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::stats::Sample;
    use super::*;

    /// Two measures of three variants in three rounds.
    pub(crate) fn samples() -> Samples {
        let mut samples = Samples::default();
        for round in 0..3 {
            let drift = 1.0 + round as f64 / 10.0;
            let figures = [("udp", [8e5, 4e5, 6e5]), ("rtt", [4.0, 6.0, 4.4])];
            for (measure, values) in figures {
                for (variant, value) in ["raw", "bridge", "bridge-same"].into_iter().zip(values) {
                    samples.0.push(Sample { round, measure, variant, value: value * drift });
                }
            }
        }
        samples
    }

    #[test]
    fn a_table_has_a_row_a_variant_and_no_ratio_of_a_base() {
        let samples = samples();
        let tables: Vec<_> = tables(&samples).collect();
        let titles: Vec<_> = tables.iter().map(|(measure, _)| measure.id).collect();
        assert_eq!(titles, ["udp", "rtt"]);
        let (_, udp) = &tables[0];
        let ids: Vec<_> = udp.iter().map(|row| row.kind.id).collect();
        assert_eq!(ids, ["raw", "bridge", "bridge-same"]);
        assert!(udp[0].ratio.is_none() && udp[2].ratio.is_none());
        let summary = udp[1].ratio.unwrap();
        assert_eq!((summary.median, summary.count), (0.5, 3));
        assert_eq!(ratio(summary), "0.50 [0.50-0.50]");
    }

    #[test]
    fn figures_carry_their_unit() {
        assert_eq!(figure(231_400.0, Unit::PacketsPerSecond), "231 k/s");
        assert_eq!(figure(0.9996, Unit::Fraction), "100.0 %");
        assert_eq!(figure(3.75, Unit::GigabitsPerSecond), "3.75 Gbit/s");
    }
}
