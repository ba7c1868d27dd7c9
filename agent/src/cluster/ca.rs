//! The cluster's certificate authority: made by `cluster init`, kept in the
//! store, it says who a node is. A certificate names the node (CN), its role (OU)
//! and the cluster (O). Only managers' certificates are good for a server, and
//! they all carry one name, so that any TLS client can tell a manager.
//!
//! A node is expelled by removing it from the members, which every request checks, and
//! not by expiry. A certificate is short-lived all the same, so that a key that was copied
//! is worth nothing after a while; its node renews it, with a new key, long before.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use crate::model::{Certificate, NodeId, Role};

/// The name in every manager's certificate.
pub const MANAGER_NAME: &str = "manager.netagent";
/// How long a node's certificate is valid, unless the cluster says otherwise.
pub const EXPIRY: Duration = Duration::from_secs(90 * 24 * 3600);
/// Clocks of nodes may be this far behind the manager's.
const SKEW: Duration = Duration::from_secs(24 * 3600);
/// Lifetime of the CA.
const LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// The CA's certificate and key, PEM.
#[derive(Clone, Serialize, Deserialize)]
pub struct Authority {
    /// Certificate.
    pub certificate: String,
    key: String,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Credentials {
    /// Certificate.
    pub certificate: String,
    /// Private key.
    pub key: String,
    /// Certificates of the CAs that its owner trusts: one, but while the CA is replaced.
    pub ca: String,
}

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The node.
    pub node: NodeId,
    /// Its role when the certificate was signed.
    pub role: Role,
    /// The cluster.
    pub cluster: String,
}

impl Authority {
    /// A new CA for the cluster with this identifier.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn new(cluster: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = params(SystemTime::now(), LIFETIME);
        // With a name of its own, so that a certificate of its predecessor is not taken for one
        // of its own that is damaged.
        let name = format!("netagent CA {}", hex::encode(rand::random::<[u8; 4]>()));
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, cluster);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, key: key.serialize_pem() })
    }

    /// Signs the public key of a certificate signing request, PEM. Nothing else of
    /// the request is used: who the node is, the manager says. The certificate is valid
    /// for `expiry` from now on.
    ///
    /// # Errors
    /// If the request is malformed or its signature is wrong.
    pub fn sign(&self, csr: &str, subject: &Subject, expiry: Duration) -> Result<String> {
        self.sign_at(SystemTime::now(), csr, subject, expiry)
    }

    /// As [`Authority::sign`], by another clock.
    pub(super) fn sign_at(
        &self,
        now: SystemTime,
        csr: &str,
        subject: &Subject,
        expiry: Duration,
    ) -> Result<String> {
        let request = CertificateSigningRequestParams::from_pem(csr)
            .context("the certificate signing request is malformed")?;
        let mut params = params(now, expiry);
        params.distinguished_name.push(DnType::CommonName, subject.node.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, subject.role.to_string());
        params.distinguished_name.push(DnType::OrganizationName, subject.cluster.as_str());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.role == Role::Manager {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            params.subject_alt_names =
                vec![rcgen::SanType::DnsName(MANAGER_NAME.try_into().context("SAN")?)];
        }
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)?;
        let signed = CertificateSigningRequestParams { params, public_key: request.public_key };
        Ok(signed.signed_by(&issuer)?.pem())
    }

    /// A key and a certificate for a node whose agent runs in this process.
    ///
    /// # Errors
    /// As for [`Authority::sign`].
    pub fn issue(&self, subject: &Subject) -> Result<Credentials> {
        let (key, csr) = request()?;
        let certificate = self.sign(&csr, subject, EXPIRY)?;
        Ok(Credentials { certificate, key, ca: self.certificate.clone() })
    }
}

/// A new private key and a request to sign its public half, both PEM.
///
/// # Errors
/// If the system gives no randomness.
pub fn request() -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let csr = params(SystemTime::now(), EXPIRY).serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), csr))
}

fn params(now: SystemTime, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + lifetime).into();
    params.distinguished_name = DistinguishedName::new();
    params
}

