//! What encrypted networks rest on: what each node's kernel can do, and the cluster's keys.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a node's kernel does for encrypted networks. A fact of the node, told by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Ipsec {
    /// What it lacks, and the remedy; none if it can encrypt.
    pub missing: Option<String>,
    /// Another number whenever the node may have lost count of what it has sent with a key:
    /// after a boot, and when somebody removed its security associations. Keys depend on it,
    /// so that none is ever used again from the beginning.
    #[serde(default)]
    pub generation: u64,
    /// Low byte of the epoch of a key that has been used for as many packets as it may.
    #[serde(default)]
    pub worn: Option<u8>,
}

impl Default for Ipsec {
    /// Of an agent that tells nothing of it.
    fn default() -> Self {
        let missing = Some("its agent knows no encrypted networks: upgrade it".to_owned());
        Self { missing, generation: 0, worn: None }
    }
}

/// The cluster's keys: a secret of all members. From each come the keys of every pair of
/// nodes and direction. There is a keyring while there is an encrypted network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Keyring {
    /// By epoch, the newest last. Nodes receive by all of them; each sends to another by the
    /// newest that the other is known to receive by.
    pub keys: Vec<ClusterKey>,
}

impl Keyring {
    /// The newest key.
    #[must_use]
    pub fn newest(&self) -> Option<&ClusterKey> {
        self.keys.last()
    }

    /// The key by which a node is sent to that receives by those up to `epoch`.
    #[must_use]
    pub fn up_to(&self, epoch: u64) -> Option<&ClusterKey> {
        self.keys.iter().rev().find(|key| key.epoch <= epoch)
    }
}

/// The cluster's key of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClusterKey {
    /// Epoch; grows by one from key to key, from 1.
    pub epoch: u64,
    /// What keys are derived from.
    pub secret: Secret,
    /// Packets after which each key that is derived from it is to be renewed.
    pub packets: u64,
    /// When it was made, in seconds since 1970.
    pub made: u64,
}

/// 256 random bits. Never shown: only its serialised form, which goes to the store, to
/// members, and into their files, has them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self(rand::random())
    }

    /// The bits.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Default for Secret {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        hex::encode(secret.0)
    }
}

impl TryFrom<String> for Secret {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 32];
        // The text is not in the error: it is nearly a secret.
        hex::decode_to_slice(text, &mut bytes).map_err(|_| "not 64 hexadecimal digits")?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(epoch: u64) -> ClusterKey {
        ClusterKey { epoch, secret: Secret::new(), packets: 1, made: 0 }
    }

    #[test]
    fn a_secret_is_not_shown_but_carried() {
        let key = key(1);
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<ClusterKey>(&json).unwrap(), key);
        assert!(!format!("{key:?}").contains(&hex::encode(key.secret.bytes())));
        assert_ne!(Secret::new(), Secret::new());
        assert!(Secret::try_from("7f".to_owned()).is_err());
    }

    #[test]
    fn a_node_is_sent_to_by_what_it_receives_by() {
        let ring = Keyring { keys: vec![key(3), key(4)] };
        assert_eq!(ring.newest().unwrap().epoch, 4);
        assert_eq!(ring.up_to(9).unwrap().epoch, 4);
        assert_eq!(ring.up_to(3).unwrap().epoch, 3);
        assert_eq!(ring.up_to(2), None);
    }
}
