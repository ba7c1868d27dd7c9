//! `/v1/workloads`, and connecting them to networks: for this node's own
//! administrators alone, because namespaces are this host's.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::error::ApiError;
use super::extract::{Body, InPath};
use super::server::App;
use super::this_node::internal;
use super::types::{
    Connect, CreateWorkload, ErrorBody, UpdateWorkload, WorkloadFlows, WorkloadReady,
};
use crate::kernel::Flows;
use crate::model::{Attachment, Workload};

/// All workloads of this node
#[utoipa::path(get, path = "/v1/workloads", tag = "this node",
    responses((status = 200, body = [Workload])))]
pub(super) async fn list(State(app): State<App>) -> Result<Json<Vec<Workload>>, ApiError> {
    Ok(Json(app.node()?.workloads.list().to_vec()))
}

/// Attach a namespace of this node to networks
#[utoipa::path(post, path = "/v1/workloads", tag = "this node", request_body = CreateWorkload,
    responses((status = 201, body = WorkloadReady), (status = "4XX", body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<App>,
    Body(request): Body<CreateWorkload>,
) -> Result<(StatusCode, Json<WorkloadReady>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.node()?.workloads.create(request).await?)))
}

/// One workload of this node
#[utoipa::path(get, path = "/v1/workloads/{workload}", tag = "this node",
    params(("workload" = String, Path, description = "Name or identifier")),
    responses((status = 200, body = Workload), (status = 404, body = ErrorBody)))]
pub(super) async fn inspect(
    State(app): State<App>,
    InPath(workload): InPath<String>,
) -> Result<Json<Workload>, ApiError> {
    Ok(Json(app.node()?.workloads.find(&workload)?))
}

/// Change what a workload is to the service that it serves
///
/// Answered when every ready node has applied it, or after two seconds.
#[utoipa::path(patch, path = "/v1/workloads/{workload}", tag = "this node",
    params(("workload" = String, Path, description = "Name or identifier")),
    request_body = UpdateWorkload,
    responses((status = 200, body = Workload), (status = "4XX", body = ErrorBody)))]
pub(super) async fn update(
    State(app): State<App>,
    InPath(workload): InPath<String>,
    Body(request): Body<UpdateWorkload>,
) -> Result<Json<Workload>, ApiError> {
    Ok(Json(app.node()?.workloads.update(&workload, &request).await?))
}

/// Count the connections to a workload
///
/// Those that the datapath knows: of workloads that serve a service with a virtual address.
#[utoipa::path(get, path = "/v1/workloads/{workload}/flows", tag = "this node",
    params(("workload" = String, Path, description = "Name or identifier")),
    responses((status = 200, body = WorkloadFlows), (status = 404, body = ErrorBody)))]
pub(super) async fn flows(
    State(app): State<App>,
    InPath(workload): InPath<String>,
) -> Result<Json<WorkloadFlows>, ApiError> {
    let node = app.node()?;
    let (workload, known) = (node.workloads.find(&workload)?, Flows::new(&node.bpf_dir));
    let mut flows = 0;
    for attachment in &workload.attachments {
        let running = known.running(attachment.endpoint.address).await.map_err(internal)?;
        flows += running as u64;
    }
    Ok(Json(WorkloadFlows { flows }))
}

/// Release a workload; what runs in its namespace goes on without a network
#[utoipa::path(delete, path = "/v1/workloads/{workload}", tag = "this node",
    params(("workload" = String, Path, description = "Name or identifier")),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(super) async fn remove(
    State(app): State<App>,
    InPath(workload): InPath<String>,
) -> Result<StatusCode, ApiError> {
    app.node()?.workloads.remove(&workload).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Attach a workload of this node to one more network
#[utoipa::path(post, path = "/v1/networks/{network}/connect", tag = "this node",
    params(("network" = String, Path, description = "Name or identifier")),
    request_body = Connect,
    responses((status = 200, body = Attachment), (status = "4XX", body = ErrorBody)))]
pub(super) async fn connect(
    State(app): State<App>,
    InPath(network): InPath<String>,
    Body(request): Body<Connect>,
) -> Result<Json<Attachment>, ApiError> {
    Ok(Json(app.node()?.workloads.connect(network, request).await?))
}

/// Detach a workload of this node from a network
#[utoipa::path(post, path = "/v1/networks/{network}/disconnect", tag = "this node",
    params(("network" = String, Path, description = "Name or identifier")),
    request_body = Connect,
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn disconnect(
    State(app): State<App>,
    InPath(network): InPath<String>,
    Body(request): Body<Connect>,
) -> Result<StatusCode, ApiError> {
    app.node()?.workloads.disconnect(&network, &request.workload).await?;
    Ok(StatusCode::NO_CONTENT)
}
