//! TCP as the balancer sees it: flags, sequence arithmetic, and which segment is a valid answer to which
//! (RFC 9293, RFC 5961).

/// FIN: the sender has no more data.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// PSH.
pub const PSH: u8 = 0x08;
/// ACK: the acknowledgment number is valid.
pub const ACK: u8 = 0x10;
/// Flags that take a packet off the established path.
pub const UNUSUAL: u8 = FIN | SYN | RST;

/// Length of a TCP header without options, bytes (RFC 9293 section 3.1).
pub const HEADER_LEN: u32 = 20;

/// What the balancer reads of a segment; numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of the first octet.
    pub seq: u32,
    /// Acknowledgment number; valid if [`ACK`] is set.
    pub ack: u32,
    /// Octets of data, without header.
    pub payload: u32,
    /// The flags octet.
    pub flags: u8,
}

impl Segment {
    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn any(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// A connection attempt: SYN without ACK, RST or FIN.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// The second step of the handshake.
    #[inline(always)]
    pub const fn is_syn_ack(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN | ACK
    }

    /// The sequence number after this segment: SYN and FIN take one each (RFC 9293 section 3.4).
    #[inline(always)]
    pub const fn seq_end(&self) -> u32 {
        let syn = (self.flags & SYN != 0) as u32;
        let fin = (self.flags & FIN != 0) as u32;
        self.seq.wrapping_add(self.payload).wrapping_add(syn).wrapping_add(fin)
    }

    /// The RST that answers this segment, from the end it was sent to (RFC 9293 section 3.10.7.1): exact for the sender,
    /// since its SEQ is the sender's own ACK. `None` for a RST, which no RST answers.
    #[inline(always)]
    pub const fn reset(&self) -> Option<Self> {
        if self.flags & RST != 0 {
            return None;
        }
        Some(if self.flags & ACK != 0 {
            Self { seq: self.ack, ack: 0, payload: 0, flags: RST }
        } else {
            Self { seq: 0, ack: self.seq_end(), payload: 0, flags: RST | ACK }
        })
    }
}

/// `a` is at or after `b` in sequence space (RFC 9293 section 3.4: modulo 2^32, half the space ahead).
#[inline(always)]
pub const fn seq_at_or_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) >= 0
}

/// How far an ACK may lie from the last one seen and still speak for the connection's own end: the largest window that
/// RFC 7323 section 2.3 allows.
pub const PLAUSIBLE_ACK_DISTANCE: u32 = 1 << 30;

/// Whether `ack` can come from the end that last acknowledged `last_ack`.
#[inline(always)]
pub const fn plausible_ack(ack: u32, last_ack: u32) -> bool {
    is_near(ack, last_ack, PLAUSIBLE_ACK_DISTANCE)
}

/// Whether two sequence numbers are at most `distance`, itself less than a quarter of their space, apart.
#[inline(always)]
const fn is_near(a: u32, b: u32, distance: u32) -> bool {
    a.wrapping_sub(b).wrapping_add(distance) <= 2 * distance
}

/// How far the numbers of an answer may lie from those of what it answers where nothing else tells that both are of one
/// connection: more than any window in use, and one foreign answer in 16,384 would pass.
pub const ANSWER_DISTANCE: u32 = 1 << 24;

/// Whether a segment can be the answer of an end that knows the connection: `ack` is the asker's last ACK, `edge` the end
/// of its last segment. A RST tells that it does not.
#[inline(always)]
pub const fn may_answer(segment: &Segment, ack: u32, edge: u32) -> bool {
    segment.flags & (ACK | SYN | RST) == ACK
        && is_near(segment.seq, ack, ANSWER_DISTANCE)
        && is_near(segment.ack, edge, ANSWER_DISTANCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_wrap() {
        assert!(seq_at_or_after(5, u32::MAX - 5));
        assert!(!seq_at_or_after(u32::MAX - 5, 5));
        assert!(seq_at_or_after(7, 7));
        let fin = Segment { seq: u32::MAX, ack: 1, payload: 3, flags: FIN | ACK };
        assert_eq!(fin.seq_end(), 3);
    }

    #[test]
    fn a_reset_answers_as_rfc_9293_says() {
        let data = Segment { seq: 100, ack: 900, payload: 10, flags: ACK | PSH };
        assert_eq!(data.reset(), Some(Segment { seq: 900, ack: 0, payload: 0, flags: RST }));
        let syn = Segment { seq: 100, ack: 0, payload: 0, flags: SYN };
        assert_eq!(syn.reset(), Some(Segment { seq: 0, ack: 101, payload: 0, flags: RST | ACK }));
        let rst = Segment { seq: 100, ack: 0, payload: 0, flags: RST };
        assert_eq!(rst.reset(), None);
    }

    #[test]
    fn an_answer_is_near_what_it_answers() {
        let answer = |seq, ack, flags| Segment { seq, ack, payload: 0, flags };
        let may = |segment| may_answer(&segment, 5000, 1000);
        assert!(may(answer(5000, 1000, ACK)));
        assert!(may(answer(5000 + ANSWER_DISTANCE, 1000u32.wrapping_sub(ANSWER_DISTANCE), ACK | FIN)));
        assert!(!may(answer(5001 + ANSWER_DISTANCE, 1000, ACK)));
        assert!(!may(answer(5000, 1001 + ANSWER_DISTANCE, ACK)));
        for flags in [RST, RST | ACK, SYN | ACK, 0, FIN] {
            assert!(!may(answer(5000, 1000, flags)), "{flags:x}");
        }
    }

    #[test]
    fn an_ack_is_plausible_on_either_side_of_the_last() {
        assert!(plausible_ack(10, 10));
        assert!(plausible_ack(0, u32::MAX));
        assert!(plausible_ack(u32::MAX, 0));
        assert!(!plausible_ack(0x8000_0000, 0));
    }
}
