//! Which CAs nodes trust, and which of them have signed the nodes' own certificates. The
//! CA is replaced in levels, each a value of [`Trust`]: both are trusted, and whoever has a
//! certificate of the former renews it; then one is.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Node, NodeId, Role, Snapshot};

/// What a node shows to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Certificate {
    /// When it ends, RFC 3339, UTC; it is renewed long before.
    pub expires: String,
    /// SHA-256 of the certificate of the CA that signed it, hexadecimal; empty if its node
    /// trusts that CA no more.
    pub ca: String,
}

/// The CAs that nodes trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Trust {
    /// Certificate of the one that signs, PEM.
    pub ca: String,
    /// SHA-256 of it, hexadecimal.
    pub digest: String,
    /// Certificate of the one before, PEM, while it is being replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<String>,
    /// Workers that have no certificate of the new one yet are not waited for.
    #[serde(default)]
    pub forced: bool,
}

impl Trust {
    /// All that are trusted, PEM; the one that signs comes first.
    #[must_use]
    pub fn pem(&self) -> String {
        format!("{}{}", self.ca, self.former.as_deref().unwrap_or_default())
    }

    fn has_renewed(&self, node: &Node) -> bool {
        node.certificate.as_ref().is_some_and(|certificate| certificate.ca == self.digest)
    }
}

/// How far the replacement of the CA has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CaRotation {
    /// Number of nodes that have a certificate of the new CA.
    pub renewed: usize,
    /// Host names of the others.
    pub waiting: Vec<String>,
    /// The former CA is trusted no more: the others have to join again.
    pub over: bool,
}

impl fmt::Display for CaRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { renewed, waiting, over } = self;
        let names = waiting.join(", ");
        if *over {
            return write!(
                f,
                "ended before these nodes had renewed; they must join again: {names}"
            );
        }
        write!(f, "{renewed} of {} nodes renewed", renewed + waiting.len())?;
        if waiting.is_empty() { Ok(()) } else { write!(f, ", waiting for {names}") }
    }
}

impl Snapshot {
    /// How far the replacement of the CA has come; None if there is nothing more to do.
    #[must_use]
    pub fn ca_rotation(&self) -> Option<CaRotation> {
        let trust = self.trust.as_ref()?;
        let (renewed, others): (Vec<_>, Vec<_>) =
            self.nodes.values().partition(|node| trust.has_renewed(node));
        let mut waiting: Vec<_> = others.into_iter().map(|node| node.hostname.clone()).collect();
        waiting.sort();
        let (renewed, over) = (renewed.len(), trust.former.is_none());
        (!over || !waiting.is_empty()).then_some(CaRotation { renewed, waiting, over })
    }

    /// Whether this node may get a certificate of the new CA. Managers are last: a worker that
    /// does not know the new one yet could not speak to them any more.
    #[must_use]
    pub fn may_renew(&self, me: &NodeId) -> bool {
        let Some(trust) = self.trust.as_ref().filter(|t| t.former.is_some() && !t.forced) else {
            return true;
        };
        let workers = || self.nodes.values().filter(|node| node.role == Role::Worker);
        let worker = self.nodes.get(me).is_some_and(|node| node.role == Role::Worker);
        worker || workers().all(|node| trust.has_renewed(node))
    }

    /// Whether nobody has to trust the former CA any more.
    #[must_use]
    pub fn is_former_ca_done(&self) -> bool {
        let Some(trust) = self.trust.as_ref().filter(|t| t.former.is_some()) else { return false };
        let mut awaited =
            self.nodes.values().filter(|node| !trust.forced || node.role == Role::Manager);
        awaited.all(|node| trust.has_renewed(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture;

    fn cluster() -> (Snapshot, Vec<NodeId>) {
        let mut snapshot = Snapshot::default();
        let mut ids = vec![];
        for n in 1..=3 {
            let mut node = fixture::node(n);
            node.role = if n == 1 { Role::Manager } else { Role::Worker };
            node.certificate = Some(certificate("old"));
            ids.push(node.id.clone());
            snapshot.nodes.insert(node.id.clone(), node.into());
        }
        snapshot.trust = Some(Trust {
            ca: "NEW\n".into(),
            digest: "new".into(),
            former: Some("OLD\n".into()),
            forced: false,
        });
        (snapshot, ids)
    }

    fn certificate(ca: &str) -> Certificate {
        Certificate { expires: "2027-01-01T00:00:00Z".into(), ca: ca.into() }
    }

    fn renew(snapshot: &mut Snapshot, id: &NodeId) {
        snapshot.node_mut(id).certificate = Some(certificate("new"));
    }

    fn trust(snapshot: &mut Snapshot) -> &mut Trust {
        snapshot.trust.as_mut().unwrap()
    }

    fn said(snapshot: &Snapshot) -> String {
        snapshot.ca_rotation().map_or_else(String::new, |rotation| rotation.to_string())
    }

    #[test]
    fn workers_renew_first_the_manager_after_them_and_then_it_is_over() {
        let (mut s, ids) = cluster();
        assert_eq!(trust(&mut s).pem(), "NEW\nOLD\n");
        let may = |s: &Snapshot| ids.iter().map(|id| s.may_renew(id)).collect::<Vec<_>>();
        assert_eq!(said(&s), "0 of 3 nodes renewed, waiting for n1, n2, n3");
        assert_eq!(may(&s), [false, true, true]);
        renew(&mut s, &ids[1]);
        // One that is away, or has an agent that says nothing of certificates, is waited for.
        let waited = s.node_mut(&ids[2]);
        (waited.status, waited.certificate) = (crate::model::NodeStatus::Down, None);
        assert_eq!(said(&s), "1 of 3 nodes renewed, waiting for n1, n3");
        assert_eq!(may(&s), [false, true, true]);
        renew(&mut s, &ids[2]);
        assert_eq!(may(&s), [true; 3]);
        assert!(!s.is_former_ca_done());
        renew(&mut s, &ids[0]);
        assert!(s.is_former_ca_done());
        assert_eq!(said(&s), "3 of 3 nodes renewed");
        trust(&mut s).former = None;
        assert!(!s.is_former_ca_done() && s.ca_rotation().is_none());
    }

    #[test]
    fn whoever_is_not_waited_for_is_named_as_long_as_it_is_a_member() {
        let (mut s, ids) = cluster();
        renew(&mut s, &ids[1]);
        trust(&mut s).forced = true;
        assert!(s.may_renew(&ids[0]) && !s.is_former_ca_done());
        renew(&mut s, &ids[0]);
        assert!(s.is_former_ca_done());
        trust(&mut s).former = None;
        trust(&mut s).forced = false;
        let named = "ended before these nodes had renewed; they must join again: n3";
        assert_eq!(said(&s), named);
        s.nodes.remove(&ids[2]);
        assert_eq!(s.ca_rotation(), None);
    }

    #[test]
    fn without_a_rotation_all_is_as_ever() {
        let (mut s, ids) = cluster();
        s.trust = None;
        assert!(s.ca_rotation().is_none() && !s.is_former_ca_done() && s.may_renew(&ids[0]));
    }
}
