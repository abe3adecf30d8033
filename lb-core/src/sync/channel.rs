//! The encrypted stream: Noise `NNpsk0` (revision 34), by the shared key alone.
//!
//! ```text
//!  dialer    "ETCDLB-SYNC" | lowest version | highest version | 0 | u16 length | Noise message 1
//!  acceptor  status | u16 length | Noise message 2, whose payload is the version
//!            status 1: the key is another one; status 2 | lowest | highest: no version in common
//!  then, both ways: u16 length | ciphertext of at most 16 KiB of messages
//! ```
//!
//! Lengths are big-endian. The preamble is Noise's prologue and the version is in an encrypted payload, so that nobody can
//! talk the nodes down to an older version. Each ciphertext has its place in the sequence (a nonce of 64 bits, which are not
//! used up in the life of a stream): what is altered, left out, repeated or put in between ends the stream. Nothing that
//! comes before the other side has proved that it has the key is acted upon, and little of it is read.

use blake2::{Blake2s256, Digest as _};
use snow::{Builder, HandshakeState, TransportState};

/// Octets of messages in one ciphertext, at most.
pub const MAX_PLAINTEXT: usize = 16 << 10;
/// What Noise adds to a ciphertext.
const TAG: usize = 16;
/// First octets of a stream.
const MAGIC: &[u8; 11] = b"ETCDLB-SYNC";
/// Versions of the protocol that this release speaks.
const VERSIONS: (u8, u8) = (1, 1);
/// Octets of the preamble.
const PREAMBLE: usize = MAGIC.len() + 3;
/// Longest handshake message: an ephemeral key, a payload of one octet, a tag.
const MAX_HANDSHAKE: usize = 32 + 1 + TAG;
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

const OK: u8 = 0;
const WRONG_KEY: u8 = 1;
const NO_VERSION: u8 = 2;

/// Why a stream cannot be, or cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("the keys differ: copy `sync.key_file` from one node to the other")]
    WrongKey,
    #[error(
        "no version of the protocol in common: this node speaks {} to {}, the other {theirs_low} to {theirs_high}; upgrade \
         the older one",
        VERSIONS.0, VERSIONS.1
    )]
    Version { theirs_low: u8, theirs_high: u8 },
    #[error("what answers is no etcd-lb: check `sync.peer` and `sync.listen`")]
    NotSync,
    #[error("the stream was altered on its way, or something was put into it")]
    Tampered,
    #[error("no randomness for a key: {0}")]
    Unavailable(&'static str),
}

impl Failure {
    /// The `reason` label of `etcd_lb_sync_failures_total`.
    pub const REASONS: [&'static str; 5] = ["wrong_key", "version", "not_sync", "tampered", "unavailable"];

    /// Its place in [`Self::REASONS`].
    pub fn number(&self) -> usize {
        match self {
            Self::WrongKey => 0,
            Self::Version { .. } => 1,
            Self::NotSync => 2,
            Self::Tampered => 3,
            Self::Unavailable(_) => 4,
        }
    }
}

/// A value by which two nodes see that their seed for a service is the same, and nobody else learns anything.
pub fn seed_check(key: &[u8], seed: &[u8]) -> [u8; 8] {
    let digest = Blake2s256::new().chain_update(b"seed").chain_update(psk(key)).chain_update(seed).finalize();
    let mut check = [0; 8];
    check.copy_from_slice(&digest[..8]);
    check
}

fn psk(key: &[u8]) -> [u8; 32] {
    Blake2s256::digest(key).into()
}

/// One end of a stream.
pub struct Channel {
    key: [u8; 32],
    state: State,
    /// What has arrived and is not whole yet.
    pending: Vec<u8>,
}

enum State {
    /// The dialer waits for the answer.
    Dialed(Box<HandshakeState>),
    /// The acceptor waits for the preamble.
    Accepting,
    Open(Box<TransportState>),
    Failed,
}

impl Channel {
    /// The dialer's end, and what it sends first.
    ///
    /// # Errors
    /// [`Failure::Unavailable`].
    pub fn dial(key: &[u8]) -> Result<(Self, Vec<u8>), Failure> {
        let key = psk(key);
        let mut out = preamble();
        let mut noise = builder(&key, &out)?.build_initiator().map_err(|_| Failure::Unavailable("Noise"))?;
        write_handshake(&mut noise, &[], &mut out)?;
        Ok((Self { key, state: State::Dialed(Box::new(noise)), pending: Vec::new() }, out))
    }

