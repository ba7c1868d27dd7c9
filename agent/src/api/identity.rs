//! Who is asking, and what they may ask. Every route belongs to one audience and
//! has its guard; whoever is not a member gets no further than [`gate`].

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::error::ApiError;
use super::server::App;
use super::version;
use crate::model::{NodeId, Role};

/// The path of the only route that strangers may call.
pub const JOIN: &str = "/v1/join";

/// Who is at the other end of a connection, as its kind and its certificate say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Somebody on this host who may open the unix socket.
    Local,
    /// A node with a certificate of this cluster.
    Node {
        /// The node.
        id: NodeId,
        /// Its role.
        role: Role,
    },
    /// Somebody without a certificate.
    Anonymous,
}

impl Identity {
    /// Whether this is somebody who acts for `node`: that node, or an administrator.
    ///
    /// # Errors
    /// If not, saying that `what` is another node's.
    pub fn must_act_for(&self, node: &NodeId, what: &str) -> Result<(), ApiError> {
        match self {
            Self::Local | Self::Node { role: Role::Manager, .. } => Ok(()),
            Self::Node { id, .. } if id == node => Ok(()),
            _ => {
                Err(forbidden(format!("{what} belongs to node {node}: only that node may do this")))
            }
        }
    }
}

/// Keeps out strangers, and nodes that are no members any more.
pub(super) async fn gate(
    State(app): State<App>,
    Extension(identity): Extension<Identity>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if identity != Identity::Local && app.cluster.identity().is_none() {
        // A connection that is older than the end of the membership.
        let text = "this node has left its cluster";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text));
    }
    if identity != Identity::Local {
        version::check(request.headers())?;
    }
    match identity {
        Identity::Local => {}
        Identity::Node { id, .. } => {
            if !app.cluster.snapshot().nodes.contains_key(&id) {
                return Err(forbidden(format!("node {id} is not a member of this cluster")));
            }
        }
        Identity::Anonymous => {
            if request.method() != Method::POST || request.uri().path() != JOIN {
                return Err(ApiError::new(
                    StatusCode::UNAUTHORIZED,
                    "this takes a certificate of the cluster",
                ));
            }
        }
    }
    Ok(next.run(request).await)
}

/// Guard of what this host's administrators may do.
pub(super) async fn local_only(
    Extension(identity): Extension<Identity>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match identity {
        Identity::Local => Ok(next.run(request).await),
        _ => Err(forbidden("this works on the node's own unix socket only")),
    }
}

/// Guard of what managers may do to each other.
pub(super) async fn managers_only(
    Extension(identity): Extension<Identity>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match identity {
        Identity::Local | Identity::Node { role: Role::Manager, .. } => Ok(next.run(request).await),
        _ => Err(forbidden("workers may not do this: they write their own endpoints and status")),
    }
}

fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, message)
}
