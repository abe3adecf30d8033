//! `etcd-lb explain`

use std::{net::IpAddr, path::Path};

use clap::Args;
use etcd_lb::api::{
    client,
    explain::{ExplainAnswer, ExplainQuery, ServiceExplanation},
};
use etcd_lb::units;

use super::{
    Failure, block_on, colours, print_json,
    table::{Align, Colour, Table, wrapped},
    values,
};

/// Show which backend a client's connection goes to, or would go to now, and why
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The client's address, and its port where the choice depends on it: 10.0.2.7, 10.0.2.7:40123, [fd00::7]:40123
    #[arg(value_name = "CLIENT[:PORT]", value_parser = values::end)]
    client: (IpAddr, Option<u16>),
    /// Only in this service; default: in each
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        let (address, port) = self.client;
        let query = ExplainQuery { client: address, port, service: self.service };
        let answer: ExplainAnswer = block_on(client::get(socket, &client::with_query("/explain", &query)))?;
        if self.json {
            return print_json(&answer);
        }
        let texts: Vec<String> = answer.services.iter().map(|service| render(service, colours())).collect();
        print!("{}", texts.join("\n"));
        Ok(())
    }
}

fn render(service: &ServiceExplanation, colours: bool) -> String {
    let verb = if service.flow.is_some() { "goes to" } else { "would go to" };
    let outcome = match (&service.backend, &service.refused) {
        (Some(backend), _) => format!("{verb} {backend}"),
        (None, Some(reason)) => format!("would be refused ({reason})"),
        (None, None) => "would go to one of those below".into(),
    };
    let mut text = format!("{}: a connection from {} {outcome}\n", service.service, service.client);
    text += &wrapped(&format!("why: {}", service.why));
    let mut how = format!("how: {} on {}", service.algorithm, service.vip);
    if service.affinity != "none" {
        how += &format!(", affinity {}", service.affinity);
    }
    if let (Some(hash), Some(slot)) = (&service.hash, service.slot) {
        how += &format!(", hash {hash}, slot {slot}");
    }
    how += &format!("; connection {} of the service", units::count(service.k));
    if service.fail_open {
        how += "; FAILING OPEN: no backend is healthy";
    }
    text += &wrapped(&how);
    for passed in &service.passed_over {
        text += &wrapped(&format!("passed over: {}: {}", passed.backend, passed.reason));
    }
    text + &table(service).render(colours)
}

fn table(service: &ServiceExplanation) -> Table {
    let mut table = Table::new(&[
        ("BACKEND", Align::Left),
        ("ADDRESS", Align::Left),
        ("STATE", Align::Left),
        ("NEW", Align::Left),
        ("WEIGHT", Align::Right),
        ("FLOWS", Align::Right),
        ("PENDING", Align::Right),
        ("BOUND", Align::Right),
        ("MAX", Align::Right),
    ]);
    for backend in &service.backends {
        let colour = match backend.state.as_str() {
            "healthy" => Colour::Green,
            "down" => Colour::Red,
            _ => Colour::Yellow,
        };
        table.row(
            colour,
            [
                backend.backend.clone(),
                backend.address.clone(),
                backend.state.clone(),
                if backend.live { "yes" } else { "no" }.into(),
                backend.weight.to_string(),
                units::count(backend.flows),
                units::count(backend.pending),
                backend.bound.map_or_else(|| "-".into(), units::count),
                if backend.max_connections == 0 { "-".into() } else { backend.max_connections.to_string() },
            ],
        );
    }
    table
}
