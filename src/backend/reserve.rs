//! Blocks for a destination's bytes just before they are written: filling pages whose blocks are there
//! already costs a quarter to a third less (ext4; see `docs/benchmarks.md`).
//!
//! What is reserved is never given back. Nothing frees the blocks beyond the end of a file but
//! ftruncate(2), and that cuts what somebody else has appended since the end was looked at, or takes
//! away what the caller reserved. So no more is reserved than is about to be written.
//!
//! Nor is everything reserved that is. ext4 flushes a file that replaces another by rename(2), or that
//! is closed after it was truncated, only while some of its blocks are not allocated yet
//! (`auto_da_alloc`): after a crash, a file that was reserved to its end would be empty. So the last
//! blocks are left to the kernel.

use super::Endpoint;
use crate::sys::call;

/// What is left unreserved is less than this and a block more: two blocks would do, except with
/// clusters of 64 KiB (`bigalloc`).
const TAIL: u64 = 64 << 10;

/// A reservation in a destination's file.
#[derive(Debug, Default)]
pub(crate) struct Reservation {
    /// Where the last one ended.
    end: u64,
    /// The filesystem cannot do it.
    refused: bool,
}

impl Reservation {
    /// Reserves blocks for the bytes from `at` to `end` that are about to be written, without the last
    /// of them. Where that ends now.
    pub(crate) fn extend(&mut self, dst: &Endpoint<'_>, at: u64, end: u64) -> u64 {
        let to = end.saturating_sub(1) & !(TAIL - 1);
        // What the last one left out has been written: without a gap, the file stays in one piece.
        let from = match at.checked_sub(self.end) {
            Some(0..=TAIL) => self.end,
            _ => at,
        };
        if to <= from || self.refused {
            return self.end;
        }
        match call::allocate(dst.fd(), from, to - from) {
            Ok(()) => self.end = to,
            // ext2 and ext3 have no extents. Where there is no room, the writes say so.
            Err(e) => self.refused = e.raw_os_error() == Some(libc::EOPNOTSUPP),
        }
        self.end
    }

    /// Whether a file that ends at `at` has all its blocks by this.
    pub(crate) fn reaches(&self, at: u64) -> bool {
        self.end > 0 && at <= self.end
    }
}
