//! `etcd-lb rebalance`

use std::path::Path;

use clap::Args;
use etcd_lb::api::{
    client,
    command::{RebalanceAnswer, RebalanceRequest},
};
use etcd_lb::units;

use super::{
    Failure, block_on, colours, print_json,
    table::{Align, Colour, Table},
};

/// Reset just enough connections of backends that have too many, so that they come again elsewhere
#[derive(Debug, Args)]
pub(super) struct Rebalance {
    /// Only show what would be reset
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Rebalance {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        let request = RebalanceRequest { dry_run: self.dry_run };
        let answer: RebalanceAnswer = block_on(client::post(socket, "/rebalance", &request))?;
        if self.json {
            return print_json(&answer);
        }
        print!("{}", table(&answer).render(colours()));
        Ok(())
    }
}

fn table(answer: &RebalanceAnswer) -> Table {
    let reset = if answer.dry_run { "WOULD RESET" } else { "RESET" };
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("BACKEND", Align::Left),
        ("ADDRESS", Align::Left),
        ("FLOWS", Align::Right),
        ("AT MOST", Align::Right),
        (reset, Align::Right),
    ]);
    for backend in &answer.backends {
        table.row(
            if backend.reset > 0 { Colour::Yellow } else { Colour::Plain },
            [
                backend.service.clone(),
                backend.backend.clone(),
                backend.address.clone(),
                units::count(backend.flows),
                backend.bound.map_or_else(|| "-".into(), units::count),
                units::count(backend.reset),
            ],
        );
    }
    table
}
