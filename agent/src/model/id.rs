//! Identifiers: 16 characters of lower-case base32, random, one type per kind. They are
//! values of fixed size: a snapshot of a hundred thousand endpoints is copied and compared
//! for every change.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

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

fn random() -> [u8; ID_LEN] {
    let bytes: [u8; ID_LEN] = rand::random();
    bytes.map(|b| ALPHABET[usize::from(b & 31)])
}

fn check(text: &str) -> Result<[u8; ID_LEN], InvalidId> {
    match text.as_bytes().try_into() {
        Ok(bytes) if text.bytes().all(|b| ALPHABET.contains(&b)) => Ok(bytes),
        _ => Err(InvalidId(text.chars().take(64).collect())),
    }
}

macro_rules! ids {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String")]
        #[schema(value_type = String)]
        pub struct $name([u8; ID_LEN]);

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
                std::str::from_utf8(&self.0).expect("it was made of letters and digits")
            }

            /// Whether `text` means this identifier: all of it, or at least its
            /// first [`SHORT_ID_LEN`] characters, as tables show it.
            #[must_use]
            pub fn is_meant_by(&self, text: &str) -> bool {
                text.len() >= SHORT_ID_LEN && self.as_str().starts_with(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                check(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                check(&text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
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