    /// The acceptor's end.
    pub fn accept(key: &[u8]) -> Self {
        Self { key: psk(key), state: State::Accepting, pending: Vec::new() }
    }

    /// Whether both sides have proved that they have the key: for the acceptor only once something has arrived.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Takes in octets as they arrive. `reply` is to be sent, also where this fails; each of `plaintexts` holds whole
    /// messages.
    ///
    /// # Errors
    /// Why the stream is over.
    pub fn receive(&mut self, octets: &[u8], reply: &mut Vec<u8>) -> Result<Vec<Vec<u8>>, Failure> {
        self.pending.extend_from_slice(octets);
        let mut plaintexts = Vec::new();
        loop {
            match self.step(reply) {
                Ok(Step::Opened) => {}
                Ok(Step::Plaintext(plaintext)) => plaintexts.push(plaintext),
                Ok(Step::Incomplete) => return Ok(plaintexts),
                Err(failure) => {
                    self.state = State::Failed;
                    self.pending = Vec::new();
                    return Err(failure);
                }
            }
        }
    }

    fn step(&mut self, reply: &mut Vec<u8>) -> Result<Step, Failure> {
        match &mut self.state {
            State::Accepting => self.answer(reply),
            State::Dialed(_) => self.open(),
            State::Open(noise) => {
                let Some(ciphertext) = framed(&self.pending, 0, MAX_PLAINTEXT + TAG)? else {
                    return Ok(Step::Incomplete);
                };
                let mut plaintext = vec![0; ciphertext.len()];
                let length = noise.read_message(ciphertext, &mut plaintext).map_err(|_| Failure::Tampered)?;
                plaintext.truncate(length);
                let whole = 2 + ciphertext.len();
                self.pending.drain(..whole);
                Ok(Step::Plaintext(plaintext))
            }
            State::Failed => Err(Failure::Tampered),
        }
    }

    /// The acceptor answers the dialer's first words.
    fn answer(&mut self, reply: &mut Vec<u8>) -> Result<Step, Failure> {
        let known = self.pending.len().min(MAGIC.len());
        if self.pending[..known] != MAGIC[..known] {
            return Err(Failure::NotSync);
        }
        let Some(preamble) = self.pending.get(..PREAMBLE) else { return Ok(Step::Incomplete) };
        let (low, high) = (preamble[MAGIC.len()], preamble[MAGIC.len() + 1]);
        let version = high.min(VERSIONS.1);
        if version < low || version < VERSIONS.0 {
            reply.extend([NO_VERSION, VERSIONS.0, VERSIONS.1]);
            return Err(Failure::Version { theirs_low: low, theirs_high: high });
        }
        let Some(first) = framed(&self.pending, PREAMBLE, MAX_HANDSHAKE)? else {
            return Ok(Step::Incomplete);
        };
        let builder = builder(&self.key, preamble)?;
        let mut noise = builder.build_responder().map_err(|_| Failure::Unavailable("Noise"))?;
        if noise.read_message(first, &mut [0; MAX_HANDSHAKE]).is_err() {
            reply.push(WRONG_KEY);
            return Err(Failure::WrongKey);
        }
        let whole = PREAMBLE + 2 + first.len();
        reply.push(OK);
        write_handshake(&mut noise, &[version], reply)?;
        let noise = noise.into_transport_mode().map_err(|_| Failure::Unavailable("Noise"))?;
        self.pending.drain(..whole);
        self.state = State::Open(Box::new(noise));
        Ok(Step::Opened)
    }

