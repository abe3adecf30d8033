//! The text of a config with one service, so that a test says only what it is about.

use std::{
    fmt::Write as _,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use crate::{CLIENT_PORT, Cluster, Host, Member, VIP, VIP6};

/// Where nodes listen for each other.
pub const SYNC_PORT: u16 = 3780;

/// A file that only its owner can read.
///
/// # Errors
///
/// If it cannot be written.
pub fn secret_file(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, contents)
}

/// A config under construction.
#[derive(Debug, Clone)]
pub struct Config {
    top: String,
    name: String,
    vip: IpAddr,
    port: u16,
    service: String,
    health: String,
    backends: String,
}

impl Config {
    /// Plain TCP on the IPv4 VIP, balanced by the pure hash, checked by connections each 200 ms, on all of the host's
    /// interfaces.
    pub fn tcp(host: &Host) -> Self {
        let interfaces: Vec<&str> = host.nics().iter().map(|nic| nic.interface.as_str()).collect();
        Self {
            top: match interfaces[..] {
                [interface] => format!("interface = {interface:?}\n"),
                _ => format!("interface = {interfaces:?}\n"),
            },
            name: "etcd".into(),
            vip: VIP.into(),
            port: CLIENT_PORT,
            service: "algorithm = \"maglev\"\n".into(),
            health: "kind = \"tcp\"\ninterval = \"200ms\"\nfast_interval = \"50ms\"\ntimeout = \"200ms\"\n"
                .into(),
            backends: String::new(),
        }
    }

    /// The same for what is restarted under its connections: a check that fails meanwhile ends none.
    pub fn echo(host: &Host) -> Self {
        Self::tcp(host).name("echo").service("on_backend_down = \"keep\"")
    }

    /// etcd on the VIP, checked over TLS, with the cluster's members as backends.
    pub fn etcd(host: &Host, cluster: &Cluster) -> Self {
        cluster.members().iter().fold(Self::etcd_of(host, cluster), |config, member| {
            config.backend(member.name(), member.client_address())
        })
    }

    /// The same over IPv6.
    pub fn etcd_v6(host: &Host, cluster: &Cluster) -> Self {
        let backend =
            |config: Self, member: &Member| config.backend(member.name(), member.client_address_v6());
        cluster.members().iter().fold(Self::etcd_of(host, cluster).vip(VIP6), backend)
    }

    /// etcd on the VIP, checked over TLS, without backends.
    pub fn etcd_of(host: &Host, cluster: &Cluster) -> Self {
        let pki = &cluster.pki;
        Self::tcp(host).health(&format!(
            "kind = \"etcd\"\ninterval = \"500ms\"\nfast_interval = \"100ms\"\ntimeout = \"500ms\"\nrise = 2\nfall = 2\n\
             ca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}",
            pki.ca, pki.client.cert, pki.client.key
        ))
    }

    /// Another name for the service.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Another port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Another VIP.
    #[must_use]
    pub fn vip(self, vip: impl Into<IpAddr>) -> Self {
        Self { vip: vip.into(), ..self }
    }

    /// Lines more above all sections.
    #[must_use]
    pub fn top(mut self, lines: &str) -> Self {
        self.top += lines;
        self.top += "\n";
        self
    }

    /// Lines more in `[[service]]`.
    #[must_use]
    pub fn service(mut self, lines: &str) -> Self {
        self.service += lines;
        self.service += "\n";
        self
    }

    /// Without an `algorithm`: the default.
    #[must_use]
    pub fn default_algorithm(mut self) -> Self {
        self.service = self.service.replace("algorithm = \"maglev\"\n", "");
        self
    }

    /// Other lines in `[service.health]`.
    #[must_use]
    pub fn health(self, lines: &str) -> Self {
        Self { health: format!("{lines}\n"), ..self }
    }

    /// Lines more in `[service.health]`.
    #[must_use]
    pub fn more_health(mut self, lines: &str) -> Self {
        self.health += lines;
        self.health += "\n";
        self
    }

    /// A backend more.
    #[must_use]
    pub fn backend(mut self, name: &str, address: SocketAddr) -> Self {
        // Writing to a string cannot fail.
        let _ = writeln!(self.backends, "[[service.backend]]\nname = {name:?}\naddress = \"{address}\"");
        self
    }

    /// A backend more for each address, named by it.
    #[must_use]
    pub fn addresses(self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        addresses.into_iter().fold(self, |config, address| config.backend(&address.to_string(), address))
    }

    /// A backend more for each address, named b0, b1 and so on.
    #[must_use]
    pub fn numbered(self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let numbered = addresses.into_iter().enumerate();
        numbered.fold(self, |config, (number, address)| config.backend(&format!("b{number}"), address))
    }

    /// The whole text for a node of a pair, which shares its flows with the other one by the key in a file.
    pub fn pair_text(&self, hosts: (&Host, &Host), priority: u8, interval: &str, key: &Path) -> String {
        let address = |host: &Host| SocketAddr::from((host.address(), SYNC_PORT));
        format!(
            "{}\n[vrrp]\npriority = {priority}\nadvert_interval = {interval:?}\n[sync]\nlisten = \"{}\"\npeer = \"{}\"\n\
             key_file = {key:?}\n",
            self.text(),
            address(hosts.0),
            address(hosts.1)
        )
    }

    /// The whole text.
    pub fn text(&self) -> String {
        format!("{}{}", self.top, self.service_text())
    }

    /// Only its service, as one more for another config.
    pub fn service_text(&self) -> String {
        let Self { name, vip, port, service, health, backends, .. } = self;
        format!(
            "[[service]]\nname = {name:?}\nvip = \"{vip}\"\nport = {port}\n{service}\n[service.health]\n{health}{backends}"
        )
    }
}
