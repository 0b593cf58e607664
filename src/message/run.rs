//! What one call of a sending sends: pieces of memory, and the bytes of at most one small file.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use bytes::Bytes;

use crate::backend::FAIR;
use crate::sys::aligned::{self, AlignedBuf};
use crate::sys::{call, errno};

/// The most pieces of one gather, far below IOV_MAX.
pub(super) const PIECES: usize = 64;

/// What one call sends.
#[derive(Default)]
pub(super) struct Run {
    pieces: Vec<Piece>,
    pub(super) bytes: usize,
    /// The file among them, read.
    buf: Option<AlignedBuf>,
    /// More of the message is certain to follow.
    pub(super) more: bool,
}

enum Piece {
    /// The first bytes of what is left of a part.
    Memory(Bytes, usize),
    /// The first bytes of the buffer, which a file was read into.
    Inline(usize),
}

impl Run {
    /// Whether this is all that one call is to send.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= FAIR || self.pieces.len() == PIECES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn has_file(&self) -> bool {
        self.buf.is_some()
    }

    /// Adds memory, as far as it goes in.
    pub(super) fn add_memory(&mut self, bytes: Bytes) {
        let len = bytes.len().min(FAIR - self.bytes);
        self.bytes += len;
        self.pieces.push(Piece::Memory(bytes, len));
    }

    /// Adds a file: the first `len` bytes of a buffer. There may be one.
    pub(super) fn add_file(&mut self, buf: AlignedBuf, len: usize) {
        self.bytes += len;
        self.pieces.push(Piece::Inline(len));
        self.buf = Some(buf);
    }

    pub(super) fn slices(&self) -> Vec<IoSlice<'_>> {
        let inline = self.buf.as_ref().map_or(&[][..], AlignedBuf::as_slice);
        let slices = self.pieces.iter().map(|piece| match piece {
            Piece::Memory(bytes, len) => IoSlice::new(&bytes[..*len]),
            Piece::Inline(len) => IoSlice::new(&inline[..*len]),
        });
        slices.collect()
    }

    /// The memory that is sent from.
    pub(super) fn memory(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Memory(bytes, _) => Some(bytes),
            Piece::Inline(_) => None,
        })
    }

    /// Keeps the buffer for the thread's next run.
    pub(super) fn keep_buffer(&mut self) {
        if let Some(buf) = self.buf.take() {
            aligned::keep(buf);
        }
    }
}

/// The thread's buffer with `len` bytes of a file at its start; `None` where the file ends before.
/// `at_hand`: EAGAIN where a device would have to be waited for.
pub(super) fn read_at(
    file: BorrowedFd<'_>,
    offset: u64,
    len: usize,
    at_hand: bool,
) -> io::Result<Option<AlignedBuf>> {
    let mut buf = aligned::spare();
    let mut done = 0;
    while at_hand && done < len {
        let into = &mut buf.as_mut_slice()[done..len];
        match call::read_at_hand(file, into, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if errno::would_block(&e) => {
                aligned::keep(buf);
                return Err(e);
            }
            // A filesystem that cannot tell: read as ever.
            Err(_) => break,
        }
    }
    while done < len {
        let into = &mut buf.as_mut_slice()[done..len];
        match call::pread(file, into, offset.saturating_add(done as u64))? {
            0 => return Ok(None),
            n => done += n,
        }
    }
    Ok(Some(buf))
}
