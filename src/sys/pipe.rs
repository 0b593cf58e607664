//! The pipe that stands between two descriptors of which neither is one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::call::{read, retry};
use super::fork;

/// What a pipe holds when nobody asked for more: 16 slots of a page.
const DEFAULT_CAPACITY: usize = 64 << 10;

/// A pipe of our own. Dropped, it takes what it still holds with it; it is never handed on.
#[derive(Debug)]
pub(crate) struct PrivatePipe {
    read_end: OwnedFd,
    write_end: OwnedFd,
    capacity: usize,
    /// The process that made it: one forked from that has the same pipe, with the same bytes in it.
    process: u64,
    /// Its place in a pool's count, given up when the pipe is closed.
    place: Option<Place>,
}

impl PrivatePipe {
    /// A pipe with room for `wanted` bytes, or for what the kernel grants: a user past
    /// `pipe-user-pages-soft` gets one or two pages, and `F_SETPIPE_SZ` then answers EPERM. Only
    /// pipe2(2) itself can fail.
    pub(crate) fn new(wanted: usize) -> io::Result<Self> {
        let (read_end, write_end) = retry(|| pipe2(OFlag::O_CLOEXEC))?;
        let wanted = libc::c_int::try_from(wanted).unwrap_or(libc::c_int::MAX);
        let asked = (wanted as usize > DEFAULT_CAPACITY)
            .then(|| retry(|| fcntl(&write_end, FcntlArg::F_SETPIPE_SZ(wanted))));
        let granted = match asked {
            Some(Ok(granted)) => Ok(granted),
            _ => retry(|| fcntl(&write_end, FcntlArg::F_GETPIPE_SZ)),
        };
        // Without an answer, a page: too small a belief costs calls, too large a one nothing but
        // a short splice. The kernel bounds each call by the true size either way.
        let capacity = granted
            .ok()
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(4096);
        Ok(Self {
            read_end,
            write_end,
            capacity: capacity.max(1),
            process: fork::process(),
            place: None,
        })
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether nobody else has it: not so where this process is forked from the one that made it.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == fork::process()
    }

    pub(crate) fn read_end(&self) -> BorrowedFd<'_> {
        self.read_end.as_fd()
    }

    pub(crate) fn write_end(&self) -> BorrowedFd<'_> {
        self.write_end.as_fd()
    }

    /// Reads `buf.len()` bytes, which the caller knows to be in the pipe: how many came, and why no
    /// more did. What is in here is in nobody else's hands, so one failure is not the last word.
    pub(crate) fn take(&self, buf: &mut [u8]) -> (usize, io::Result<()>) {
        let (mut taken, mut failed) = (0, false);
        while taken < buf.len() {
            let error = match read(self.read_end(), &mut buf[taken..]) {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(n) => {
                    taken += n;
                    failed = false;
                    continue;
                }
                Err(e) => e,
            };
            if failed {
                return (taken, Err(error));
            }
            failed = true;
        }
        (taken, Ok(()))
    }
}

/// Empty pipes kept from one use to the next, and a bound on how many there are at all.
///
/// Descriptors are few and pipe memory is counted per user, so those who hold many connections
/// borrow a pipe for as long as it holds bytes.
#[derive(Debug)]
pub(crate) struct PipePool {
    idle: Mutex<Vec<PrivatePipe>>,
    count: Arc<AtomicUsize>,
    most: usize,
    most_idle: usize,
}

#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PipePool {
    /// At most `most` pipes, of which `most_idle` are kept while nobody uses them.
    pub(crate) fn new(most: usize, most_idle: usize) -> Self {
        Self {
            idle: Mutex::default(),
            count: Arc::default(),
            most,
            most_idle,
        }
    }

    /// An empty pipe, or `None` where the pool has lent all that it may.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub(crate) fn borrow(&self, wanted: usize) -> io::Result<Option<PrivatePipe>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(pipe) = idle.pop() {
            if pipe.is_ours() {
                return Ok(Some(pipe));
            }
        }
        drop(idle);
        let place = Place(Arc::clone(&self.count));
        // Taken first and given back by `Place` where there is none left.
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.most {
            return Ok(None);
        }
        let mut pipe = PrivatePipe::new(wanted)?;
        pipe.place = Some(place);
        Ok(Some(pipe))
    }

    /// Takes an empty pipe back. One that still holds bytes must be dropped instead.
    pub(crate) fn give_back(&self, pipe: PrivatePipe) {
        if !pipe.is_ours() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.most_idle {
            idle.push(pipe);
        }
    }

    /// Pipes that exist, lent or idle.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
