//! Identifiers: 16 characters of lower-case base32, random, one type per kind.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Length of every identifier in characters (80 bits of randomness).
pub(crate) const ID_LEN: usize = 16;
/// Characters of an identifier that tables show, and that are enough to name an
/// object by (60 bits: two objects do not share them).
pub const SHORT_ID_LEN: usize = 12;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Text that is not an identifier.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an identifier: {ID_LEN} characters of a-z and 2-7 are")]
pub struct InvalidId(String);

fn random() -> String {
    let bytes: [u8; ID_LEN] = rand::random();
    bytes.iter().map(|b| char::from(ALPHABET[usize::from(b & 31)])).collect()
}

fn check(text: &str) -> Result<(), InvalidId> {
    if text.len() == ID_LEN && text.bytes().all(|b| ALPHABET.contains(&b)) {
        Ok(())
    } else {
        Err(InvalidId(text.chars().take(64).collect()))
    }
}

macro_rules! ids {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(String);

        impl $name {
            /// A new random identifier.
            #[must_use]
            #[expect(clippy::new_without_default, reason = "a default would hide randomness")]
            pub fn new() -> Self {
                Self(random())
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether `text` means this identifier: all of it, or at least its
            /// first [`SHORT_ID_LEN`] characters, as tables show it.
            #[must_use]
            pub fn is_meant_by(&self, text: &str) -> bool {
                text.len() >= SHORT_ID_LEN && self.0.starts_with(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                check(&text).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    )+};
}

ids! {
    /// Identifies a node for the whole of its membership.
    NodeId,
    /// Identifies a network.
    NetworkId,
    /// Identifies an endpoint.
    EndpointId,
    /// Identifies a service.
    ServiceId,
    /// Identifies a workload; all endpoints of one workload carry it.
    WorkloadId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_meant_by_what_tables_show() {
        let id: NodeId = "abcdefghijklmnop".parse().unwrap();
        assert!(id.is_meant_by("abcdefghijklmnop"));
        assert!(id.is_meant_by("abcdefghijkl"));
        assert!(!id.is_meant_by("abcdefghijk"), "too short to be unique");
        assert!(!id.is_meant_by("abcdefghijklmnopq"));
        assert!(!id.is_meant_by("bcdefghijklmn"));
        assert!(!id.is_meant_by(""));
    }

    #[test]
    fn random_identifiers_are_well_formed() {
        let id = NetworkId::new();
        assert_eq!(id.as_str().parse::<NetworkId>().unwrap(), id);
        assert!("ABCDEFGHIJKLMNOP".parse::<NetworkId>().is_err());
        assert!("abcdefghijklmno".parse::<NetworkId>().is_err());
        assert!("abcdefghijklmno1".parse::<NetworkId>().is_err(), "1 is not in the alphabet");
    }
}
