//! systemd's notification protocol (sd_notify(3)): one datagram a message to the socket in `$NOTIFY_SOCKET`.

use std::{
    env,
    ffi::OsStr,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// The way to systemd, or to nobody.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// From the environment that systemd sets for a `Type=notify` service.
    pub(super) fn from_env() -> Self {
        let address = env::var_os("NOTIFY_SOCKET").and_then(|name| address(&name));
        let socket = address.and_then(|address| Some((UnixDatagram::unbound().ok()?, address)));
        let watchdog = env::var("WATCHDOG_USEC")
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|_| env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string()))
            .map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// Tells systemd, if it listens. It cannot fail in a way that matters here.
    pub(super) fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }

    /// Up and serving.
    pub(super) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// A reload has begun at `monotonic_ns`; [`Notifier::ready`] ends it.
    pub(super) fn reloading(&self, monotonic_ns: u64) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_ns / 1000));
    }

    /// How often to tell that the agent is alive: half of systemd's patience.
    pub(super) fn watchdog_pace(&self) -> Option<Duration> {
        self.watchdog.map(|patience| patience / 2).filter(|pace| !pace.is_zero())
    }
}

/// A path, or with `@` in front a name in the abstract namespace.
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told_of_a_reload_and_its_end() {
        let name = format!("@etcd-lb-notify-{}", std::process::id());
        let at = address(OsStr::new(&name)).unwrap();
        let systemd = UnixDatagram::bind_addr(&at).unwrap();
        let notifier = Notifier { socket: Some((UnixDatagram::unbound().unwrap(), at)), watchdog: None };
        notifier.reloading(1_234_567_890);
        notifier.ready("Config reloaded");
        let next = || {
            let mut octets = [0; 256];
            let length = systemd.recv(&mut octets).unwrap();
            String::from_utf8(octets[..length].to_vec()).unwrap()
        };
        // `Type=notify-reload` needs the time as well (systemd 253; sd_notify(3)); Debian 12 has 252, which passes it over.
        assert_eq!(next(), "RELOADING=1\nMONOTONIC_USEC=1234567");
        assert_eq!(next(), "READY=1\nSTATUS=Config reloaded");
    }

    #[test]
    fn half_of_systemds_patience_is_the_pace() {
        let with = |patience| Notifier { socket: None, watchdog: patience }.watchdog_pace();
        assert_eq!(with(Some(Duration::from_secs(30))), Some(Duration::from_secs(15)));
        assert_eq!((with(Some(Duration::ZERO)), with(None)), (None, None));
        assert!(address(OsStr::new("relative")).is_none() && address(OsStr::new("")).is_none());
    }
}
