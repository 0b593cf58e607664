//! Processors and their time.

use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// A processor for the sender and another for the receiver: the first and the last that this
/// process may use, since neighbours may share a core. `None` where there is only one.
pub(crate) fn two() -> Option<(usize, usize)> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    Some((usable.next()?, usable.next_back()?))
}

/// Keeps the calling thread, and what it starts, on one processor. Where that is refused it runs
/// wherever the scheduler likes: the figures get noisier, not wrong.
pub(crate) fn pin(cpu: Option<usize>) {
    let mut set = CpuSet::new();
    if let Some(cpu) = cpu {
        let _ = set
            .set(cpu)
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    }
}

/// The processor time of this process, in user space and in the kernel.
pub(crate) fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
