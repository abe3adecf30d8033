//! How others talk to the agent: operators over the unix socket, monitoring over read-only HTTP.
//!
//! The handlers hold no state: each turns a request into a [`Command`] to the agent's loop and its answer into a response,
//! so that whatever they tell is what the loop decided.

pub mod capture;
pub mod client;
pub mod command;
pub mod events;
pub mod explain;
pub mod metrics;
mod page;
mod server;
pub mod status;
pub mod timestamp;

pub use command::{Command, Commands};
pub use server::{SocketFile, bind_http, bind_socket, http_router, serve_http, serve_socket, socket_router};

/// `IP:port`, or `[v6]:port`.
pub fn endpoint(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
