//! Which backend a new flow would go to, from the maps, by the data plane's own arithmetic.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    addr::{Addr, Port},
    choose::{Algorithm, Flows, bound},
    hash,
    maps::{self, ClientKey, Load, MAGLEV_SLOTS, SERVICE_AFFINITY, SERVICE_ALLOW, Service, ServiceKey},
    pending::Window,
};
use lb_core::{
    choice::{self, Choice},
    reconcile::Table,
};

use super::{DataPlane, address_of, monotonic_ns};

/// How a new flow would fare.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// How the service chooses; by the slot alone where it has affinity.
    pub algorithm: Algorithm,
    /// The client's address alone is hashed.
    pub affinity: bool,
    /// The client's hash and slot; `None` where it depends on a port that was not given.
    pub slot: Option<(u64, u32)>,
    /// Flows of the service, with this one.
    pub k: u64,
    /// Live backends.
    pub live: Vec<LiveBackend>,
    /// The choice; `None` where it depends on a port that was not given.
    pub choice: Option<Choice>,
    /// `allow` does not name the client.
    pub not_allowed: bool,
    /// Established flows of the client and the most it may have, where there is a limit.
    pub client: Option<(u64, u32)>,
    /// `max_flows` are established.
    pub table_full: bool,
}

/// A live backend.
#[derive(Clone, Copy, Debug)]
pub struct LiveBackend {
    /// Its number.
    pub number: u16,
    /// Its address.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// Flows past which it is passed over; 0: no limit.
    pub max_connections: u32,
    /// Its flows.
    pub flows: Flows,
    /// Flows that the bound allows it now.
    pub bound: u64,
}

impl DataPlane {
    /// How a new flow of a client would fare; `None` if the maps do not have the service.
    pub fn explain(&self, vip: IpAddr, port: u16, client: IpAddr, from: Option<u16>) -> Option<Explanation> {
        let number = self.actual.service_number(&ServiceKey::new(vip.into(), Port::new(port)))?;
        let service = self.actual.services.get(&number)?;
        let table = self.actual.maglev.get(&number)?;
        let address = Addr::from(client);
        let algorithm = Algorithm::of(service.flags);
        let now = Window::at(monotonic_ns());
        let of_service = self.load(maps::load_of_service(number));
        let k = of_service.flows(now).all() + 1;
        let flows = |backend: u16| self.load(maps::load_of_backend(backend)).flows(now);

        let slot = slot_of(service, &address, from);
        let start = match algorithm {
            Algorithm::LeastConn | Algorithm::RoundRobin => Some(of_service.turn as u64),
            Algorithm::Bounded | Algorithm::Maglev => slot.map(|(_, slot)| slot.into()),
        };
        Some(Explanation {
            algorithm,
            affinity: service.flags & SERVICE_AFFINITY != 0,
            slot,
            k,
            live: self.live(table, k, flows),
            choice: start.map(|start| choice::choose(table, algorithm, start, k, flows)),
            not_allowed: service.flags & SERVICE_ALLOW != 0 && !self.is_allowed(number, &address),
            client: (service.max_flows_per_client != 0)
                .then(|| (self.flows_of_client(number, address), service.max_flows_per_client)),
            table_full: self.load(maps::LOAD_TOTAL).established >= i64::from(self.max_flows),
        })
    }

    fn live(&self, table: &Table, k: u64, flows: impl Fn(u16) -> Flows) -> Vec<LiveBackend> {
        let live_weight = table.live().iter().map(|member| member.weight).sum();
        let live = table.live().iter().filter_map(|member| {
            Some(LiveBackend {
                number: member.number,
                address: address_of(self.actual.backends.get(&member.number)?),
                weight: member.weight,
                max_connections: member.max_connections,
                flows: flows(member.number),
                bound: bound(member.weight, live_weight, k),
            })
        });
        live.collect()
    }

    fn load(&self, slot: u32) -> Load {
        self.maps.loads.read(slot as usize)
    }

    fn flows_of_client(&self, service: u16, client: Addr) -> u64 {
        let key = ClientKey { client, service: service.into() };
        self.maps.clients.get(&key, 0).map_or(0, |load| load.established.max(0) as u64)
    }

    /// As the trie `allow` has it.
    fn is_allowed(&self, service: u16, client: &Addr) -> bool {
        let wanted = u128::from_be_bytes(*client.octets());
        self.actual.allow.iter().any(|(length, data)| {
            let rest = 128u32.saturating_sub(length.saturating_sub(maps::ALLOW_SERVICE_BITS));
            let differ = wanted ^ u128::from_be_bytes(*data.address.octets());
            data.service == u32::from(service).to_be_bytes() && differ.checked_shr(rest).unwrap_or(0) == 0
        })
    }
}

/// Hash and slot; `None` if they depend on a port that was not given.
fn slot_of(service: &Service, client: &Addr, port: Option<u16>) -> Option<(u64, u32)> {
    let port = match port {
        _ if service.flags & SERVICE_AFFINITY != 0 => None,
        Some(port) => Some(Port::new(port)),
        None => return None,
    };
    let hash = hash::client(&service.seed, client, port);
    Some((hash, hash::slot(hash, MAGLEV_SLOTS)))
}
