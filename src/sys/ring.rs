//! Reads through io_uring: several in flight, into registered buffers of its own.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread::{self, ThreadId};

use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;

use super::AlignedBuf;
use super::call::{count, loff};
use super::fork;

/// `IORING_ENTER_GETEVENTS`: wait for completions.
const GETEVENTS: u32 = 1;

/// A ring and its slots, each a buffer that is filled by several reads at once.
///
/// The kernel reads into a slot from [`start`](Self::start) until [`wait`](Self::wait) has returned;
/// its bytes can be looked at in between only.
pub(crate) struct Ring {
    ring: IoUring,
    slots: Vec<Slot>,
    piece: usize,
    fixed: bool,
    /// The kernel lets one thread alone submit, and keeps its completions for that one.
    owner: ThreadId,
    /// The process whose memory the kernel reads into, and whose its reads are.
    process: u64,
    /// Something was left in the queue that must not be submitted any more.
    broken: bool,
}

struct Slot {
    buf: AlignedBuf,
    /// Reads that the kernel has and has not completed.
    pending: u32,
    /// What was asked for, and what each piece came to: bytes, or a negative error number.
    want: usize,
    got: Vec<i32>,
}

impl Ring {
    /// A ring with `slots` buffers of `len` bytes at `align`, read `piece` bytes at a time.
    ///
    /// # Errors
    /// Where the kernel has no io_uring, forbids it, or is older than Linux 6.1.
    pub(crate) fn new(slots: usize, len: usize, piece: usize, align: usize) -> io::Result<Self> {
        let pieces = len.div_ceil(piece);
        let entries = u32::try_from(slots * pieces).map_err(|_| io::ErrorKind::InvalidInput)?;
        count(1);
        let ring = IoUring::builder()
            .setup_single_issuer()
            // Nothing is completed behind this thread's back: its other calls are not interrupted.
            .setup_defer_taskrun()
            // A child has the queues mapped as well, so that there is something for it to unmap.
            .build(entries)?;
        let slot = |_| Slot {
            buf: AlignedBuf::new(len, align),
            pending: 0,
            want: 0,
            got: vec![0; pieces],
        };
        let slots: Vec<Slot> = (0..slots).map(slot).collect();
        let iovecs: Vec<libc::iovec> = slots
            .iter()
            .map(|slot| libc::iovec {
                iov_base: slot.buf.start().cast(),
                iov_len: slot.buf.len(),
            })
            .collect();
        count(1);
        // SAFETY: the buffers live as long as the ring, which is dropped before them: it is the
        // first field.
        let registered = unsafe { ring.submitter().register_buffers(&iovecs) };
        Ok(Self {
            ring,
            slots,
            piece,
            // RLIMIT_MEMLOCK may be too low for it: the same reads, at a little more work each.
            fixed: registered.is_ok(),
            owner: thread::current().id(),
            process: fork::process(),
            broken: false,
        })
    }

    /// Whether this thread may use it, and it works.
    pub(crate) fn is_usable(&self) -> bool {
        self.is_ours() && self.owner == thread::current().id() && !self.broken
    }

    /// Whether it was made by this process, and not by one that this is forked from.
    fn is_ours(&self) -> bool {
        self.process == fork::process()
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Starts to fill a slot with `len` bytes of a file from `offset` on.
    ///
    /// # Errors
    /// Where the kernel did not take all of it. The ring is then of no use any more.
    pub(crate) fn start(
        &mut self,
        slot: usize,
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
    ) -> io::Result<()> {
        let chosen = &mut self.slots[slot];
        if self.broken || chosen.pending > 0 || len > chosen.buf.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Before anything is in the queue: what stays there, the next call would submit.
        loff(offset.saturating_add(len as u64))?;
        chosen.want = len;
        let mut pushed = 0;
        for (piece, at) in (0..len).step_by(self.piece).enumerate() {
            let count = self.piece.min(len - at);
            let from = offset + at as u64;
            // SAFETY: `at` lies within the buffer.
            let into = unsafe { chosen.buf.start().add(at) };
            let fd = types::Fd(fd.as_raw_fd());
            let count = count as u32;
            let entry = if self.fixed {
                opcode::ReadFixed::new(fd, into, count, slot as u16)
                    .offset(from)
                    .build()
            } else {
                opcode::Read::new(fd, into, count).offset(from).build()
            };
            let entry = entry.user_data((slot as u64) << 32 | piece as u64);
            // SAFETY: `into` leads to `count` bytes of a buffer that stays until the read has been
            // completed: only then does anybody look at it, and `drop` waits for it too. The
            // descriptor is open until the call below has submitted the entry, or it is never.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.broken = true;
                return Err(io::ErrorKind::Other.into());
            }
            pushed += 1;
        }
        while pushed > 0 {
            match self.enter(pushed, 0) {
                Ok(taken) if taken > 0 => {
                    let taken = (taken as u32).min(pushed);
                    self.slots[slot].pending += taken;
                    pushed -= taken;
                }
                other => {
                    self.broken = true;
                    return Err(other.err().unwrap_or(io::ErrorKind::Other.into()));
                }
            }
        }
        Ok(())
    }

