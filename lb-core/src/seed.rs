//! The key of a service's flow hash: the same on both nodes of a pair, and in every release.
//!
//! Without a secret it follows from VIP and port, so that two nodes agree without being told. With one
//! (`hash_seed_file`), a client that knows this code still cannot choose ports that all land on one backend.

use std::net::IpAddr;

use lb_common::{
    addr::{Addr, Port},
    hash::{self, Seed},
};

/// A secret is at least this long, octets: the key has 128 bits.
pub const MIN_SECRET: usize = 16;

/// The seed of the service on `vip` and `port`; `secret` is the seed file's contents.
///
/// A hash chain: each block of 16 octets replaces the state, a SipHash key, by two SipHashes of the block under it. First
/// the secret, if any, its last block filled up with zeros; then its length; then the VIP and port.
pub fn of_service(secret: Option<&[u8]>, vip: IpAddr, port: u16) -> Seed {
    let secret = secret.unwrap_or_default();
    let mut state = Seed { key: [0, 0] };
    for chunk in secret.chunks(16) {
        let mut block = [0; 16];
        block[..chunk.len()].copy_from_slice(chunk);
        state = absorb(&state, &block);
    }
    state = absorb(&state, &(secret.len() as u128).to_be_bytes());
    state = absorb(&state, Addr::from(vip).octets());
    absorb(&state, &u128::from(port).to_be_bytes())
}

fn absorb(state: &Seed, block: &[u8; 16]) -> Seed {
    let half = |number| hash::client(state, &Addr::new(*block), Some(Port::new(number)));
    Seed { key: [half(0), half(1)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdefg";

    fn seed(secret: Option<&[u8]>, vip: &str, port: u16) -> [u64; 2] {
        of_service(secret, vip.parse().unwrap(), port).key
    }

    /// Nodes of different releases must agree: a change here moves connections at a takeover during an upgrade.
    #[test]
    fn it_never_changes() {
        // By an independent implementation of SipHash-1-3 and of the chain.
        let derived = [0x3582_6246_54f3_a4e6, 0x905a_8f49_4de0_b482];
        let keyed = [0x8d27_882b_7d8e_2e28, 0x8092_2e23_af24_b8bb];
        assert_eq!(seed(None, "10.0.1.100", 2379), derived);
        assert_eq!(seed(Some(SECRET), "10.0.1.100", 2379), keyed);
    }

    #[test]
    fn everything_that_goes_in_matters() {
        let mut seen = vec![
            seed(None, "10.0.1.100", 2379),
            seed(None, "10.0.1.100", 6443),
            seed(None, "10.0.1.101", 2379),
            seed(Some(SECRET), "10.0.1.100", 2379),
            seed(Some(&SECRET[..16]), "10.0.1.100", 2379),
            // As long as the zero-filled last block, but not the same secret.
            seed(Some(b"0123456789abcdefg\0"), "10.0.1.100", 2379),
        ];
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 6);
    }
}
