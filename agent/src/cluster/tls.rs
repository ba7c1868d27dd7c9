//! TLS between nodes, version 1.3 only. A server shows a manager's certificate
//! and takes a client's if it has one; a client takes no server but a manager of
//! its own cluster. A node that joins has no certificate of the CA yet, but its
//! digest, and sends nothing before the server has proved to belong to that CA.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
};

use super::ca::{self, Credentials};

/// What a manager's listener uses. Clients without a certificate get through the
/// handshake, clients with one of another CA do not.
///
/// # Errors
/// If the credentials are damaged.
pub fn server(own: &Credentials) -> Result<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&own.ca)?, provider())
        .allow_unauthenticated()
        .build()?;
    // The chain carries the CA for those who know only its digest.
    let mut chain = vec![ca::certificate(&own.certificate)?];
    chain.extend(ca::certificates(&own.ca)?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Early(verifier)))
        .with_single_cert(chain, ca::private_key(&own.key)?)
        .context("this node's certificate and key do not work together")?;
    // A session that is resumed would go on with a certificate that has ended.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What a member uses to talk to a manager.
///
/// # Errors
/// If the credentials are damaged.
pub fn member(own: &Credentials) -> Result<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&own.ca)?)
        .with_client_auth_cert(vec![ca::certificate(&own.certificate)?], ca::private_key(&own.key)?)
        .context("this node's certificate and key do not work together")?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// What a node uses to join the cluster whose CA certificate has this digest.
///
/// # Errors
/// If the TLS library refuses its own protocol version.
pub fn joiner(digest: [u8; 32]) -> Result<ClientConfig> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pin { digest, provider: provider() }))
        .with_no_client_auth())
}

/// The name that every manager's certificate is good for.
#[must_use]
pub fn manager_name() -> ServerName<'static> {
    ServerName::try_from(ca::MANAGER_NAME).expect("a constant DNS name")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(pem: &str) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in ca::certificates(pem)? {
        roots.add(certificate)?;
    }
    Ok(Arc::new(roots))
}

/// Takes certificates that are not valid yet, too. They were signed while this manager's clock was
/// ahead, and their owners could ask for no others if they were refused.
#[derive(Debug)]
struct Early(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Early {
    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let malformed = |_| rustls::Error::from(CertificateError::BadEncoding);
        let begin = ca::validity_of(leaf).map_err(malformed)?.begin;
        let begin = begin.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.verify_client_cert(leaf, chain, now.max(UnixTime::since_unix_epoch(begin)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Trusts the CA with one digest, and of it only managers.
#[derive(Debug)]
struct Pin {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = chain.iter().find(|c| ca::digest(c) == self.digest);
        let ca = pinned.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(leaf, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::super::ca::{Authority, Subject};
    use super::*;
    use crate::model::{NodeId, Role};

    fn issue(authority: &Authority, role: Role) -> Credentials {
        authority.issue(&Subject { node: NodeId::new(), role, cluster: "c".to_owned() }).unwrap()
    }

    /// Sends a secret to a server with these credentials: what the client made of
    /// it, and what the server has read.
    async fn talk(server: ServerConfig, client: ClientConfig) -> (Result<(), String>, Vec<u8>) {
        let (near, far) = duplex(65536);
        let served = tokio::spawn(async move {
            let mut read = Vec::new();
            if let Ok(mut stream) = TlsAcceptor::from(Arc::new(server)).accept(far).await {
                let _ = stream.write_all(b"hello").await;
                let _ = stream.read_to_end(&mut read).await;
            }
            read
        });
        let sent = async {
            let connector = TlsConnector::from(Arc::new(client));
            let mut stream = connector.connect(manager_name(), near).await?;
            stream.read_exact(&mut [0; 5]).await?;
            stream.write_all(b"secret").await?;
            stream.shutdown().await
        };
        let sent = sent.await.map_err(|e| e.to_string());
        (sent, served.await.unwrap())
    }

    #[tokio::test]
    async fn members_and_managers_of_one_cluster_meet() {
        let authority = Authority::new("c").unwrap();
        let manager = issue(&authority, Role::Manager);
        for role in [Role::Manager, Role::Worker] {
            let client = member(&issue(&authority, role)).unwrap();
            let (sent, read) = talk(server(&manager).unwrap(), client).await;
            assert_eq!((sent, read.as_slice()), (Ok(()), b"secret".as_slice()));
        }
    }

    #[tokio::test]
    async fn strangers_do_not() {
        let (ours, theirs) = (Authority::new("c").unwrap(), Authority::new("c").unwrap());
        let manager = server(&issue(&ours, Role::Manager)).unwrap();
        // A certificate of another CA is worse than none.
        let (sent, read) = talk(manager, member(&issue(&theirs, Role::Worker)).unwrap()).await;
        assert!(sent.is_err() && read.is_empty());
        // A worker's certificate makes no server.
        let worker = server(&issue(&ours, Role::Worker)).unwrap();
        let (sent, read) = talk(worker, member(&issue(&ours, Role::Worker)).unwrap()).await;
        assert!(sent.is_err() && read.is_empty());
    }

    /// Signed while the manager's clock was ahead: it may be used, and renewed, but a manager's
    /// own may not.
    #[tokio::test]
    async fn a_node_of_a_time_to_come_is_let_in() {
        let authority = Authority::new("c").unwrap();
        let manager = issue(&authority, Role::Manager);
        let early = |role| {
            let subject = Subject { node: NodeId::new(), role, cluster: "c".to_owned() };
            let (key, csr) = ca::request().unwrap();
            let later = SystemTime::now() + ca::EXPIRY;
            let certificate = authority.sign_at(later, &csr, &subject, ca::EXPIRY).unwrap();
            Credentials { certificate, key, ca: authority.certificate.clone() }
        };
        let worker = member(&early(Role::Worker)).unwrap();
        let (sent, read) = talk(server(&manager).unwrap(), worker).await;
        assert_eq!((sent, read.as_slice()), (Ok(()), b"secret".as_slice()));
        let worker = member(&issue(&authority, Role::Worker)).unwrap();
        let (sent, read) = talk(server(&early(Role::Manager)).unwrap(), worker).await;
        assert!(sent.is_err() && read.is_empty());
    }

    #[tokio::test]
    async fn a_joiner_speaks_to_the_pinned_ca_only() {
        let (ours, theirs) = (Authority::new("c").unwrap(), Authority::new("c").unwrap());
        let digest = ca::digest(&ca::certificate(&ours.certificate).unwrap());
        let (sent, read) =
            talk(server(&issue(&ours, Role::Manager)).unwrap(), joiner(digest).unwrap()).await;
        assert_eq!((sent, read.as_slice()), (Ok(()), b"secret".as_slice()));

        // Another cluster; a worker of ours; another cluster that shows our CA too.
        let mut liar = issue(&theirs, Role::Manager);
        liar.ca.clone_from(&ours.certificate);
        for bad in [issue(&theirs, Role::Manager), issue(&ours, Role::Worker), liar] {
            let (sent, read) = talk(server(&bad).unwrap(), joiner(digest).unwrap()).await;
            assert!(sent.is_err());
            assert!(read.is_empty(), "the secret was sent");
        }
    }
}
