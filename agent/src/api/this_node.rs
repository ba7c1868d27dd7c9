//! `/v1/counters` and `/v1/verify`: what the kernel of this very node counts and has.
//! Only its own administrators are told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tokio::sync::watch;

use super::error::ApiError;
use super::server::App;
use super::types::{CounterReading, ErrorBody};
use crate::kernel;
use crate::model::{NodeId, Path};
use crate::reconcile::{self, Verified};
use crate::workload::Workloads;

/// What the handlers of this node's own routes work with.
#[derive(Clone)]
pub struct ThisNode {
    /// The workloads of this node.
    pub workloads: Workloads,
    /// The loop over this node's kernel.
    pub reconcile: reconcile::Handle,
    /// Where the datapath is pinned.
    pub bpf_dir: PathBuf,
    /// What is known of the paths to the other nodes.
    pub paths: watch::Receiver<Arc<BTreeMap<NodeId, Path>>>,
}

impl App {
    /// # Errors
    /// Where only the control plane runs.
    pub(super) fn node(&self) -> Result<&ThisNode, ApiError> {
        let missing = "only the control plane runs here, without a kernel to look at";
        self.node.as_ref().ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, missing))
    }
}

/// The counters of this node's datapath
#[utoipa::path(get, path = "/v1/counters", tag = "this node",
    responses((status = 200, body = [CounterReading]), (status = "4XX", body = ErrorBody)))]
pub(super) async fn counters(
    State(app): State<App>,
) -> Result<Json<Vec<CounterReading>>, ApiError> {
    let counters = kernel::counters(&app.node()?.bpf_dir).map_err(internal)?;
    if counters.is_empty() {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "the eBPF datapath is not loaded on this node, so there is nothing to count: it is \
             in no cluster, or its agent runs with `--datapath kernel`",
        ));
    }
    let reading =
        |(counter, count): (netagent_common::Counter, netagent_common::Count)| CounterReading {
            name: counter.name().to_owned(),
            help: counter.help().trim().to_owned(),
            packets: count.packets,
            bytes: count.bytes,
        };
    Ok(Json(counters.into_iter().map(reading).collect()))
}

/// Hold this node's kernel against the plan
#[utoipa::path(get, path = "/v1/verify", tag = "this node",
    responses((status = 200, body = Verified), (status = "5XX", body = ErrorBody)))]
pub(super) async fn verify(State(app): State<App>) -> Result<Json<Verified>, ApiError> {
    Ok(Json(app.node()?.reconcile.verify().await.map_err(internal)?))
}

pub(super) fn internal(error: anyhow::Error) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
}
