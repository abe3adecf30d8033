//! The agent of etcd-lb, as a library that the binary and the tests share.

pub mod netlink;
