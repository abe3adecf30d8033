//! What balancing costs in CPU time, per GB and per million requests.
//!
//! The work of a balancer in the kernel is done in interrupts, and those are charged to whichever process happens to run: to
//! the client and the server as much as to a proxy. So for all alike the whole machine's busy time is taken, divided by the
//! work that was done, and that of the direct way in the same round is subtracted, where client and server do the same for
//! the same rate. Busy is the time of all processors less idle (which the kernel knows exactly, not by ticks), less stolen,
//! less that of niced processes, which are not ours.

use std::{fs, time::Duration, time::Instant};

use anyhow::{Context as _, Result};
use aya::{
    programs::ProgramInfo,
    sys::{Stats, enable_stats},
};

use crate::{
    Effort,
    peers::{Kind, OURS, Peer},
    report::Row,
    responder,
    rounds::interleave,
    site::{BULK, REQUESTS, Site},
    wire::{Amount, direct, iperf3},
};

/// Both rates are well below what the slowest peer can do, so that all do the same work in the same time.
const BULK_RATE: &str = "800M";
const REQUEST_RATE: f64 = 4000.0;
const CONNECTIONS: u32 = 4;
/// `USER_HZ` of the kernel's interfaces, on every architecture that Linux's XDP has.
const TICK: f64 = 0.01;

/// A run's costs, in s of CPU time for a unit of work.
#[derive(Clone, Copy)]
struct Cost {
    machine: f64,
    processes: f64,
}

/// A kind of work: octets or requests.
struct Work {
    title: &'static str,
    unit: &'static str,
    /// Units done, in GB or millions of requests.
    run: fn(&Site, &Peer, Effort) -> Result<f64>,
}

const WORKS: [Work; 2] = [
    Work { title: "a GB at 800 Mbit/s", unit: "s/GB", run: bulk },
    Work { title: "a million requests at 4,000/s", unit: "s/million", run: requests },
];

pub fn cpu(site: &Site, effort: Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for work in WORKS {
        // The last one is ours again, for the run time of its program: counting that costs time too.
        let mut runs: Vec<Run<'_>> = site.peers.iter().map(Run::Of).chain([Run::Counted]).collect();
        let mut found = interleave(effort, &mut runs, |run| match run {
            Run::Of(peer) => cost(site, peer, &work, effort),
            Run::Counted => Ok(Cost { machine: f64::NAN, processes: xdp_time(site, &work, effort)? }),
        })?;
        let counted = found.pop().context("no rounds")?;
        let machine: Vec<Vec<f64>> =
            found.iter().map(|rounds| rounds.iter().map(|cost| cost.machine).collect()).collect();
        let direct = direct(&site.peers, &machine);
        let mut more =
            Row::new("cpu", format!("whole machine beyond the direct way, {}", work.title), work.unit)
                .goal("≤ 1/5 of HAProxy's");
        let mut own =
            Row::new("cpu", format!("a proxy's processes, and XDP's run time, {}", work.title), work.unit);
        own = own.cell(OURS, counted.iter().map(|cost| cost.processes).collect());
        for ((peer, whole), costs) in site.peers.iter().zip(&machine).zip(&found) {
            if peer.kind != Kind::Direct {
                more = more.cell(peer.name(), whole.iter().zip(&direct).map(|(a, b)| a - b).collect());
            }
            if !peer.processes().is_empty() {
                own = own.cell(peer.name(), costs.iter().map(|cost| cost.processes).collect());
            }
        }
        rows.extend([more, own]);
    }
    Ok(rows)
}

/// Whose work is measured next.
enum Run<'a> {
    Of(&'a Peer),
    Counted,
}

fn cost(site: &Site, peer: &Peer, work: &Work, effort: Effort) -> Result<Cost> {
    let (before, own, begun) = (Busy::now()?, own_time(peer), Instant::now());
    let units = (work.run)(site, peer, effort)?;
    let busy = Busy::now()?.since(&before, begun.elapsed());
    Ok(Cost { machine: busy / units, processes: (own_time(peer) - own) / units })
}

fn bulk(site: &Site, peer: &Peer, effort: Effort) -> Result<f64> {
    let amount = effort.pick(Amount::Octets("60M"), Amount::Seconds("4"));
    Ok(iperf3(site.client(), peer.target(BULK), amount, Some(BULK_RATE))?.octets / 1e9)
}

fn requests(site: &Site, peer: &Peer, effort: Effort) -> Result<f64> {
    let during = effort.pick(Duration::from_millis(600), Duration::from_secs(4));
    let to = peer.target(REQUESTS);
    Ok(responder::paced(site.client(), to, CONNECTIONS, REQUEST_RATE, during)? as f64 / 1e6)
}

/// What the kernel counts as our program's run time, for a unit of work.
fn xdp_time(site: &Site, work: &Work, effort: Effort) -> Result<f64> {
    let ours = site.peers.iter().find(|peer| peer.kind == Kind::EtcdLb).context("no peer of ours")?;
    let pin = ours.balancer().context("no balancer")?.pin_dir().join(lb_common::maps::program::ENTRY);
    let _counting = enable_stats(Stats::RunTime).context("the kernel's counting of run times")?;
    let run_time = || -> Result<f64> { Ok(ProgramInfo::from_pin(&pin)?.run_time().as_secs_f64()) };
    let before = run_time()?;
    let units = (work.run)(site, ours, effort)?;
    Ok((run_time()? - before) / units)
}

/// CPU time that a peer's processes have used, in s.
fn own_time(peer: &Peer) -> f64 {
    let times = peer.processes().into_iter().filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before may hold anything. User and system time are the 14th and 15th field.
        let (_, fields) = stat.rsplit_once(") ")?;
        let field = |number: usize| fields.split(' ').nth(number - 3)?.parse::<f64>().ok();
        Some(field(14)? + field(15)?)
    });
    times.sum::<f64>() * TICK
}

/// What /proc/stat says of all processors together, in s.
struct Busy {
    processors: f64,
    /// Idle, waiting for disks, stolen, niced.
    not_ours: f64,
}

impl Busy {
    fn now() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?)
    }

    fn parse(stat: &str) -> Result<Self> {
        let line = stat.lines().next().context("an empty /proc/stat")?;
        let fields: Vec<f64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let field = |number: usize| fields.get(number).copied().context("a field of /proc/stat");
        let processors = stat.lines().skip(1).filter(|line| line.starts_with("cpu")).count();
        let not_ours = field(1)? + field(3)? + field(4)? + field(7)?;
        Ok(Self { processors: processors as f64, not_ours: not_ours * TICK })
    }

    fn since(&self, before: &Self, wall: Duration) -> f64 {
        (self.processors * wall.as_secs_f64() - (self.not_ours - before.not_ours)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_not_idle() {
        let stat = |idle: u32| format!("cpu  10 20 30 {idle} 5 6 7 8 0 0\ncpu0 1\ncpu1 1\nintr 1\n");
        let before = Busy::parse(&stat(100)).unwrap();
        let after = Busy::parse(&stat(250)).unwrap();
        let busy = after.since(&before, Duration::from_secs(1));
        assert!((busy - 0.5).abs() < 1e-9, "{busy}");
    }
}
