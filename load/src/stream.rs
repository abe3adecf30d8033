//! A stream that remembers why it ended: HTTP/2 keeps an error's text only, and tells each request no more than that its
//! connection is gone.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::failure::{Failure, closed};

/// What is known of a connection's other end.
#[derive(Debug, Default)]
pub struct Line {
    broken: OnceLock<Failure>,
    /// Reads that brought something.
    heard: AtomicU64,
}

impl Line {
    /// Why it ended, if it did.
    pub fn broken(&self) -> Option<&Failure> {
        self.broken.get()
    }

    /// Says why it ended; the first reason stays.
    pub fn breaks(&self, failure: Failure) {
        let _ = self.broken.set(failure);
    }

    /// A number that is another one after anything came by it.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

/// The stream of a line.
pub struct Watched<S> {
    stream: S,
    line: Arc<Line>,
    /// Why nothing can be written any more.
    unwritable: Option<io::Error>,
}

impl<S> Watched<S> {
    /// Tells `line` of what becomes of `stream`.
    pub fn new(stream: S, line: Arc<Line>) -> Self {
        Self { stream, line, unwritable: None }
    }

    fn note<T>(&self, result: &io::Result<T>) {
        if let Err(error) = result {
            self.line.breaks(Failure::of_io(error));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if result.is_ok() && buffer.filled().len() == before && buffer.remaining() > 0 {
            self.line.breaks(closed());
        }
        self.note(&result);
        self.line.heard.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// An error of a write is told once what came before it has been read, since a peer that refuses us says why, in a TLS
    /// alert, before it closes. That read does not wait for long: there is nothing left but the connection's end.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.unwritable.is_none() {
            match ready!(write(Pin::new(&mut self.stream), context)) {
                Ok(length) => return Poll::Ready(Ok(length)),
                Err(error) => self.unwritable = Some(error),
            }
        }
        let mut rest = [0; 256];
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut ReadBuf::new(&mut rest)));
        self.note(&read);
        let result = self.unwritable.take().map_or(Ok(0), Err);
        self.note(&result);
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written(context, |stream, context| stream.poll_write(context, octets))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.written(context, |stream, context| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
