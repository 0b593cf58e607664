//! Blocks for what is copied from a file: a window ahead of where the destination stands.
//!
//! (Of a stream nobody knows whether more comes: there only what is in hand gets blocks before it is
//! written, in [`Splice`](crate::backend::Splice).)

use crate::backend::{Backend, Endpoint, Kind, Reservation};
use crate::sys::call;

/// Below this, allocating costs as much as it saves.
const WORTHWHILE: u64 = 128 << 10;

/// How far ahead blocks are reserved. It is the most that stays reserved and unused where a transfer
/// ends early, or its process is killed. (256 MiB, ext4: 1.00 to 1.02 of the cost with all of it
/// reserved at once; with nothing reserved 1.39.)
const WINDOW: u64 = 4 << 20;

/// What is reserved ahead of where the destination stands.
#[derive(Debug)]
pub(crate) struct Prealloc {
    /// Bytes for which it has been looked at, whether or not it was worthwhile.
    seen: u64,
    reservation: Reservation,
}

impl Prealloc {
    /// For a pair of files, the source's size being its filesystem's own, and the destination on one
    /// where it pays.
    pub(crate) fn new(src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Option<Self> {
        let fit = dst.facts().allocates_ahead() && !dst.facts().is_append();
        let known = src.kind() == Kind::File && src.facts().has_own_size();
        // A small file needs no second look.
        let small = src.facts().size_hint() < WORTHWHILE;
        (fit && known && !small).then(|| Self {
            seen: 0,
            reservation: Reservation::default(),
        })
    }

    /// Whether a backend fills blocks one by one, so that having them pays. The others share
    /// extents or go around the page cache.
    pub(crate) fn suits(backend: Backend) -> bool {
        // Of the filesystems that are asked for blocks, none shares extents by copy_file_range(2).
        !matches!(backend, Backend::Reflink | Backend::Direct)
    }

    /// Reserves a window of the next `len` bytes, all of them data as far as is known, unless the last
    /// one is not used up.
    pub(crate) fn allocate(&mut self, src: &Endpoint<'_>, dst: &Endpoint<'_>, len: u64) {
        if self.seen > 0 {
            return;
        }
        self.seen = WORTHWHILE;
        if len < WORTHWHILE {
            return;
        }
        // Where one of these fails, the call that moves the bytes says so, and of which side.
        let (Ok(stat), Ok(from), Ok(at)) = (call::stat(src.fd()), src.position(), dst.position())
        else {
            return;
        };
        let rest = len.min(stat.size.saturating_sub(from));
        if rest < WORTHWHILE {
            return;
        }
        // A window in the middle ends on a border, so that it is reserved to its end.
        let end = match at.saturating_add(WINDOW) & !(WINDOW - 1) {
            border if border - at < rest => border + 1,
            _ => at.saturating_add(rest),
        };
        let reserved = self.reservation.extend(dst, at, end);
        self.seen = reserved.saturating_sub(at).max(WORTHWHILE);
    }

    /// Records that bytes have moved.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.seen = self.seen.saturating_sub(bytes);
    }

    /// Ends it, wherever the destination stands. One that stands within what is reserved has ended
    /// early, and has no block that is not allocated: so that a rename(2) does not make a crash lose
    /// it, its bytes are sent on their way now, as ext4 would.
    pub(crate) fn finish(&mut self, dst: &Endpoint<'_>) {
        self.seen = 0;
        let reserved = std::mem::take(&mut self.reservation);
        if dst.position().is_ok_and(|at| reserved.reaches(at)) {
            // Nobody waits for it, and whoever calls fsync(2) is told what becomes of it.
            let _ = call::write_back(dst.fd(), 0, 0, false);
        }
    }
}
