//! Processors, their time, and memory that costs what it should.

use std::fs;
use std::hint::black_box;
use std::time::Instant;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Which of the allowed processors the moving side keeps to, and which the other.
pub(crate) const OURS: Which = Which::First;
pub(crate) const THEIRS: Which = Which::Last;

#[derive(Clone, Copy)]
pub(crate) enum Which {
    First,
    Last,
}

/// Keeps this thread, and what it starts, on one processor. Where that is refused the figures get
/// noisier, not wrong.
pub(crate) fn pin(which: Which) {
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else {
        return;
    };
    let mut usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let cpu = match which {
        Which::First => usable.next(),
        Which::Last => usable.next_back(),
    };
    let mut set = CpuSet::new();
    if let Some(cpu) = cpu {
        let _ = set
            .set(cpu)
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    }
}

/// Lets this thread, and what it starts, run anywhere.
pub(crate) fn unpin() {
    let mut set = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        let _ = set.set(cpu);
    }
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

/// What something took, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Of the processor, by this process and all its threads.
    pub(crate) cpu: f64,
    pub(crate) time: f64,
}

impl Cost {
    /// What `work` took.
    pub(crate) fn of<T>(work: impl FnOnce() -> T) -> (Cost, T) {
        let (start, before) = (Instant::now(), process());
        let result = work();
        let cost = Cost {
            cpu: process() - before,
            time: start.elapsed().as_secs_f64(),
        };
        (cost, result)
    }
}

/// Processor time of this process in seconds, by its clock.
pub(crate) fn process() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("a clock of the process");
    now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9
}

/// Processor time in seconds that the whole machine has spent, but for idling and waiting: in
/// steps of 10 ms.
pub(crate) fn machine() -> f64 {
    let stat = fs::read_to_string("/proc/stat").expect("/proc/stat");
    let fields = stat.lines().next().unwrap_or_default().split_whitespace();
    let ticks = fields
        .skip(1)
        .enumerate()
        // idle and iowait; guest and guest_nice are contained in user and nice.
        .filter(|(at, _)| !matches!(at, 3 | 4 | 8 | 9));
    let ticks = ticks
        .filter_map(|(_, n)| n.parse::<f64>().ok())
        .sum::<f64>();
    ticks / 100.0
}

/// Touches so much memory, or half of what is free, and gives it back. A virtual machine may hand
/// memory that lies free to its host, and pays for it dearly when it is next used: so leave behind some
/// that was in use just now.
pub(crate) fn touch(bytes: u64) {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find(|l| l.starts_with("MemAvailable:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    let most = kib.unwrap_or(0) << 9;
    black_box(vec![1_u8; most.min(bytes) as usize]);
}

/// The most memory that this process has had since the last call, in bytes.
pub(crate) fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    let _ = fs::write("/proc/self/clear_refs", "5");
    kib.unwrap_or(0) << 10
}
