//! `etcd-lb-load`: puts load on etcd, and says how long it takes to answer.

use std::process::ExitCode;

use clap::Parser as _;
use etcd_lb_load::{Args, Plan, Report, run};

/// The run was done, and some answers were wrong.
const WRONG_ANSWERS: u8 = 3;

fn main() -> ExitCode {
    // Usage errors end here with status 2, help and version with 0.
    let args = Args::parse();
    let json = args.json();
    match run(&Plan::from(args)).and_then(|report| print(&report, json)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(report: &Report, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        println!("{report}");
    }
    Ok(if report.wrong.count == 0 { ExitCode::SUCCESS } else { ExitCode::from(WRONG_ANSWERS) })
}
