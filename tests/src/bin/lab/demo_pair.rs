//! The demo's second part: two nodes that share the VIP and the connections.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use etcd_lb_tests::{Balancer, Config, config::secret_file, eventually, owner::OwnerWatch};

use crate::{
    demo::{ANSWERS, CLIENTS, LIMIT, Stage, milliseconds},
    narrator::Narrator,
};

/// Between two advertisements.
const INTERVAL: &str = "100ms";

impl Stage {
    pub(crate) fn becomes_a_pair(&mut self, narrator: &mut Narrator) -> Result<()> {
        narrator.step(
            "A second node",
            "lb1 and lb2 elect the owner of the VIP by VRRP and share their flows over an encrypted stream.",
        );
        let key = self.lab.dir().join("run").join("sync.key");
        secret_file(&key, &[7; 32])?;
        let hosts = ["lb1", "lb2"].map(|name| self.lab.host(name));
        let text = |n: usize, priority| {
            Config::etcd(hosts[n], &self.cluster).pair_text(
                (hosts[n], hosts[1 - n]),
                priority,
                INTERVAL,
                &key,
            )
        };
        let (ours, theirs) = (text(0, 200), text(1, 100));
        self.balancer.stop()?;
        self.balancer.write_config(&ours)?;
        let other = Balancer::start(hosts[1], &theirs)?;
        self.balancer.run()?;
        self.other = Some(other);
        self.wait_roles("active", "backup")?;
        narrator.show("lb1# etcd-lb status", self.balancer.cli_command().arg("status"))?;
        Ok(())
    }

    pub(crate) fn node_dies(&mut self, narrator: &mut Narrator) -> Result<()> {
        narrator.step(
            "The active node's agent is killed",
            "Its lease runs out before the other node speaks: nobody owns the VIP twice, and no connection breaks.",
        );
        let fleet = self.fleet()?;
        fleet.wait_progress(ANSWERS, LIMIT)?;
        let watch = OwnerWatch::start(&self.client)?;
        let mac = self.lab.host("lb2").mac()?;
        let killed = Instant::now();
        self.balancer.kill()?;
        narrator.say("kill -9 of etcd-lb on lb1");
        let taken =
            eventually(LIMIT, "lb2 answers for the VIP", || watch.first(mac, killed).context("it does not"))?;
        fleet.wait_progress(ANSWERS, LIMIT)?;
        let sessions = fleet.finish();
        let broken = sessions.iter().filter(|session| session.broken.is_some()).count();
        let gap = sessions.iter().map(|session| session.longest_gap).max();
        narrator.say(&format!(
            "lb2 owned the VIP after {}. {CLIENTS} connections, {broken} broken; the longest time between two answers was {}.",
            milliseconds(Some(taken - killed)),
            milliseconds(gap)
        ));
        ensure!(broken == 0, "{broken} connections broke; logs:\n{}", self.lab.log_tails());
        ensure!(watch.disputed().is_empty(), "both nodes answered for the VIP");
        Ok(())
    }

    pub(crate) fn node_returns(&mut self, narrator: &mut Narrator) -> Result<()> {
        narrator.step(
            "It returns",
            "Once it has every flow it asks for the VIP, and gets it: again no connection breaks.",
        );
        let fleet = self.fleet()?;
        fleet.wait_progress(ANSWERS, LIMIT)?;
        self.balancer.run()?;
        self.wait_roles("active", "backup")?;
        fleet.wait_progress(ANSWERS, LIMIT)?;
        let broken = fleet.finish().iter().filter(|session| session.broken.is_some()).count();
        narrator.say(&format!("{CLIENTS} connections, {broken} broken."));
        ensure!(broken == 0, "{broken} connections broke; logs:\n{}", self.lab.log_tails());
        let other = self.other.as_ref().context("there is no other node")?;
        narrator.show("lb2# etcd-lb events", other.cli_command().arg("events"))?;
        Ok(())
    }

    fn wait_roles(&self, ours: &str, theirs: &str) -> Result<()> {
        let other = self.other.as_ref().context("there is no other node")?;
        for (balancer, role) in [(&self.balancer, ours), (other, theirs)] {
            eventually(LIMIT, "the nodes have their roles and are in sync", || {
                let status = balancer.status()?;
                ensure!(status["role"] == role, "{} is {}", balancer.host().name(), status["role"]);
                ensure!(status["peer"]["synced"] == true, "they are not in sync");
                Ok(())
            })?;
        }
        Ok(())
    }
}
