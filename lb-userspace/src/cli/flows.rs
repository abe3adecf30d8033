//! `etcd-lb flows`

use std::{net::IpAddr, path::Path};

use clap::Args;
use etcd_lb::api::{
    client,
    command::{FlowList, FlowQuery},
};
use etcd_lb::units;

use super::{
    Failure, block_on, colours, print_json,
    table::{Align, Colour, Table},
    values,
};

/// List flows: which client, by which NAT port, on which backend
#[derive(Debug, Args)]
pub(super) struct Flows {
    /// Only those of this client
    #[arg(long, value_name = "ADDRESS", value_parser = values::address)]
    client: Option<IpAddr>,
    /// Only those on this backend: its name, or its address IP:port
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// Only those with this source port toward the backend, as etcd's log shows it
    #[arg(long, value_name = "PORT")]
    nat_port: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Flows {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        let query = FlowQuery { client: self.client, backend: self.backend, nat_port: self.nat_port };
        let list: FlowList = block_on(client::get(socket, &client::with_query("/flows", &query)))?;
        if self.json {
            return print_json(&list);
        }
        if list.flows.is_empty() {
            println!("no flows");
            return Ok(());
        }
        print!("{}", table(&list).render(colours()));
        if list.truncated {
            println!("  … and more: narrow the list with --client, --backend or --nat-port");
        }
        Ok(())
    }
}

fn table(list: &FlowList) -> Table {
    let mut table = Table::new(&[
        ("CLIENT", Align::Left),
        ("VIP", Align::Left),
        ("BACKEND", Align::Left),
        ("ADDRESS", Align::Left),
        ("NAT PORT", Align::Right),
        ("STATE", Align::Left),
        ("IDLE", Align::Right),
    ]);
    for flow in &list.flows {
        let colour = match flow.state.as_str() {
            "established" => Colour::Green,
            "half-open" => Colour::Yellow,
            _ => Colour::Plain,
        };
        table.row(
            colour,
            [
                flow.client.clone(),
                flow.vip.clone(),
                flow.backend.clone(),
                flow.address.clone(),
                flow.nat_port.to_string(),
                flow.state.clone(),
                units::milliseconds(flow.idle_ms),
            ],
        );
    }
    table
}
