//! Reading ahead: blocks of a file are read while those before them are written.
//!
//! With the feature `io-uring`, and a kernel that has it, four blocks of 4 MiB are filled by sixteen
//! reads of 1 MiB that are in flight at once; without, a helper thread reads a block at a time. Either
//! ends with the call that it serves: nothing runs on, and no byte is held, between two steps.
//!
//! Blocks come in order, and whoever takes them writes them in order, one at a time. So what is
//! written is a prefix at any time, and where a write fails, nothing lies behind it. A write of 4 MiB
//! is several requests to the device by itself.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use crate::sys::{AlignedBuf, call, helper};

#[cfg(feature = "io-uring")]
use super::ring::RingReads;

/// What is read into one buffer, and written by one call.
pub(super) const BLOCK: usize = 4 << 20;

/// Buffers: one is written, the others are being filled or wait their turn.
pub(super) const BLOCKS: usize = 4;

/// A part of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<'a> {
    pub(super) fd: BorrowedFd<'a>,
    pub(super) offset: u64,
    pub(super) len: usize,
    /// What buffers, offsets and lengths are multiples of.
    pub(super) align: usize,
    /// The file's size is its filesystem's own. Of one that a daemon makes up, a ring's read of several
    /// requests answers its whole length, zeros and all, where the daemon's answer was short (FUSE with
    /// FOPEN_DIRECT_IO, Linux 6.18).
    #[cfg(feature = "io-uring")]
    pub(super) own_size: bool,
}

impl Span<'_> {
    pub(super) fn blocks(&self) -> usize {
        self.len.div_ceil(BLOCK)
    }

    /// Offset and length of one block.
    pub(super) fn block(&self, index: usize) -> (u64, usize) {
        let before = index * BLOCK;
        let len = BLOCK.min(self.len.saturating_sub(before));
        (self.offset + before as u64, len)
    }
}

/// Takes a block; `false`: no more of them.
pub(super) type Put<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

/// The buffers, kept from one call to the next.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    #[cfg(feature = "io-uring")]
    ring: RingReads,
    pool: Vec<AlignedBuf>,
}

impl Ahead {
    /// Hands the blocks of `span` on in order. A block that is shorter than it should be is the
    /// last, and so is the one before a read that failed: what that means is to be asked there
    /// again. `false`: it could not be begun, and nothing was handed on.
    pub(super) fn read(&mut self, span: Span<'_>, put: Put<'_>) -> bool {
        #[cfg(feature = "io-uring")]
        if span.own_size && self.ring.read(span, put) {
            return true;
        }
        self.read_by_thread(span, put)
    }

    fn read_by_thread(&mut self, span: Span<'_>, put: Put<'_>) -> bool {
        let (empty, to_fill) = mpsc::channel();
        let (filled, full) = mpsc::channel();
        let wanted = span.blocks().min(BLOCKS);
        self.pool.retain(|buf| buf.is_aligned_to(span.align));
        while self.pool.len() < wanted {
            self.pool.push(AlignedBuf::new(BLOCK, span.align));
        }
        for buf in self.pool.drain(..) {
            // Both ends are here.
            let _ = empty.send(buf);
        }
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let stop = &stop;
            let work = move || {
                fill(span, stop, &to_fill, &filled);
                to_fill
            };
            let Ok(reader) = helper::spawn(scope, work) else {
                return false;
            };
            while let Ok((buf, read)) = full.recv() {
                let go_on = read > 0 && put(&buf.as_slice()[..read]);
                // It has ended by itself where nobody takes the buffer.
                let _ = empty.send(buf);
                if !go_on {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
            drop(empty);
            // The buffers that it has not used, and those that nobody took.
            self.pool.extend(reader.join().into_iter().flatten());
            self.pool.extend(full.into_iter().map(|(buf, _)| buf));
            true
        })
    }
}

/// The helper's work: fills buffers in order, until the span or the file ends, a read fails, or
/// nobody wants more.
fn fill(
    span: Span<'_>,
    stop: &AtomicBool,
    to_fill: &Receiver<AlignedBuf>,
    filled: &Sender<(AlignedBuf, usize)>,
) {
    for index in 0..span.blocks() {
        let Ok(mut buf) = to_fill.recv() else {
            break;
        };
        let (offset, len) = span.block(index);
        let read = if stop.load(Ordering::Relaxed) {
            0
        } else {
            call::pread(span.fd, &mut buf.as_mut_slice()[..len], offset).unwrap_or(0)
        };
        if filled.send((buf, read)).is_err() || read < len {
            break;
        }
    }
}
