//! What a kernel can do is asked of the kernel: an association for two addresses of the
//! documentation (RFC 5737), in a namespace that is gone when the answer is there.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use netlink_packet_xfrm::XfrmMessage;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use tokio::sync::oneshot;

use crate::plan::{AeadKey, Association};

use super::super::exchange::Error::Refused;
use super::client::{Client, Error, socket};
use super::message;

const FROM: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const TO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// What the kernel lacks for encrypted networks, in words; none if it lacks nothing.
pub(in crate::kernel) async fn missing() -> Result<Option<String>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("ipsec".into())
        .spawn(move || {
            // The receiver is gone only if the caller was cancelled.
            let _ = sender.send(unshare(CloneFlags::CLONE_NEWNET).map(|()| socket()));
        })
        .context("starting a thread")?;
    let made = receiver.await.context("the thread that asks for IPsec panicked")?;
    // The socket alone keeps the namespace.
    let mut client = match Client::of(made.context("making a namespace (this needs root)")?) {
        Err(Error::Missing) => return Ok(Some(words(&Error::Missing))),
        other => other?,
    };
    let probe = Association {
        from: FROM,
        in_udp: false,
        port: 4790,
        key: AeadKey(vec![0; 36]),
        packets: 1,
        generation: 0,
    };
    let request = XfrmMessage::AddSa(message::association(TO, 1 << 8, &probe));
    match client.change(request).await {
        Ok(()) => Ok(None),
        Err(error @ Error::Exchange(Refused(_))) => Ok(Some(words(&error))),
        Err(error) => Err(error.into()),
    }
}

/// Names what is missing, as an administrator looks for it.
fn words(error: &Error) -> String {
    let what = match error {
        Error::Missing | Error::Exchange(Refused(Errno::ECONNREFUSED)) => {
            "no IPsec (CONFIG_XFRM_USER, module xfrm_user)"
        }
        Error::Exchange(Refused(Errno::EPROTONOSUPPORT)) => "no ESP (CONFIG_INET_ESP, module esp4)",
        // xfrm_aead_get_byname finds none, or crypto_alloc_aead does not.
        Error::Exchange(Refused(Errno::ENOSYS | Errno::ENOENT)) => {
            "no AES-GCM for ESP (CONFIG_INET_ESP, CONFIG_CRYPTO_GCM and CONFIG_CRYPTO_SEQIV; \
             modules esp4, gcm and seqiv)"
        }
        other => return format!("its kernel refuses an IPsec association: {other}"),
    };
    format!("its kernel has {what}: load or install it, then restart the agent there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        for (error, name) in [
            (Error::Missing, "CONFIG_XFRM_USER"),
            (Error::Exchange(Refused(Errno::EPROTONOSUPPORT)), "CONFIG_INET_ESP"),
            (Error::Exchange(Refused(Errno::ENOSYS)), "CONFIG_CRYPTO_GCM"),
            (Error::Exchange(Refused(Errno::EPERM)), "not permitted"),
        ] {
            let text = words(&error);
            assert!(text.contains(name), "{text}");
        }
    }
}