    /// Waits until a slot is filled; the bytes that it holds then, from its start on without a gap.
    ///
    /// # Errors
    /// Where it holds none, and that of the first read.
    pub(crate) fn wait(&mut self, slot: usize) -> io::Result<&[u8]> {
        while self.slots[slot].pending > 0 {
            self.reap()?;
        }
        let Slot { buf, want, got, .. } = &self.slots[slot];
        let mut filled = 0;
        for result in &got[..want.div_ceil(self.piece)] {
            let Ok(read) = usize::try_from(*result) else {
                if filled == 0 {
                    return Err(io::Error::from_raw_os_error(-*result));
                }
                break;
            };
            let asked = self.piece.min(*want - filled);
            filled += read.min(asked);
            if read < asked {
                break;
            }
        }
        Ok(&buf.as_slice()[..filled])
    }

    /// Waits until the kernel has nothing left to do.
    fn settle(&mut self) -> io::Result<()> {
        while self.slots.iter().any(|slot| slot.pending > 0) {
            self.reap()?;
        }
        Ok(())
    }

    /// Takes note of completions, waiting for one where there is none.
    fn reap(&mut self) -> io::Result<()> {
        let mut seen = false;
        for entry in self.ring.completion() {
            let (slot, piece) = (entry.user_data() >> 32, entry.user_data() & 0xffff_ffff);
            if let Some(slot) = self.slots.get_mut(slot as usize) {
                slot.pending = slot.pending.saturating_sub(1);
                if let Some(got) = slot.got.get_mut(piece as usize) {
                    *got = entry.result();
                }
            }
            seen = true;
        }
        if seen {
            return Ok(());
        }
        let entered = self.enter(0, 1);
        self.broken |= entered.is_err();
        entered.map(drop)
    }

    /// io_uring_enter(2). What was pushed is in the queue: the guard that pushed wrote its end.
    fn enter(&self, submit: u32, wait: u32) -> io::Result<usize> {
        let flags = if wait > 0 { GETEVENTS } else { 0 };
        loop {
            count(1);
            // SAFETY: no argument is passed, and every entry of the queue was vouched for.
            let result = unsafe {
                self.ring
                    .submitter()
                    .enter::<libc::sigset_t>(submit, wait, flags, None)
            };
            match result {
                Err(e) if e.raw_os_error() == Some(Errno::EINTR as i32) => {}
                other => return other,
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // What is under way in another process is that one's, and reads into its memory.
        if self.is_ours() && self.settle().is_err() {
            // The kernel may still write there: rather lost than used for something else.
            mem::forget(mem::take(&mut self.slots));
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("slots", &self.slots.len())
            .field("fixed", &self.fixed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    /// Entries that stayed in the queue would be submitted with the next call's, and counted as its.
    #[test]
    fn what_is_refused_leaves_nothing_in_the_queue() {
        const LEN: usize = 4 << 20;
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..LEN).map(|at| (at / 4096) as u8).collect();
        file.write_all(&bytes).unwrap();
        let mut ring = match Ring::new(1, LEN, 1 << 20, 4096) {
            Ok(ring) => ring,
            Err(e) => return eprintln!("SKIPPED a ring's queue: {e}"),
        };
        // Its first pieces are places that there are, the last one is not.
        let beyond = i64::MAX as u64 - (5 << 19);
        assert!(ring.start(0, file.as_fd(), beyond, LEN).is_err());
        ring.start(0, file.as_fd(), 0, LEN).unwrap();
        assert!(ring.wait(0).unwrap() == bytes);
    }
}
