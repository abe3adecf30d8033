//! Streams to the other nodes: who dials, encryption, reconnecting. What is said on them is [`lb_core::sync`]'s.
//!
//! Of two nodes the one with the lower address dials, so there is one stream to each peer. All queues between the sockets
//! and the agent's loop are short: a peer that does not read fills the stream, not the memory.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_core::sync::{Channel, Failure, MAX_PLAINTEXT, Message};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{sleep, timeout},
};

/// For connecting, and for the handshake.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts: from the first, doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Octets read at once.
const READ: usize = 64 << 10;
/// Plaintexts on their way to a peer.
const OUTGOING: usize = 4;
/// What the agent has not dealt with.
const INCOMING: usize = 16;

/// What a stream tells the agent.
#[derive(Debug)]
pub enum News {
    /// A stream is open. What goes into `out`, at most [`MAX_PLAINTEXT`] octets at once, is sent; without it, it ends.
    Open { peer: usize, out: mpsc::Sender<Vec<u8>> },
    /// There is room for more.
    Room { peer: usize },
    /// What the peer says.
    Said { peer: usize, messages: Vec<Message> },
    /// The stream is over, or could not be.
    Closed { peer: usize, trouble: Trouble },
    /// Somebody who is no peer, or a peer that is to be dialed, came.
    Stranger(IpAddr),
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer within {PATIENCE:?}")]
    Silence,
    #[error("the other node ended the stream")]
    Ended,
    #[error(transparent)]
    Channel(#[from] Failure),
    #[error("{0}")]
    Malformed(#[from] lb_core::sync::Malformed),
}

impl Trouble {
    /// Whether it is worth a line each time: one that lasts is told once.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Channel(failure) => Some(*failure),
            _ => None,
        }
    }
}

/// The streams. They end with this.
#[derive(Debug)]
pub struct Streams {
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Streams {
    /// Listens, and keeps a stream to each peer.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(
        listen: SocketAddr,
        peers: &[SocketAddr],
        key: Vec<u8>,
    ) -> io::Result<(Self, mpsc::Receiver<News>)> {
        let (news, inbox) = mpsc::channel(INCOMING);
        let key = Arc::new(key);
        let listener = TcpListener::bind(listen).await?;
        let mut tasks = Vec::new();
        let mut awaited = BTreeMap::new();
        for (peer, &address) in peers.iter().enumerate() {
            let ends = Ends { peer, key: Arc::clone(&key), news: news.clone() };
            if listen < address {
                tasks.push(tokio::spawn(dial(ends, listen.ip(), address)));
            } else {
                let (accepted, streams) = mpsc::channel(1);
                awaited.insert(address.ip(), accepted);
                tasks.push(tokio::spawn(wait(ends, streams)));
            }
        }
        tasks.push(tokio::spawn(accept(listener, awaited, news)));
        Ok((Self { tasks }, inbox))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// This side of a peer's stream.
struct Ends {
    peer: usize,
    key: Arc<Vec<u8>>,
    news: mpsc::Sender<News>,
}

async fn accept(
    listener: TcpListener,
    awaited: BTreeMap<IpAddr, mpsc::Sender<TcpStream>>,
    news: mpsc::Sender<News>,
) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // Too many open files, for a moment.
            sleep(RETRY.0).await;
            continue;
        };
        let from = from.ip().to_canonical();
        match awaited.get(&from) {
            // One that is waiting already is as good as this.
            Some(accepted) => drop(accepted.try_send(stream)),
            None => drop(news.try_send(News::Stranger(from))),
        }
    }
}

