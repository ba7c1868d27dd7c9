//! Spans of time on the command line, as Docker has them: `90s`, `1m30s`, `500ms`,
//! `2h`, `5d`. Only parses; what a span may be, the option it is given to says.

use std::time::Duration;

/// A parser's result for a span of time; a number without a unit is refused, but for 0.
///
/// # Errors
/// Text for clap that says what a span of time looks like.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| {
        format!("{text:?} is not a span of time: a number with a unit, such as 500ms, 30s, 10m, 2h")
    })
}

/// As [`duration`], for what counts in whole seconds.
///
/// # Errors
/// As [`duration`]; a part of a second; more than a `u32` holds (136 years).
pub fn seconds(text: &str) -> Result<u32, String> {
    let span = duration(text)?;
    if span.subsec_nanos() != 0 {
        return Err(format!("{text:?} is not a whole number of seconds"));
    }
    u32::try_from(span.as_secs()).map_err(|_| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_units() {
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
        for text in ["", "30", "s", "-1s", "1 parsec", "1s1"] {
            let error = duration(text).unwrap_err();
            assert!(error.contains("a number with a unit"), "{text}: {error}");
        }
    }

    #[test]
    fn seconds_are_whole() {
        assert_eq!(seconds("2h").unwrap(), 7200);
        assert_eq!(seconds("5d").unwrap(), 432_000);
        assert_eq!(seconds("1000ms").unwrap(), 1);
        assert!(seconds("1500ms").unwrap_err().contains("whole"));
        assert!(seconds("200years").unwrap_err().contains("too long"));
    }
}
