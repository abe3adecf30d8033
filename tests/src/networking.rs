//! What of a host's networking a balancer must not touch.
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::collections::BTreeSet;

use anyhow::ensure;

use crate::{Host, eventually, pair::LIMIT};

/// What of a host's networking is none of the balancer's: routes, rules, addresses and settings, but for its own pair.
pub struct Networking(BTreeSet<String>);

impl Networking {
    /// As it is now, once its IPv6 addresses are known to be nobody else's.
    pub fn of(host: &Host) -> Self {
        eventually(LIMIT, "IPv6 addresses that are nobody else's", || {
            let addresses = host.output("ip", &["-6", "address", "show"])?;
            ensure!(!addresses.contains("tentative"), "{addresses}");
            Ok(())
        })
        .unwrap();
        let ip = |args: &[&str]| host.output("ip", args).unwrap();
        let shown = [
            ip(&["-4", "route", "show", "table", "all"]),
            ip(&["-6", "route", "show", "table", "all"]),
            ip(&["-4", "rule", "show"]),
            ip(&["-6", "rule", "show"]),
            ip(&["-4", "-o", "address", "show"]),
            host.output("sysctl", &["-a", "--pattern", "^net\\."]).unwrap(),
        ];
        // What the kernel counts, what it keeps for the interfaces of the pair, and the group of the IPv6 VIP.
        let others = ["etcdlb0", "nf_conntrack_count", "cache expires", "ff02::1:ff00:100"];
        let lines = shown.iter().flat_map(|text| text.lines());
        Self(
            lines
                .filter(|line| !others.iter().any(|other| line.contains(other)))
                .map(str::to_owned)
                .collect(),
        )
    }

    /// Nothing has changed since `before`.
    pub fn assert_as(&self, before: &Self, what: &str) {
        let differences: Vec<_> = self.0.symmetric_difference(&before.0).collect();
        assert!(differences.is_empty(), "{what}: {differences:#?}");
    }
}
