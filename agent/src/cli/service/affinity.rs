//! `--affinity clientip[:TIMEOUT]`, or `none`.

use std::str::FromStr;

use crate::cli::duration;

/// Seconds for which a client keeps its backend; 0 for not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Affinity(pub(super) u32);

/// Seconds if none are given: the default of IPVS (ipvsadm(8), `--persistent`).
const DEFAULT: u32 = 300;

impl FromStr for Affinity {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = match text.split_once(':') {
            None if text == "none" => 0,
            None if text == "clientip" => DEFAULT,
            Some(("clientip", timeout)) => match duration::seconds(timeout)? {
                0 => return Err("no affinity is `none`".to_owned()),
                seconds => seconds,
            },
            _ => {
                return Err(
                    "affinity is clientip, clientip:TIMEOUT (such as clientip:10m) or none"
                        .to_owned(),
                );
            }
        };
        Ok(Self(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_is_by_client_for_a_time() {
        let parse = |text: &str| text.parse::<Affinity>().map(|affinity| affinity.0);
        assert_eq!(parse("clientip"), Ok(300));
        assert_eq!(parse("clientip:2h"), Ok(7200));
        assert_eq!(parse("none"), Ok(0));
        for text in ["", "cookie", "none:10s", "10s", "clientip10s"] {
            assert!(parse(text).unwrap_err().starts_with("affinity is clientip"), "{text}");
        }
        assert!(parse("clientip:10").unwrap_err().contains("with a unit"));
        assert!(parse("clientip:0s").unwrap_err().contains("`none`"));
    }
}