async fn dial(ends: Ends, from: IpAddr, to: SocketAddr) {
    let mut pause = RETRY.0;
    loop {
        let trouble = match timeout(PATIENCE, connect(from, to)).await {
            Ok(Ok(stream)) => match ends.run(stream, true).await {
                Served::Before(trouble) => trouble,
                Served::Open(trouble) => {
                    pause = RETRY.0;
                    trouble
                }
            },
            Ok(Err(error)) => error.into(),
            Err(_) => Trouble::Silence,
        };
        if ends.news.send(News::Closed { peer: ends.peer, trouble }).await.is_err() {
            return;
        }
        sleep(jittered(pause)).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

async fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // The peer knows us by this address.
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

async fn wait(ends: Ends, mut streams: mpsc::Receiver<TcpStream>) {
    let mut next = None;
    loop {
        let stream = match next.take() {
            Some(stream) => stream,
            None => match streams.recv().await {
                Some(stream) => stream,
                None => return,
            },
        };
        // A peer that dials again has given the stream before up.
        let trouble = tokio::select! {
            served = ends.run(stream, false) => match served {
                Served::Before(trouble) | Served::Open(trouble) => trouble,
            },
            Some(newer) = streams.recv() => {
                next = Some(newer);
                Trouble::Ended
            }
        };
        if ends.news.send(News::Closed { peer: ends.peer, trouble }).await.is_err() {
            return;
        }
    }
}

/// How a stream ended: before it was open, or after.
enum Served {
    Before(Trouble),
    Open(Trouble),
}

impl Ends {
    async fn run(&self, stream: TcpStream, is_dialer: bool) -> Served {
        // Small messages are not to wait for more.
        let _best_effort = stream.set_nodelay(true);
        let (mut reader, mut writer) = stream.into_split();
        let opened = timeout(PATIENCE, self.open(&mut reader, &mut writer, is_dialer)).await;
        let (channel, first) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(trouble)) => return Served::Before(trouble),
            Err(_) => return Served::Before(Trouble::Silence),
        };
        Served::Open(self.serve(channel, first, reader, writer).await)
    }

    /// The handshake. The acceptor knows that the other side has the key only when something has come by it, so it waits
    /// for that; the dialer speaks first.
    async fn open(
        &self,
        reader: &mut OwnedReadHalf,
        writer: &mut OwnedWriteHalf,
        is_dialer: bool,
    ) -> Result<(Channel, Vec<Vec<u8>>), Trouble> {
        let mut channel = if is_dialer {
            let (channel, first) = Channel::dial(&self.key)?;
            writer.write_all(&first).await?;
            channel
        } else {
            Channel::accept(&self.key)
        };
        let mut buffer = vec![0; 1024];
        let mut plaintexts = Vec::new();
        while !channel.is_open() || (!is_dialer && plaintexts.is_empty()) {
            let length = reader.read(&mut buffer).await?;
            if length == 0 {
                return Err(Trouble::Ended);
            }
            let mut reply = Vec::new();
            let read = channel.receive(&buffer[..length], &mut reply);
            writer.write_all(&reply).await?;
            plaintexts.extend(read?);
            if is_dialer && channel.is_open() {
                let mut proof = Vec::new();
                channel.seal(&[], &mut proof)?;
                writer.write_all(&proof).await?;
            }
        }
        Ok((channel, plaintexts))
    }

    async fn serve(
        &self,
        mut channel: Channel,
        first: Vec<Vec<u8>>,
        mut reader: OwnedReadHalf,
        mut writer: OwnedWriteHalf,
    ) -> Trouble {
        let (out, mut outgoing) = mpsc::channel::<Vec<u8>>(OUTGOING);
        let peer = self.peer;
        if self.news.send(News::Open { peer, out }).await.is_err() {
            return Trouble::Ended;
        }
        if let Err(trouble) = self.tell(first).await {
            return trouble;
        }
        let mut buffer = vec![0; READ];
        loop {
            tokio::select! {
                read = reader.read(&mut buffer) => {
                    let length = match read {
                        Ok(0) => return Trouble::Ended,
                        Ok(length) => length,
                        Err(error) => return error.into(),
                    };
                    let plaintexts = match channel.receive(&buffer[..length], &mut Vec::new()) {
                        Ok(plaintexts) => plaintexts,
                        Err(failure) => return failure.into(),
                    };
                    if let Err(trouble) = self.tell(plaintexts).await {
                        return trouble;
                    }
                }
                plaintext = outgoing.recv() => {
                    let Some(plaintext) = plaintext else { return Trouble::Ended };
                    let mut sealed = Vec::with_capacity(plaintext.len() + 32);
                    for piece in plaintext.chunks(MAX_PLAINTEXT) {
                        if let Err(failure) = channel.seal(piece, &mut sealed) {
                            return failure.into();
                        }
                    }
                    if let Err(trouble) = write(&mut writer, &sealed, &mut reader, &mut channel, self).await {
                        return trouble;
                    }
                    // Lost if the agent has much to read: then it looks by itself.
                    let _ = self.news.try_send(News::Room { peer });
                }
            }
        }
    }

    /// Tells the agent what the peer said; it waits while the agent is busy, and the stream with it.
    async fn tell(&self, plaintexts: Vec<Vec<u8>>) -> Result<(), Trouble> {
        for plaintext in plaintexts {
            let mut rest = &plaintext[..];
            let mut messages = Vec::new();
            while !rest.is_empty() {
                messages.extend(Message::read(&mut rest)?);
            }
            if !messages.is_empty() {
                let said = News::Said { peer: self.peer, messages };
                self.news.send(said).await.map_err(|_| Trouble::Ended)?;
            }
        }
        Ok(())
    }
}

/// Writes, and reads meanwhile: two nodes that both write their snapshots must not wait for each other.
async fn write(
    writer: &mut OwnedWriteHalf,
    sealed: &[u8],
    reader: &mut OwnedReadHalf,
    channel: &mut Channel,
    ends: &Ends,
) -> Result<(), Trouble> {
    let writing = writer.write_all(sealed);
    tokio::pin!(writing);
    let mut buffer = vec![0; READ];
    loop {
        tokio::select! {
            written = &mut writing => return Ok(written?),
            read = reader.read(&mut buffer) => {
                let length = read?;
                if length == 0 {
                    return Err(Trouble::Ended);
                }
                let plaintexts = channel.receive(&buffer[..length], &mut Vec::new())?;
                ends.tell(plaintexts).await?;
            }
        }
    }
}

/// Half of it to all of it, so that nodes that lost each other do not meet in step.
fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    let random = RandomState::new().hash_one(0u8);
    pause / 2 + pause.mul_f64((random % 1000) as f64 / 2000.0)
}
