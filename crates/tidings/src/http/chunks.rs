//! A stream of events on HTTP/1.1 behind its head: chunks (RFC 9112 §7.1), written without hyper.
//!
//! The rule: a stream that waits holds nothing but its socket and its body. hyper reads the request
//! and writes the head; what it holds for that, two buffers and its parser, is let go of until the
//! next request. Of what is written only the chunk is kept that its reader has not taken whole, and
//! the body is asked for the next one behind it.

use std::{
    cell::RefCell,
    io::{self, IoSlice, Write as _},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Marks a response whose body may be written so: it goes on for long.
#[derive(Debug, Clone, Copy)]
pub(super) struct LongAnswer;

/// What a client may send before its answer has ended: it is kept until then, and no more is read.
const EARLY_BYTES_MAX: usize = 512;
/// Chunks up to this size are put together and written as one piece, larger ones as three without
/// copying them. Most events are below; where copying begins to cost more was not measured.
const FLAT_BYTES_MAX: usize = 4096;

thread_local! {
    /// Where such a chunk is put together.
    static FLAT: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(FLAT_BYTES_MAX + 32));
}

/// Writes a body until its end and returns what the client sent meanwhile; `None`: it left.
///
/// # Errors
/// The socket's, and a body that breaks off: the connection must end, so that its reader sees it.
pub(super) async fn write<S>(io: &mut S, body: Body) -> io::Result<Option<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut chunks = Chunks { io, body, chunk: None, early: Bytes::new() };
    std::future::poll_fn(move |context| chunks.poll(context)).await
}

struct Chunks<'a, S> {
    io: &'a mut S,
    body: Body,
    /// What is on its way.
    chunk: Option<Chunk>,
    early: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Chunks<'_, S> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if self.poll_left(context)?.is_ready() {
            return Poll::Ready(Ok(None));
        }
        loop {
            if let Some(chunk) = &mut self.chunk {
                ready!(chunk.poll_write(self.io, context))?;
                // TLS keeps what the socket did not take.
                ready!(Pin::new(&mut *self.io).poll_flush(context))?;
                if chunk.data.is_empty() {
                    return Poll::Ready(Ok(Some(std::mem::take(&mut self.early))));
                }
                self.chunk = None;
            }
            let data = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    // An empty chunk would end the body.
                    Ok(data) if !data.is_empty() => data,
                    _ => continue,
                },
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => Bytes::new(),
            };
            self.chunk = Some(Chunk::of(data));
        }
    }

    /// Looks whether the client has left, and keeps what else it sends.
    fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.early.is_empty() {
            let mut bytes = [MaybeUninit::uninit(); EARLY_BYTES_MAX];
            let mut bytes = ReadBuf::uninit(&mut bytes);
            ready!(Pin::new(&mut *self.io).poll_read(context, &mut bytes))?;
            if bytes.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.early = Bytes::copy_from_slice(bytes.filled());
        }
        Poll::Pending
    }
}

/// A part of a body with its size before and a line end behind; one without data is the last.
struct Chunk {
    size: Size,
    data: Bytes,
    /// How much of it all was written.
    written: usize,
}

/// A chunk's first line.
struct Size {
    text: [u8; 18],
    length: usize,
}

impl Size {
    fn of(count: usize) -> Self {
        let mut text = [0; 18];
        let mut rest = &mut text[..];
        // 16 digits and a line end: every size fits.
        let _ = write!(rest, "{count:X}\r\n");
        let length = 18 - rest.len();
        Self { text, length }
    }

    fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.length).unwrap_or_default()
    }
}

impl Chunk {
    fn of(data: Bytes) -> Self {
        Self { size: Size::of(data.len()), data, written: 0 }
    }

    fn parts(&self) -> [&[u8]; 3] {
        [self.size.as_bytes(), &self.data, b"\r\n"]
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.parts().iter().map(|part| part.len()).sum();
        while self.written < length {
            let io = Pin::new(&mut *io);
            let written = if length <= FLAT_BYTES_MAX {
                FLAT.with_borrow_mut(|flat| {
                    flat.clear();
                    self.parts().iter().for_each(|part| flat.extend_from_slice(part));
                    io.poll_write(context, flat.get(self.written..).unwrap_or_default())
                })
            } else {
                let mut slices = self.parts().map(IoSlice::new);
                let mut slices = &mut slices[..];
                IoSlice::advance_slices(&mut slices, self.written);
                io.poll_write_vectored(context, slices)
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    fn body(pieces: Vec<Bytes>) -> Body {
        Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)))
    }

    /// Every size of a pipe cuts the chunks elsewhere.
    #[tokio::test]
    async fn chunks_arrive_whole_however_they_are_cut() {
        let long = "x".repeat(FLAT_BYTES_MAX + 1);
        let pieces = vec![Bytes::from_static(b"one\n\n"), Bytes::new(), Bytes::from(long.clone())];
        let want = format!("5\r\none\n\n\r\n{:X}\r\n{long}\r\n0\r\n\r\n", long.len());
        for pipe in [1, 2, 3, 7, 64, 4096, 1 << 16] {
            let (mut client, mut server) = duplex(pipe);
            let pieces = pieces.clone();
            let writing = tokio::spawn(async move { write(&mut server, body(pieces)).await });
            let mut came = vec![0; want.len()];
            client.read_exact(&mut came).await.unwrap();
            assert_eq!(came, want.as_bytes(), "{pipe}");
            assert_eq!(writing.await.unwrap().unwrap(), Some(Bytes::new()));
        }
    }

    #[tokio::test]
    async fn what_a_client_sends_meanwhile_is_kept_and_its_leaving_is_noticed() {
        let (mut client, mut server) = duplex(1024);
        client.write_all(b"GET /next").await.unwrap();
        let early = write(&mut server, body(vec![Bytes::from_static(b"x")])).await.unwrap();
        assert_eq!(early.as_deref(), Some(&b"GET /next"[..]));
        let endless = || Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        drop(client);
        assert_eq!(write(&mut server, endless()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_has_no_last_chunk() {
        let (mut client, mut server) = duplex(1024);
        let pieces = [Ok(Bytes::from_static(b"x")), Err(io::Error::other("broken"))];
        write(&mut server, Body::from_stream(stream::iter(pieces))).await.unwrap_err();
        drop(server);
        let mut came = String::new();
        client.read_to_string(&mut came).await.unwrap();
        assert_eq!(came, "1\r\nx\r\n");
    }
}
