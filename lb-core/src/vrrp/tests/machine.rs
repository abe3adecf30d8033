//! The state table, row by row: what comes in, what has to come out.

use std::{net::Ipv4Addr, time::Duration};

use super::super::{packet::STOPPED, *};

const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2));
const LOWER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1));
const HIGHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 3));
const INTERVAL: Duration = Duration::from_millis(100);
/// Priority 100, 100 ms: 300 ms + 156 / 256 of 100 ms.
const DOWN: Duration = Duration::from_nanos(360_937_500);
const SKEW: Duration = Duration::from_nanos(60_937_500);
/// The clock does not start at zero.
const START: Duration = Duration::from_secs(1000);

fn settings() -> Settings {
    Settings {
        version: Version::V3,
        interval: INTERVAL,
        priority: 100,
        preempt: true,
        preempt_delay: Duration::ZERO,
        sources: [Some(OURS), None],
    }
}

fn heard(source: IpAddr, priority: u8) -> Advertisement {
    Advertisement {
        source,
        priority,
        interval: INTERVAL,
        checksum: Checksum::PseudoHeader,
        other_list: false,
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn backup(settings: Settings) -> Machine {
    let (machine, actions) = Machine::new(settings, START, None);
    assert_eq!(actions, [], "a backup begins in silence");
    assert_eq!(machine.next_wake(), Some(START + machine.down(settings.interval)));
    machine
}

/// A machine that has owned the VIPs since the time that comes with it.
fn active(settings: Settings) -> (Machine, Duration) {
    let mut machine = backup(settings);
    let now = machine.next_wake().unwrap();
    let actions = machine.wake(now);
    let advertise = Action::Advertise { priority: settings.priority, interval: settings.interval };
    let became = Action::Became { role: Role::Active, why: Why::NobodyHeard };
    assert_eq!(actions, [became, advertise]);
    assert_eq!(machine.sent(now + ms(1), now, true), []);
    let claim = now + ms(1) + ms(5);
    assert_eq!(machine.next_wake(), Some(claim));
    assert_eq!(machine.wake(claim - ms(1)), []);
    let grant = Action::Grant { granted_at: now, deadline: now + 3 * settings.interval };
    assert_eq!(machine.wake(claim), [grant, Action::Announce]);
    (machine, claim)
}

const DROP: Action = Action::DropLease;
const ADVERTISE: Action = Action::Advertise { priority: 100, interval: INTERVAL };
const GIVE_UP: Action = Action::Advertise { priority: STOPPED, interval: INTERVAL };

fn became(role: Role, why: Why) -> Action {
    Action::Became { role, why }
}

#[test]
fn as_backup() {
    /// What is heard after 50 ms, and when the node counts as dead then.
    struct Row(&'static str, fn(&mut Settings), Advertisement, Duration);
    let slow = Advertisement { interval: ms(1000), ..heard(HIGHER, 200) };
    let rows = [
        Row("gives up", |_| {}, heard(HIGHER, STOPPED), ms(50) + SKEW),
        Row("stronger", |_| {}, heard(HIGHER, 200), ms(50) + DOWN),
        Row("equal, whatever the address", |_| {}, heard(LOWER, 100), ms(50) + DOWN),
        Row("its interval is adopted", |_| {}, slow, ms(50) + ms(3000) + 10 * SKEW),
        Row("weaker: the timer runs on", |_| {}, heard(HIGHER, 99), DOWN),
        Row("weaker, nopreempt", |settings| settings.preempt = false, heard(HIGHER, 99), ms(50) + DOWN),
        Row(
            "weaker, preempt_delay",
            |settings| settings.preempt_delay = ms(60),
            heard(HIGHER, 99),
            ms(50) + DOWN,
        ),
        Row(
            "weaker, preempt_delay over",
            |settings| settings.preempt_delay = ms(50),
            heard(HIGHER, 99),
            DOWN,
        ),
    ];
    for Row(name, change, advertisement, down) in rows {
        let mut settings = settings();
        change(&mut settings);
        let mut machine = backup(settings);
        assert_eq!(machine.received(START + ms(50), &advertisement), [], "{name}");
        assert_eq!(machine.next_wake(), Some(START + down), "{name}");
        assert_eq!(machine.wake(START + down - Duration::from_nanos(1)), [], "{name}");
        assert_eq!(machine.wake(START + down).last(), Some(&ADVERTISE), "{name}");
        assert_eq!(machine.role(), Role::Active);
    }
}

#[test]
fn version_2_has_seconds() {
    let v2 = Settings { version: Version::V2, interval: ms(2000), ..settings() };
    let mut machine = backup(v2);
    // 3 × 2 s + 156 / 256 s.
    assert_eq!(machine.next_wake(), Some(START + ms(6000) + 10 * SKEW));
    machine.received(START, &heard(HIGHER, STOPPED));
    assert_eq!(machine.next_wake(), Some(START + 10 * SKEW));
}

#[test]
fn as_active() {
    struct Row(&'static str, Advertisement, Vec<Action>, Role);
    let answer = vec![Action::Announce, ADVERTISE];
    let yielded = |source, priority| vec![DROP, became(Role::Backup, Why::Stronger { source, priority })];
    let rows = [
        Row("gives up", heard(HIGHER, STOPPED), vec![ADVERTISE], Role::Active),
        Row("weaker", heard(HIGHER, 99), answer.clone(), Role::Active),
        Row("equal, lower address", heard(LOWER, 100), answer, Role::Active),
        Row("equal, higher address", heard(HIGHER, 100), yielded(HIGHER, 100), Role::Backup),
        Row("stronger", heard(LOWER, 101), yielded(LOWER, 101), Role::Backup),
    ];
    for Row(name, advertisement, actions, role) in rows {
        let (mut machine, now) = active(settings());
        let now = now + ms(20);
        assert_eq!(machine.received(now, &advertisement), actions, "{name}");
        assert_eq!(machine.role(), role, "{name}");
        if role == Role::Backup {
            assert_eq!(machine.next_wake(), Some(now + DOWN), "{name}");
        }
    }
}

#[test]
fn advertisements_keep_the_beat_and_the_lease_follows_those_that_went_out() {
    let (mut machine, claim) = active(settings());
    let first = claim - ms(6);
    let mut announced = 1;
    for beat in 1..30u32 {
        let due = first + beat * INTERVAL;
        while machine.next_wake().unwrap() < due {
            let at = machine.next_wake().unwrap();
            assert_eq!(machine.wake(at), [Action::Announce]);
            announced += 1;
        }
        // Late by a little each time, and that does not add up.
        let now = due + ms(7);
        let actions = machine.wake(now);
        assert_eq!(actions.last(), Some(&ADVERTISE), "{beat}");
        announced += actions.iter().filter(|action| **action == Action::Announce).count();
        let granted = machine.sent(now + ms(1), now, true);
        assert_eq!(granted, [Action::Grant { granted_at: now, deadline: now + 3 * INTERVAL }]);
    }
    assert_eq!(announced, 5, "over more than a second");
}

#[test]
fn what_does_not_go_out_grants_nothing() {
    let (mut machine, claim) = active(settings());
    let deadline = claim - ms(6) + 3 * INTERVAL;
    let mut now = claim;
    while machine.role() == Role::Active {
        now = machine.next_wake().unwrap();
        machine.check_lease(now, false);
        let actions = machine.wake(now);
        if actions.contains(&ADVERTISE) {
            assert_eq!(machine.sent(now, now, false), []);
        }
    }
    assert_eq!(now, deadline);
    assert_eq!(machine.next_wake(), Some(now + DOWN), "a whole down interval");

    // One whose first advertisement never goes out owns nothing at all.
    let mut machine = backup(settings());
    for _ in 0..50 {
        let now = machine.next_wake().unwrap();
        for action in machine.wake(now) {
            assert!(!matches!(action, Action::Grant { .. } | Action::Announce), "{action:?}");
        }
        machine.sent(now, now, false);
    }
}

#[test]
fn one_that_wakes_to_find_its_lease_over_is_a_backup_and_says_nothing() {
    let (mut machine, now) = active(settings());
    let late = now + ms(5000);
    let over = [DROP, became(Role::Backup, Why::LeaseOver)];
    assert_eq!(machine.clone().check_lease(late, false), over);
    assert_eq!(machine.check_lease(now + ms(1), true), over, "the data plane revoked it");
    assert_eq!(machine.sent(now + ms(1), now, true), [], "a send under way renews nothing");
    assert_eq!(machine.next_wake(), Some(now + ms(1) + DOWN));
}

#[test]
fn a_stronger_answer_comes_before_the_claim() {
    let mut machine = backup(settings());
    let now = machine.next_wake().unwrap();
    machine.wake(now);
    machine.sent(now, now, true);
    let actions = machine.received(now + ms(2), &heard(LOWER, 200));
    assert!(!actions.iter().any(|action| matches!(action, Action::Grant { .. } | Action::Announce)));
    assert_eq!(machine.role(), Role::Backup);
}

#[test]
fn a_node_that_slept_before_its_claim_waits_anew() {
    let mut machine = backup(settings());
    let now = machine.next_wake().unwrap();
    machine.wake(now);
    machine.sent(now, now, true);
    // Not yet: nobody else can have taken over.
    assert_eq!(machine.clone().check_lease(now + 3 * INTERVAL - ms(1), false), []);
    let woken = now + 3 * INTERVAL;
    assert_eq!(machine.check_lease(woken, false), [DROP, became(Role::Backup, Why::LeaseOver)]);
    assert_eq!(machine.next_wake(), Some(woken + DOWN));
}

#[test]
fn stopping_failing_and_handing_over_drop_the_lease_before_a_word_is_said() {
    let (machine, now) = active(settings());
    let gave_up = |why, role| vec![DROP, GIVE_UP, became(role, why)];
    assert_eq!(machine.clone().stop(), gave_up(Why::Stop, Role::Stopped));
    assert_eq!(machine.clone().fail_over(now, false), gave_up(Why::Failover, Role::Backup));
    assert_eq!(machine.clone().fail_over(now, true), gave_up(Why::AskedFor, Role::Backup));
    let mut faulty = machine.clone();
    assert_eq!(faulty.set_fault(now, true), gave_up(Why::Fault, Role::Fault));
    assert_eq!((faulty.next_wake(), faulty.set_fault(now, true)), (None, vec![]));
    assert_eq!(faulty.set_fault(now, false), [became(Role::Backup, Why::Recovered)]);
    assert_eq!(faulty.next_wake(), Some(now + DOWN));

    // As backup there is nothing to give up.
    let mut quiet = backup(settings());
    assert_eq!(quiet.fail_over(START, false), []);
    assert_eq!(quiet.stop(), [became(Role::Stopped, Why::Stop)]);
    assert_eq!((quiet.next_wake(), quiet.stop()), (None, vec![]));
    assert_eq!(quiet.received(START, &heard(LOWER, 1)), []);
}

#[test]
fn after_a_failover_the_weaker_node_keeps_the_vips_until_it_dies() {
    let (mut machine, mut now) = active(settings());
    machine.fail_over(now, false);
    for _ in 0..100 {
        now += INTERVAL;
        assert_eq!(machine.received(now, &heard(LOWER, 50)), []);
        assert_eq!(machine.wake(now), []);
    }
    assert_eq!(machine.wake(now + DOWN).last(), Some(&ADVERTISE));
    // As before: the operator's wish was about then.
    machine.received(now + DOWN, &heard(LOWER, 200));
    assert_eq!(machine.received(now + DOWN, &heard(LOWER, 50)), []);
    assert_eq!(machine.next_wake(), Some(now + DOWN + DOWN));
}

#[test]
fn an_active_node_whose_agent_hangs_gives_up_once() {
    let (mut machine, mut now) = active(settings());
    let advertise = |machine: &mut Machine, now: &mut Duration| {
        *now = machine.next_wake().unwrap();
        let actions = machine.wake(*now);
        machine.sent(*now, *now, true);
        actions
    };
    // Signs of life once a second.
    for _ in 0..10 {
        machine.agent_lives(now);
        let until = now + Duration::from_secs(1);
        while now < until {
            assert!(!advertise(&mut machine, &mut now).contains(&DROP));
        }
    }
    let silent_since = now;
    machine.agent_lives(now);
    let actions = loop {
        let actions = advertise(&mut machine, &mut now);
        if actions.contains(&DROP) {
            break actions;
        }
    };
    assert_eq!(actions, [DROP, GIVE_UP, became(Role::Backup, Why::AgentHangs)]);
    assert_eq!(now, silent_since + AGENT_PATIENCE);
    // The weaker node keeps the VIPs; without one this node is better than none, for good.
    assert_eq!(machine.received(now, &heard(LOWER, 50)), []);
    assert_eq!(advertise(&mut machine, &mut now).last(), Some(&ADVERTISE));
    for _ in 0..1000 {
        assert!(!advertise(&mut machine, &mut now).contains(&DROP));
    }
    // One that was backup when its agent hung takes over where nobody else does, and keeps what it has.
    let mut machine = backup(settings());
    let mut now = START;
    while now < START + AGENT_PATIENCE {
        now += INTERVAL;
        machine.received(now, &heard(HIGHER, 200));
        assert_eq!(machine.wake(now), []);
    }
    assert_eq!(advertise(&mut machine, &mut now).last(), Some(&ADVERTISE));
    for _ in 0..100 {
        assert!(!advertise(&mut machine, &mut now).contains(&DROP));
    }
    // When it lives again, all is as before.
    let (mut machine, mut now) = active(settings());
    now += AGENT_PATIENCE;
    machine.wake(now);
    machine.agent_lives(now);
    machine.set_preemption(Preemption::ByAsking);
    assert_eq!(machine.received(now + DOWN, &heard(LOWER, 50)), [Action::AskForVips]);
}

#[test]
fn after_a_failover_the_other_node_has_twice_the_time() {
    let (mut machine, now) = active(settings());
    machine.fail_over(now, false);
    assert_eq!(machine.next_wake(), Some(now + 2 * DOWN));
}

#[test]
fn preemption_of_our_own_kind_is_asked_for() {
    let mut machine = backup(settings());
    machine.set_preemption(Preemption::ByAsking);
    let mut asked = vec![];
    for beat in 1..=20u32 {
        let now = START + beat * INTERVAL;
        let actions = machine.received(now, &heard(LOWER, 50));
        assert_eq!(machine.next_wake(), Some(now + DOWN), "it is heeded meanwhile");
        if actions == [Action::AskForVips] {
            asked.push(beat);
        } else {
            assert_eq!(actions, []);
        }
    }
    assert_eq!(asked, [1, 5, 9, 13, 17], "once a down interval");
    machine.set_preemption(Preemption::Never);
    assert_eq!(machine.received(START + ms(5000), &heard(LOWER, 50)), []);
    let mut never = backup(Settings { preempt: false, ..settings() });
    never.set_preemption(Preemption::ByAsking);
    assert_eq!(never.received(START, &heard(LOWER, 50)), []);
}

#[test]
fn both_families_are_one_role() {
    let v6: IpAddr = "fe80::2".parse().unwrap();
    let peer_v6: IpAddr = "fe80::1".parse().unwrap();
    let both = Settings { sources: [Some(OURS), Some(v6)], ..settings() };
    let mut machine = backup(both);
    // Active when both are dead.
    machine.received(START + ms(300), &heard(peer_v6, 200));
    assert_eq!(machine.next_wake(), Some(START + ms(300) + DOWN));
    assert_eq!(machine.wake(START + DOWN), []);
    machine.received(START + ms(400), &heard(LOWER, STOPPED));
    assert_eq!(machine.next_wake(), Some(START + ms(300) + DOWN));
    // Yielding both.
    let (mut machine, now) = active(both);
    assert_eq!(machine.received(now, &heard(peer_v6, 200))[0], DROP);
    assert_eq!(machine.role(), Role::Backup);
}

#[test]
fn what_another_node_may_have_announced_is_announced_anew() {
    let (mut machine, now) = active(settings());
    let late = now + ms(3000);
    machine.announce(late);
    assert!(machine.wake(late).contains(&Action::Announce));
    let mut quiet = backup(settings());
    quiet.announce(START);
    assert_eq!(quiet.wake(START), []);
}

#[test]
fn a_changed_priority_is_told_at_once() {
    let (mut machine, now) = active(settings());
    let lower = Action::Advertise { priority: 50, interval: INTERVAL };
    assert_eq!(machine.set_priority(now, 50), [lower]);
    assert_eq!(machine.set_priority(now, 50), []);
    assert_eq!(machine.received(now, &heard(LOWER, 60))[0], DROP);
    assert_eq!(machine.set_priority(now, 100), [], "a backup says nothing");
    assert_eq!(machine.received(now, &heard(LOWER, 60)), []);
}

#[test]
fn a_restart_within_the_lease_goes_on() {
    let deadline = START + ms(200);
    let (mut machine, actions) = Machine::new(settings(), START, Some(deadline));
    assert_eq!(actions, [became(Role::Active, Why::Resumed), ADVERTISE]);
    let grant = Action::Grant { granted_at: START, deadline: START + 3 * INTERVAL };
    assert_eq!(machine.sent(START + ms(1), START, true), [grant]);
    let (machine, actions) = Machine::new(settings(), START, Some(START));
    assert_eq!((machine.role(), actions.len()), (Role::Backup, 0), "one that is over is none");
}

#[test]
fn a_longer_interval_makes_a_longer_lease_once_it_is_confirmed() {
    let (mut machine, now) = active(settings());
    let longer = Action::Advertise { priority: 100, interval: ms(2000) };
    assert_eq!(machine.announce_interval(now, ms(2000)), [longer]);
    let deadline = |actions: &[Action]| match actions {
        [Action::Grant { deadline, .. }] => *deadline,
        other => panic!("{other:?}"),
    };
    assert_eq!(deadline(&machine.sent(now, now, true)), now + 3 * INTERVAL, "the peer does not know yet");
    machine.confirm_interval(ms(2000));
    let mut beat = now;
    while !machine.wake(beat).contains(&longer) {
        beat = machine.next_wake().unwrap();
        assert!(beat <= now + INTERVAL, "the pace is the old one");
    }
    assert_eq!(deadline(&machine.sent(beat, beat, true)), beat + ms(6000));
    machine.announce_interval(beat, INTERVAL);
    machine.confirm_interval(ms(9000));
    assert_eq!(deadline(&machine.sent(beat, beat, true)), beat + 3 * INTERVAL, "never more than announced");
}
