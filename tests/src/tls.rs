//! Certificates made for one run: a CA, a server certificate for each member, a client certificate.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{VIP, VIP6};

/// Certificate and key of one party, as PEM files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate's file.
    pub cert: PathBuf,
    /// The private key's file, readable by its owner only.
    pub key: PathBuf,
}

/// The certificates of a lab.
#[derive(Debug, Clone)]
pub struct Pki {
    /// The CA certificate's file.
    pub ca: PathBuf,
    /// What clients present.
    pub client: Identity,
    /// Client configuration with the two.
    pub config: Arc<ClientConfig>,
}

/// What a server certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerUse {
    /// `serverAuth` alone, as a careful authority issues it.
    ServerOnly,
    /// `clientAuth` too.
    WithGateway,
    /// As that, but not for the VIPs.
    WithoutVips,
    /// As that, but no more.
    Expired,
}

/// Makes the CA and what it signs.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    ca: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new CA, its files in `dir`.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        let mut params = named("etcd-lb lab CA", Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let ca = dir.join("ca.pem");
        fs::write(&ca, certificate.pem()).with_context(|| format!("cannot write {}", ca.display()))?;
        Ok(Self { dir: dir.to_path_buf(), ca, issuer: Issuer::new(params, key) })
    }

    /// A server certificate valid for the member's addresses, the VIPs and localhost. With [`ServerUse::WithGateway`] it is one
    /// for clients too, since etcd's own JSON gateway connects to its gRPC side with it.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn server(&self, name: &str, addresses: &[IpAddr], usage: ServerUse) -> Result<Identity> {
        let mut names = vec![name.to_owned(), "localhost".into(), "127.0.0.1".into()];
        let is_named = |address: &&IpAddr| {
            usage != ServerUse::WithoutVips || ![VIP.into(), VIP6.into()].contains(*address)
        };
        names.extend(addresses.iter().filter(is_named).map(IpAddr::to_string));
        let mut params = named(name, names)?;
        params.extended_key_usages = match usage {
            ServerUse::ServerOnly => vec![ExtendedKeyUsagePurpose::ServerAuth],
            ServerUse::WithGateway | ServerUse::WithoutVips | ServerUse::Expired => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        if usage == ServerUse::Expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        self.issue(name, &params)
    }

    /// The client certificate, and what a client needs.
    ///
    /// # Errors
    ///
    /// If a file cannot be written, or rustls refuses what was made.
    pub fn pki(&self) -> Result<Pki> {
        let client = self.client("client")?;

        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca)?)?;
        let chain = vec![CertificateDer::from_pem_file(&client.cert)?];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&client.key)?)?;
        Ok(Pki { ca: self.ca.clone(), client, config: Arc::new(config) })
    }

    /// A client certificate with this common name.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn client(&self, name: &str) -> Result<Identity> {
        let mut params = named(name, Vec::new())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(name, &params)
    }

    fn issue(&self, name: &str, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate: Certificate = params.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            cert: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}-key.pem")),
        };
        fs::write(&identity.cert, certificate.pem())?;
        // One issued anew takes the place of the old one.
        if identity.key.exists() {
            fs::remove_file(&identity.key)?;
        }
        write_secret(&identity.key, &key.serialize_pem())?;
        Ok(identity)
    }
}

fn named(common_name: &str, subject_alt_names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(subject_alt_names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}
