//! `/v1/networks`. Connecting workloads to them is `workloads`' business.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::error::ApiError;
use super::extract::{Body, InPath};
use super::server::App;
use super::types::{CreateNetwork, ErrorBody, NetworkDetail, Pruned};
use crate::cluster::network_detail;
use crate::model::Network;

/// All networks
#[utoipa::path(get, operation_id = "list_networks", path = "/v1/networks", tag = "networks",
    responses((status = 200, body = [Network])))]
pub(super) async fn list(State(app): State<App>) -> Json<Vec<Network>> {
    Json(app.cluster.snapshot().networks.values().cloned().collect())
}

/// Create a network
#[utoipa::path(post, operation_id = "create_network", path = "/v1/networks", tag = "networks", request_body = CreateNetwork,
    responses((status = 201, body = Network), (status = "4XX", body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<App>,
    Body(request): Body<CreateNetwork>,
) -> Result<(StatusCode, Json<Network>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.cluster.create_network(&request).await?)))
}

/// One network with its endpoints
#[utoipa::path(get, operation_id = "inspect_network", path = "/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 200, body = NetworkDetail), (status = 404, body = ErrorBody)))]
pub(super) async fn inspect(
    State(app): State<App>,
    InPath(network): InPath<String>,
) -> Result<Json<NetworkDetail>, ApiError> {
    Ok(Json(network_detail(&app.cluster.snapshot(), &network)?))
}

/// Remove a network that has no endpoints and no services
#[utoipa::path(delete, operation_id = "remove_network", path = "/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path, description = "Name or identifier")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(app): State<App>,
    InPath(network): InPath<String>,
) -> Result<StatusCode, ApiError> {
    app.cluster.remove_network(&network).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove all networks that have no endpoints and no services
#[utoipa::path(post, operation_id = "prune_networks", path = "/v1/networks/prune", tag = "networks",
    responses((status = 200, body = Pruned), (status = "4XX", body = ErrorBody)))]
pub(super) async fn prune(State(app): State<App>) -> Result<Json<Pruned>, ApiError> {
    Ok(Json(Pruned { networks: app.cluster.prune().await? }))
}
