//! `etcd-lb doctor`

use std::path::{Path, PathBuf};

use clap::Args;
use etcd_lb::{
    doctor::{self, Finding, Level},
    units,
};

use super::{DEFAULT_CONFIG, Failure, colours, print_json, table::indented};

/// Examine this host and the members for what stands in the way of a config; nothing is changed
///
/// Before installation and after: kernel, BPF file system, capabilities, interfaces and their drivers, who has the VIPs and the
/// VRID, and of each member whether it is reachable, its TLS chain, names and end of its certificate, version, cluster and
/// alarms. Exit status 1 if anything would break.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The config file
    #[arg(value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(&self, socket: Option<&Path>) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::Operation(format!("cannot start: {error}")))?;
        let findings = runtime.block_on(doctor::examine(&self.config, socket)).map_err(Failure::Config)?;
        let errors = findings.iter().filter(|finding| finding.level == Level::Error).count();
        let warnings = findings.iter().filter(|finding| finding.level == Level::Warning).count();
        if self.json {
            print_json(&findings)?;
        } else {
            findings.iter().for_each(|finding| print!("{}", render(finding, colours())));
            let [errors, warnings] =
                [(errors, "error"), (warnings, "warning")].map(|(n, noun)| units::counted(n as u64, noun));
            println!("\n{errors}, {warnings}, {} looked at", findings.len());
        }
        match errors {
            0 => Ok(()),
            // It has been said above what.
            1 => Err(Failure::Operation("one of these would break something".into())),
            errors => Err(Failure::Operation(format!("{errors} of these would break something"))),
        }
    }
}

/// Where the text begins.
const COLUMN: usize = 9;

fn render(finding: &Finding, colours: bool) -> String {
    let (word, colour) = match finding.level {
        Level::Ok => ("ok", "\x1b[32m"),
        Level::Warning => ("warning", "\x1b[33m"),
        Level::Error => ("ERROR", "\x1b[31m"),
    };
    // The word stands in a column of its own.
    let column = format!("{word:<COLUMN$}");
    let mut text = indented(&format!("{}: {}", finding.subject, finding.what), COLUMN, COLUMN);
    text.replace_range(
        ..COLUMN,
        &if colours { column.replace(word, &format!("{colour}{word}\x1b[0m")) } else { column },
    );
    for (what, words) in [("why", &finding.why), ("fix", &finding.fix)] {
        if !words.is_empty() {
            text += &indented(&format!("{what}: {words}"), COLUMN + 2, COLUMN + 7);
        }
    }
    text
}
