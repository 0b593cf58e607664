//! SIGPIPE kept from the process: sendfile(2) and splice(2) have no `MSG_NOSIGNAL`.
//!
//! Only the signal that the call raised is taken away. One that somebody else sends meanwhile
//! (kill(2), tgkill(2), sigqueue(3)) is told apart by its sender and put back. One that another thread
//! of this process sends to the process as a whole looks like the kernel's own; it is taken away where
//! no thread was there to get it.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use nix::errno::Errno;
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
            // Nothing is the usual answer.
            if let Ok(info) = take() {
                put_back_unless_ours(&info);
            }
        }
        count(1);
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

/// rt_sigtimedwait(2) without waiting: one that was sent to this thread alone, as the kernel's own are,
/// comes before one that was sent to the process. (The C library's function hides who has called
/// tgkill(2).)
fn take() -> io::Result<libc::siginfo_t> {
    let mut sigpipe = SigSet::empty();
    sigpipe.add(Signal::SIGPIPE);
    let zero = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    retry(|| {
        let set: *const libc::sigset_t = sigpipe.as_ref();
        // SAFETY: all three pointers lead to values that outlive the call; the kernel reads as much of
        // the set as it is told, and fills the info.
        let signal = unsafe {
            libc::syscall(
                libc::SYS_rt_sigtimedwait,
                set,
                info.as_mut_ptr(),
                &raw const zero,
                KERNEL_SIGSET,
            )
        };
        Errno::result(signal)
    })?;
    // SAFETY: zeroed at first, filled by the kernel; its fields are integers.
    Ok(unsafe { info.assume_init() })
}

/// Bytes of the kernel's signal set.
const KERNEL_SIGSET: usize = 8;

/// Sends a signal anew that was taken and that the call did not raise. The kernel's own says that this
/// process has sent it, as by kill(2).
#[cold]
fn put_back_unless_ours(info: &libc::siginfo_t) {
    // SAFETY: takes nothing and cannot fail.
    let process = unsafe { libc::getpid() };
    // SAFETY: of a signal that a process has sent, the kernel says which one it was; what it has not
    // filled is zero.
    let sender = unsafe { info.si_pid() };
    if info.si_code == libc::SI_USER && sender == process {
        return;
    }
    let (to_thread, info) = (info.si_code == libc::SI_TKILL, ptr::from_ref(info));
    count(1);
    // Where it fails, which to oneself it does not, the signal is lost.
    if to_thread {
        // SAFETY: takes nothing and cannot fail.
        let thread = unsafe { libc::gettid() };
        let (call, signal) = (libc::SYS_rt_tgsigqueueinfo, libc::SIGPIPE);
        // SAFETY: the kernel reads one `siginfo_t`, and `info` leads to one.
        unsafe { libc::syscall(call, process, thread, signal, info) };
    } else {
        let (call, signal) = (libc::SYS_rt_sigqueueinfo, libc::SIGPIPE);
        // SAFETY: as above.
        unsafe { libc::syscall(call, process, signal, info) };
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
