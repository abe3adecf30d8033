//! Two machines on a simulated network: never two owners while each hears the other, always one in the end.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use proptest::prelude::*;

use super::super::{packet::STOPPED, *};

const STEP: Duration = Duration::from_millis(1);

fn address(node: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 1, 1 + node as u8).into()
}

/// What happens to a node.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// It does not run for so long.
    Hang(usize, u64),
    /// It is ended, and started anew after so long.
    Kill(usize, u64),
    Stop(usize, u64),
    FailOver(usize),
    /// Nothing that it sends arrives, though the send succeeds, for so long.
    Mute(usize, u64),
    /// Its sends fail for so long.
    NoCarrier(usize, u64),
    /// Its agent gives no sign of life for so long.
    AgentHangs(usize, u64),
}

impl Event {
    fn lasts(self) -> Duration {
        match self {
            Self::Hang(_, ms)
            | Self::Kill(_, ms)
            | Self::Stop(_, ms)
            | Self::Mute(_, ms)
            | Self::NoCarrier(_, ms)
            | Self::AgentHangs(_, ms) => Duration::from_millis(ms),
            Self::FailOver(_) => Duration::ZERO,
        }
    }
}

struct Node {
    machine: Option<Machine>,
    settings: Settings,
    lease: (Duration, Duration),
    /// When the data plane, which never sleeps, saw a stronger advertisement last.
    revoked_at: Duration,
    runs_from: Duration,
    mute_until: Duration,
    carrier_from: Duration,
    agent_from: Duration,
    inbox: Vec<Advertisement>,
}

impl Node {
    fn new(number: usize, priority: u8, interval: Duration, preempt: bool) -> Self {
        let sources = [Some(address(number)), None];
        let settings = Settings {
            version: Version::V3,
            interval,
            priority,
            preempt,
            preempt_delay: Duration::ZERO,
            sources,
        };
        let zero = Duration::ZERO;
        Self {
            machine: None,
            settings,
            lease: (zero, zero),
            revoked_at: zero,
            runs_from: zero,
            mute_until: zero,
            carrier_from: zero,
            agent_from: zero,
            inbox: vec![],
        }
    }

    fn owns(&self, now: Duration) -> bool {
        now < self.lease.1 && !self.is_revoked()
    }

    fn is_revoked(&self) -> bool {
        self.revoked_at >= self.lease.0
    }
}

/// Runs the events, each after so many milliseconds; the longest time with two owners while both could be heard, and
/// whether there is one in the end.
fn run(nodes: &mut [Node; 2], events: &[(u64, Event)], delays: &[u64]) -> Result<usize, String> {
    let mut at = BTreeMap::<Duration, Vec<Event>>::new();
    let mut when = Duration::ZERO;
    let mut over = Duration::ZERO;
    for (after, event) in events {
        when += Duration::from_millis(*after);
        at.entry(when).or_default().push(*event);
        // What hangs for longer than that has done all that it will do by then.
        over = over.max(when + AGENT_PATIENCE.max(event.lasts()));
    }
    let interval = nodes[0].settings.interval;
    let end = over + 60 * interval;
    let mut on_the_wire: Vec<(Duration, usize, Advertisement)> = vec![];
    let (mut now, mut delays) = (Duration::from_millis(1), delays.iter().cycle());
    while now < end {
        for event in at.remove(&(now - STEP)).unwrap_or_default() {
            let until = |ms: u64| now + Duration::from_millis(ms);
            match event {
                Event::Hang(n, ms) => nodes[n].runs_from = until(ms),
                Event::Kill(n, ms) => (nodes[n].machine, nodes[n].runs_from) = (None, until(ms)),
                Event::Mute(n, ms) => nodes[n].mute_until = until(ms),
                Event::NoCarrier(n, ms) => nodes[n].carrier_from = until(ms),
                Event::AgentHangs(n, ms) => nodes[n].agent_from = until(ms),
                Event::Stop(n, _) | Event::FailOver(n) if now < nodes[n].runs_from => {}
                Event::Stop(n, ms) => {
                    let actions = nodes[n].machine.as_mut().map(Machine::stop).unwrap_or_default();
                    carry_out(nodes, n, now, actions, &mut on_the_wire, &mut delays)?;
                    (nodes[n].machine, nodes[n].runs_from) = (None, until(ms));
                }
                Event::FailOver(n) => {
                    let actions =
                        nodes[n].machine.as_mut().map(|m| m.fail_over(now, false)).unwrap_or_default();
                    carry_out(nodes, n, now, actions, &mut on_the_wire, &mut delays)?;
                }
            }
        }
        on_the_wire.retain(|(arrives, to, advertisement)| {
            if *arrives <= now {
                let node = &mut nodes[*to];
                let ours = (node.settings.priority, address(*to));
                if (advertisement.priority, advertisement.source) > ours {
                    node.revoked_at = now;
                }
                node.inbox.push(*advertisement);
            }
            *arrives > now
        });
        for n in 0..2 {
            // What came before it was started is not heard.
            if nodes[n].machine.is_none() {
                nodes[n].inbox.clear();
            }
            if now < nodes[n].runs_from {
                continue;
            }
            if nodes[n].machine.is_none() {
                let lease = nodes[n].owns(now).then_some(nodes[n].lease.1);
                let (machine, actions) = Machine::new(nodes[n].settings, now, lease);
                nodes[n].machine = Some(machine);
                carry_out(nodes, n, now, actions, &mut on_the_wire, &mut delays)?;
            }
            let is_revoked = nodes[n].is_revoked();
            let actions =
                nodes[n].machine.as_mut().map(|m| m.check_lease(now, is_revoked)).unwrap_or_default();
            carry_out(nodes, n, now, actions, &mut on_the_wire, &mut delays)?;
            for advertisement in std::mem::take(&mut nodes[n].inbox) {
                let actions =
                    nodes[n].machine.as_mut().map(|m| m.received(now, &advertisement)).unwrap_or_default();
                carry_out(nodes, n, now, actions, &mut on_the_wire, &mut delays)?;
            }
            if now >= nodes[n].agent_from
                && let Some(machine) = &mut nodes[n].machine
            {
                machine.agent_lives(now);
            }
            let actions = nodes[n].machine.as_mut().map(|m| m.wake(now)).unwrap_or_default();
            carry_out(nodes, n, now, actions, &mut on_the_wire, &mut delays)?;
            if let Some(machine) = &nodes[n].machine {
                let armed = machine.next_wake().is_some();
                let needs = matches!(machine.role(), Role::Active | Role::Backup);
                if armed != needs {
                    return Err(format!("{now:?}: no timer in {:?}", machine.role()));
                }
                if machine.role() != Role::Active && nodes[n].owns(now) {
                    return Err(format!("{now:?}: node {n} owns the VIPs as {:?}", machine.role()));
                }
            }
        }
        let cut = nodes.iter().any(|node| now < node.mute_until + 10 * interval);
        if nodes.iter().all(|node| node.owns(now)) && !cut {
            return Err(format!("{now:?}: two owners"));
        }
        now += STEP;
    }
    Ok(nodes.iter().filter(|node| node.owns(now)).count())
}

