//! A small HTTP/1 client for the API: over the unix socket for the CLI, over
//! mutual TLS between nodes. It owns connections and their reuse; it knows no
//! route and no policy. Paths start with `/v1/`.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use futures::Stream;
use futures::stream::{self, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::types::ErrorBody;
use super::version;

/// Longest wait for a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(3);
/// Connections that are being made at once. Well below what a manager takes from one
/// address before it knows who is there: any number of requests may begin together.
const CONNECTING: usize = 16;
/// A connection that was idle for so long is not used again: well before the server
/// would close it, so that no request meets a connection that is just ending.
const IDLE: Duration = Duration::from_secs(5);
/// Largest reply, and largest line of a stream, in bytes.
const LARGEST_REPLY: usize = 256 << 20;

/// Why a request has no good reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing was sent: the other side cannot have acted on the request.
    #[error("cannot reach {target}: {reason}")]
    Unreachable {
        /// Socket or address.
        target: String,
        /// What failed.
        reason: String,
    },
    /// The other side is there, and is not what it has to be. Nothing was sent.
    #[error("{target} cannot be trusted: {reason}")]
    Untrusted {
        /// Address.
        target: String,
        /// What is wrong with its certificate.
        reason: String,
        /// Whether it belongs to another cluster, and not just to another time.
        foreign: bool,
    },
    /// The server said no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The server's own words.
        message: String,
    },
    /// The request was sent, its outcome is unknown.
    #[error("{target} did not finish its reply: {reason}")]
    Broken {
        /// Socket or address.
        target: String,
        /// What failed.
        reason: String,
    },
}

enum Target {
    Unix(PathBuf),
    /// The connector is replaced when this node's certificate is.
    Tls {
        address: String,
        name: ServerName<'static>,
        connector: Mutex<TlsConnector>,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "the agent at {}", path.display()),
            Self::Tls { address, .. } => write!(f, "the manager at {address}"),
        }
    }
}

/// An open connection.
struct Sender {
    request: SendRequest<Full<Bytes>>,
    /// Of [`Inner::renewals`] when it was opened.
    renewals: usize,
}

struct Inner {
    target: Target,
    /// Longest wait for the head of a reply; none for a local agent, which works
    /// as long as the work takes.
    patience: Option<Duration>,
    /// Open connections that no request is using, and since when.
    idle: Mutex<Vec<(Sender, Instant)>>,
    /// How often this node's certificate was renewed.
    renewals: AtomicUsize,
    connecting: Semaphore,
}

/// A client of one agent. Cloning shares its connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

