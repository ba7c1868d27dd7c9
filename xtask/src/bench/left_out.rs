//! What a run could not measure, and whether the run has failed by that. Pure.

use std::fmt;

use anyhow::{Error, Result, bail, ensure};

use super::VARIANTS;

/// Left out of a variant if it cannot be set up: all.
pub(crate) const SET_UP: &str = "set-up";
/// Left out of a variant if its programs cannot be timed.
pub(crate) const PROGRAMS: &str = "programs";

/// Something that is in no table, for it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// The id of a measure, [`SET_UP`] or [`PROGRAMS`].
    pub(crate) what: &'static str,
    /// One of [`VARIANTS`].
    pub(crate) variant: &'static str,
    /// Why, in one line.
    pub(crate) reason: String,
}

impl LeftOut {
    pub(crate) fn new(what: &'static str, variant: &'static str, error: &Error) -> Self {
        // Programs that failed may have said several lines.
        let words = format!("{error:#}");
        let reason = words.split_whitespace().collect::<Vec<_>>().join(" ");
        Self { what, variant, reason }
    }

    fn is_ours(&self) -> bool {
        VARIANTS.iter().any(|kind| kind.id == self.variant && kind.is_ours())
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}: {}", self.what, self.variant, self.reason)
    }
}

/// Whether something was left out.
pub(crate) fn is(left_out: &[LeftOut], what: &str, variant: &str) -> bool {
    left_out.iter().any(|one| one.what == what && one.variant == variant)
}

/// Judges a run by what it left out, and by whether it has measured anything.
///
/// # Errors
/// If it has measured nothing, or something of netagent's own was left out.
pub(crate) fn judge(left_out: &[LeftOut], measured: bool) -> Result<()> {
    ensure!(measured, "nothing was measured");
    let ours: Vec<_> = left_out.iter().filter(|one| one.is_ours()).collect();
    if !ours.is_empty() {
        let ours: Vec<_> =
            ours.iter().map(|one| format!("{} of {}", one.what, one.variant)).collect();
        bail!("netagent's own could not be measured: {}", ours.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn left_out(what: &'static str, variant: &'static str) -> LeftOut {
        LeftOut::new(what, variant, &anyhow!("no answer\n  at all").context("in round 2"))
    }

    #[test]
    fn a_reason_is_one_line_with_its_causes() {
        let shown = left_out("udp", "docker").to_string();
        assert_eq!(shown, "udp of docker: in round 2: no answer at all");
    }

    #[test]
    fn a_run_fails_for_what_is_ours_and_if_there_is_nothing() {
        let others = [left_out("udp", "docker"), left_out(SET_UP, "docker-service")];
        assert!(judge(&[], true).is_ok());
        assert!(judge(&others, true).is_ok());
        assert!(judge(&others, false).is_err());
        let error = judge(&[left_out("udp", "docker"), left_out("rtt", "ebpf-vip")], true);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("rtt of ebpf-vip") && !error.contains("docker"), "{error}");
    }
}
