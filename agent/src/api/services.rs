//! `/v1/services`. Who serves them is told with the endpoints.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::extract::{Body, InPath, InQuery};
use super::server::App;
use super::types::{CreateService, ErrorBody, ServiceDetail, UpdateService};
use crate::cluster::service_detail;
use crate::model::Service;

/// All services
#[utoipa::path(get, operation_id = "list_services", path = "/v1/services", tag = "services",
    responses((status = 200, body = [Service])))]
pub(super) async fn list(State(app): State<App>) -> Json<Vec<Service>> {
    Json(app.cluster.snapshot().services.values().cloned().collect())
}

/// Create a service
///
/// Answered when every ready node has applied it, or after two seconds; so for changes
/// and removals.
#[utoipa::path(post, operation_id = "create_service", path = "/v1/services", tag = "services", request_body = CreateService,
    responses((status = 201, body = Service), (status = "4XX", body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<App>,
    Body(request): Body<CreateService>,
) -> Result<(StatusCode, Json<Service>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.cluster.create_service(&request).await?)))
}

/// One service with the endpoints that serve it
#[utoipa::path(get, operation_id = "inspect_service", path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "Name or identifier")),
    responses((status = 200, body = ServiceDetail), (status = 404, body = ErrorBody)))]
pub(super) async fn inspect(
    State(app): State<App>,
    InPath(service): InPath<String>,
) -> Result<Json<ServiceDetail>, ApiError> {
    Ok(Json(service_detail(&app.cluster.snapshot(), &service)?))
}

/// Change a service
#[utoipa::path(patch, operation_id = "update_service", path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "Name or identifier")), request_body = UpdateService,
    responses((status = 200, body = Service), (status = "4XX", body = ErrorBody)))]
pub(super) async fn update(
    State(app): State<App>,
    InPath(service): InPath<String>,
    Body(request): Body<UpdateService>,
) -> Result<Json<Service>, ApiError> {
    Ok(Json(app.cluster.update_service(&service, &request).await?))
}

/// How a service is removed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Removal {
    /// Even if endpoints serve it: they go on and serve nothing.
    #[serde(default)]
    force: bool,
}

/// Remove a service
#[utoipa::path(delete, operation_id = "remove_service", path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "Name or identifier"), Removal),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(app): State<App>,
    InPath(service): InPath<String>,
    InQuery(removal): InQuery<Removal>,
) -> Result<StatusCode, ApiError> {
    app.cluster.remove_service(&service, removal.force).await?;
    Ok(StatusCode::NO_CONTENT)
}
