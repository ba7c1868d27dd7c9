//! `/v1/endpoints`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};

use super::error::ApiError;
use super::extract::{Body, InPath};
use super::identity::Identity;
use super::server::App;
use super::types::{CreateEndpoint, ErrorBody, UpdateEndpoint};
use crate::cluster;
use crate::model::Endpoint;

/// Endpoints of all networks and nodes
#[utoipa::path(get, operation_id = "list_endpoints", path = "/v1/endpoints", tag = "endpoints",
    responses((status = 200, body = [Endpoint])))]
pub(super) async fn list(State(app): State<App>) -> Json<Vec<Endpoint>> {
    Json(app.cluster.snapshot().endpoints.values().cloned().collect())
}

/// One endpoint
#[utoipa::path(get, operation_id = "inspect_endpoint", path = "/v1/endpoints/{endpoint}", tag = "endpoints",
    params(("endpoint" = String, Path, description = "Identifier")),
    responses((status = 200, body = Endpoint), (status = 404, body = ErrorBody)))]
pub(super) async fn inspect(
    State(app): State<App>,
    InPath(endpoint): InPath<String>,
) -> Result<Json<Endpoint>, ApiError> {
    Ok(Json(cluster::find_endpoint(&app.cluster.snapshot(), &endpoint)?.clone()))
}

/// Allocate an endpoint
///
/// Answered when every ready node knows of it, or after two seconds.
#[utoipa::path(post, operation_id = "create_endpoint", path = "/v1/endpoints", tag = "between nodes", request_body = CreateEndpoint,
    responses((status = 201, body = Endpoint), (status = "4XX", body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    Body(request): Body<CreateEndpoint>,
) -> Result<(StatusCode, Json<Endpoint>), ApiError> {
    identity.must_act_for(&request.node, "this endpoint")?;
    Ok((StatusCode::CREATED, Json(app.cluster.create_endpoint(&request).await?)))
}

/// Change what an endpoint is to the service that it serves
///
/// Answered when every ready node knows of it, or after two seconds.
#[utoipa::path(patch, operation_id = "update_endpoint", path = "/v1/endpoints/{endpoint}", tag = "endpoints",
    params(("endpoint" = String, Path, description = "Identifier")), request_body = UpdateEndpoint,
    responses((status = 200, body = Endpoint), (status = "4XX", body = ErrorBody)))]
pub(super) async fn update(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    InPath(endpoint): InPath<String>,
    Body(update): Body<UpdateEndpoint>,
) -> Result<Json<Endpoint>, ApiError> {
    let snapshot = app.cluster.snapshot();
    let endpoint = cluster::find_endpoint(&snapshot, &endpoint)?;
    identity.must_act_for(&endpoint.node, "this endpoint")?;
    Ok(Json(app.cluster.update_endpoint(&endpoint.id, update).await?))
}

/// Remove an endpoint
#[utoipa::path(delete, operation_id = "remove_endpoint", path = "/v1/endpoints/{endpoint}", tag = "endpoints",
    params(("endpoint" = String, Path, description = "Identifier")),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    InPath(endpoint): InPath<String>,
) -> Result<StatusCode, ApiError> {
    let snapshot = app.cluster.snapshot();
    let endpoint = cluster::find_endpoint(&snapshot, &endpoint)?;
    identity.must_act_for(&endpoint.node, "this endpoint")?;
    app.cluster.remove_endpoint(&endpoint.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
