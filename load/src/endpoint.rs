//! Where etcd is: `http://10.0.1.100:2379`, `https://[fd00::1]`, `https://etcd.example:2379`.

use std::{fmt, str::FromStr};

use hyper::Uri;

/// etcd's client port, where a URL has none.
const CLIENT_PORT: u16 = 2379;

/// A client URL of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    tls: bool,
    /// A name or an address, the latter without brackets.
    host: String,
    port: u16,
    origin: Uri,
}

impl Endpoint {
    /// Whether it is `https`.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Its host: a name, or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Scheme and authority, as requests name them.
    pub fn origin(&self) -> &Uri {
        &self.origin
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Uri` shows the path `/`, which it always has.
        formatter.write_str(self.origin.to_string().trim_end_matches('/'))
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write a URL such as http://10.0.1.100:2379";
        let uri: Uri = text.parse().map_err(|error| format!("{text:?}: {error}; {example}"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(format!("{text:?} is neither http:// nor https://; {example}")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(format!("{text:?} has a path; {example}"));
        }
        let host = uri.host().unwrap_or_default();
        if host.is_empty() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(format!("{text:?} does not name a host alone; {example}"));
        }
        let port = uri.port_u16().unwrap_or(CLIENT_PORT);
        let scheme = if tls { "https" } else { "http" };
        let origin = format!("{scheme}://{host}:{port}").parse();
        let origin = origin.map_err(|error| format!("{text:?}: {error}; {example}"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { tls, host, port, origin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        for (text, host, shown) in [
            ("http://10.0.1.100", "10.0.1.100", "http://10.0.1.100:2379"),
            ("https://[fd00::1]:12379/", "fd00::1", "https://[fd00::1]:12379"),
            ("https://etcd.example:443", "etcd.example", "https://etcd.example:443"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.host(), endpoint.to_string().as_str()), (host, shown));
            assert_eq!(endpoint.is_tls(), text.starts_with("https"));
        }
    }

    #[test]
    fn what_is_none_is_refused_in_words() {
        for (text, said) in [
            ("10.0.1.100:2379", "is neither http:// nor https://"),
            ("unix:///run/etcd.sock", "write a URL such as"),
            ("unix://run", "is neither http:// nor https://"),
            ("http://", "write a URL such as"),
            ("http://10.0.1.100/health", "has a path"),
            ("http://a:b@c", "does not name a host alone"),
            ("", "write a URL such as"),
        ] {
            let refused = text.parse::<Endpoint>().unwrap_err();
            assert!(refused.contains(said), "{text}: {refused}");
        }
    }
}
