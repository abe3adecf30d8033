//! What the loaded program tells by its ring buffers, and measures.

use aya::maps::{PerCpuArray, RingBuf};
use lb_common::maps::{FlowEvent, Handshakes, Signal, name};
use zerocopy::FromBytes;

use super::Program;

impl Program {
    /// The signals that were not read yet.
    pub fn signals(&mut self) -> Vec<Signal> {
        self.ring(name::SIGNALS)
    }

    /// The events that were not read yet.
    pub fn events(&mut self) -> Vec<FlowEvent> {
        self.ring(name::EVENTS)
    }

    /// How long a backend took to answer, all CPUs together.
    pub fn handshakes(&mut self, backend: u16) -> Handshakes {
        let mut sum = Handshakes::default();
        let times: PerCpuArray<_, Handshakes> =
            self.ebpf.map_mut(name::HANDSHAKES).expect("handshakes").try_into().expect("a per-CPU array");
        times.get(&u32::from(backend), 0).expect("get").iter().for_each(|one| sum.add(one));
        sum
    }

    fn ring<T: FromBytes>(&mut self, name: &str) -> Vec<T> {
        let map = self.ebpf.map_mut(name).expect(name);
        let mut ring = RingBuf::try_from(map).expect("a ring buffer");
        let mut items = Vec::new();
        while let Some(item) = ring.next() {
            items.push(T::read_from_bytes(&item).expect("an item of its size"));
        }
        items
    }
}
