//! Keeping the VIPs through a restart: a longer interval is announced, at the pace of before, and once every peer reckons with
//! it the lease lasts three of these. The agent may then be away for so long.

use std::time::Duration;

use lb_core::{config::VrrpVersion, sync::Message, vrrp::Role};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Pair, now};
use crate::{agent::state::Agent, vrrp::Order};

/// The longest interval that can be announced: 12 bits of 10 ms (RFC 9568 section 5.2.5).
const MAX_INTERVAL: Duration = Duration::from_millis(40_950);
/// For the peers to confirm.
const PATIENCE: Duration = Duration::from_secs(5);

/// A hold, asked for or in force.
pub(in crate::agent) struct Hold {
    interval: Duration,
    asked_at: Duration,
    state: State,
}

enum State {
    /// The peers are to confirm.
    Asked(oneshot::Sender<Result<u64, String>>),
    /// They have; the next advertisement makes the lease longer.
    Confirmed(oneshot::Sender<Result<u64, String>>),
    Held,
}

impl Pair {
    /// Whether the agent may end without the VIPs going elsewhere.
    pub(in crate::agent) fn is_held(&self) -> bool {
        matches!(self.hold, Some(Hold { state: State::Held, .. }))
    }
}

impl Agent {
    /// Makes the lease last for `time` from now on; answered with how long it does, ms.
    pub(in crate::agent) fn hold(&mut self, time: Duration, reply: oneshot::Sender<Result<u64, String>>) {
        match self.why_no_hold() {
            Some(reason) => drop(reply.send(Err(reason))),
            None => {
                // In steps of 10 ms.
                let centiseconds = time.as_millis().div_ceil(3).div_ceil(10);
                let interval = Duration::from_millis(u64::try_from(centiseconds * 10).unwrap_or(u64::MAX));
                let interval = interval.clamp(self.own_interval(), MAX_INTERVAL);
                if let Some(pair) = &mut self.pair {
                    pair.hold = Some(Hold { interval, asked_at: now(), state: State::Asked(reply) });
                }
                self.tell_pair(Order::AnnounceInterval(interval));
                self.say_to_all(&Message::Interval(u32::try_from(interval.as_millis()).unwrap_or(u32::MAX)));
            }
        }
    }

    fn why_no_hold(&self) -> Option<String> {
        let (Some(pair), Some(vrrp)) = (&self.pair, &self.config.vrrp) else {
            return Some("this node has no peer: its data plane serves through every restart".into());
        };
        if pair.role != Role::Active {
            return Some(format!("this node is {}: it can be restarted at any time", super::name(pair.role)));
        }
        if vrrp.version != VrrpVersion::V3 {
            return Some(
                "version 2 cannot announce another interval: use `etcd-lb failover` before the restart"
                    .into(),
            );
        }
        let synced = self.sync.as_ref().is_some_and(crate::agent::sync::FlowSync::is_synced);
        (!synced).then(|| {
            "the other node is no etcd-lb, or not in sync: use `etcd-lb failover` before the restart".into()
        })
    }

    fn own_interval(&self) -> Duration {
        self.config.vrrp.as_ref().map_or(MAX_INTERVAL, |vrrp| vrrp.advert_interval)
    }

    /// Every peer reckons with the interval.
    pub(in crate::agent) fn on_all_confirmed(&mut self, interval: Duration) {
        let Some(hold) = self.pair.as_mut().and_then(|pair| pair.hold.take()) else { return };
        let Hold { state: State::Asked(reply), .. } = hold else {
            self.put_back(hold);
            return;
        };
        if hold.interval != interval {
            self.put_back(Hold { state: State::Asked(reply), ..hold });
            return;
        }
        self.tell_pair(Order::ConfirmInterval(interval));
        self.put_back(Hold { interval, asked_at: hold.asked_at, state: State::Confirmed(reply) });
    }

    /// An advertisement went out.
    pub(super) fn go_on_with_hold(&mut self) {
        let Some(pair) = &mut self.pair else { return };
        let Some(hold) = pair.hold.take() else { return };
        let lasts = pair.lease.held(now()).map_or(Duration::ZERO, |until| until.saturating_sub(now()));
        let is_late = now().saturating_sub(hold.asked_at) > PATIENCE;
        match hold.state {
            State::Confirmed(reply) if lasts > 2 * hold.interval => {
                info!(?lasts, "the VIPs stay here through a restart of the agent");
                let _ = reply.send(Ok(u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX)));
                self.put_back(Hold { state: State::Held, ..hold });
            }
            State::Asked(reply) | State::Confirmed(reply) if is_late => {
                warn!(
                    "the other node did not confirm the longer interval; the VIPs would move with a restart"
                );
                let _ = reply
                    .send(Err("the other node did not confirm within 5 s; use `etcd-lb failover`".into()));
                let interval = self.own_interval();
                self.tell_pair(Order::AnnounceInterval(interval));
            }
            // Nobody restarted the agent: the other node is not to wait so long for ever.
            State::Held if now().saturating_sub(hold.asked_at) > 3 * hold.interval + PATIENCE => {
                info!("the agent was not restarted; the VIPs would move with a restart again");
                let interval = self.own_interval();
                self.tell_pair(Order::AnnounceInterval(interval));
                self.tell_pair(Order::ConfirmInterval(interval));
            }
            state => self.put_back(Hold { state, ..hold }),
        }
    }

    fn put_back(&mut self, hold: Hold) {
        if let Some(pair) = &mut self.pair {
            pair.hold = Some(hold);
        }
    }
}
