//! Prometheus' text format 0.0.4.

use std::{fmt::Write as _, time::Duration};

use lb_common::maps::{HANDSHAKE_BOUNDS_NS, Handshakes};

use super::{BOUNDS, Histogram, PairFigures};
use crate::vrrp::LATENESS_BOUNDS;

/// The text so far.
pub(super) struct Page(String);

impl Page {
    pub(super) fn new() -> Self {
        Self(String::with_capacity(16 * 1024))
    }

    pub(super) fn finish(self) -> String {
        self.0
    }

    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP etcd_lb_{name} {help}\n# TYPE etcd_lb_{name} {kind}");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.line(name, labels, &value.to_string());
    }

    pub(super) fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (bound, in_bucket) in BOUNDS.iter().zip(histogram.buckets) {
            below += in_bucket;
            let bound = bound.to_string();
            self.sample(&bucket, &[labels, &[("le", bound.as_str())]].concat(), below);
        }
        self.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), histogram.count);
        self.line(&format!("{name}_sum"), labels, &histogram.sum.as_secs_f64().to_string());
        self.sample(&format!("{name}_count"), labels, histogram.count);
    }

    pub(super) fn handshakes(&mut self, name: &str, labels: &[(&str, &str)], times: &Handshakes) {
        let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64().to_string();
        let bounds = HANDSHAKE_BOUNDS_NS.into_iter().map(seconds).chain(["+Inf".to_owned()]);
        let mut below = 0;
        for (bound, in_bucket) in bounds.zip(times.buckets) {
            below += in_bucket;
            self.sample(&format!("{name}_bucket"), &[labels, &[("le", bound.as_str())]].concat(), below);
        }
        self.line(&format!("{name}_sum"), labels, &seconds(times.sum));
        self.sample(&format!("{name}_count"), labels, below);
    }

    pub(super) fn lateness(&mut self, name: &str, pair: &PairFigures) {
        let bounds = LATENESS_BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        let mut below = 0;
        for (bound, in_bucket) in bounds.zip(pair.lateness) {
            below += in_bucket;
            self.sample(&format!("{name}_bucket"), &[("le", bound.as_str())], below);
        }
        self.line(&format!("{name}_sum"), &[], &pair.lateness_sum.as_secs_f64().to_string());
        self.sample(&format!("{name}_count"), &[], below);
    }

    pub(super) fn line(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        let _ = write!(self.0, "etcd_lb_{name}");
        for (place, (label, text)) in labels.iter().enumerate() {
            let open = if place == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{open}{label}=\"{}\"", escaped(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }
}

/// A label's value as the text format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}
