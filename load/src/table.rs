//! A report for people.

use std::{collections::BTreeMap, fmt};

use crate::report::{Errors, Figures, Latency, Load, Loop, Report};

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.load)?;
        writeln!(out)?;
        writeln!(
            out,
            "{:<10} {:>9} {:>8} {:>9}  {:>8} {:>8} {:>8} {:>8} {:>8}",
            "", "answers", "errors", "/s", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, figures) in
            [("put", &self.put), ("get", &self.get), ("watch", &self.watch), ("total", &self.total)]
        {
            if name == "total" || figures.answers + figures.errors > 0 {
                operation(out, name, figures)?;
            }
        }
        writeln!(out, "{:<39}  {}", "send delay", times(&self.send_delay))?;
        writeln!(out)?;
        kinds(out, "errors", &self.errors)?;
        match &self.wrong {
            Errors { count: 0, .. } => writeln!(out, "wrong answers    none")?,
            wrong => writeln!(
                out,
                "wrong answers    {}: {}",
                wrong.count,
                wrong.example.as_deref().unwrap_or_default()
            )?,
        }
        let gap = &self.gap;
        writeln!(out, "longest gap      {} at {:.3} s", time(gap.us), gap.began_us as f64 / 1e6)?;
        kinds(out, "broken", &self.connections.broken)?;
        if !self.connections.failed_attempts.is_empty() {
            kinds(out, "not connected", &self.connections.failed_attempts)?;
        }
        if !self.connections.broken.is_empty() {
            writeln!(out, "longest outage   {}", time(self.connections.longest_outage_us))?;
        }
        if matches!(self.load.pace, Loop::Open { .. }) {
            writeln!(out, "highest backlog  {} of {}", self.highest_backlog, self.load.backlog)?;
        }
        let (user, system) = (self.cpu.user_us as f64 / 1e6, self.cpu.system_us as f64 / 1e6);
        let share = (user + system) * 100.0 / self.load.seconds;
        write!(
            out,
            "CPU              {user:.2} s user, {system:.2} s system: {share:.0} % of one processor"
        )?;
        if !self.keys_removed {
            write!(out, "\nthe run's keys, under load/, could not be removed")?;
        }
        Ok(())
    }
}

impl fmt::Display for Load {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} connections to {}, ", self.connections, self.endpoints.join(", "))?;
        match self.pace {
            Loop::Open { rate, arrivals } => {
                let arrivals = format!("{arrivals:?}").to_lowercase();
                write!(out, "open loop, {rate} requests/s ({arrivals})")?;
            }
            Loop::Closed { in_flight } => write!(out, "closed loop, {in_flight} under way on each")?,
        }
        write!(
            out,
            "\n{}, {} keys, values of {} octets; {} s after {} s of warm-up",
            self.mix, self.keys, self.value_size, self.seconds, self.warmup_seconds
        )
    }
}

fn operation(out: &mut fmt::Formatter<'_>, name: &str, figures: &Figures) -> fmt::Result {
    writeln!(
        out,
        "{name:<10} {:>9} {:>8} {:>9.1}  {}",
        figures.answers,
        figures.errors,
        figures.per_second,
        times(&figures.latency)
    )
}

fn times(latency: &Latency) -> String {
    if latency.count == 0 {
        return ["-"; 5].map(|none| format!("{none:>8}")).join(" ");
    }
    [latency.p50_us, latency.p90_us, latency.p99_us, latency.p99_9_us, latency.max_us]
        .map(|us| format!("{:>8}", time(us)))
        .join(" ")
}

fn kinds(out: &mut fmt::Formatter<'_>, what: &str, kinds: &BTreeMap<String, Errors>) -> fmt::Result {
    if kinds.is_empty() {
        return writeln!(out, "{what:<16} none");
    }
    for (kind, errors) in kinds {
        let example = errors.example.as_deref().unwrap_or_default();
        writeln!(out, "{what:<16} {kind} {}: {example}", errors.count)?;
    }
    Ok(())
}

/// `812 µs`, `1.23 ms`, `12.3 ms`, `123 ms`, `1.23 s`: three digits.
fn time(us: u64) -> String {
    let (value, unit) = match us {
        ..1000 => return format!("{us} µs"),
        1000..1_000_000 => (us as f64 / 1e3, "ms"),
        _ => (us as f64 / 1e6, "s"),
    };
    let digits = match value {
        ..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        Operation, Plan,
        failure::{Failure, Kind},
        limits::CpuTime,
        recorder::Recorder,
    };

    #[test]
    fn times_have_three_digits() {
        for (us, shown) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1234, "1.23 ms"),
            (12_345, "12.3 ms"),
            (123_456, "123 ms"),
            (1_234_567, "1.23 s"),
        ] {
            assert_eq!(time(us), shown);
        }
    }

    #[test]
    fn a_report_fits_a_terminal() {
        let plan = Plan::new(vec!["http://10.0.1.100".parse().unwrap()]);
        let mut recorder = Recorder::new(plan.warmup..plan.warmup + plan.duration).unwrap();
        let due = plan.warmup + Duration::from_secs(1);
        recorder.answered(Operation::Get, due, due + Duration::from_micros(1234));
        recorder.failed(Operation::Put, due, &Failure::new(Kind::Reset, "Connection reset by peer"));
        recorder.broken(due, &Failure::new(Kind::Reset, "Connection reset by peer"));
        let cpu = CpuTime { user: 1_500_000, system: 500_000 };
        let shown = Report::new(&plan, &recorder, 2, cpu, true).unwrap().to_string();
        assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
        for part in [
            "1 connections to http://10.0.1.100:2379, closed loop, 1 under way on each",
            "get                1        0       0.1   1.23 ms",
            "errors           reset 1: Connection reset by peer",
            "longest gap      9.00 s at 1.001 s",
            "CPU              1.50 s user, 0.50 s system: 20 % of one processor",
        ] {
            assert!(shown.contains(part), "{part:?} in\n{shown}");
        }
    }
}
