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
