//! What `explain` tells.

use std::net::SocketAddr;

use lb_common::choose::{Algorithm, Verdict};
use lb_core::{
    config::{Backend, NoBackend, Service},
    desired::BackendKey,
};

use super::state::Agent;
use crate::{
    api::explain::{ExplainAnswer, ExplainQuery, ExplainedBackend, PassedOver, ServiceExplanation},
    dataplane::{Explanation, FlowFilter, FlowState, FlowView},
};

impl Agent {
    /// Where a client's connection goes, or would go now, and why.
    pub(super) fn explain(&mut self, query: &ExplainQuery) -> Result<ExplainAnswer, String> {
        self.take_census();
        let wanted = query.service.as_deref();
        let services = self.config.services.iter().zip(&self.failing_open);
        let services: Vec<_> = services
            .filter(|(service, _)| wanted.is_none_or(|wanted| service.name == wanted))
            .filter(|(service, _)| reaches(query, service))
            .filter_map(|(service, fail_open)| self.explain_service(query, service, *fail_open))
            .collect();
        if services.is_empty() {
            let names: Vec<_> = self.config.services.iter().map(|service| service.name.as_str()).collect();
            return Err(match wanted {
                Some(wanted) if !names.contains(&wanted) => {
                    format!("there is no service \"{wanted}\"; there are: {}", names.join(", "))
                }
                _ if !self.config.services.iter().any(|service| reaches(query, service)) => {
                    let (client, family) = (query.client, if query.client.is_ipv4() { 4 } else { 6 });
                    format!("{client} is an address of IPv{family}, and no service has a VIP of that")
                }
                _ => "the first round of health checks has not ended yet".into(),
            });
        }
        Ok(ExplainAnswer { services })
    }

    fn explain_service(
        &self,
        query: &ExplainQuery,
        service: &Service,
        fail_open: bool,
    ) -> Option<ServiceExplanation> {
        let found = self.plane.explain(service.vip, service.port, query.client, query.port)?;
        let flow = self.flow_of(query, service);
        let name = |number: u16| self.name_of(service, number, &found);
        let chosen = found.choice.as_ref().and_then(|choice| choice.chosen);
        let refused = refusal(service, &found);
        let backend = match (&flow, refused) {
            (Some(flow), _) => Some(self.name_at(service, flow.backend)),
            (None, Some(_)) => None,
            (None, None) => chosen.map(name),
        };
        let hashes = matches!(found.algorithm, Algorithm::Bounded | Algorithm::Maglev);
        let asked = found.choice.iter().flat_map(|choice| &choice.asked);
        let passed_over = asked.filter(|(_, verdict)| *verdict != Verdict::Takes);
        Some(ServiceExplanation {
            service: service.name.clone(),
            vip: SocketAddr::new(service.vip, service.port).to_string(),
            client: match query.port {
                Some(port) => SocketAddr::new(query.client, port).to_string(),
                None => query.client.to_string(),
            },
            algorithm: service.algorithm.to_string(),
            affinity: service.affinity.to_string(),
            fail_open,
            why: why(&found, flow.as_ref(), refused),
            flow: flow.as_ref().map(|flow| self.flow_entry(flow)),
            backend,
            refused: refused.map(str::to_owned),
            hash: found.slot.filter(|_| hashes).map(|(hash, _)| format!("{hash:016x}")),
            slot: found.slot.filter(|_| hashes).map(|(_, slot)| slot),
            k: found.k,
            passed_over: passed_over
                .map(|(number, verdict)| PassedOver {
                    backend: name(*number),
                    reason: reason(*verdict).into(),
                })
                .collect(),
            backends: service.backends.iter().map(|b| self.explain_backend(service, b, &found)).collect(),
        })
    }

    /// The client's connection to the service; if no port is given, only where it has exactly one backend to name.
    fn flow_of(&self, query: &ExplainQuery, service: &Service) -> Option<FlowView> {
        let port = query.port?;
        let filter = FlowFilter { client: Some(query.client), ..FlowFilter::default() };
        let at = SocketAddr::new(service.vip, service.port);
        self.plane
            .flows(&filter, usize::MAX)
            .into_iter()
            .find(|flow| flow.client.port() == port && flow.service == at && flow.state != FlowState::Closed)
    }

