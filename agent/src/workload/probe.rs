//! One look at a workload: a TCP connection, an HTTP request or a command, all made in
//! the workload's own network namespace.
//!
//! Connections go to the addresses at which the workload serves, not to 127.0.0.1: a
//! server that listens only there is one that no client reaches. Of several addresses
//! one that answers is enough.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::future::{Either, select};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::inside;
use super::netns::Netns;
use crate::model::{HealthCheck, Hold};

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// Exits with 0.
    Command(String),
    /// Takes a connection.
    Tcp(u16),
    /// Is answered with 2xx or 3xx.
    Http { port: u16, path: Uri },
}

impl Probe {
    /// What `check` says.
    ///
    /// # Errors
    /// If it makes no sense, in words.
    pub(super) fn of(check: &HealthCheck) -> Result<Self, String> {
        if check.interval_ms == 0 || check.timeout_ms == 0 || check.retries == 0 {
            return Err("interval, timeout and retries must be more than 0".to_owned());
        }
        match (&check.command, check.tcp, &check.http) {
            (Some(command), None, None) => Ok(Self::Command(command.clone())),
            (None, Some(0), None) => Err("port 0 is none".to_owned()),
            (None, Some(port), None) => Ok(Self::Tcp(port)),
            (None, None, Some(target)) => {
                let (port, path) = parse_target(target)
                    .ok_or_else(|| format!("{target:?} is not :PORT or :PORT/PATH"))?;
                Ok(Self::Http { port, path })
            }
            _ => Err("exactly one of a command, a TCP port and an HTTP request".to_owned()),
        }
    }

    /// Looks once.
    ///
    /// # Errors
    /// Why the workload is not healthy, in words.
    pub(super) async fn look(
        &self,
        hold: &Hold,
        netns: &Netns,
        addresses: &[Ipv4Addr],
        limit: Duration,
    ) -> Result<(), String> {
        let looked = timeout(limit, async {
            match self {
                Self::Command(script) => inside::run(script, hold, netns).await,
                Self::Tcp(port) => connect(netns, addresses, *port).await.map(drop),
                Self::Http { port, path } => {
                    let stream = connect(netns, addresses, *port).await?;
                    get(stream, path).await.map_err(|e| format!("GET :{port}{path}: {e}"))
                }
            }
        });
        // What has not ended is dropped, and a command killed by that.
        looked.await.unwrap_or_else(|_| Err(format!("nothing within {limit:?}")))
    }
}

/// A connection to `port` of the first of the addresses that takes one.
async fn connect(netns: &Netns, addresses: &[Ipv4Addr], port: u16) -> Result<TcpStream, String> {
    let mut failed = "it is on no network of its service".to_owned();
    for address in addresses {
        let address = SocketAddr::from((*address, port));
        // A socket is in the namespace in which it was made.
        let socket = netns.run(TcpSocket::new_v4).await;
        let connected = async { socket?.connect(address).await };
        match connected.await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = format!("connecting to {address}: {error}"),
        }
    }
    Err(failed)
}

/// Asks for `path` and looks at the status alone.
async fn get(stream: TcpStream, path: &Uri) -> Result<(), String> {
    let host = stream.peer_addr().map_err(|e| e.to_string())?;
    let request = Request::get(path.clone())
        .header(hyper::header::HOST, host.to_string())
        .header(hyper::header::USER_AGENT, "netagent")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let talk = async {
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        let reply = std::pin::pin!(sender.send_request(request));
        match select(reply, std::pin::pin!(connection)).await {
            Either::Left((reply, _)) => reply,
            Either::Right((_, reply)) => reply.await,
        }
    };
    let status = talk.await.map_err(|e: hyper::Error| e.to_string())?.status();
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("answered {status}"))
    }
}

/// Reads `:PORT/PATH`; without a path it is `/`.
fn parse_target(target: &str) -> Option<(u16, Uri)> {
    let target = target.strip_prefix(':')?;
    let (port, path) = target.split_at(target.find('/').unwrap_or(target.len()));
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let path = if path.is_empty() { "/" } else { path };
    Some((port, path.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        HealthCheck {
            command: None,
            tcp: None,
            http: None,
            interval_ms: 10_000,
            timeout_ms: 3000,
            retries: 3,
            start_period_ms: 0,
        }
    }

    #[test]
    fn one_kind_of_check() {
        let tcp = HealthCheck { tcp: Some(80), ..check() };
        assert_eq!(Probe::of(&tcp), Ok(Probe::Tcp(80)));
        let command = HealthCheck { command: Some("true".to_owned()), ..check() };
        assert_eq!(Probe::of(&command), Ok(Probe::Command("true".to_owned())));
        assert!(Probe::of(&check()).unwrap_err().contains("exactly one"));
        let both = HealthCheck { tcp: Some(80), ..command };
        assert!(Probe::of(&both).unwrap_err().contains("exactly one"));
        for zero in [
            HealthCheck { interval_ms: 0, ..tcp.clone() },
            HealthCheck { timeout_ms: 0, ..tcp.clone() },
            HealthCheck { retries: 0, ..tcp },
            HealthCheck { tcp: Some(0), ..check() },
        ] {
            assert!(Probe::of(&zero).is_err(), "{zero:?}");
        }
    }

    #[test]
    fn an_http_check_names_port_and_path() {
        let parse = |text: &str| {
            Probe::of(&HealthCheck { http: Some(text.to_owned()), ..check() }).map(|probe| {
                let Probe::Http { port, path } = probe else { panic!("{probe:?}") };
                (port, path.to_string())
            })
        };
        assert_eq!(parse(":8080/up?deep=1"), Ok((8080, "/up?deep=1".to_owned())));
        assert_eq!(parse(":80"), Ok((80, "/".to_owned())));
        for wrong in ["", "80", "80/", ":", ":0/", ":65536/", ":x/", "/up", ":80/a b"] {
            assert!(parse(wrong).unwrap_err().contains(":PORT/PATH"), "{wrong}");
        }
    }

    /// Answers one request with `status`, on this namespace's loopback.
    async fn answered(status: &'static str) -> Result<(), String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let n = stream.read(&mut head).await.unwrap();
            assert!(head[..n].starts_with(b"GET /up HTTP/1.1\r\n"), "{head:?}");
            let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(reply.as_bytes()).await.unwrap();
        };
        let stream = TcpStream::connect(address).await.unwrap();
        let path = "/up".parse().unwrap();
        tokio::join!(server, get(stream, &path)).1
    }

    #[tokio::test]
    async fn the_status_decides() {
        assert_eq!(answered("200 OK").await, Ok(()));
        assert_eq!(answered("302 Found").await, Ok(()));
        assert!(answered("404 Not Found").await.unwrap_err().contains("404"));
        assert!(answered("503 Service Unavailable").await.unwrap_err().contains("503"));
        assert!(answered("nonsense").await.is_err());
    }
}
