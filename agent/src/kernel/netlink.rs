//! Route netlink requests: one way to wait for them and one way to fail.

use std::future::Future;
use std::time::Duration;

use futures::{Stream, StreamExt};
use nix::errno::Errno;

/// The kernel answers in microseconds; this only keeps a reply that the netlink
/// crates cannot decode, and therefore swallow, from hanging the agent.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of the request's header in front of the kernel's text in a refusal.
const HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words.
const ATTR_MESSAGE: u16 = 1;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The kernel refused; with its own words where it has any.
    #[error("{}{}", .errno.desc(), .text.as_ref().map_or(String::new(), |t| format!(": {t}")))]
    Refused { errno: Errno, text: Option<String> },
    /// The kernel did not answer.
    #[error("the kernel did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// Anything else.
    #[error("{0}")]
    Other(rtnetlink::Error),
}

impl Error {
    /// Whether the kernel refused with this error.
    pub(super) fn is(&self, expected: Errno) -> bool {
        matches!(self, Self::Refused { errno, .. } if *errno == expected)
    }

    /// Whether what the request was about, or the link it is on, is not there.
    pub(super) fn is_gone(&self) -> bool {
        [Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::ENXIO, Errno::EADDRNOTAVAIL]
            .into_iter()
            .any(|errno| self.is(errno))
    }
}

impl From<rtnetlink::Error> for Error {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Refused {
                errno: Errno::from_raw(message.raw_code().abs()),
                text: text(&message.header),
            },
            other => Self::Other(other),
        }
    }
}

/// The kernel's words in the payload of a refusal: the header of the request (the
/// sockets ask for no more of it), then attributes.
fn text(payload: &[u8]) -> Option<String> {
    let mut rest = payload.get(HEADER..)?;
    loop {
        let (length, kind) = (rest.get(..2)?, rest.get(2..4)?);
        let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes(kind.try_into().ok()?) == ATTR_MESSAGE {
            let text = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// Waits for the acknowledgement of a request.
pub(super) async fn acknowledged(
    request: impl Future<Output = Result<(), rtnetlink::Error>>,
) -> Result<(), Error> {
    Ok(tokio::time::timeout(TIMEOUT, request).await.map_err(|_| Error::Timeout)??)
}

/// [`acknowledged`] for a removal: what is gone already is removed.
pub(super) async fn removed(
    request: impl Future<Output = Result<(), rtnetlink::Error>>,
) -> Result<(), Error> {
    match acknowledged(request).await {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}

/// Collects all replies to a request.
pub(super) async fn collected<T>(
    replies: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, Error> {
    let mut replies = std::pin::pin!(replies);
    let all = async {
        let mut all = Vec::new();
        while let Some(reply) = replies.next().await {
            all.push(reply?);
        }
        Ok(all)
    };
    tokio::time::timeout(TIMEOUT, all).await.map_err(|_| Error::Timeout)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn finds_the_kernels_words() {
        let mut payload = vec![0; HEADER];
        payload.extend(attribute(2, &[1, 2, 3, 4]));
        payload.extend(attribute(ATTR_MESSAGE, b"Device is up\0"));
        assert_eq!(text(&payload).as_deref(), Some("Device is up"));
        for length in 0..payload.len() - 1 {
            assert_eq!(text(&payload[..length.min(payload.len() - 5)]), None);
        }
    }
}
