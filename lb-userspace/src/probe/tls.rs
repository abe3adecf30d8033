//! TLS toward backends: files that are read anew when they change, and errors in words.

use std::{
    error::Error,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::extensions::GeneralName;

use super::Failure;
use crate::secret;

/// The files of a service's health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that sign the backends' certificates.
    pub ca_file: PathBuf,
    /// The client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What is spoken over TLS, as ALPN names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/1.1, which needs no name.
    Http1,
    /// HTTP/2: gRPC's servers insist on it.
    Http2,
}

/// The files, and what was read from them last.
#[derive(Debug)]
pub struct TlsSource {
    files: TlsFiles,
    alpn: Alpn,
    cached: Mutex<Option<(Vec<SystemTime>, Arc<ClientConfig>)>>,
}

impl TlsSource {
    /// Nothing is read yet.
    pub fn new(files: TlsFiles, alpn: Alpn) -> Self {
        Self { files, alpn, cached: Mutex::new(None) }
    }

    /// The files it reads.
    pub fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// The configuration as of the files' last change.
    ///
    /// # Errors
    /// A file that cannot be read, holds nothing of its kind, or is a key that others can read.
    pub fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let stamps = self.stamps()?;
        // A panic while the lock is held leaves either the old pair or the new one: both are whole.
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read_at, config)) = cached.as_ref()
            && *read_at == stamps
        {
            return Ok(config.clone());
        }
        let mut config = load(&self.files)?;
        if self.alpn == Alpn::Http2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let config = Arc::new(config);
        *cached = Some((stamps, config.clone()));
        Ok(config)
    }

    fn stamps(&self) -> Result<Vec<SystemTime>, String> {
        let client = self.files.client.iter().flat_map(|(cert, key)| [cert, key]);
        std::iter::once(&self.files.ca_file)
            .chain(client)
            .map(|path| {
                std::fs::metadata(path).and_then(|m| m.modified()).map_err(|error| unreadable(path, &error))
            })
            .collect()
    }
}

/// Shakes hands over `stream`; the backend's certificate must be valid for `server_name`, a name or an address. Also says
/// what that certificate says.
pub(super) async fn connect(
    stream: TcpStream,
    source: &TlsSource,
    server_name: &str,
) -> Result<(TlsStream<TcpStream>, Option<Presented>), Failure> {
    let config = source.config().map_err(Failure::new)?;
    let name = ServerName::try_from(server_name.to_owned()).map_err(|_| {
        Failure::new(format!("server_name {server_name:?} is neither a DNS name nor an address"))
    })?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
        Failure::new(reason_within(&error).unwrap_or_else(|| match error.kind() {
            io::ErrorKind::UnexpectedEof => "the backend closed the connection (does it speak TLS?)".into(),
            _ => error.to_string(),
        }))
    })?;
    let presented = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let presented = presented.and_then(|certificate| Presented::read(certificate));
    Ok((stream, presented))
}

/// What a backend's certificate says.
pub(super) struct Presented {
    /// When it ends, Unix time in seconds.
    pub(super) not_after: i64,
    /// Its SAN entries, as openssl prints them.
    pub(super) names: Vec<String>,
}

impl Presented {
    fn read(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|extension| &extension.value.general_names);
        let words = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some(format!("DNS:{name}")),
            GeneralName::IPAddress(octets) => {
                let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
                let ip = v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from));
                ip.ok().map(|ip| format!("IP:{ip}"))
            }
            _ => None,
        };
        Some(Self {
            not_after: certificate.validity().not_after.timestamp(),
            names: names.filter_map(words).collect(),
        })
    }
}

/// TLS's reason somewhere inside an error, in words.
pub(super) fn reason_within(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(words(error));
        }
        // io::Error's source() is its inner error's source, so that the inner error itself is skipped.
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(reason) = reason_within(inner)
        {
            return Some(reason);
        }
        next = error.source();
    }
    None
}

