//! `/v1/nodes` and `/v1/join`: the members, and how they come and go.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::extract::{Body, InPath, InQuery};
use super::identity::Identity;
use super::server::App;
use super::types::{
    CertificateReply, CertificateRequest, ErrorBody, NodeDetail, RenewalReply, RenewalRequest,
    StatusReport,
};
use crate::cluster;
use crate::model::{Node, NodeId};

/// Members of the cluster
#[utoipa::path(get, operation_id = "list_nodes", path = "/v1/nodes", tag = "nodes", responses((status = 200, body = [NodeDetail])))]
pub(super) async fn list(State(app): State<App>) -> Json<Vec<NodeDetail>> {
    Json(app.cluster.snapshot().nodes.values().map(|node| detail(&app, node)).collect())
}

/// One member
#[utoipa::path(get, operation_id = "inspect_node", path = "/v1/nodes/{node}", tag = "nodes",
    params(("node" = String, Path, description = "Host name or identifier")),
    responses((status = 200, body = NodeDetail), (status = 404, body = ErrorBody)))]
pub(super) async fn inspect(
    State(app): State<App>,
    InPath(node): InPath<String>,
) -> Result<Json<NodeDetail>, ApiError> {
    Ok(Json(detail(&app, cluster::find_node(&app.cluster.snapshot(), &node)?)))
}

/// The node, with what this one knows of the path to it.
fn detail(app: &App, node: &Node) -> NodeDetail {
    let path = app.node.as_ref().and_then(|here| here.paths.borrow().get(&node.id).cloned());
    NodeDetail { node: node.clone(), path }
}

/// How a node is removed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Removal {
    /// Even if it is ready.
    #[serde(default)]
    force: bool,
}

/// Expel a node and remove its endpoints
#[utoipa::path(delete, operation_id = "remove_node", path = "/v1/nodes/{node}", tag = "nodes",
    params(("node" = String, Path, description = "Host name or identifier"), Removal),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(app): State<App>,
    InPath(node): InPath<String>,
    InQuery(removal): InQuery<Removal>,
) -> Result<StatusCode, ApiError> {
    app.cluster.remove_node(&node, removal.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Renew the calling node's lease
#[utoipa::path(post, operation_id = "report_status", path = "/v1/nodes/{node}/status", tag = "between nodes",
    params(("node" = String, Path, description = "Identifier of the calling node")),
    request_body = StatusReport,
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn report(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    InPath(node): InPath<NodeId>,
    Body(report): Body<StatusReport>,
) -> Result<StatusCode, ApiError> {
    identity.must_act_for(&node, "this status")?;
    app.cluster.node_report(&node, &report).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Renew the calling node's certificate
#[utoipa::path(post, operation_id = "renew_certificate", path = "/v1/nodes/{node}/certificate", tag = "between nodes",
    params(("node" = String, Path, description = "Identifier of the calling node")),
    request_body = RenewalRequest,
    responses((status = 200, body = RenewalReply), (status = "4XX", body = ErrorBody)))]
pub(super) async fn renew(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    InPath(node): InPath<NodeId>,
    Body(request): Body<RenewalRequest>,
) -> Result<Json<RenewalReply>, ApiError> {
    identity.must_act_for(&node, "this certificate")?;
    Ok(Json(app.cluster.renew_certificate(&node, &request).await?))
}

/// The calling node leaves the cluster
#[utoipa::path(post, operation_id = "notify_leave", path = "/v1/cluster/leave-notification", tag = "between nodes",
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn leaves(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
) -> Result<StatusCode, ApiError> {
    let Identity::Node { id, .. } = identity else {
        let text = "a node tells this of itself: `POST /v1/cluster/leave` makes it leave";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, text));
    };
    app.cluster.node_leaves(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Become a member: the only call that takes no certificate
#[utoipa::path(post, operation_id = "join_cluster", path = "/v1/join", tag = "between nodes", request_body = CertificateRequest,
    responses((status = 200, body = CertificateReply), (status = "4XX", body = ErrorBody)))]
pub(super) async fn admit(
    State(app): State<App>,
    Body(request): Body<CertificateRequest>,
) -> Result<Json<CertificateReply>, ApiError> {
    Ok(Json(app.cluster.admit(&request).await?))
}
