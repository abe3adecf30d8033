//! `etcd-lb events`

use std::{path::Path, thread, time::Duration};

use clap::Args;
use etcd_lb::api::{
    client,
    events::{Event, EventQuery},
};

use super::{Failure, block_on, print_json};

/// Between two questions of `--follow`.
const PACE: Duration = Duration::from_millis(500);

/// Show the last 1,000 changes of state: roles, backends, flow sync, the config
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Go on and print what happens
    #[arg(short, long)]
    follow: bool,
    /// Print JSON: a list, or with --follow a line an event
    #[arg(long)]
    json: bool,
}

impl Events {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        let mut query = EventQuery::default();
        loop {
            let events: Vec<Event> = block_on(client::get(socket, &client::with_query("/events", &query)))?;
            if self.json && !self.follow {
                return print_json(&events);
            }
            for event in &events {
                query.after = event.number;
                if self.json {
                    println!("{}", serde_json::to_string(event).unwrap_or_default());
                } else {
                    println!("{}", line(event));
                }
            }
            if !self.follow {
                return Ok(());
            }
            thread::sleep(PACE);
        }
    }
}

fn line(event: &Event) -> String {
    let Event { at, kind, subject, message, .. } = event;
    if subject.is_empty() {
        format!("{at}  {kind:<8} {message}")
    } else {
        format!("{at}  {kind:<8} {subject}: {message}")
    }
}