/// SHA-256 of a certificate's DER, what a join token pins.
#[must_use]
pub fn digest(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// The first certificate in PEM text.
///
/// # Errors
/// If there is none.
pub fn certificate(pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).context("not a PEM certificate")
}

/// All certificates in PEM text.
///
/// # Errors
/// If there is none, or one is malformed.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("not PEM certificates")?;
    if all.is_empty() {
        bail!("no PEM certificate");
    }
    Ok(all)
}

/// Which of these CAs, PEM, signed a certificate that was verified already.
///
/// # Errors
/// If something is no certificate, or none of them did.
pub fn signer(certificate: &CertificateDer<'_>, cas_pem: &str) -> Result<CertificateDer<'static>> {
    let wanted = KeyIdentifiers::of(certificate)?.signer;
    let wanted = wanted.context("the certificate does not say who signed it")?;
    for ca in certificates(cas_pem)? {
        if KeyIdentifiers::of(&ca)?.own.as_ref() == Some(&wanted) {
            return Ok(ca);
        }
    }
    bail!("the certificate was signed by another CA")
}

/// Identifiers of the certificate's own key and of the one that signed it (RFC 5280,
/// 4.2.1.1 and 4.2.1.2).
#[derive(Default)]
struct KeyIdentifiers {
    own: Option<Vec<u8>>,
    signer: Option<Vec<u8>>,
}

impl KeyIdentifiers {
    fn of(der: &CertificateDer<'_>) -> Result<Self> {
        let (_, parsed) = X509Certificate::from_der(der).context("not a certificate")?;
        let mut found = Self::default();
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => found.own = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    found.signer = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// What others are told of a certificate; `cas_pem` are those that its node trusts.
///
/// # Errors
/// If it is no certificate.
pub fn shown(certificate_pem: &str, cas_pem: &str) -> Result<Certificate> {
    let expires = humantime::format_rfc3339_seconds(validity(certificate_pem)?.end).to_string();
    let ca = signer(&certificate(certificate_pem)?, cas_pem).map(|ca| hex::encode(digest(&ca)));
    Ok(Certificate { expires, ca: ca.unwrap_or_default() })
}

/// When a certificate begins, is to be renewed, and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// A day before it was signed, by the clock of the manager who did.
    pub begin: SystemTime,
    /// After two thirds of its life.
    pub renewal: SystemTime,
    /// It is worth nothing from here on.
    pub end: SystemTime,
}

/// The times of the certificate in PEM text.
///
/// # Errors
/// If there is none, or with times that cannot be.
pub fn validity(pem: &str) -> Result<Validity> {
    validity_of(&certificate(pem)?)
}

/// The times of a certificate.
///
/// # Errors
/// If it is none, or with times that cannot be.
pub fn validity_of(certificate: &CertificateDer<'_>) -> Result<Validity> {
    let (_, parsed) = X509Certificate::from_der(certificate).context("not a certificate")?;
    let time = |time: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).context("a time before 1970")?;
        Ok::<_, anyhow::Error>(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    };
    let begin = time(parsed.validity().not_before)?;
    let end = time(parsed.validity().not_after)?;
    let signed = begin + SKEW;
    let life = end.duration_since(signed).unwrap_or(Duration::ZERO);
    Ok(Validity { begin, renewal: signed + life * 2 / 3, end })
}

/// Whether the certificate is for this key, both PEM.
#[must_use]
pub fn fits(certificate_pem: &str, key_pem: &str) -> bool {
    let Ok(der) = certificate(certificate_pem) else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(&der) else { return false };
    KeyPair::from_pem(key_pem).is_ok_and(|key| {
        *parsed.public_key().subject_public_key.data == *rcgen::PublicKeyData::der_bytes(&key)
    })
}

/// The private key in PEM text.
///
/// # Errors
/// If there is none.
pub fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).context("not a PEM private key")
}

