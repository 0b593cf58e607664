//! Dropping from the page cache what a transfer has passed.

use std::io;

use crate::backend::{Endpoint, Kind};
use crate::sys::call;

/// Bytes that pass before the cache is tended.
const WINDOW: u64 = 8 << 20;
const PAGE: u64 = 4096;

/// A trail of pages to drop. What drops them is advice: a failure changes no byte and no count. That
/// they could not be written back is none, since whoever waits for that is told, and nobody else after
/// him: not by fsync(2) on the same descriptor either.
#[derive(Debug, Default)]
pub(crate) struct DropBehind {
    passed: u64,
    /// The destination's window that is being written back, as offset and length.
    writing: Option<(u64, u64)>,
}

impl DropBehind {
    /// Takes note of `bytes` moved up to where both sides now stand; at the end of the transfer,
    /// `last` waits for the destination's rest and drops it too.
    ///
    /// # Errors
    /// Those of writing back.
    pub(crate) fn moved(
        &mut self,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
        bytes: u64,
        last: bool,
    ) -> io::Result<()> {
        self.passed += bytes;
        if self.passed < WINDOW && !last {
            return Ok(());
        }
        let passed = std::mem::take(&mut self.passed);
        if let Some((from, len)) = window(src, passed) {
            let _ = call::drop_cached(src.fd(), from, len);
        }
        let new = window(dst, passed);
        if let Some((from, len)) = new {
            // Written back while the next window is filled. The one before is done by now, or
            // nearly, and only clean pages can be dropped.
            call::write_back(dst.fd(), from, len, false)?;
        }
        let due = [
            std::mem::replace(&mut self.writing, new),
            self.writing.filter(|_| last),
        ];
        for (from, len) in due.into_iter().flatten() {
            call::write_back(dst.fd(), from, len, true)?;
            let _ = call::drop_cached(dst.fd(), from, len);
        }
        if last {
            self.writing = None;
        }
        Ok(())
    }
}

/// The last `passed` bytes before where a file stands, from the start of their first page.
fn window(end: &Endpoint<'_>, passed: u64) -> Option<(u64, u64)> {
    if end.kind() != Kind::File || passed == 0 {
        return None;
    }
    let position = end.position().ok()?;
    let from = position.saturating_sub(passed) / PAGE * PAGE;
    Some((from, position - from))
}
