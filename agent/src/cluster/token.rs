//! Join tokens, `NATKN-1-<digest>-<secret>`: SHA-256 of the CA's certificate, so
//! that a joining node knows its cluster before it says anything, and a secret
//! that admits to a role. The secret is kept as it is, since `join-token` prints
//! it again; whoever reads the store has the CA's key anyway.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// Version of the format, and what makes a token recognisable in a text.
const PREFIX: &str = "NATKN-1";
/// Length of the digest in hexadecimal.
const DIGEST: usize = 64;
/// Length of the secret in hexadecimal: 128 bits.
const SECRET: usize = 32;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the CA certificate's DER.
    pub ca: [u8; 32],
    /// Secret, hexadecimal.
    pub secret: String,
}

/// Text that is not a token.
#[derive(Debug, thiserror::Error)]
#[error("not a join token: {0}. `netagent cluster join-token worker` on a manager prints one")]
pub struct InvalidToken(&'static str);

/// A new random secret.
#[must_use]
pub fn new_secret() -> String {
    hex::encode(rand::random::<[u8; SECRET / 2]>())
}

/// Whether two secrets are equal. How long it takes tells something of their
/// digests only, and nobody can steer those.
#[must_use]
pub fn same_secret(one: &str, other: &str) -> bool {
    Sha256::digest(one) == Sha256::digest(other)
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        let rest = text.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')).ok_or(
            InvalidToken(if text.starts_with("SWMTKN") {
                "it is one of Docker Swarm"
            } else {
                "it does not start with NATKN-1-"
            }),
        )?;
        let (digest, secret) =
            rest.split_once('-').ok_or(InvalidToken("its second half is missing"))?;
        if digest.len() != DIGEST || secret.len() != SECRET {
            return Err(InvalidToken("it is cut off or has something appended"));
        }
        let mut ca = [0; DIGEST / 2];
        let digits = InvalidToken("it has characters that no token has");
        if hex::decode_to_slice(digest, &mut ca).is_err() || hex::decode(secret).is_err() {
            return Err(digits);
        }
        Ok(Self { ca, secret: secret.to_ascii_lowercase() })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-{}", hex::encode(self.ca), self.secret)
    }
}

/// Without the secret: debug output ends up in logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-…", hex::encode(self.ca))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let token = Token { ca: [7; 32], secret: new_secret() };
        let text = token.to_string();
        assert_eq!(text.parse::<Token>().unwrap(), token);
        assert_eq!(format!(" {text}\n").parse::<Token>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn tells_what_is_wrong() {
        let good = Token { ca: [7; 32], secret: new_secret() }.to_string();
        let swarm = format!("SWMTKN-1-{}", &good[8..]);
        for (text, reason) in [
            ("", "NATKN-1-"),
            ("NATKN-2-x-y", "NATKN-1-"),
            (swarm.as_str(), "Docker Swarm"),
            ("NATKN-1-abc", "second half"),
            (&good[..good.len() - 1], "cut off"),
            (&format!("{good}0"), "cut off"),
            (&good.replace("07", "xy"), "characters"),
        ] {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("join-token"), "{text}: {error}");
        }
    }

    #[test]
    fn compares_secrets() {
        let secret = new_secret();
        assert!(same_secret(&secret, &secret.clone()));
        assert!(!same_secret(&secret, &new_secret()));
        assert!(!same_secret(&secret, &secret[1..]));
        assert!(!same_secret(&secret, ""));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".*", tail in "[0-9a-f-]*") {
            let _ = text.parse::<Token>();
            let _ = format!("NATKN-1-{tail}").parse::<Token>();
        }
    }
}
