use crate::api::client::ClientError;
use crate::store::StoreError;

/// Why the cluster did not do what was asked. The kind is what a program acts on
/// (it becomes the HTTP status); the text is for people.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The caller has not shown who it is.
    #[error("{0}")]
    Unauthorized(String),
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// What it names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// It could work later.
    #[error("{0}")]
    Unavailable(String),
    /// The store or the disk failed.
    #[error("{0}")]
    Internal(String),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::Unavailable(error.to_string()),
            _ => Self::Internal(error.to_string()),
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused { status, message } => match status.as_u16() {
                401 => Self::Unauthorized(message),
                403 => Self::Forbidden(message),
                404 => Self::NotFound(message),
                409 => Self::Conflict(message),
                400..500 => Self::Invalid(message),
                503 => Self::Unavailable(message),
                _ => Self::Internal(message),
            },
            ClientError::Untrusted { .. } => Self::Conflict(error.to_string()),
            ClientError::Unreachable { .. } | ClientError::Broken { .. } => {
                Self::Unavailable(error.to_string())
            }
        }
    }
}

/// For errors of this host (disk, netlink, cryptography), with all their causes.
impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::Internal(format!("{error:#}"))
    }
}
