//! What a request that failed is answered with: a status for programs and an
//! [`ErrorBody`] for people.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::types::ErrorBody;
use crate::cluster;

/// A reply that is not a success.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What was wrong, with what, and what to do.
    pub message: String,
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<cluster::Error> for ApiError {
    fn from(error: cluster::Error) -> Self {
        let status = match error {
            cluster::Error::Invalid(_) => StatusCode::BAD_REQUEST,
            cluster::Error::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            cluster::Error::Forbidden(_) => StatusCode::FORBIDDEN,
            cluster::Error::NotFound(_) => StatusCode::NOT_FOUND,
            cluster::Error::Conflict(_) => StatusCode::CONFLICT,
            cluster::Error::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            cluster::Error::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::error!("request failed: {}", self.message);
        }
        (self.status, Json(ErrorBody { message: self.message })).into_response()
    }
}
