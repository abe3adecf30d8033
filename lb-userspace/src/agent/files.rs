//! The config file, and the files it names.

use std::path::Path;

use lb_core::{
    config::{self, Config, Warning},
    seed::MIN_SECRET,
};

use crate::{
    probe::{Alpn, TlsFiles, TlsSource},
    secret,
};

/// A config with what its files hold.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// What the operator should know.
    pub warnings: Vec<Warning>,
    /// Contents of `hash_seed_file`.
    pub hash_secret: Option<Vec<u8>>,
}

/// Reads and checks a config and every file that it names.
///
/// # Errors
/// All that is wrong, in words, with the place in the file.
pub fn load(path: &Path) -> Result<Loaded, String> {
    let name = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|error| {
            format!(
                "cannot read the config {name}: {error}; README.md has one to begin with, and `etcd-lb import` makes one \
                 from HAProxy's, keepalived's or NGINX's"
            )
        })?;
    let (config, warnings) = config::parse(&text, &name).map_err(|errors| errors.to_string())?;
    let hash_secret = config.hash_seed_file.as_deref().map(hash_secret).transpose()?;
    for service in &config.services {
        if let Some(tls) = service.health.probe.tls() {
            let client = tls.client.as_ref().map(|c| (c.cert_file.clone(), c.key_file.clone()));
            let source = TlsSource::new(TlsFiles { ca_file: tls.ca_file.clone(), client }, Alpn::Http1);
            source
                .config()
                .map_err(|reason| format!("health check of service {:?}: {reason}", service.name))?;
        }
    }
    Ok(Loaded { config, warnings, hash_secret })
}

fn hash_secret(path: &Path) -> Result<Vec<u8>, String> {
    let secret = secret::read(path).map_err(|error| format!("hash_seed_file: {error}"))?;
    if secret.len() < MIN_SECRET {
        return Err(format!(
            "hash_seed_file: {} holds {} octets, at least {MIN_SECRET} are needed; \
             make one with `head -c 32 /dev/urandom` and copy it to the other node",
            path.display(),
            secret.len()
        ));
    }
    Ok(secret)
}
