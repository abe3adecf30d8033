//! The flow log: a line of JSON for each flow that is established or closed, so that what a member logs of the VIP and a
//! NAT port can be traced to a client.
//!
//! A thread of its own writes it: a disk that is slow or full costs lines, which are counted, and never the agent's time.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tracing::{error, info};

use crate::api::timestamp;

/// Messages that may wait for the disk. One carries the lines of a batch of events.
const QUEUE: usize = 256;
/// How long the end of the agent waits for the last lines.
const LAST_LINES: Duration = Duration::from_millis(500);

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Line<'a> {
    /// When, RFC 3339 with milliseconds, UTC.
    pub(super) time: String,
    /// `established` or `closed`.
    pub(super) event: &'static str,
    /// The client's address and port.
    pub(super) client: String,
    /// The service's name.
    pub(super) service: &'a str,
    /// VIP and port that the client connected to.
    pub(super) vip: String,
    /// The source address that the backend sees.
    pub(super) source: String,
    /// The source port that the backend sees.
    pub(super) nat_port: u16,
    /// The backend's name.
    pub(super) backend: &'a str,
    /// The backend's address and port.
    pub(super) backend_address: String,
    /// How long it was established, `closed` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) duration_ms: Option<u64>,
    /// Why it ended, `closed` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
}

/// An open flow log.
#[derive(Debug)]
pub(super) struct FlowLog {
    path: PathBuf,
    queue: Option<SyncSender<Message>>,
    ended: Receiver<()>,
    lost: Arc<AtomicU64>,
}

enum Message {
    /// Whole lines, and how many.
    Lines(String, u64),
    /// The file may have been renamed away: from now on into a new one.
    Reopen(File),
}

impl FlowLog {
    /// Opens the file to append to it; `lost` counts lines that are not written.
    ///
    /// # Errors
    /// The file cannot be opened, in words.
    pub(super) fn open(path: &Path, lost: &Arc<AtomicU64>) -> Result<Self, String> {
        let file = open(path)?;
        let (queue, messages) = sync_channel(QUEUE);
        let (end, ended) = sync_channel::<()>(1);
        let writer = Writer { path: path.into(), file, lost: Arc::clone(lost), failing: false };
        thread::Builder::new()
            .name("flow-log".into())
            .spawn(move || {
                writer.run(&messages);
                // Nobody may be waiting.
                let _ = end.try_send(());
            })
            .map_err(|error| format!("flow_log: no thread can be started: {error}"))?;
        Ok(Self { path: path.into(), queue: Some(queue), ended, lost: Arc::clone(lost) })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Goes on in a new file of the same name, as after a rotation.
    ///
    /// # Errors
    /// The file cannot be opened, in words; then the old one is used as before.
    pub(super) fn reopen(&self) -> Result<(), String> {
        let message = Message::Reopen(open(&self.path)?);
        let sent = self.queue.as_ref().is_some_and(|queue| queue.try_send(message).is_ok());
        if sent { Ok(()) } else { Err("flow_log: the writer is stuck; the old file is still used".into()) }
    }

    /// Queues lines; those that find no room are lost and counted.
    pub(super) fn write(&self, lines: &[Line<'_>]) {
        let mut text = String::with_capacity(lines.len() * 320);
        for line in lines {
            if let Ok(json) = serde_json::to_string(line) {
                text.push_str(&json);
                text.push('\n');
            }
        }
        let count = lines.len() as u64;
        let sent = self.queue.as_ref().is_some_and(|q| q.try_send(Message::Lines(text, count)).is_ok());
        if !sent {
            self.lost.fetch_add(count, Ordering::Relaxed);
        }
    }
}

impl Drop for FlowLog {
    fn drop(&mut self) {
        self.queue = None;
        // A disk that hangs does not keep the agent from ending.
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(LAST_LINES) {
            error!(path = %self.path.display(), "the flow log's last lines may be missing");
        }
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    lost: Arc<AtomicU64>,
    /// The last write failed: said once.
    failing: bool,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        for message in messages {
            match message {
                Message::Reopen(file) => self.file = file,
                Message::Lines(text, count) => match self.file.write_all(text.as_bytes()) {
                    Ok(()) if self.failing => {
                        self.failing = false;
                        info!(path = %self.path.display(), "the flow log is written again");
                    }
                    Ok(()) => {}
                    Err(error) => {
                        self.lost.fetch_add(count, Ordering::Relaxed);
                        if !self.failing {
                            error!(path = %self.path.display(), %error, "the flow log cannot be written; lines are lost");
                        }
                        self.failing = true;
                    }
                },
            }
        }
    }
}

/// Appends, and makes the file if need be. It holds clients' addresses: not for everybody.
fn open(path: &Path) -> Result<File, String> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    opened.map_err(|error: io::Error| {
        format!(
            "flow_log: cannot open {} to append to it: {error}; does its directory exist?",
            path.display()
        )
    })
}

/// `2026-01-31T08:05:09.123Z`.
pub(super) fn time_ms(time: SystemTime) -> String {
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_millis());
    let seconds = timestamp::rfc3339(time);
    format!("{}.{millis:03}Z", seconds.trim_end_matches('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(nat_port: u16) -> Line<'static> {
        Line {
            time: time_ms(SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_042)),
            event: "closed",
            client: "10.0.2.7:40000".into(),
            service: "etcd",
            vip: "10.0.1.100:2379".into(),
            source: "10.0.1.100".into(),
            nat_port,
            backend: "etcd-1",
            backend_address: "10.0.1.11:2379".into(),
            duration_ms: Some(17),
            reason: None,
        }
    }

    #[test]
    fn lines_are_appended_and_a_rotated_file_is_left_alone() {
        let dir = std::env::temp_dir().join(format!("etcd-lb-flow-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (path, rotated) = (dir.join("flows.jsonl"), dir.join("flows.jsonl.1"));
        let lost = Arc::default();
        let log = FlowLog::open(&path, &lost).unwrap();
        log.write(&[line(1), line(2)]);
        std::fs::rename(&path, &rotated).unwrap();
        log.reopen().unwrap();
        log.write(&[line(3)]);
        drop(log);
        let log = FlowLog::open(&path, &lost).unwrap();
        log.write(&[line(4)]);
        drop(log);
        let (old, new) = [rotated, path].map(|path| std::fs::read_to_string(path).unwrap()).into();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            old.lines().next().unwrap(),
            r#"{"time":"2026-01-01T00:00:00.042Z","event":"closed","client":"10.0.2.7:40000","service":"etcd","vip":"10.0.1.100:2379","source":"10.0.1.100","nat_port":1,"backend":"etcd-1","backend_address":"10.0.1.11:2379","duration_ms":17}"#
        );
        assert_eq!((old.lines().count(), new.lines().count()), (2, 2));
        assert_eq!(lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_full_disk_costs_lines_and_not_time() {
        let lost = Arc::default();
        let log = FlowLog::open(Path::new("/dev/full"), &lost).unwrap();
        for _ in 0..2 * QUEUE {
            log.write(&[line(1), line(2)]);
        }
        drop(log);
        assert_eq!(lost.load(Ordering::Relaxed), 4 * QUEUE as u64);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let said = FlowLog::open(Path::new("/nonexistent/flows.jsonl"), &Arc::default()).unwrap_err();
        assert!(said.contains("/nonexistent/flows.jsonl") && said.contains("directory"), "{said}");
    }
}
