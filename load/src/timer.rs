//! Waiting to the microsecond: tokio's own timer counts milliseconds, which would be the larger part of what is measured.

use std::{io, os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::net::unix::pipe::Receiver;

/// A timer of the kernel, which the runtime waits for as for a socket.
pub struct Timer {
    timer: TimerFd,
    /// The same file, as one that octets are read from: how often the timer has run out.
    readable: Receiver,
}

impl Timer {
    /// A timer of the runtime that this is called within.
    ///
    /// # Errors
    ///
    /// If the kernel has none left.
    pub fn new() -> Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("making a timer")?;
        let file = timer.as_fd().try_clone_to_owned().context("making a timer")?;
        // It is no pipe, but all that is done with it is to wait and to read, and both are the same.
        let readable = Receiver::from_owned_fd_unchecked(file).context("waiting for a timer")?;
        Ok(Self { timer, readable })
    }

    /// Waits for this long; not at all for no time.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, which it does not.
    pub async fn sleep(&self, time: Duration) -> Result<()> {
        if time.is_zero() {
            return Ok(());
        }
        let once = Expiration::OneShot(TimeSpec::from_duration(time));
        self.timer.set(once, TimerSetTimeFlags::empty()).context("setting a timer")?;
        loop {
            self.readable.readable().await.context("waiting for a timer")?;
            match self.readable.try_read(&mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(drop).context("reading a timer"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn waits_as_long_as_it_is_told() {
        let timer = Timer::new().unwrap();
        for micros in [0, 1, 100, 1500, 3000] {
            let (time, start) = (Duration::from_micros(micros), Instant::now());
            timer.sleep(time).await.unwrap();
            assert!(start.elapsed() >= time);
        }
    }
}
