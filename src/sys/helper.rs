//! A helper thread for the length of one call: no part of what the process does with signals.

use std::io;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::call::{self, count};

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