/// Whom the certificate names. It must have been verified already.
///
/// # Errors
/// If it names no node.
pub fn subject(certificate: &CertificateDer<'_>) -> Result<Subject> {
    let (_, parsed) = X509Certificate::from_der(certificate).context("not a certificate")?;
    let name = parsed.subject();
    let one = |mut values: Box<
        dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>> + '_,
    >| {
        let value = values.next()?.as_str().ok().map(str::to_owned);
        if values.next().is_some() { None } else { value }
    };
    let node = one(Box::new(name.iter_common_name())).context("no common name")?;
    let role = one(Box::new(name.iter_organizational_unit())).context("no role")?;
    let cluster = one(Box::new(name.iter_organization())).context("no cluster")?;
    let role = match role.as_str() {
        "manager" => Role::Manager,
        "worker" => Role::Worker,
        other => bail!("{other:?} is not a role"),
    };
    Ok(Subject { node: node.parse()?, role, cluster })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_node_role_and_cluster() {
        let authority = Authority::new("c1").unwrap();
        for role in [Role::Manager, Role::Worker] {
            let asked = Subject { node: NodeId::new(), role, cluster: "c1".to_owned() };
            let issued = authority.issue(&asked).unwrap();
            assert_eq!(subject(&certificate(&issued.certificate).unwrap()).unwrap(), asked);
            private_key(&issued.key).unwrap();
        }
        subject(&certificate(&authority.certificate).unwrap()).unwrap_err();
    }

    #[test]
    fn a_request_chooses_nothing() {
        let authority = Authority::new("c1").unwrap();
        let key = KeyPair::generate().unwrap();
        let mut greedy = params(SystemTime::now(), LIFETIME);
        greedy.distinguished_name.push(DnType::OrganizationalUnitName, "manager");
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = greedy.serialize_request(&key).unwrap().pem().unwrap();
        let given = Subject { node: NodeId::new(), role: Role::Worker, cluster: "c1".to_owned() };
        let signed = certificate(&authority.sign(&csr, &given, EXPIRY).unwrap()).unwrap();
        assert_eq!(subject(&signed).unwrap(), given);
        let (_, parsed) = X509Certificate::from_der(&signed).unwrap();
        assert!(!parsed.is_ca());
        assert!(parsed.subject_alternative_name().unwrap().is_none());
        assert!(!parsed.extended_key_usage().unwrap().unwrap().value.server_auth);
        authority.sign("no request", &given, EXPIRY).unwrap_err();
    }

    #[test]
    fn a_certificate_says_who_signed_it() {
        let [one, other] = [(); 2].map(|()| Authority::new("c1").unwrap());
        let given = Subject { node: NodeId::new(), role: Role::Worker, cluster: "c1".to_owned() };
        let issued = other.issue(&given).unwrap();
        let both = format!("{}{}", one.certificate, other.certificate);
        let digest_of = |pem: &str| digest(&certificate(pem).unwrap());
        let signer_of = |cas| signer(&certificate(&issued.certificate).unwrap(), cas);
        assert_eq!(digest(&signer_of(&both).unwrap()), digest_of(&other.certificate));
        signer_of(&one.certificate).unwrap_err();
        signer_of("").unwrap_err();
        let shown = shown(&issued.certificate, &both).unwrap();
        assert_eq!(shown.ca, hex::encode(digest_of(&other.certificate)));
        humantime::parse_rfc3339(&shown.expires).unwrap();
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life() {
        let authority = Authority::new("c1").unwrap();
        let given = Subject { node: NodeId::new(), role: Role::Worker, cluster: "c1".to_owned() };
        let (key, csr) = request().unwrap();
        let now = SystemTime::now();
        let signed = authority.sign(&csr, &given, Duration::from_secs(3600)).unwrap();
        let validity = validity(&signed).unwrap();
        // To the second, and made a moment later.
        let near = |time: SystemTime, minutes: u64| {
            let after = time.duration_since(now - Duration::from_secs(1)).unwrap();
            after.as_secs().abs_diff(minutes * 60) < 30
        };
        assert!(near(validity.renewal, 40) && near(validity.end, 60), "{validity:?}");
        assert!(fits(&signed, &key));
        assert!(!fits(&signed, &request().unwrap().0) && !fits(&signed, "") && !fits("", &key));
    }
}
