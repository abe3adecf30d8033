//! Flow sync: the nodes of a pair have each other's flows, so that a takeover breaks no connection.
//!
//! | file | what |
//! | --- | --- |
//! | `channel.rs` | the encrypted stream: octets in, messages out |
//! | `message.rs` | the messages, as octets |
//! | `marks.rs` | which slots the other node does not have as they are now |
//! | `peer.rs` | one other node: what it knows, what it is told next |
//!
//! What is replicated are the *slots of port tables*, by their state and not by their history: a slot that changed is marked,
//! and when the stream has room its state of that moment is sent. So memory is bounded however slow the other node is
//! (8 KiB a table), a snapshot is nothing but a mark on every slot in use, and an event that was lost is healed by marking
//! again.

mod channel;
mod marks;
mod message;
mod peer;
#[cfg(test)]
mod tests;

pub use channel::{Channel, Failure, MAX_PLAINTEXT, seed_check};
pub use marks::Marks;
pub use message::{FlowState, Malformed, Message, NodeRole, Place, Service};
pub use peer::{Difference, Event, PATIENCE, Peer, Source, Violation};