fn words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate_words(error),
        rustls::Error::AlertReceived(alert) => alert_words(*alert),
        rustls::Error::InvalidMessage(_) => "the backend does not speak TLS on this port".into(),
        rustls::Error::PeerIncompatible(reason) => format!("no TLS 1.2 or 1.3 in common: {reason:?}"),
        other => other.to_string(),
    }
}

fn certificate_words(error: &CertificateError) -> String {
    match error {
        CertificateError::NotValidForNameContext { expected, presented } => {
            let missing = match expected {
                ServerName::IpAddress(address) => format!("IP:{}", IpAddr::from(*address)),
                other => format!("DNS:{}", other.to_str()),
            };
            let presented = if presented.is_empty() {
                "no name at all".into()
            } else {
                presented.iter().map(|name| san(name)).collect::<Vec<_>>().join(", ")
            };
            format!(
                "the backend's certificate lacks the SAN entry {missing}; it is valid for {presented} \
                 (set server_name to one of them, or issue it anew)"
            )
        }
        CertificateError::NotValidForName => "the backend's certificate lacks the SAN entry asked for".into(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the backend's certificate expired {}", ago(not_after.as_secs()))
        }
        CertificateError::Expired => "the backend's certificate has expired".into(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the backend's certificate is not valid yet (are the clocks right?)".into()
        }
        CertificateError::UnknownIssuer => {
            "the backend's certificate is signed by an authority that is not in ca_file".into()
        }
        CertificateError::BadSignature => {
            "the backend's certificate is not signed by the authority in ca_file, but by another of the same name (was it made \
             anew?)"
                .into()
        }
        other => format!("the backend's certificate is refused: {other}"),
    }
}

/// A SAN entry as openssl prints it, from rustls' `DnsName("etcd-1")` or `IpAddress(10.0.1.10)`.
fn san(presented: &str) -> String {
    for (kind, prefix) in [("DnsName(", "DNS:"), ("IpAddress(", "IP:")] {
        if let Some(value) = presented.strip_prefix(kind).and_then(|rest| rest.strip_suffix(')')) {
            return format!("{prefix}{}", value.trim_matches('"'));
        }
    }
    presented.to_owned()
}

fn alert_words(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "the backend wants a client certificate: set cert_file and key_file".into()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnknownCA
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => {
            format!(
                "the backend refuses our client certificate (alert {alert:?}): check cert_file, or set it if it is absent"
            )
        }
        other => format!("the backend ended the handshake with alert {other:?}"),
    }
}

/// How long ago a Unix time was.
fn ago(at: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(at, |now| now.as_secs());
    match now.saturating_sub(at) {
        seconds if seconds < 7200 => format!("{} minutes ago", seconds / 60),
        seconds if seconds < 172_800 => format!("{} hours ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

fn load(files: &TlsFiles) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca_file)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", files.ca_file.display()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match &files.client {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| format!("{} and {}: {error}", cert.display(), key.display()))?,
    };
    // Each probe is to see what a new client sees: a resumed session skips the certificate's check.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{} holds no PEM certificate", path.display())),
        Err(error) => Err(format!("{} is not PEM: {error}", path.display())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = secret::read(path).map_err(|error| error.to_string())?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| format!("{} holds no PEM private key: {error}", path.display()))
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_told_with_the_san_entry_that_is_missing() {
        let error = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("10.0.1.11").unwrap(),
            presented: vec!["DnsName(\"etcd-1\")".into(), "IpAddress(10.0.1.10)".into()],
        };
        assert_eq!(
            certificate_words(&error),
            "the backend's certificate lacks the SAN entry IP:10.0.1.11; it is valid for DNS:etcd-1, IP:10.0.1.10 \
             (set server_name to one of them, or issue it anew)"
        );
    }

    #[test]
    fn the_innermost_error_is_told() {
        let tls = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls));
        let reason = reason_within(&wrapped).unwrap();
        assert!(reason.contains("client certificate"), "{reason}");
        assert_eq!(reason_within(&io::Error::other("no TLS here")), None);
    }
}
