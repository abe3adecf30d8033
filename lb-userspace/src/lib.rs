//! The agent of etcd-lb, as a library that the binary and the tests share.

pub mod agent;
pub mod api;
pub mod capture;
pub mod dataplane;
pub mod discovery;
pub mod doctor;
#[cfg(test)]
mod in_step;
pub mod netlink;
pub mod object;
mod packet;
pub mod probe;
pub mod secret;
pub mod sync;
pub mod units;
pub mod vrrp;
