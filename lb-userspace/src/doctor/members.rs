//! Each member: reachable, TLS chain, names and end of its certificate, client certificate, version, cluster, alarms.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_core::{
    config::{Config, HealthKind, Service},
    etcd,
    health::Outcome,
};
use tokio::time::{Instant, timeout};

use super::{Findings, member_subject};
use crate::probe::{self, Report};

/// A certificate that ends sooner is worth a word: most are renewed a month before.
const SOON_DAYS: i64 = 30;
/// Longer than `timeout` may be: what is slow is to be told from what does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn examine(config: &Config, findings: &mut Findings) {
    for service in &config.services {
        let specs = probe::check_specs(service);
        let deadline = Instant::now() + PATIENCE;
        // All at once: the time is that of one.
        let reports =
            futures_util::future::join_all(specs.iter().map(|spec| probe::run(spec, deadline))).await;
        let pool =
            etcd::pool_cluster(reports.iter().map(|report| Some(report.found.member.as_ref()?.cluster_id)));
        let common = common_names(&reports);
        let vip_has_name = resolves_to(&common, service.vip).await;
        for (backend, report) in service.backends.iter().zip(&reports) {
            let subject = member_subject(config, &service.name, &backend.name);
            let before = findings.0.len();
            outcome(service, report, &subject, findings);
            certificate(service, report, vip_has_name.as_deref(), &subject, findings);
            member(service, report, pool, &subject, findings);
            if findings.0.len() == before {
                let version =
                    report.found.member.as_ref().map_or(String::new(), |m| format!(", etcd {}", m.version));
                findings
                    .ok(&subject, format!("passes its check in {} ms{version}", report.duration.as_millis()));
            }
        }
    }
}

fn outcome(service: &Service, report: &Report, subject: &str, findings: &mut Findings) {
    let reason = match &report.outcome {
        Outcome::Passed if report.duration > service.health.timing.timeout => {
            findings.warn(
                subject,
                format!("its check took {} ms, longer than `timeout`", report.duration.as_millis()),
                "the agent would count it as failed",
                "write a longer `timeout`, or find out why it is slow",
            );
            return;
        }
        Outcome::Passed => return,
        Outcome::Refused => "connect: connection refused".to_owned(),
        Outcome::Failed(reason) | Outcome::Shared(reason) => reason.clone(),
    };
    // What a learner is, and whose cluster it is, is told below.
    if report.found.member.as_ref().is_some_and(|member| member.learner) {
        return;
    }
    let fix = match report.failed_step.map(|(step, _)| step) {
        Some(probe::Step::Connect) => {
            "see that etcd runs and listens on this address (--listen-client-urls), and that no firewall drops this host"
        }
        Some(_) if reason.contains("timed out") => {
            "something there does not answer in time: see whether etcd hangs (its log, its disk, `systemctl status etcd`)"
        }
        Some(probe::Step::Tls) => {
            "compare ca_file, cert_file and server_name with the member's certificate, as it says"
        }
        _ => "see etcd's log on that member",
    };
    findings.error(subject, reason, "it would get no connections", fix);
}

fn certificate(
    service: &Service,
    report: &Report,
    vip_name: Option<&str>,
    subject: &str,
    findings: &mut Findings,
) {
    let names = &report.found.certificate_names;
    let vip = format!("IP:{}", service.vip);
    let lacks = !names.is_empty() && !names.iter().any(|name| same(name, &vip));
    match vip_name {
        _ if !lacks => {}
        Some(name) => findings.ok(
            subject,
            format!("its certificate names {name}, which is the VIP; clients must use that name"),
        ),
        None => findings.error(
            subject,
            format!("its certificate lacks the SAN entry {vip}; it is valid for {}", names.join(", ")),
            "clients that connect to the VIP refuse it (x509: certificate is valid for …, not …)",
            format!(
                "issue it anew with {vip}, or with a DNS name that resolves to the VIP and that clients use"
            ),
        ),
    }
    let Some(not_after) = report.found.not_after else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let days = (not_after - i64::try_from(now).unwrap_or(i64::MAX)) / 86_400;
    if days < SOON_DAYS {
        findings.warn(
            subject,
            format!("its certificate ends in {days} days"),
            "no client will accept it then",
            "renew it; etcd reads a new file by itself",
        );
    }
}

