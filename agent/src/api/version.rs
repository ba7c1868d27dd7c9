//! Agents of two versions in one cluster: which get along, and how one reads what another says.
//!
//! - Versions of one major whose minors are at most one apart work together (for 0.x too).
//!   Requests between nodes name the sender's; one that does not get along is refused.
//! - A field, or a kind of object, that is not known is ignored. A new field has a default, so
//!   that it may be missing. A new value of an enumeration, and a field with another meaning,
//!   are not sent before all agents of the cluster know them: that is one minor later.
//! - What an agent has written to disk, every later one of the same major reads.
//!
//! What former versions sent and kept is in `tests/recorded`, and is read by a test for ever.

use axum::http::{HeaderMap, StatusCode};
use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer};
use serde_json::Value;
use tracing::debug;

use super::error::ApiError;
use super::types::Change;

/// Header of requests that names the version of who asks.
pub(super) const HEADER: &str = "netagent-version";
/// This agent's.
pub(super) const OURS: &str = env!("CARGO_PKG_VERSION");

/// Lets in who gets along with this agent.
///
/// # Errors
/// If not, with both versions and what to do.
pub(super) fn check(headers: &HeaderMap) -> Result<(), ApiError> {
    // Not one of our agents: the routes say what is wrong with its requests.
    let Some(theirs) = headers.get(HEADER) else { return Ok(()) };
    let theirs = String::from_utf8_lossy(theirs.as_bytes());
    if get_along(OURS, &theirs) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UPGRADE_REQUIRED,
        format!(
            "this manager's netagent is of version {OURS}, the asking node's of {theirs}: versions \
             work together that are one minor apart at most; upgrade the older one, minor by minor"
        ),
    ))
}

/// Whether agents of these versions work together. Pure.
fn get_along(one: &str, other: &str) -> bool {
    let parse = |version: &str| -> Option<(u32, u32)> {
        let mut numbers = version.split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    match (parse(one), parse(other)) {
        (Some(one), Some(other)) => one.0 == other.0 && one.1.abs_diff(other.1) <= 1,
        _ => false,
    }
}

/// Kinds of [`Change`].
const KINDS: [&str; 10] = [
    "node",
    "node_removed",
    "network",
    "network_removed",
    "service",
    "service_removed",
    "endpoint",
    "endpoint_removed",
    "trust",
    "keyring",
];

/// The changes of kinds that are known.
///
/// # Errors
/// If one of these makes no sense.
pub(super) fn known_changes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Change>, D::Error> {
    let mut known = Vec::new();
    for change in Vec::<Value>::deserialize(from)? {
        let kind = change["type"].as_str().ok_or_else(|| D::Error::missing_field("type"))?;
        if KINDS.contains(&kind) {
            known.push(serde_json::from_value(change).map_err(D::Error::custom)?);
        } else {
            debug!(kind, "a change of a kind that this agent does not know");
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::types::{StatusReport, WatchEvent};
    use crate::model::{Snapshot, Workload};

    #[test]
    fn neighbours_get_along() {
        for (one, other, along) in [
            ("0.1.0", "0.1.9", true),
            ("0.1.0", "0.2.0", true),
            ("0.3.0", "0.2.7", true),
            ("0.1.0", "0.3.0", false),
            ("1.0.0", "0.9.0", false),
            ("1.4.2", "1.5.0-rc.1", true),
            ("0.1.0", "", false),
            ("0.1.0", "new", false),
        ] {
            assert_eq!(get_along(one, other), along, "{one} and {other}");
            assert_eq!(get_along(other, one), along, "{other} and {one}");
        }
        assert!(get_along(OURS, OURS));
    }

    #[test]
    fn who_does_not_get_along_is_told_why() {
        let mut headers = HeaderMap::new();
        assert!(check(&headers).is_ok());
        headers.insert(HEADER, "99.0.0".parse().unwrap());
        let error = check(&headers).unwrap_err();
        assert_eq!(error.status, StatusCode::UPGRADE_REQUIRED);
        assert!(error.message.contains("99.0.0") && error.message.contains(OURS));
    }

    /// As a version to come might send it: with more fields, kinds and events.
    #[test]
    fn what_is_not_known_is_ignored() {
        let of = |change: &Change| serde_json::to_value(change).unwrap()["type"].clone();
        let id = || "a".repeat(16);
        let event = json!({"event": "delta", "revision": 8, "later": 1, "changes": [
            {"type": "comet", "object": {"tail": true}},
            {"type": "endpoint_removed", "object": id(), "later": 1},
            {"type": "comet_removed", "object": id()},
        ]});
        let event: WatchEvent = serde_json::from_value(event).unwrap();
        let WatchEvent::Delta { revision: 8, changes } = event else { panic!("{event:?}") };
        assert_eq!(changes.iter().map(of).collect::<Vec<_>>(), ["endpoint_removed"]);
        let event = serde_json::from_value(json!({"event": "weather", "sky": "blue"})).unwrap();
        assert!(matches!(event, WatchEvent::Unknown));
        // What is known must make sense.
        let bad = json!({"event": "delta", "revision": 8, "changes": [
            {"type": "endpoint_removed", "object": 7}]});
        assert!(serde_json::from_value::<WatchEvent>(bad).is_err());
        let report = json!({"applied": 3, "facts": null, "mood": "good"});
        assert_eq!(serde_json::from_value::<StatusReport>(report).unwrap().applied, 3);
    }

    /// Every kind is known that this agent sends, and what it and its forerunners sent is read.
    #[test]
    fn recorded_streams_are_read() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded");
        let mut versions = 0;
        for version in std::fs::read_dir(directory).unwrap() {
            let version = version.unwrap().path();
            let read = |name: &str| std::fs::read_to_string(version.join(name)).unwrap();
            let mut kinds = std::collections::BTreeSet::new();
            let mut revision = 0;
            for line in read("watch.ndjson").lines() {
                match serde_json::from_str(line).unwrap() {
                    WatchEvent::Snapshot { snapshot } => revision = snapshot.revision,
                    WatchEvent::Delta { revision: next, changes } => {
                        assert!(next > revision);
                        let sent: Value = serde_json::from_str(line).unwrap();
                        assert_eq!(sent["changes"].as_array().unwrap().len(), changes.len());
                        revision = next;
                        kinds.extend(changes.iter().map(|change| {
                            serde_json::to_value(change).unwrap()["type"].to_string()
                        }));
                    }
                    WatchEvent::Alive { revision: now } => assert_eq!(now, revision),
                    WatchEvent::Unknown => panic!("{line}"),
                }
            }
            assert_eq!(kinds.len(), KINDS.len(), "{}: {kinds:?}", version.display());
            let kept: Snapshot = serde_json::from_str(&read("snapshot.json")).unwrap();
            assert!(kept.revision > 0 && !kept.nodes.is_empty());
            let workloads: Vec<Workload> = serde_json::from_str(&read("workloads.json")).unwrap();
            assert!(workloads.iter().all(|workload| !workload.attachments.is_empty()));
            versions += 1;
        }
        assert!(versions > 0);
    }
}
