//! A crowd of connections that say nothing until they are asked to, a thread for all of them at either side. Most of them can
//! vanish at both ends without a word, so that a balancer has more of them than a process may have descriptors.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    ops::Range,
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};

use crate::Host;

/// Ends a connection at this end without a word to the other one: as if its host had lost power.
fn vanish(stream: TcpStream) -> Result<()> {
    // What is closed in repair mode sends nothing (tcp(7), `TCP_REPAIR`).
    setsockopt(&stream, sockopt::TcpRepair, &1).context("TCP_REPAIR")?;
    drop(stream);
    Ok(())
}

/// A server that accepts connections and keeps them, or lets them vanish.
#[derive(Debug)]
pub struct CrowdServer {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    keeps: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl CrowdServer {
    /// Listens on a host's IPv4 address.
    ///
    /// # Errors
    ///
    /// If the port is taken.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let address = SocketAddr::from((host.address(), port));
        let listener =
            host.run(|| TcpListener::bind(address)).with_context(|| format!("listening on {address}"))?;
        listener.set_nonblocking(true)?;
        let connections = Arc::<Mutex<Vec<TcpStream>>>::default();
        let keeps = Arc::<AtomicBool>::default();
        let stop = Arc::<AtomicBool>::default();
        let acceptor = thread::spawn({
            let (connections, keeps, stop) =
                (Arc::clone(&connections), Arc::clone(&keeps), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) if !keeps.load(Ordering::Relaxed) => {
                            if let Err(error) = vanish(stream) {
                                eprintln!("a connection of a crowd: {error:#}");
                            }
                        }
                        Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => {
                            connections.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
                        }
                        _ => thread::sleep(Duration::from_millis(2)),
                    }
                }
            }
        });
        Ok(Self { address, connections, keeps, stop, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Keeps what is accepted from now on; before, it vanishes.
    pub fn keep(&self) {
        self.keeps.store(true, Ordering::Relaxed);
    }

    /// On how many connections something has come since this was asked last.
    pub fn heard(&self) -> usize {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let mut octets = [0; 64];
        let mut heard = 0;
        // Those that have ended are probes of health checks, or broken.
        connections.retain_mut(|stream| match stream.read(&mut octets) {
            Ok(0) => false,
            Ok(_) => {
                heard += 1;
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        heard
    }
}

impl Drop for CrowdServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.acceptor.take().is_some_and(|acceptor| acceptor.join().is_err()) {
            eprintln!("a server of a crowd panicked");
        }
    }
}

/// Opens connections from a host, each from a port of its own.
///
/// # Errors
///
/// If one does not come about.
pub fn open(host: &Host, target: SocketAddrV4, ports: Range<u16>) -> Result<Vec<TcpStream>> {
    host.run(|| ports.map(|port| connect(host, target, port)).collect())
}

/// The same, and each vanishes.
///
/// # Errors
///
/// As [`open`].
pub fn open_and_vanish(host: &Host, target: SocketAddrV4, ports: Range<u16>) -> Result<()> {
    host.run(|| ports.into_iter().try_for_each(|port| vanish(connect(host, target, port)?)))
}

fn connect(host: &Host, target: SocketAddrV4, port: u16) -> Result<TcpStream> {
    let from = SockaddrIn::from(SocketAddrV4::new(host.address(), port));
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).context("a socket")?;
    let connect = || -> nix::Result<()> {
        bind(socket.as_raw_fd(), &from)?;
        nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrIn::from(target))
    };
    connect().with_context(|| format!("connecting from port {port} of {}", host.name()))?;
    Ok(socket.into())
}

/// Says something on each connection.
///
/// # Errors
///
/// If one is broken.
pub fn speak(connections: &mut [TcpStream]) -> Result<()> {
    for (number, connection) in connections.iter_mut().enumerate() {
        connection.write_all(b"x").with_context(|| format!("on connection {number}"))?;
    }
    Ok(())
}
