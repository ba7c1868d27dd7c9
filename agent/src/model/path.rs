use serde::{Deserialize, Serialize};

/// Whether packets of the tunnel get to a node and back.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::Display,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Reach {
    /// No probe was answered yet, and it is too early to tell.
    Unknown,
    /// The last probes were answered.
    Reachable,
    /// The last probes were not answered.
    Unreachable,
    /// It is not probed: one of the two nodes runs the kernel datapath, which does not answer.
    Unprobed,
}

/// What a node knows of the path to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Path {
    /// Whether packets get there and back.
    pub reach: Reach,
    /// Whether probes of the other node arrive here.
    pub heard: bool,
    /// Time from the last probe that was answered to its answer, in microseconds.
    pub round_trip_us: Option<u32>,
    /// Largest IP packet of the underlay that gets there and back, in bytes; none before it
    /// has been found out.
    pub mtu: Option<u16>,
    /// What is wrong, and what to do.
    pub remark: Option<String>,
}

impl Path {
    /// One that is not probed.
    pub const UNPROBED: Self =
        Self { reach: Reach::Unprobed, heard: false, round_trip_us: None, mtu: None, remark: None };
}
