//! Applying a changed config file while packets flow: all of it, or nothing.

use std::{collections::BTreeSet, net::IpAddr};

use lb_core::{config::Config, desired::BackendKey};
use tracing::{info, warn};

use super::{files, fit, report::Reloaded, state::Agent};
use crate::{api::command::ReloadAnswer, dataplane::monotonic_ns};

impl Agent {
    /// Reads the file and applies it.
    ///
    /// # Errors
    /// What is wrong with it, in words; then everything is as before.
    pub(super) async fn reload(&mut self) -> Result<ReloadAnswer, String> {
        self.notifier.reloading(monotonic_ns());
        let result = self.try_reload().await;
        self.reloaded.note(result.is_ok());
        match &result {
            Ok(_) => self.events.note("config", "", "reloaded"),
            Err(reason) => self.events.note("config", "", format!("reload refused: {reason}")),
        }
        if result.is_err() {
            // The signal may have come from logrotate, whatever else the file says.
            self.reopen_flow_log();
        }
        self.notifier.ready(if result.is_ok() {
            "Config reloaded"
        } else {
            "Reload refused, the config is as before"
        });
        result
    }

    async fn try_reload(&mut self) -> Result<ReloadAnswer, String> {
        let mut loaded = files::load(&self.config_path)?;
        if let Some(socket) = &self.socket_override {
            loaded.config.api.socket.clone_from(socket);
        }
        let fixed = fixed(&self.config, &loaded.config);
        if !fixed.is_empty() {
            return Err(format!("{}: {}", self.config_path.display(), fixed.join("\n")));
        }
        if let Some(misfit) = fit::misfit(&loaded.config, self.network.mirror()) {
            return Err(format!("{}: {misfit}", self.config_path.display()));
        }
        let ours: Vec<IpAddr> =
            self.config.services.iter().flat_map(|service| [service.vip, service.source_address]).collect();
        // Up to 150 ms, in which no flip is acted upon, and only when a VIP is new.
        fit::vips_are_free(&loaded.config, self.network.mirror(), &ours)
            .await
            .map_err(|error| error.to_string())?;

        self.told.follow(&loaded.config)?;
        let finds_before = self.finds.clone();
        self.finds.rewrite(&loaded.config);
        self.discoveries.configure(&loaded.config);
        let before = std::mem::replace(&mut self.config, self.finds.effective());
        let secret_before = std::mem::replace(&mut self.hash_secret, loaded.hash_secret);
        let drains_before = self.drains.clone();
        if let Err(error) = self.adopt_config().await {
            self.config = before;
            self.finds = finds_before;
            self.discoveries.configure(&self.config);
            self.hash_secret = secret_before;
            self.drains = drains_before;
            if let Err(error) = self.adopt_config().await {
                warn!(%error, "the config from before could not be restored in full");
                self.unreconciled = true;
            }
            return Err(format!("{}: {error}; the config is as before", self.config_path.display()));
        }
        for warning in &loaded.warnings {
            warn!("{warning}");
        }
        info!(config = %self.config_path.display(), services = self.config.services.len(), "config reloaded");
        Ok(ReloadAnswer {
            config: self.config_path.display().to_string(),
            warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
        })
    }

    /// Makes everything follow from the config in force.
    pub(super) async fn adopt_config(&mut self) -> Result<(), crate::dataplane::Error> {
        self.checks.configure(&self.config, |_| None);
        let backends: BTreeSet<_> = self
            .config
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| BackendKey::new(service, backend)))
            .collect();
        self.drains.retain(|drained, _| backends.contains(drained));
        self.failing_open.resize(self.config.services.len(), false);
        self.look_up_hops().await;
        self.follow_groups().await;
        self.hops.learn(self.network.mirror());
        self.hops.provoke(self.network.handle(), self.network.mirror()).await;
        self.node.look_again = true;
        if !self.serving {
            return Ok(());
        }
        let tables = self.plane.table_numbers();
        self.try_reconcile()?;
        self.sync_tables(&tables);
        Ok(())
    }
}

/// What cannot change while the agent runs, in words, each with what to do.
fn fixed(now: &Config, new: &Config) -> Vec<String> {
    let restart = "restart the agent (`systemctl restart etcd-lb`); no flow is lost";
    let anew = "stop the agent, run `etcd-lb detach` (which ends all flows), and start it again";
    let changed = [
        ("interface", now.interfaces != new.interfaces, restart),
        ("node_interface", now.node_link != new.node_link, restart),
        ("xdp_mode", now.xdp_mode != new.xdp_mode, restart),
        ("max_flows", now.max_flows != new.max_flows, restart),
        ("[api] pin_dir", now.api.pin_dir != new.api.pin_dir, anew),
        ("[vrrp]", now.vrrp != new.vrrp, restart),
        ("[sync]", now.sync != new.sync, restart),
        ("[api] socket", now.api.socket != new.api.socket, restart),
        ("[api] http_listen", now.api.http_listen != new.api.http_listen, restart),
    ];
    let changed = changed.into_iter().filter(|(_, changed, _)| *changed);
    changed.map(|(key, _, way)| format!("`{key}` cannot be changed while the agent runs: {way}")).collect()
}

impl Reloaded {
    fn note(&mut self, successful: bool) {
        if successful {
            *self = Self::now();
        } else {
            self.successful = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: &str, to: &str) -> Config {
        let text = r#"
            interface = "eth0"
            max_flows = 2048
            [[service]]
            name = "etcd"
            vip = "10.0.1.100"
            port = 2379
            algorithm = "maglev"
            on_backend_down = "keep"
            health = { kind = "tcp" }
            backend = [{ address = "10.0.1.10:2379" }]
            [api]
            socket = "/run/a.sock"
        "#;
        lb_core::config::parse(&text.replace(change, to), "config.toml").unwrap().0
    }

    #[test]
    fn what_is_fixed_is_named_with_the_way_out() {
        let now = config("", "");
        assert!(fixed(&now, &config("10.0.1.10:2379", "10.0.1.11:2379")).is_empty());
        for (change, to, says) in [
            ("2048", "4096", "`max_flows` cannot be changed while the agent runs: restart the agent"),
            (
                "\"eth0\"",
                "[\"eth0\", \"eth1\"]",
                "`interface` cannot be changed while the agent runs: restart",
            ),
            ("/run/a.sock", "/run/b.sock", "`[api] socket` cannot be changed"),
        ] {
            let said = fixed(&now, &config(change, to));
            assert!(said.len() == 1 && said[0].starts_with(says), "{said:?}");
        }
    }
}