    /// The dialer reads the answer.
    fn open(&mut self) -> Result<Step, Failure> {
        let Some(status) = self.pending.first() else { return Ok(Step::Incomplete) };
        match *status {
            OK => {}
            WRONG_KEY => return Err(Failure::WrongKey),
            NO_VERSION => {
                return match *self.pending {
                    [_, theirs_low, theirs_high, ..] => Err(Failure::Version { theirs_low, theirs_high }),
                    _ => Ok(Step::Incomplete),
                };
            }
            _ => return Err(Failure::NotSync),
        }
        let Some(second) = framed(&self.pending, 1, MAX_HANDSHAKE)? else { return Ok(Step::Incomplete) };
        let mut payload = [0; MAX_HANDSHAKE];
        let State::Dialed(noise) = &mut self.state else { return Err(Failure::Tampered) };
        let length = noise.read_message(second, &mut payload).map_err(|_| Failure::Tampered)?;
        let version = *payload[..length].first().ok_or(Failure::Tampered)?;
        if version < VERSIONS.0 || version > VERSIONS.1 {
            return Err(Failure::Version { theirs_low: version, theirs_high: version });
        }
        let whole = 1 + 2 + second.len();
        self.pending.drain(..whole);
        let State::Dialed(noise) = std::mem::replace(&mut self.state, State::Failed) else {
            return Err(Failure::Tampered);
        };
        let noise = noise.into_transport_mode().map_err(|_| Failure::Unavailable("Noise"))?;
        self.state = State::Open(Box::new(noise));
        Ok(Step::Opened)
    }

    /// Encrypts messages of at most [`MAX_PLAINTEXT`] octets, to be sent in this order.
    ///
    /// # Errors
    /// The stream is not open, or there is too much.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        let State::Open(noise) = &mut self.state else { return Err(Failure::Tampered) };
        let mut ciphertext = vec![0; plaintext.len() + TAG];
        let length = noise.write_message(plaintext, &mut ciphertext).map_err(|_| Failure::Tampered)?;
        let framed = u16::try_from(length).map_err(|_| Failure::Tampered)?;
        out.extend(framed.to_be_bytes());
        out.extend(&ciphertext[..length]);
        Ok(())
    }
}

enum Step {
    Opened,
    Plaintext(Vec<u8>),
    Incomplete,
}

fn preamble() -> Vec<u8> {
    let mut preamble = MAGIC.to_vec();
    preamble.extend([VERSIONS.0, VERSIONS.1, 0]);
    preamble
}

fn builder<'a>(key: &'a [u8; 32], prologue: &'a [u8]) -> Result<Builder<'a>, Failure> {
    let parameters = PATTERN.parse().map_err(|_| Failure::Unavailable("Noise"))?;
    let with_key = Builder::new(parameters).psk(0, key).map_err(|_| Failure::Unavailable("Noise"))?;
    with_key.prologue(prologue).map_err(|_| Failure::Unavailable("Noise"))
}

fn write_handshake(noise: &mut HandshakeState, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
    let mut message = [0; MAX_HANDSHAKE];
    let length =
        noise.write_message(payload, &mut message).map_err(|_| Failure::Unavailable("randomness"))?;
    // At most 49.
    out.extend((length as u16).to_be_bytes());
    out.extend(&message[..length]);
    Ok(())
}

/// What a length at `at` announces, once it is whole; longer than `longest` is nobody's.
fn framed(pending: &[u8], at: usize, longest: usize) -> Result<Option<&[u8]>, Failure> {
    let Some(length) = pending.get(at..at + 2) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length > longest {
        return Err(Failure::Tampered);
    }
    Ok(pending.get(at + 2..at + 2 + length))
}
