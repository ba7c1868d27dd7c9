//! Tells of changes of IPsec while they happen: of what somebody removes, and of
//! associations that have been used for as many packets as they may.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};

use futures::future::poll_fn;
use netlink_sys::protocols::NETLINK_XFRM;
use netlink_sys::{AsyncSocket, Socket, TokioSocket};
use nix::libc;
use tokio::sync::watch;

/// Groups of linux/xfrm.h.
const EXPIRE: u32 = 2;
const ASSOCIATION: u32 = 3;
const POLICY: u32 = 4;

/// Follows the network namespace that the calling thread is in, until nobody listens. On
/// a kernel without IPsec there is nothing to follow.
///
/// # Errors
/// If there is no netlink socket to be had.
pub fn follow(changes: watch::Sender<()>) -> io::Result<()> {
    let mut socket = match Socket::new(NETLINK_XFRM) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(()),
        other => other?,
    };
    socket.bind_auto()?;
    for group in [EXPIRE, ASSOCIATION, POLICY] {
        socket.add_membership(group)?;
    }
    socket.set_non_blocking(true)?;
    // SAFETY: the descriptor was just given up by `socket`, nobody else has it.
    let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
    tokio::spawn(async move {
        loop {
            let told = poll_fn(|context| socket.poll_recv_from_full(context)).await;
            match told {
                Ok(_) => {}
                // Too many to be told.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => {
                    tracing::warn!("changes of IPsec are seen only by looking: {error}");
                    return;
                }
            }
            if changes.send(()).is_err() {
                return;
            }
        }
    });
    Ok(())
}
