//! The API's routes, one set for the unix socket and for TLS, each under the
//! guard of its audience, and the OpenAPI document that is made from them.

use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use axum::{Extension, Router};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::lines::Lines;
use super::this_node::{self, ThisNode};
use super::{cluster, endpoints, identity, networks, nodes, services, watch, workloads};
use crate::cluster::Cluster;

/// What the handlers work with.
#[derive(Clone)]
pub struct App {
    /// The control plane.
    pub cluster: Cluster,
    /// What runs on this node beside it; None where the control plane runs alone.
    pub node: Option<ThisNode>,
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "netagent",
    description = "The network of a container cluster for plain Linux hosts. Served on every \
                   node's unix socket, and by managers to the other nodes over mutual TLS on \
                   TCP 2377. Reads are answered from the node's own snapshot."
))]
struct Document;

/// All routes.
pub fn router(app: App) -> Router {
    let (routes, document) = routes().split_for_parts();
    routes
        .route(
            "/v1/openapi.json",
            get(|| async { axum::Json(document) }).route_layer(from_fn(identity::managers_only)),
        )
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(Extension(Lines::default()))
        .layer(from_fn_with_state(app.clone(), identity::gate))
        .with_state(app)
}

/// The description of all routes.
#[must_use]
pub fn document() -> OpenApi {
    routes().split_for_parts().1
}

fn routes() -> OpenApiRouter<App> {
    let anyone = OpenApiRouter::new().routes(routes!(nodes::admit));
    // Every member; the handlers see to it that a worker writes only what is its own.
    let members = OpenApiRouter::new()
        .routes(routes!(watch::watch))
        .routes(routes!(endpoints::create))
        .routes(routes!(endpoints::update, endpoints::remove))
        .routes(routes!(nodes::report))
        .routes(routes!(nodes::renew))
        .routes(routes!(nodes::leaves));
    let managers = OpenApiRouter::new()
        .routes(routes!(cluster::status, cluster::update))
        .routes(routes!(cluster::rotate_ca))
        .routes(routes!(cluster::rotate_key))
        .routes(routes!(cluster::token, cluster::rotate_token))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::inspect, nodes::remove))
        .routes(routes!(networks::list, networks::create))
        .routes(routes!(networks::inspect, networks::remove))
        .routes(routes!(networks::prune))
        .routes(routes!(services::list, services::create))
        .routes(routes!(services::inspect, services::update, services::remove))
        .routes(routes!(endpoints::list))
        .routes(routes!(endpoints::inspect))
        .route_layer(from_fn(identity::managers_only));
    let local = OpenApiRouter::new()
        .routes(routes!(cluster::init))
        .routes(routes!(cluster::join))
        .routes(routes!(cluster::leave))
        .routes(routes!(cluster::backup))
        .routes(routes!(workloads::list, workloads::create))
        .routes(routes!(workloads::inspect, workloads::update, workloads::remove))
        .routes(routes!(workloads::flows))
        .routes(routes!(workloads::connect))
        .routes(routes!(workloads::disconnect))
        .routes(routes!(this_node::counters))
        .routes(routes!(this_node::verify))
        .route_layer(from_fn(identity::local_only));
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(anyone)
        .merge(members)
        .merge(managers)
        .merge(local)
}

async fn unknown(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("no route {method} {}", uri.path()))
}

async fn not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}
