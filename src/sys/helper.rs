//! A helper thread for the length of one call: no part of what the process does with signals.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread::{self, Builder, Scope, ScopedJoinHandle};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::call::{self, count, retry};

/// A helper's work, once it is done.
pub(crate) struct Helper<'scope, T>(ScopedJoinHandle<'scope, (T, u64)>);

impl<T> Helper<'_, T> {
    /// Waits for it, and counts its system calls as this thread's. `None`: it panicked.
    pub(crate) fn join(self) -> Option<T> {
        let (result, calls) = self.0.join().ok()?;
        count(calls);
        Some(result)
    }
}

/// Starts a thread in which every signal is blocked, from its first instruction on: a handler of
/// the process must not find itself in a thread that the program does not know of.
pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<Helper<'scope, T>> {
    let mut before = SigSet::empty();
    count(1);
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut before),
    )?;
    let started = Builder::new()
        .name("zcio-ahead".to_owned())
        .spawn_scoped(scope, || (work(), call::made()));
    count(1);
    // It sets what was set before, and cannot fail where the call above did not.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    started.map(Helper)
}

/// Runs `work` in a thread with a table of descriptors of its own, in which there is `fd` and nothing
/// else. What is opened there and closed again leaves the process its record locks, which belong to a
/// table (fcntl(2)); and there is room for it, however full the process's own is.
pub(crate) fn apart<T: Send>(
    fd: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let number = fd.as_raw_fd().unsigned_abs();
    thread::scope(|scope| {
        let work = || {
            // What lies above is not even copied. Of the rest, closing a copy closes nothing.
            close_range(number + 1, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE)?;
            if number > 0 {
                close_range(0, number - 1, 0)?;
            }
            work()
        };
        let done = spawn(scope, work)?.join();
        done.unwrap_or_else(|| Err(io::ErrorKind::Other.into()))
    })
}

/// close_range(2), Linux 5.9.
fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_uint) -> io::Result<()> {
    retry(|| {
        // SAFETY: no memory is involved. The descriptors are copies of this thread's own: with the
        // flag, the call gives it a table of its own first, and it is made without it only then.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
        Errno::result(result).map(drop)
    })
}