    fn name_of(&self, service: &Service, number: u16, found: &Explanation) -> String {
        let live = found.live.iter().find(|live| live.number == number);
        live.map_or_else(|| format!("number {number}"), |live| self.name_at(service, live.address))
    }

    #[expect(clippy::unused_self, reason = "reads as a property of the agent")]
    fn name_at(&self, service: &Service, address: SocketAddr) -> String {
        let backend = service.backends.iter().find(|backend| backend.address == address);
        backend.map_or_else(|| address.to_string(), |backend| backend.name.clone())
    }

    fn explain_backend(&self, service: &Service, backend: &Backend, found: &Explanation) -> ExplainedBackend {
        let live = found.live.iter().find(|live| live.address == backend.address);
        let established = self.backend_flows(&BackendKey::new(service, backend)).established;
        ExplainedBackend {
            backend: backend.name.clone(),
            address: backend.address.to_string(),
            state: self.backend_status(service, backend).state,
            live: live.is_some(),
            weight: backend.weight,
            flows: live.map_or(established.into(), |live| live.flows.established),
            pending: live.map_or(0, |live| live.flows.pending),
            bound: live.filter(|_| found.algorithm == Algorithm::Bounded).map(|live| live.bound),
            max_connections: backend.max_connections,
        }
    }
}

/// A client reaches a VIP of its own family only.
fn reaches(query: &ExplainQuery, service: &Service) -> bool {
    query.client.is_ipv4() == service.vip.is_ipv4()
}

/// The counter under which a new connection would be refused or dropped, in the data plane's order.
fn refusal(service: &Service, found: &Explanation) -> Option<&'static str> {
    if found.not_allowed {
        return Some("not_allowed");
    }
    if found.client.is_some_and(|(has, limit)| has >= u64::from(limit)) {
        return Some("client_limit");
    }
    if found.table_full {
        return Some("table_full");
    }
    let choice = found.choice.as_ref()?;
    match (choice.chosen, found.live.is_empty()) {
        (Some(_), _) => None,
        (None, false) => Some("backends_full"),
        (None, true) if service.no_backend == NoBackend::Drop => Some("no_backend_drop"),
        (None, true) => Some("no_backend_reset"),
    }
}

fn why(found: &Explanation, flow: Option<&FlowView>, refused: Option<&str>) -> String {
    if let Some(flow) = flow {
        let state = if flow.state == FlowState::Established { "established" } else { "half-open" };
        return format!("the connection exists ({state}); it stays where it is");
    }
    match refused {
        Some("not_allowed") => return "`allow` does not name the client".into(),
        Some("client_limit") => {
            let (has, limit) = found.client.unwrap_or_default();
            return format!("the client has {has} connections; `max_flows_per_client` is {limit}");
        }
        Some("table_full") => return "`max_flows` connections are established".into(),
        Some("backends_full") => return "every live backend has `max_connections`".into(),
        Some(_) => return "no backend takes new connections".into(),
        None => {}
    }
    let Some(choice) = &found.choice else {
        return "the choice depends on the client's port: give it as ADDRESS:PORT".into();
    };
    let over = choice.asked.iter().filter(|(_, verdict)| *verdict != Verdict::Takes).count();
    let first = match found.algorithm {
        Algorithm::LeastConn => return "it has the fewest connections for its weight".into(),
        Algorithm::RoundRobin => "turn",
        Algorithm::Bounded | Algorithm::Maglev => "slot",
    };
    if choice.by_load {
        format!("{over} {first}s in a row were passed over; it is the least loaded")
    } else if over > 0 {
        format!("it takes the connection after {over} {first}s that were passed over")
    } else if found.affinity {
        "the client's slot is its; with `affinity = \"client-ip\"` for every port".into()
    } else {
        format!("the {} is its", if first == "turn" { "next turn" } else { "client's slot" })
    }
}

const fn reason(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Takes => "takes it",
        Verdict::NotLive => "takes no new connections",
        Verdict::Full => "has max_connections, handshakes under way included",
        Verdict::OverBound => "over the bound",
    }
}