impl Client {
    /// A client of the agent behind this unix socket.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::new(Target::Unix(path.as_ref().to_owned()), None)
    }

    /// A client of the manager at `address` (`HOST:PORT`), whose certificate must
    /// be good for `name` under `config`. Replies must begin within `patience`.
    pub fn tls(
        address: String,
        name: ServerName<'static>,
        config: Arc<rustls::ClientConfig>,
        patience: Duration,
    ) -> Self {
        let connector = Mutex::new(TlsConnector::from(config));
        Self::new(Target::Tls { address, name, connector }, Some(patience))
    }

    /// Uses another TLS configuration from the next connection on; of those that are open
    /// none is used again. Has no meaning on a unix socket.
    pub fn renew(&self, config: Arc<rustls::ClientConfig>) {
        if let Target::Tls { connector, .. } = &self.0.target {
            *lock(connector) = TlsConnector::from(config);
            self.0.renewals.fetch_add(1, Ordering::Relaxed);
            lock(&self.0.idle).clear();
        }
    }

    fn new(target: Target, patience: Option<Duration>) -> Self {
        let connecting = Semaphore::new(CONNECTING);
        let (idle, renewals) = Default::default();
        Self(Arc::new(Inner { target, patience, idle, renewals, connecting }))
    }

    /// `GET`.
    ///
    /// # Errors
    /// See [`ClientError`]; so for the others.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, None::<&()>).await
    }

    /// `POST` with a JSON body. A reply without a body reads as `()`.
    pub async fn post<B, T>(&self, path: &str, body: &B) -> Result<T, ClientError>
    where
        B: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        self.request(Method::POST, path, Some(body)).await
    }

    /// `PATCH` with a JSON body.
    pub async fn patch<B, T>(&self, path: &str, body: &B) -> Result<T, ClientError>
    where
        B: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        self.request(Method::PATCH, path, Some(body)).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.request(Method::DELETE, path, None::<&()>).await
    }

    /// Any request whose reply is one JSON value, or empty.
    pub async fn request<B, T>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError>
    where
        B: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let (reply, sender) = self.send(method, path, body).await?;
        let bytes = self.body(reply).await?;
        self.keep(sender);
        // No reply body is JSON's null, which reads as ().
        let json: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(json)
            .map_err(|e| self.broken(format!("unexpected reply to {path}: {e}")))
    }

    /// `GET` of anything else.
    pub async fn bytes(&self, path: &str) -> Result<Bytes, ClientError> {
        let (reply, sender) = self.send(Method::GET, path, None::<&()>).await?;
        let bytes = self.body(reply).await?;
        self.keep(sender);
        Ok(bytes)
    }

    /// `GET` of a stream of JSON values, one a line. It ends when the server ends
    /// it, and fails when the connection breaks.
    pub async fn lines<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<T, ClientError>> + Send + use<T>, ClientError> {
        let (reply, sender) = self.send(Method::GET, path, None::<&()>).await?;
        let bytes = reply.into_data_stream().map(|part| part.map_err(io::Error::other));
        let lines = FramedRead::new(
            StreamReader::new(bytes),
            LinesCodec::new_with_max_length(LARGEST_REPLY),
        );
        let target = self.0.target.to_string();
        // The sender lives as long as the stream: dropping it closes the connection.
        Ok(stream::unfold((lines, sender, target), |(mut lines, sender, target)| async move {
            let line = lines.next().await?;
            let item = line
                .map_err(|e| e.to_string())
                .and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string()))
                .map_err(|reason| ClientError::Broken { target: target.clone(), reason });
            Some((item, (lines, sender, target)))
        }))
    }

    /// Sends, over an idle connection if one still lives. What a dying connection
    /// did not take is sent again over a new one; nothing but a `GET`, which changes
    /// nothing, is ever sent twice.
    async fn send<B: Serialize + ?Sized>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<(Response<Incoming>, Sender), ClientError> {
        let mut request = self.build(&method, path, body)?;
        loop {
            let idle = self.idle();
            let reused = idle.is_some();
            let mut sender = match idle {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            if reused && sender.request.ready().await.is_err() {
                continue;
            }
            let sent = sender.request.try_send_request(request);
            let sent = match self.0.patience {
                None => sent.await,
                Some(patience) => tokio::time::timeout(patience, sent)
                    .await
                    .map_err(|_| self.broken(format!("no reply to {path} within {patience:?}")))?,
            };
            match sent {
                Ok(reply) => return self.judge(reply).await.map(|reply| (reply, sender)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if reused => request = unsent,
                    Some(_) => return Err(self.unreachable(failed.into_error())),
                    None if reused && method == Method::GET => {
                        request = self.build(&method, path, body)?;
                    }
                    None => return Err(self.failed(&failed.into_error())),
                },
            }
        }
    }

    fn build<B: Serialize + ?Sized>(
        &self,
        method: &Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let json = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| self.unreachable(e))?,
            None => Vec::new(),
        };
        Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "netagent")
            .header(CONTENT_TYPE, "application/json")
            .header(version::HEADER, version::OURS)
            .body(Full::new(Bytes::from(json)))
            .map_err(|e| self.unreachable(format!("{path:?} is not a path: {e}")))
    }

    async fn connect(&self) -> Result<Sender, ClientError> {
        let _turn = self.0.connecting.acquire().await.map_err(|e| self.unreachable(e))?;
        // One may have become free meanwhile.
        if let Some(idle) = self.idle() {
            return Ok(idle);
        }
        // Before the certificate is taken: it may be renewed meanwhile.
        let renewals = self.0.renewals.load(Ordering::Relaxed);
        let connected = tokio::time::timeout(CONNECT, async {
            match &self.0.target {
                Target::Unix(path) => start(UnixStream::connect(path).await?).await,
                Target::Tls { address, name, connector } => {
                    let tcp = TcpStream::connect(address).await?;
                    tcp.set_nodelay(true)?;
                    let connector = lock(connector).clone();
                    start(connector.connect(name.clone(), tcp).await?).await
                }
            }
        });
        match connected.await {
            Ok(Ok(request)) => Ok(Sender { request, renewals }),
            Ok(Err(e)) => Err(self.distrust(&e).unwrap_or_else(|| self.unreachable(e))),
            Err(_) => Err(self.unreachable(format!("no answer within {CONNECT:?}"))),
        }
    }

    /// Passes a success on and turns anything else into the server's own words.
    async fn judge(&self, reply: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
        let status = reply.status();
        if status.is_success() {
            return Ok(reply);
        }
        let bytes = self.body(reply).await?;
        let message = match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => body.message,
            Err(_) => format!("{} answered {status}", self.0.target),
        };
        Err(ClientError::Refused { status, message })
    }

    async fn body(&self, reply: Response<Incoming>) -> Result<Bytes, ClientError> {
        let whole = http_body_util::Limited::new(reply.into_body(), LARGEST_REPLY).collect();
        whole.await.map(|b| b.to_bytes()).map_err(|e| self.broken(e.to_string()))
    }

    fn keep(&self, sender: Sender) {
        let mut idle = lock(&self.0.idle);
        let current = sender.renewals == self.0.renewals.load(Ordering::Relaxed);
        if current && !sender.request.is_closed() {
            idle.push((sender, Instant::now()));
        }
    }

    fn idle(&self) -> Option<Sender> {
        let mut idle = lock(&self.0.idle);
        idle.retain(|(sender, since)| !sender.request.is_closed() && since.elapsed() < IDLE);
        idle.pop().map(|(sender, _)| sender)
    }

    /// The request was sent, and there is no reply. A server that does not take this node's
    /// certificate says so only then (RFC 8446, 4.4.2.4).
    fn failed(&self, error: &hyper::Error) -> ClientError {
        use rustls::AlertDescription as Alert;
        let io = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        let tls = io.and_then(io::Error::get_ref).and_then(|e| e.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::AlertReceived(Alert::UnknownCA)) => {
                let reason = "it does not take this node's certificate: the cluster's CA was \
                              replaced while this node was away. `netagent cluster leave \
                              --force`, and join again";
                let target = self.0.target.to_string();
                ClientError::Untrusted { target, reason: reason.to_owned(), foreign: true }
            }
            _ => self.broken(chain(error)),
        }
    }

    /// Whether `error` is that the server's certificate is not good.
    fn distrust(&self, error: &io::Error) -> Option<ClientError> {
        let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        let rustls::Error::InvalidCertificate(reason) = tls else { return None };
        use rustls::CertificateError as Bad;
        let (foreign, reason) = match reason {
            Bad::UnknownIssuer => {
                let text = "it belongs to another cluster, or the cluster's CA was replaced while \
                            this node was away: then `netagent cluster leave --force`, and join \
                            again";
                (true, text.to_owned())
            }
            Bad::Expired
            | Bad::ExpiredContext { .. }
            | Bad::NotValidYet
            | Bad::NotValidYetContext { .. } => {
                let now = humantime::format_rfc3339_seconds(SystemTime::now());
                let text = format!(
                    "its certificate is not valid at {now}, which is the time by this host's \
                     clock: is that right, and the manager's?"
                );
                (false, text)
            }
            other => (true, format!("{other:?}")),
        };
        Some(ClientError::Untrusted { target: self.0.target.to_string(), reason, foreign })
    }

    fn unreachable(&self, reason: impl fmt::Display) -> ClientError {
        ClientError::Unreachable { target: self.0.target.to_string(), reason: reason.to_string() }
    }

    fn broken(&self, reason: String) -> ClientError {
        ClientError::Broken { target: self.0.target.to_string(), reason }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Speaks HTTP over `io`; a task drives the connection until either side closes.
async fn start<S>(io: S) -> io::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            tracing::debug!("connection ended: {e}");
        }
    });
    Ok(sender)
}

