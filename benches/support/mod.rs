//! What the benches share: the pairs of descriptors with a process at their other end, clocks,
//! statistics, the loops over bare system calls, arguments and results.
#![allow(dead_code, unused_imports, reason = "each bench uses a part")]

pub(crate) mod args;
pub(crate) mod awaiting;
pub(crate) mod bare;
pub(crate) mod clock;
pub(crate) mod contest;
pub(crate) mod link;
pub(crate) mod peer;
pub(crate) mod stats;

pub(crate) use args::{Args, machine};
pub(crate) use awaiting::runtime;
pub(crate) use clock::Cost;
pub(crate) use contest::judge;
pub(crate) use link::{End, Link, fill, source};
pub(crate) use stats::{Estimate, Way, median, ratio, take_turns};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// A size in the largest unit that divides it.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        b if b >= GIB && b % GIB == 0 => format!("{} GiB", b / GIB),
        b if b >= MIB && b % MIB == 0 => format!("{} MiB", b / MIB),
        b if b >= KIB && b % KIB == 0 => format!("{} KiB", b / KIB),
        b => format!("{b} B"),
    }
}

/// Begins a bench: a process that was started as the other end does its work and is gone, and the
/// one that measures keeps to the first processor.
pub(crate) fn begin() -> Args {
    peer::serve_if_asked();
    clock::pin(clock::OURS);
    Args::parse()
}
