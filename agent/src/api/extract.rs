//! Reads requests strictly: a body that is not exactly what the route takes is
//! refused in words, before anything is done.

use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use futures::StreamExt as _;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// Largest body, in bytes.
pub const LARGEST_BODY: usize = 1 << 20;
/// Of a larger one, so much is read and thrown away: a client that is still sending
/// hears nothing of a reply.
const DISCARDED: usize = 16 << 20;
/// How long a client may take to send one.
const SLOWEST_BODY: Duration = Duration::from_secs(10);

/// A JSON body.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = match tokio::time::timeout(SLOWEST_BODY, read(request.into_body())).await {
            Ok(bytes) => bytes?,
            Err(_) => {
                let text = format!("the body did not arrive within {SLOWEST_BODY:?}");
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, text));
            }
        };
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Self(value)),
            Err(e) => Err(bad(format!("the body is not what this route takes: {e}"))),
        }
    }
}

async fn read(body: HttpBody) -> Result<Vec<u8>, ApiError> {
    let (mut bytes, mut length) = (Vec::new(), 0);
    let mut parts = body.into_data_stream();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|e| bad(format!("the body broke off: {e}")))?;
        length += part.len();
        if length <= LARGEST_BODY {
            bytes.extend_from_slice(&part);
        } else if length > DISCARDED {
            break;
        }
    }
    if length > LARGEST_BODY {
        let text = format!("the body is larger than {LARGEST_BODY} bytes");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    Ok(bytes)
}

/// What stands in the path.
#[derive(Debug, FromRequestParts)]
#[from_request(via(Path), rejection(ApiError))]
pub struct InPath<T>(pub T);

/// What stands behind the `?`.
#[derive(Debug, FromRequestParts)]
#[from_request(via(Query), rejection(ApiError))]
pub struct InQuery<T>(pub T);

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

fn bad(message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, message)
}
