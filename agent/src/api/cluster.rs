//! `/v1/cluster`: membership of this node, and tokens.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::error::ApiError;
use super::extract::{Body, InPath};
use super::server::App;
use super::types::{
    ClusterStatus, ErrorBody, InitRequest, JoinRequest, JoinToken, LeaveRequest, Membership,
    RotateCa, RotatedKey, UpdateCluster,
};
use crate::model::{CaRotation, Role};

/// What this node knows of its cluster
#[utoipa::path(get, operation_id = "cluster_status", path = "/v1/cluster", tag = "cluster",
    responses((status = 200, body = ClusterStatus)))]
pub(super) async fn status(State(app): State<App>) -> Json<ClusterStatus> {
    Json(app.cluster.status())
}

/// Change what holds for the whole cluster
#[utoipa::path(patch, operation_id = "update_cluster", path = "/v1/cluster", tag = "cluster", request_body = UpdateCluster,
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn update(
    State(app): State<App>,
    Body(request): Body<UpdateCluster>,
) -> Result<StatusCode, ApiError> {
    app.cluster.update(&request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replace the cluster's CA
#[utoipa::path(post, operation_id = "rotate_ca", path = "/v1/cluster/ca/rotate", tag = "cluster", request_body = RotateCa,
    responses((status = 200, body = CaRotation), (status = "4XX", body = ErrorBody)))]
pub(super) async fn rotate_ca(
    State(app): State<App>,
    Body(request): Body<RotateCa>,
) -> Result<Json<CaRotation>, ApiError> {
    Ok(Json(app.cluster.rotate_ca(request.force).await?))
}

/// Make a cluster with this node as its manager
#[utoipa::path(post, operation_id = "init_cluster", path = "/v1/cluster/init", tag = "cluster", request_body = InitRequest,
    responses((status = 200, body = Membership), (status = "4XX", body = ErrorBody)))]
pub(super) async fn init(
    State(app): State<App>,
    Body(request): Body<InitRequest>,
) -> Result<Json<Membership>, ApiError> {
    Ok(Json(app.cluster.init(request).await?))
}

/// Enter a cluster
#[utoipa::path(post, operation_id = "enter_cluster", path = "/v1/cluster/join", tag = "cluster", request_body = JoinRequest,
    responses((status = 200, body = Membership), (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn join(
    State(app): State<App>,
    Body(request): Body<JoinRequest>,
) -> Result<Json<Membership>, ApiError> {
    Ok(Json(app.cluster.join(request).await?))
}

/// Leave the cluster
#[utoipa::path(post, operation_id = "leave_cluster", path = "/v1/cluster/leave", tag = "cluster", request_body = LeaveRequest,
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn leave(
    State(app): State<App>,
    Body(request): Body<LeaveRequest>,
) -> Result<StatusCode, ApiError> {
    app.cluster.leave(request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A copy of all that this manager keeps
///
/// An SQLite file with the cluster's state, its CA's key and this node's own:
/// `netagent cluster restore` takes it.
#[utoipa::path(get, operation_id = "backup_cluster", path = "/v1/cluster/backup", tag = "cluster",
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = "4XX", body = ErrorBody)))]
pub(super) async fn backup(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    Ok(([(CONTENT_TYPE, "application/octet-stream")], app.cluster.backup().await?))
}

/// Renew the keys of encrypted networks
#[utoipa::path(post, operation_id = "rotate_key", path = "/v1/cluster/rotate-key", tag = "cluster",
    responses((status = 200, body = RotatedKey), (status = "4XX", body = ErrorBody)))]
pub(super) async fn rotate_key(State(app): State<App>) -> Result<Json<RotatedKey>, ApiError> {
    Ok(Json(RotatedKey { epoch: app.cluster.rotate_keys().await? }))
}

/// The token that admits nodes
#[utoipa::path(get, operation_id = "join_token", path = "/v1/cluster/join-token/{role}", tag = "cluster",
    params(("role" = Role, Path)),
    responses((status = 200, body = JoinToken), (status = "4XX", body = ErrorBody)))]
pub(super) async fn token(
    State(app): State<App>,
    InPath(role): InPath<Role>,
) -> Result<Json<JoinToken>, ApiError> {
    Ok(Json(app.cluster.join_token(role, false).await?))
}

/// Replace the token that admits nodes
#[utoipa::path(post, operation_id = "rotate_join_token", path = "/v1/cluster/join-token/{role}", tag = "cluster",
    params(("role" = Role, Path)),
    responses((status = 200, body = JoinToken), (status = "4XX", body = ErrorBody)))]
pub(super) async fn rotate_token(
    State(app): State<App>,
    InPath(role): InPath<Role>,
) -> Result<Json<JoinToken>, ApiError> {
    Ok(Json(app.cluster.join_token(role, true).await?))
}
