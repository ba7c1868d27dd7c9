//! Takes connections and hands each request to the routes together with who is
//! asking. Strangers are kept few and short: a handshake that does not end, a
//! client that sends garbage or nothing, and any number of them from one address
//! cannot keep the members out.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt as _;

use super::identity::Identity;
use crate::cluster::{Cluster, ca};

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest life of a connection without a certificate: one request to join.
const STRANGER: Duration = Duration::from_secs(30);
/// Longest wait for the head of a request, also of the next one.
const HEAD: Duration = Duration::from_secs(30);
/// Connections at once of those who have not shown a certificate, from one address
/// and in all.
const STRANGERS_OF_ONE: usize = 64;
const STRANGERS: usize = 512;
/// Pause after a connection could not be taken, for want of descriptors.
const ACCEPT: Duration = Duration::from_millis(100);

/// Listens on a unix socket (mode 0660). One that an agent which is gone left
/// behind is replaced.
///
/// # Errors
/// If an agent answers there, or the socket cannot be made.
pub async fn bind_unix(path: &Path) -> Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        bail!("another agent listens on {}", path.display());
    }
    // Made under another name, so that nobody finds it before its mode is right.
    let beside = path.with_added_extension("new");
    let bind = || {
        if let Err(e) = fs::remove_file(&beside)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            return Err(e);
        }
        let listener = UnixListener::bind(&beside)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o660))?;
        fs::rename(&beside, path)?;
        Ok(listener)
    };
    bind().with_context(|| format!("cannot listen on {}", path.display()))
}

/// Serves this host's administrators; never returns.
pub async fn serve_unix(listener: UnixListener, router: Router) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, Identity::Local, router.clone()));
            }
            Err(e) => {
                tracing::warn!("cannot take a connection on the unix socket: {e}");
                tokio::time::sleep(ACCEPT).await;
            }
        }
    }
}

/// Serves the other nodes while this node is a manager; never returns.
pub async fn serve_tls(cluster: Cluster, router: Router) {
    let strangers = Strangers::default();
    loop {
        let (stream, peer, acceptor) = cluster.accept().await;
        let Some(pass) = strangers.admit(peer.ip()) else {
            tracing::debug!("{peer}: too many connections without a certificate");
            continue;
        };
        let (router, cluster) = (router.clone(), cluster.clone());
        tokio::spawn(async move {
            if let Err(e) = serve_peer(stream, acceptor, pass, router, cluster).await {
                tracing::debug!("{peer}: {e:#}");
            }
        });
    }
}

async fn serve_peer(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    pass: Pass,
    router: Router,
    cluster: Cluster,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = timeout(HANDSHAKE, acceptor.accept(stream)).await.context("slow handshake")??;
    let identity = identify(&stream)?;
    let Some(certificate) = shown(&stream).map(|shown| shown.clone().into_owned()) else {
        return timeout(STRANGER, serve(stream, identity, router)).await.context("slow stranger");
    };
    drop(pass);
    tokio::select! {
        () = serve(stream, identity, router) => Ok(()),
        () = cluster.distrusts(&certificate) => bail!("its certificate is of a former CA"),
    }
}

/// Who the peer is. Its certificate, if any, was verified in the handshake.
fn identify(stream: &TlsStream<TcpStream>) -> Result<Identity> {
    match shown(stream) {
        None => Ok(Identity::Anonymous),
        Some(leaf) => {
            let subject = ca::subject(leaf).context("a certificate that names no node")?;
            Ok(Identity::Node { id: subject.node, role: subject.role })
        }
    }
}

/// The peer's certificate.
fn shown(stream: &TlsStream<TcpStream>) -> Option<&CertificateDer<'static>> {
    stream.get_ref().1.peer_certificates()?.first()
}

async fn serve<S>(stream: S, identity: Identity, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(identity.clone());
        let answer = router.clone().oneshot(request.map(Body::new));
        async move { answer.await.map_err(|e: Infallible| e) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(e) = served.await {
        tracing::debug!("connection ended: {e}");
    }
}

/// Counts connections of those who have not shown a certificate.
#[derive(Clone, Default)]
struct Strangers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One such connection, as long as it lives.
struct Pass {
    strangers: Strangers,
    from: IpAddr,
}

impl Strangers {
    fn admit(&self, from: IpAddr) -> Option<Pass> {
        let mut counts = self.lock();
        if counts.values().sum::<usize>() >= STRANGERS {
            return None;
        }
        let count = counts.entry(from).or_default();
        if *count >= STRANGERS_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Pass { strangers: self.clone(), from })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut counts = self.strangers.lock();
        if let Some(count) = counts.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.from);
            }
        }
    }
}
