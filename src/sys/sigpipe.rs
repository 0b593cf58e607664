//! SIGPIPE kept from the process: sendfile(2) and splice(2) have no `MSG_NOSIGNAL`.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::call::{count, retry};

/// Keeps SIGPIPE from the process where a call can raise it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shield(bool);

impl Shield {
    /// `raises`: the destination is such that the call can.
    pub(crate) fn new(raises: bool) -> Self {
        Self(raises && !is_ignored())
    }

    #[inline]
    pub(crate) fn run<T>(self, call: impl FnOnce() -> T) -> T {
        if self.0 { shielded(call) } else { call() }
    }
}

/// Whether SIGPIPE is ignored by this process, as the Rust runtime arranges. Then nothing needs to
/// be done around a call.
fn is_ignored() -> bool {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    count(1);
    // SAFETY: a null new action only asks; `old` has room for the answer.
    let result = unsafe { libc::sigaction(libc::SIGPIPE, ptr::null(), old.as_mut_ptr()) };
    // SAFETY: zeroed at first, filled by the kernel; its fields are integers.
    let old = unsafe { old.assume_init() };
    result == 0 && old.sa_sigaction == libc::SIG_IGN
}

/// Runs `call` with SIGPIPE blocked in this thread, and takes away the one that it raised. A
/// SIGPIPE that was pending before stays pending, and the mask is as before afterwards.
fn shielded<T>(call: impl FnOnce() -> T) -> T {
    let mut sigpipe = SigSet::empty();
    sigpipe.add(Signal::SIGPIPE);
    let mut before = SigSet::empty();
    count(1);
    if pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&sigpipe), Some(&mut before)).is_err() {
        return call();
    }
    // Where SIGPIPE was not blocked, none can have been pending for this thread.
    let was_pending = before.contains(Signal::SIGPIPE) && is_pending();
    // A guard, so that the mask comes back even where `call` (a user's own backend) unwinds.
    let _restore = Restore {
        before,
        was_pending,
    };
    call()
}

struct Restore {
    before: SigSet,
    was_pending: bool,
}

impl Drop for Restore {
    fn drop(&mut self) {
        if !self.was_pending {
            let mut sigpipe = SigSet::empty();
            sigpipe.add(Signal::SIGPIPE);
            let zero = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            // EAGAIN where nothing was raised, which is the usual end.
            let _ = retry(|| {
                // SAFETY: both pointers lead to values that outlive the call; no siginfo is asked.
                let signal = unsafe {
                    libc::sigtimedwait(sigpipe.as_ref(), ptr::null_mut(), &raw const zero)
                };
                nix::errno::Errno::result(signal)
            });
        }
        count(1);
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

fn is_pending() -> bool {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    count(1);
    // SAFETY: `set` has room for one signal set.
    let result = unsafe { libc::sigpending(set.as_mut_ptr()) };
    // SAFETY: the set was zeroed or filled; SIGPIPE is a valid signal number.
    result == 0 && unsafe { libc::sigismember(set.as_ptr(), libc::SIGPIPE) } == 1
}