/// An error with its causes; hyper's own text names only the outermost.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use axum::{Json, Router};
    use tokio::net::UnixListener;

    use super::*;

    fn serve(dir: &tempfile::TempDir, router: Router) -> Client {
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Client::unix(path)
    }

    #[tokio::test]
    async fn values_errors_and_streams() {
        let dir = tempfile::tempdir().unwrap();
        let refusal =
            (StatusCode::CONFLICT, Json(ErrorBody { message: "network db is in use".to_owned() }));
        let client = serve(
            &dir,
            Router::new()
                .route("/v1/double", post(|Json(n): Json<u32>| async move { Json(n * 2) }))
                .route("/v1/nothing", post(|| async { StatusCode::NO_CONTENT }))
                .route("/v1/refused", get(|| async { refusal }))
                .route("/v1/lines", get(|| async { "1\n2\n" })),
        );
        assert_eq!(client.post::<_, u32>("/v1/double", &21).await.unwrap(), 42);
        client.post::<_, ()>("/v1/nothing", &()).await.unwrap();
        match client.get::<u32>("/v1/refused").await {
            Err(ClientError::Refused { status, message }) => {
                assert_eq!((status.as_u16(), message.as_str()), (409, "network db is in use"));
            }
            other => panic!("{other:?}"),
        }
        let lines: Vec<_> = client
            .lines::<u32>("/v1/lines")
            .await
            .unwrap()
            .map(|line| line.unwrap())
            .collect()
            .await;
        assert_eq!(lines, [1, 2]);
    }

    /// Answers `n` requests over one connection each, whatever the client wants.
    async fn answer(listener: UnixListener, requests: Vec<usize>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        for n in requests {
            let (mut stream, _) = listener.accept().await.unwrap();
            for _ in 0..n {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n7").await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn connections_are_used_again_as_long_as_they_live() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        // The first connection takes three requests and is closed without a word.
        let served = tokio::spawn(answer(listener, vec![3, 2]));
        let client = Client::unix(&path);
        for _ in 0..5 {
            assert_eq!(client.get::<u32>("/v1/x").await.unwrap(), 7);
        }
        served.await.unwrap();
    }

    #[tokio::test]
    async fn nobody_there() {
        let error = Client::unix("/nonexistent/sock").get::<u32>("/v1/cluster").await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("/nonexistent/sock"), "{error}");
    }
}