fn carry_out<'a>(
    nodes: &mut [Node; 2],
    n: usize,
    now: Duration,
    actions: Vec<Action>,
    on_the_wire: &mut Vec<(Duration, usize, Advertisement)>,
    delays: &mut impl Iterator<Item = &'a u64>,
) -> Result<(), String> {
    for action in actions {
        match action {
            Action::DropLease => nodes[n].lease.1 = Duration::ZERO,
            Action::Grant { granted_at, deadline } => {
                if deadline != granted_at + 3 * nodes[n].settings.interval || granted_at > now {
                    return Err(format!("{now:?}: {action:?}"));
                }
                nodes[n].lease = (granted_at, deadline);
            }
            Action::Advertise { priority, interval } => {
                if priority == STOPPED && nodes[n].owns(now) {
                    return Err(format!("{now:?}: gives up while it owns the VIPs"));
                }
                let is_out = now >= nodes[n].carrier_from;
                if is_out && now >= nodes[n].mute_until {
                    let advertisement = Advertisement {
                        source: address(n),
                        priority,
                        interval,
                        checksum: Checksum::PseudoHeader,
                        other_list: false,
                    };
                    let delay = Duration::from_millis(*delays.next().unwrap_or(&0));
                    on_the_wire.push((now + delay, 1 - n, advertisement));
                }
                if priority != STOPPED {
                    let next =
                        nodes[n].machine.as_mut().map(|m| m.sent(now, now, is_out)).unwrap_or_default();
                    carry_out(nodes, n, now, next, on_the_wire, delays)?;
                }
            }
            Action::Announce | Action::AskForVips | Action::Became { .. } => {}
        }
    }
    Ok(())
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let node = 0usize..2;
    let event = prop_oneof![
        (node.clone(), 1u64..3000).prop_map(|(n, ms)| Event::Hang(n, ms)),
        (node.clone(), 1u64..3000).prop_map(|(n, ms)| Event::Kill(n, ms)),
        (node.clone(), 1u64..3000).prop_map(|(n, ms)| Event::Stop(n, ms)),
        node.clone().prop_map(Event::FailOver),
        (node.clone(), 1u64..2000).prop_map(|(n, ms)| Event::Mute(n, ms)),
        (node.clone(), 1u64..2000).prop_map(|(n, ms)| Event::NoCarrier(n, ms)),
        (node, 1u64..20_000).prop_map(|(n, ms)| Event::AgentHangs(n, ms)),
    ];
    proptest::collection::vec((0u64..1500, event), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn never_two_owners_and_one_in_the_end(
        events in events(),
        delays in proptest::collection::vec(0u64..3, 1..20),
        interval in prop_oneof![Just(20u64), Just(100), Just(200)],
        preempt in any::<bool>(),
    ) {
        let interval = Duration::from_millis(interval);
        let mut nodes = [Node::new(0, 200, interval, preempt), Node::new(1, 100, interval, preempt)];
        match run(&mut nodes, &events, &delays) {
            Ok(owners) => prop_assert_eq!(owners, 1),
            Err(reason) => return Err(TestCaseError::fail(reason)),
        }
    }
}

#[test]
fn the_stronger_node_owns_the_vips_when_both_start() {
    let interval = Duration::from_millis(100);
    let mut nodes = [Node::new(0, 200, interval, true), Node::new(1, 100, interval, true)];
    assert_eq!(run(&mut nodes, &[], &[0]), Ok(1));
    assert_eq!(nodes[0].machine.as_ref().unwrap().role(), Role::Active);
}
