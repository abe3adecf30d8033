//! Who answers ARP for the VIP? Asked a few hundred times a second, with every answer kept.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::addr::Mac;

use crate::{Host, VIP, frames::arp_request, packet::RawSocket};

/// Between two questions.
const PACE: Duration = Duration::from_millis(2);
/// Questions are told apart by who asks: so many addresses that are nobody's, from 10.0.1.120 on.
const ASKERS: u8 = 100;

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When it came.
    pub at: Instant,
    /// Number of the question.
    pub question: u64,
    /// Who has the VIP.
    pub mac: [u8; 6],
}

/// Asks until it is dropped.
#[derive(Debug)]
pub struct OwnerWatch {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answer>>>,
    worker: Option<JoinHandle<()>>,
}

impl OwnerWatch {
    /// Begins to ask on a host, about the IPv4 VIP.
    ///
    /// # Errors
    ///
    /// If raw sockets are not allowed.
    pub fn start(host: &Host) -> Result<Self> {
        let socket = RawSocket::open(host)?;
        let mac = host.mac()?;
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Answer>>>::default());
        let worker = thread::Builder::new().name("owner-watch".into()).spawn({
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            move || {
                let mut question = 0;
                while !stop.load(Ordering::Relaxed) {
                    ask(&socket, mac, question, &answers);
                    question += 1;
                }
            }
        });
        Ok(Self { stop, answers, worker: Some(worker.context("a thread")?) })
    }

    /// All answers so far.
    pub fn answers(&self) -> Vec<Answer> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Questions that two hosts answered.
    pub fn disputed(&self) -> Vec<u64> {
        let mut by_question = BTreeMap::<u64, Vec<[u8; 6]>>::new();
        for answer in self.answers() {
            by_question.entry(answer.question).or_default().push(answer.mac);
        }
        let disputed = by_question.into_iter().filter(|(_, macs)| macs.iter().any(|mac| *mac != macs[0]));
        disputed.map(|(question, _)| question).collect()
    }

    /// When `mac` first answered after `since`.
    pub fn first(&self, mac: [u8; 6], since: Instant) -> Option<Instant> {
        self.answers().iter().find(|answer| answer.mac == mac && answer.at > since).map(|answer| answer.at)
    }

    /// Who answered last.
    pub fn owner(&self) -> Option<[u8; 6]> {
        self.answers().last().map(|answer| answer.mac)
    }
}

impl Drop for OwnerWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.worker.take().is_some_and(|worker| worker.join().is_err()) {
            eprintln!("the owner's watch panicked");
        }
    }
}

fn ask(socket: &RawSocket, mac: [u8; 6], question: u64, answers: &Mutex<Vec<Answer>>) {
    let asker = |question: u64| Ipv4Addr::new(10, 0, 1, 120 + (question % u64::from(ASKERS)) as u8);
    let request = arp_request(Mac::new([0xff; 6]), (Mac::new(mac), asker(question)), VIP);
    // A host whose link is down asks nobody.
    let _ = socket.send(&request);
    let until = Instant::now() + PACE;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        let answer = socket.receive(left, |frame| {
            // ARP, a reply, from the VIP.
            !frame.outgoing
                && frame.bytes.get(12..14) == Some(&[8, 6])
                && frame.bytes.get(20..22) == Some(&[0, 2])
                && frame.bytes.get(28..32) == Some(&VIP.octets())
                && frame.bytes.get(38..41) == Some(&[10, 0, 1])
        });
        let Ok(Some(frame)) = answer else { return };
        // A late one belongs to a question before this one.
        let number = (0..u64::from(ASKERS))
            .filter_map(|back| question.checked_sub(back))
            .find(|number| asker(*number).octets()[3] == frame.bytes[41]);
        if let Some(question) = number
            && let Some(mac) = frame.bytes[22..].first_chunk()
        {
            let answer = Answer { at: Instant::now(), question, mac: *mac };
            answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        }
    }
}