fn same(name: &str, wanted: &str) -> bool {
    let ip = |text: &str| text.strip_prefix("IP:").and_then(|text| text.parse::<IpAddr>().ok());
    name == wanted || (ip(name).is_some() && ip(name) == ip(wanted))
}

fn member(service: &Service, report: &Report, pool: Option<u64>, subject: &str, findings: &mut Findings) {
    let Some(member) = &report.found.member else { return };
    if let Err(fault) = member.judge_cluster(pool) {
        findings.error(
            subject,
            fault.to_string(),
            "clients would read and write two clusters in turn",
            "take it out of the config, or join it to the cluster",
        );
    }
    if member.learner {
        findings.warn(
            subject,
            "is a learner",
            "it answers no linearizable read, and gets no connections until it is promoted",
            format!("etcdctl member promote {:x}", member.member_id),
        );
    }
    for kind in member.alarm_kinds() {
        let (why, fix) = match kind {
            etcd::NOSPACE => (
                "the cluster takes no writes",
                "etcdctl compact, etcdctl defrag on each member, then etcdctl alarm disarm",
            ),
            etcd::CORRUPT => ("its data differs from the others'", "replace the member that the alarm names"),
            _ => ("etcd raised it", "etcdctl alarm list"),
        };
        findings.warn(subject, format!("alarm {kind}"), why, fix);
    }
    age(service, &member.version, subject, findings);
}

/// What an old version means for checks and data.
fn age(service: &Service, version: &str, subject: &str, findings: &mut Findings) {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) =
        (numbers.next(), numbers.next(), numbers.next())
    else {
        return;
    };
    let is_http = service.health.probe.kind() == HealthKind::Http;
    match (major, minor, patch) {
        (..3, ..) | (3, ..4, _) => findings.error(
            subject,
            format!("etcd {version} is older than 3.4"),
            "this release checks etcd 3.4 and newer",
            "upgrade etcd",
        ),
        (3, 4, ..29) if is_http => findings.warn(
            subject,
            format!("etcd {version} writes a raft log entry for each /health"),
            "checks cost writes, on every member",
            "use kind = \"etcd\", or etcd 3.4.29 or newer",
        ),
        (3, 5, ..3) => findings.warn(
            subject,
            format!("etcd {version} may corrupt its data when it is killed (etcd#13766)"),
            "a member's data may differ from the others'",
            "upgrade to 3.5.3 or newer",
        ),
        _ => {}
    }
}

/// DNS names that every certificate has.
fn common_names(reports: &[Report]) -> BTreeSet<String> {
    let of = |report: &Report| -> BTreeSet<String> {
        let names = report.found.certificate_names.iter();
        names.filter_map(|name| name.strip_prefix("DNS:")).map(str::to_owned).collect()
    };
    let mut seen = reports.iter().filter(|report| !report.found.certificate_names.is_empty()).map(of);
    let first = seen.next().unwrap_or_default();
    seen.fold(first, |common, names| common.intersection(&names).cloned().collect())
}

/// The first of these names that resolves to an address.
async fn resolves_to(names: &BTreeSet<String>, address: IpAddr) -> Option<String> {
    for name in names.iter().filter(|name| !name.contains('*')).take(8) {
        let found = timeout(Duration::from_secs(1), tokio::net::lookup_host((name.as_str(), 0))).await;
        if let Ok(Ok(mut found)) = found
            && found.any(|found| found.ip() == address)
        {
            return Some(name.clone());
        }
    }
    None
}
