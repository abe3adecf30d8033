//! Captured packets as pcapng (draft-ietf-opsawg-pcapng), for tcpdump and Wireshark.
//!
//! Each interface stands in the file twice, `eth0:before` and `eth0:after`, since a packet is seen twice: as it came, and as
//! the XDP program left it. The comment of both tells the packet's number, by which they belong together, and what the program
//! answered. A dropped packet has no after.

use std::{borrow::Cow, collections::HashMap, io, time::Duration};

use lb_common::capture::{MAX_SNAP, Record};
use pcap_file::{
    DataLink, Endianness, PcapError,
    pcapng::{
        PcapNgBlock as _, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};

use crate::dataplane::Captured;

/// `epb_flags`: direction inbound, and outbound.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// `if_tsresol`: nanoseconds.
const NANOSECONDS: u8 = 9;

/// What became of a packet, by the kernel's `enum xdp_action`.
pub fn verdict_name(verdict: u32) -> &'static str {
    match verdict {
        0 => "XDP_ABORTED",
        1 => "XDP_DROP",
        2 => "XDP_PASS",
        3 => "XDP_TX",
        4 => "XDP_REDIRECT",
        _ => "an unknown verdict",
    }
}

/// Writes packets.
#[allow(missing_debug_implementations, reason = "pcap-file's writer has none")]
pub struct Writer<W: io::Write> {
    out: PcapNgWriter<W>,
    /// Where an interface's two stand in the file: the number of the first.
    interfaces: HashMap<u32, u32>,
    packets: u64,
    snap: u32,
    /// What is added to `CLOCK_MONOTONIC` for the time of day.
    clock: Duration,
}

impl<W: io::Write> Writer<W> {
    /// Begins a file. `snap`: octets kept of a packet at most; `clock`: the time of day less `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn new(out: W, snap: u32, clock: Duration) -> io::Result<Self> {
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            major_version: 1,
            minor_version: 0,
            section_length: -1,
            options: vec![SectionHeaderOption::UserApplication(Cow::Borrowed(concat!(
                "etcd-lb ",
                env!("CARGO_PKG_VERSION")
            )))],
        };
        let out = PcapNgWriter::with_section_header(out, section).map_err(io_error)?;
        Ok(Self { out, interfaces: HashMap::new(), packets: 0, snap: snap.min(MAX_SNAP as u32), clock })
    }

    /// Writes a packet, before and after. `name`: of an interface by its number.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn packet(&mut self, packet: &Captured, name: impl FnOnce(u32) -> String) -> io::Result<()> {
        let first = match self.interfaces.get(&packet.record.ifindex) {
            Some(&first) => first,
            None => self.interface(packet.record.ifindex, &name(packet.record.ifindex))?,
        };
        self.packets += 1;
        let record = &packet.record;
        self.side(record, first, INBOUND, "came", (&packet.before, record.before))?;
        if !packet.after.is_empty() {
            self.side(record, first + 1, OUTBOUND, "left XDP", (&packet.after, record.after))?;
        }
        Ok(())
    }

    /// Makes what was written visible to who reads along.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.get_mut().flush()
    }

    /// Packets written.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    fn interface(&mut self, ifindex: u32, name: &str) -> io::Result<u32> {
        let first = self.interfaces.len() as u32 * 2;
        for (side, what) in [("before", "as they come"), ("after", "as the XDP program leaves them")] {
            let block = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: self.snap,
                options: vec![
                    InterfaceDescriptionOption::IfName(format!("{name}:{side}").into()),
                    InterfaceDescriptionOption::IfDescription(format!("packets of {name} {what}").into()),
                    InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
                ],
            };
            self.out.write_block(&block.into_block()).map_err(io_error)?;
        }
        self.interfaces.insert(ifindex, first);
        Ok(first)
    }

    fn side(
        &mut self,
        record: &Record,
        interface: u32,
        direction: u32,
        what: &str,
        (data, length): (&[u8], u32),
    ) -> io::Result<()> {
        let (number, verdict) = (self.packets, verdict_name(record.verdict));
        let comment = format!("packet {number} as it {what}; {verdict}, queue {}", record.queue);
        let block = EnhancedPacketBlock {
            interface_id: interface,
            timestamp: self.clock.saturating_add(Duration::from_nanos(record.time)),
            // A packet has no fewer octets than were kept of it.
            original_len: length.max(data.len() as u32),
            data: Cow::Borrowed(data),
            options: vec![
                EnhancedPacketOption::Comment(comment.into()),
                EnhancedPacketOption::Flags(direction),
            ],
        };
        self.out.write_block(&block.into_block()).map(drop).map_err(io_error)
    }
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    fn captured(ifindex: u32, verdict: u32, before: &[u8], after: &[u8]) -> Captured {
        let record = Record {
            time: 5_000_000_001,
            ifindex,
            queue: 1,
            verdict,
            before: 1514,
            after: 1514,
            before_kept: before.len() as u16,
            after_kept: after.len() as u16,
        };
        Captured { record, before: before.into(), after: after.into() }
    }

    #[test]
    fn both_sides_of_each_packet_stand_in_the_file() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, 96, Duration::from_secs(1_000_000)).unwrap();
        for packet in
            [captured(7, 3, b"abcde", b"fghij"), captured(9, 1, b"x", b""), captured(7, 4, b"k", b"l")]
        {
            writer.packet(&packet, |ifindex| format!("eth{ifindex}")).unwrap();
        }
        assert_eq!(writer.packets(), 3);
        let mut reader = PcapNgReader::new(&file[..]).unwrap();
        let (mut names, mut packets) = (Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap() {
                Block::InterfaceDescription(interface) => {
                    assert_eq!(interface.snaplen, 96);
                    names.extend(interface.options.iter().find_map(|option| match option {
                        InterfaceDescriptionOption::IfName(name) => Some(name.clone().into_owned()),
                        _ => None,
                    }));
                }
                Block::EnhancedPacket(packet) => {
                    assert_eq!(
                        (packet.timestamp.as_nanos(), packet.original_len),
                        (1_000_005_000_000_001, 1514)
                    );
                    packets.push((packet.interface_id, packet.data.to_vec()));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(names, ["eth7:before", "eth7:after", "eth9:before", "eth9:after"]);
        let expected: [(u32, &[u8]); 5] = [(0, b"abcde"), (1, b"fghij"), (2, b"x"), (0, b"k"), (1, b"l")];
        assert_eq!(packets, expected.map(|(interface, data)| (interface, data.to_vec())));
    }
}
