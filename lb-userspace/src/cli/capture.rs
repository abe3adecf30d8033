//! `etcd-lb capture`

use std::{
    ffi::CStr,
    fs::OpenOptions,
    io::{self, BufWriter, IsTerminal as _, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use etcd_lb::{
    api::{
        capture::{CaptureAnswer, CaptureFilter, CaptureRequest, LEASE_MS},
        client,
    },
    capture::Writer,
    dataplane::{self, Captures},
    units,
};
use lb_common::capture::MAX_SNAP;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, values};

/// Packets taken from the kernel at once.
const BATCH: usize = 1024;

/// Write the packets that XDP handles, before and after rewriting, as pcapng: tcpdump does not see them
#[derive(Debug, Args)]
pub(super) struct Capture {
    /// The file to write, readable by its owner only; `-` is stdout
    #[arg(long, short = 'w', value_name = "FILE", default_value = "-")]
    write: PathBuf,
    /// Only packets from or to this client
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = values::end)]
    client: Option<(IpAddr, Option<u16>)>,
    /// Only packets from or to this backend: its name, or its address IP:port
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// End after so many packets; 0: never
    #[arg(long, short = 'c', value_name = "COUNT", default_value_t = 10_000,
          value_parser = values::whole::<0, { u64::MAX }>, allow_negative_numbers = true)]
    packets: u64,
    /// End after so many seconds; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0,
          value_parser = values::seconds::<0, 864_000>, allow_negative_numbers = true)]
    seconds: f64,
    /// Octets kept of each packet, 64 to 2048
    #[arg(long, value_name = "OCTETS", default_value_t = MAX_SNAP as u64,
          value_parser = values::whole::<64, { MAX_SNAP as u64 }>, allow_negative_numbers = true)]
    snaplen: u64,
    /// Also packets that XDP passes to the kernel as they came, which tcpdump sees too
    #[arg(long)]
    passed: bool,
}

/// Why a capture ended before its bounds.
enum Stopped {
    /// The file or pipe.
    Write(io::Error),
    /// The agent ended it, or is gone.
    Agent(String),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl Capture {
    pub(super) fn run(self, socket: &Path) -> Result<(), Failure> {
        let to_stdout = self.write.as_os_str() == "-";
        if to_stdout && io::stdout().is_terminal() {
            return Err(Failure::Config(
                "pcapng is not for a terminal: name a file with --write, or pipe it into `tcpdump -nr -` or \
                 `wireshark -ki -`"
                    .into(),
            ));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::Operation(format!("cannot start: {error}")))?;
        runtime.block_on(self.capture(socket, to_stdout))
    }

    async fn capture(&self, socket: &Path, to_stdout: bool) -> Result<(), Failure> {
        let (client, client_port) = self.client.unzip();
        let filter = CaptureFilter {
            client,
            client_port: client_port.flatten(),
            backend: self.backend.clone(),
            snap: self.snaplen as u32,
            passed: self.passed,
        };
        let begun = ask(socket, &CaptureRequest::Begin(filter)).await?;
        let outcome = self.read(socket, &begun, to_stdout).await;
        // An agent that has ended has ended this too.
        let _gone = ask(socket, &CaptureRequest::End { id: begun.id }).await;
        outcome
    }

    async fn read(&self, socket: &Path, begun: &CaptureAnswer, to_stdout: bool) -> Result<(), Failure> {
        let mut captures = Captures::open(&begun.pin_dir).map_err(|error| operation(&error))?;
        // Not before: a file that is there is not emptied for nothing.
        let out: Box<dyn Write> = if to_stdout { Box::new(io::stdout()) } else { Box::new(self.file()?) };
        let mut writer = Writer::new(BufWriter::new(out), self.snaplen as u32, clock())
            .map_err(|error| self.unwritten(&error))?;
        eprintln!("capturing on {}{}; Ctrl-C ends it", begun.interfaces.join(", "), self.bounds());

        let outcome = self.packets(socket, begun.id, &mut captures, &mut writer).await;
        let outcome = outcome.and_then(|()| Ok(writer.flush()?));
        let lost = captures.lost().map_err(|error| operation(&error))?;
        eprintln!(
            "{} captured, {} lost{}",
            units::counted(writer.packets(), "packet"),
            units::count(lost),
            if lost > 0 { ": narrow it with --client or --backend, or keep less with --snaplen" } else { "" }
        );
        match outcome {
            Ok(()) => Ok(()),
            // Who reads along has seen enough.
            Err(Stopped::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(Stopped::Write(error)) => Err(self.unwritten(&error)),
            Err(Stopped::Agent(reason)) => Err(Failure::Operation(format!("the capture ended: {reason}"))),
        }
    }

    /// Writes packets until the bounds or a signal.
    async fn packets(
        &self,
        socket: &Path,
        id: u64,
        captures: &mut Captures,
        writer: &mut Writer<BufWriter<Box<dyn Write>>>,
    ) -> Result<(), Stopped> {
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let deadline = (self.seconds > 0.0).then(|| Instant::now() + Duration::from_secs_f64(self.seconds));
        let mut extend = tokio::time::interval(Duration::from_millis(LEASE_MS / 6));
        loop {
            let left = match self.packets {
                0 => u64::MAX,
                most => most.saturating_sub(writer.packets()),
            };
            if left == 0 {
                return Ok(());
            }
            let limit = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
            tokio::select! {
                // In this order: packets without end keep nothing else waiting.
                biased;
                _ = interrupted.recv() => return Ok(()),
                _ = terminated.recv() => return Ok(()),
                () = until(deadline) => return Ok(()),
                _ = extend.tick() => {
                    let extended = ask(socket, &CaptureRequest::Extend { id }).await;
                    extended.map_err(|failure| Stopped::Agent(failure.to_string()))?;
                }
                packets = captures.next(limit) => {
                    for packet in &packets {
                        writer.packet(packet, name_of)?;
                    }
                    writer.flush()?;
                }
            }
        }
    }

    fn file(&self) -> Result<std::fs::File, Failure> {
        // What clients send may be plain text.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&self.write).map_err(|error| self.unwritten(&error))
    }

    fn unwritten(&self, error: &io::Error) -> Failure {
        Failure::Operation(format!("cannot write {}: {error}", self.write.display()))
    }

    fn bounds(&self) -> String {
        let bounds = [
            (self.packets > 0).then(|| units::counted(self.packets, "packet")),
            (self.seconds > 0.0).then(|| format!("{} s", self.seconds)),
        ];
        let bounds: Vec<String> = bounds.into_iter().flatten().collect();
        if bounds.is_empty() { String::new() } else { format!(", at most {}", bounds.join(" or ")) }
    }
}

async fn ask(socket: &Path, request: &CaptureRequest) -> Result<CaptureAnswer, Failure> {
    client::post(socket, "/capture", request).await.map_err(Failure::from)
}

/// The time of day less `CLOCK_MONOTONIC`.
fn clock() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(dataplane::monotonic_ns()))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn name_of(ifindex: u32) -> String {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the function asks for, and is read only where it was filled.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    if found.is_null() {
        return format!("interface {ifindex}");
    }
    // SAFETY: the function has written a name with a zero at its end.
    unsafe { CStr::from_ptr(found.cast_const()) }.to_string_lossy().into_owned()
}

fn operation(error: &dataplane::Error) -> Failure {
    Failure::Operation(error.to_string())
}
