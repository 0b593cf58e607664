//! Buffers that the kernel sends from, kept until it says that it is done with them.
//!
//! Sends are counted by socket, not by message: the kernel numbers them so, merges its
//! notifications, and may give them to whoever reads the error queue next. Buffers go when a
//! socket has no send outstanding.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::sys::{fork, zerocopy};

/// What the kernel still sends from, by socket; there is an entry where anybody uses `MSG_ZEROCOPY`, or
/// has left sends behind.
static LENT: Mutex<BTreeMap<u64, Lent>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Lent {
    sends: u64,
    buffers: Vec<Bytes>,
    /// Those who use it now, or left sends behind: who is the last forbids it again.
    users: u64,
}

fn lent() -> MutexGuard<'static, BTreeMap<u64, Lent>> {
    LENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One socket's use of `MSG_ZEROCOPY`.
#[derive(Debug)]
pub(super) struct ZeroCopy {
    socket: u64,
    pub(super) on: bool,
    /// It was allowed by this crate.
    ours: bool,
    /// The process that sends: what the kernel says is for that one.
    process: u64,
}

impl ZeroCopy {
    /// Where somebody else has allowed it before, he may have sends under way, and what the kernel
    /// says of those must not be taken for ours: then everything is copied.
    pub(super) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let allowed = zerocopy::is_allowed(fd);
        let socket = zerocopy::allow(fd)?;
        let mut lent = lent();
        let on = !allowed || lent.contains_key(&socket);
        if on {
            lent.entry(socket).or_default().users += 1;
        }
        Ok(Self {
            socket,
            on,
            ours: on,
            process: fork::process(),
        })
    }

    /// Takes what the kernel has said, and forbids `MSG_ZEROCOPY` again where that was allowed for us
    /// and nothing is left of it.
    pub(super) fn close(&mut self, fd: BorrowedFd<'_>) {
        if self.process != fork::process() {
            return;
        }
        // Nobody is left to tell.
        let _ = self.reap(fd);
        if !std::mem::take(&mut self.ours) {
            return;
        }
        let mut all = lent();
        let Some(lent) = all.get_mut(&self.socket) else {
            return;
        };
        lent.users -= 1;
        if lent.users == 0 && lent.sends == 0 {
            all.remove(&self.socket);
            let _ = zerocopy::forbid(fd);
        }
    }

    /// Lends buffers to a send that is about to be made.
    pub(super) fn lend<'b>(&self, buffers: impl Iterator<Item = &'b Bytes>) {
        let mut lent = lent();
        let lent = lent.entry(self.socket).or_default();
        lent.sends += 1;
        for buffer in buffers {
            // A large part is lent once, however many sends it takes: what is left of it lies
            // within what was lent first.
            let (new, known) = (buffer.as_ptr_range(), lent.buffers.last());
            let known = known.map(|known| known.as_ptr_range());
            if !known.is_some_and(|known| known.start <= new.start && new.end <= known.end) {
                lent.buffers.push(buffer.clone());
            }
        }
    }

    /// Takes note of sends that the kernel is done with, or that were not made.
    pub(super) fn settle(&self, sends: u64) {
        let mut all = lent();
        if let Some(lent) = all.get_mut(&self.socket) {
            lent.sends = lent.sends.saturating_sub(sends);
            if lent.sends == 0 {
                let done = std::mem::take(&mut lent.buffers);
                // Freeing a buffer may run the caller's own code: not under the lock.
                drop(all);
                drop(done);
            }
        }
    }

    /// Takes what the kernel has said off the error queue. Where it copied, no more is asked for.
    pub(super) fn reap(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        if self.outstanding() > 0 {
            let done = zerocopy::done(fd)?;
            self.on &= !done.copied;
            self.settle(done.sends);
        }
        Ok(())
    }

    pub(super) fn outstanding(&self) -> u64 {
        lent().get(&self.socket).map_or(0, |lent| lent.sends)
    }
}
