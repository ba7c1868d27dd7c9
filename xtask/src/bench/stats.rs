//! Statistics of paired rounds: every variant is measured in every round, so what
//! disturbs the machine for longer than a round disturbs both sides of a ratio. Pure.

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) measure: &'static str,
    pub(crate) variant: &'static str,
    /// In the measure's unit.
    pub(crate) value: f64,
}

/// What is told of several values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// The tenth and the ninetieth percentile.
    pub(crate) p10: f64,
    pub(crate) p90: f64,
    /// How many there were.
    pub(crate) count: usize,
}

impl Summary {
    /// Of these values; none if there are none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self {
            median: percentile(&sorted, 0.5)?,
            p10: percentile(&sorted, 0.1)?,
            p90: percentile(&sorted, 0.9)?,
            count: sorted.len(),
        })
    }
}

pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The value below which a fraction of the values lies, between two of them in
/// proportion. The values are in order.
pub(crate) fn percentile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = fraction * last as f64;
    let below = sorted[position.floor() as usize];
    let above = sorted[position.ceil() as usize];
    Some(below + (above - below) * position.fract())
}

/// All measurements of a run.
#[derive(Debug, Default)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

impl Samples {
    /// What a variant reached in a round.
    fn value(&self, round: usize, measure: &str, variant: &str) -> Option<f64> {
        let same = |s: &&Sample| s.round == round && s.measure == measure && s.variant == variant;
        self.0.iter().find(same).map(|sample| sample.value)
    }

    fn rounds(&self) -> usize {
        self.0.iter().map(|sample| sample.round + 1).max().unwrap_or(0)
    }

    /// What a variant reached in all rounds.
    pub(crate) fn values(&self, measure: &str, variant: &str) -> Vec<f64> {
        (0..self.rounds()).filter_map(|round| self.value(round, measure, variant)).collect()
    }

    /// One ratio a round, of the rounds that have both.
    pub(crate) fn ratios(&self, measure: &str, variant: &str, base: &str) -> Vec<f64> {
        let ratio = |round| {
            let base = self.value(round, measure, base)?;
            Some(self.value(round, measure, variant)? / base)
        };
        (0..self.rounds()).filter_map(ratio).filter(|ratio| ratio.is_finite()).collect()
    }

    /// What a variant adds to the base, as a part of what another one adds to it; one
    /// a round. Rounds in which the other one added nothing tell nothing.
    pub(crate) fn added(&self, measure: &str, variant: &str, other: &str, base: &str) -> Vec<f64> {
        let part = |round| {
            let base = self.value(round, measure, base)?;
            let other = self.value(round, measure, other)? - base;
            let added = self.value(round, measure, variant)? - base;
            (other > 0.0).then(|| added / other)
        };
        (0..self.rounds()).filter_map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rows: &[(usize, &'static str, f64)]) -> Samples {
        let sample = |&(round, variant, value)| Sample { round, measure: "m", variant, value };
        Samples(rows.iter().map(sample).collect())
    }

    #[test]
    fn percentiles_lie_between_values() {
        let values = sorted(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(percentile(&values, 0.0), Some(1.0));
        assert_eq!(percentile(&values, 0.5), Some(2.5));
        assert_eq!(percentile(&values, 1.0), Some(4.0));
        assert_eq!(percentile(&[7.0], 0.9), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
        let summary = Summary::of(&(0..=10).map(f64::from).collect::<Vec<_>>()).unwrap();
        assert_eq!(summary, Summary { median: 5.0, p10: 1.0, p90: 9.0, count: 11 });
    }

    #[test]
    fn ratios_are_paired_by_round() {
        // The machine got twice as slow in round 1: the ratio does not see it.
        let samples = samples(&[(0, "a", 8.0), (0, "b", 10.0), (1, "b", 5.0), (1, "a", 4.0)]);
        assert_eq!(samples.ratios("m", "a", "b"), [0.8, 0.8]);
        assert_eq!(samples.values("m", "a"), [8.0, 4.0]);
        assert!(samples.ratios("other", "a", "b").is_empty());
    }

    #[test]
    fn a_round_without_both_sides_has_no_ratio() {
        let samples = samples(&[(0, "a", 8.0), (1, "b", 5.0), (2, "a", 1.0), (2, "b", 0.0)]);
        assert!(samples.ratios("m", "a", "b").is_empty());
    }

    #[test]
    fn added_is_a_part_of_what_the_other_adds() {
        let samples = samples(&[
            (0, "raw", 10.0),
            (0, "ours", 13.0),
            (0, "theirs", 16.0),
            (1, "raw", 10.0),
            (1, "ours", 12.0),
            (1, "theirs", 9.0),
        ]);
        assert_eq!(samples.added("m", "ours", "theirs", "raw"), [0.5]);
    }
}
