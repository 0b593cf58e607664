//! Holes stay holes: what a sparse source leaves out is left out of the destination too.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;

use crate::backend::Endpoint;
use crate::sys::call;

/// The map of a sparse source, read as the transfer comes to it.
#[derive(Debug)]
pub(crate) struct Holes {
    /// A description of our own: `SEEK_DATA` moves the position, and the caller's must stay.
    view: OwnedFd,
    /// Bytes known to be data before the next hole.
    data: u64,
}

/// What comes next in the source.
pub(crate) enum Next {
    /// At most so many bytes of data.
    Data(u64),
    /// A hole of so many bytes, which the destination now has as well.
    Made(u64),
}

impl Holes {
    /// For a pair of files of which the source has holes and the destination can have them. `None`
    /// where that cannot be told or kept; then the zeros are copied.
    pub(crate) fn new(src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Option<Self> {
        let fit = src.facts().has_true_holes()
            && src.facts().looks_sparse()
            && dst.facts().has_true_holes()
            && !dst.facts().is_append();
        if !fit {
            return None;
        }
        let view = call::reopen(src.fd(), OFlag::O_RDONLY).ok()?;
        Some(Self { view, data: 0 })
    }

    /// What comes next, `limit` bytes at most. Fails only where no map can be had; the caller
    /// then copies without one.
    pub(crate) fn next(
        &mut self,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
        limit: u64,
    ) -> io::Result<Next> {
        if self.data > 0 {
            return Ok(Next::Data(self.data));
        }
        let at = src.position()?;
        let view = self.view.as_fd();
        let (data, to_end) = match call::seek_data(view, at)? {
            Some(data) => (data, false),
            None => (call::fstat(view)?.st_size.unsigned_abs(), true),
        };
        let hole = data.saturating_sub(at);
        if hole > 0 {
            let len = hole.min(limit);
            if make_hole(dst, len).is_ok() {
                src.seek_by(len as i64)?;
                return Ok(Next::Made(len));
            }
            // The destination cannot have it: its zeros are copied.
            self.data = hole;
            return Ok(Next::Data(hole));
        }
        if to_end {
            // At or beyond the end: the backend says what there is to say.
            return Ok(Next::Data(u64::MAX));
        }
        self.data = call::seek_hole(view, at)?.saturating_sub(at).max(1);
        Ok(Next::Data(self.data))
    }

    /// Bytes of data known to come before the next hole.
    pub(crate) fn data(&self) -> u64 {
        self.data
    }

    /// Takes note of bytes moved as data.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.data = self.data.saturating_sub(bytes);
    }
}

/// Makes the next `len` bytes of the destination a hole: punched as far as it has bytes there,
/// extended beyond.
fn make_hole(dst: &Endpoint<'_>, len: u64) -> io::Result<()> {
    let at = dst.position()?;
    let end = at.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
    let size = call::fstat(dst.fd())?.st_size.unsigned_abs();
    if at < size {
        call::punch_hole(dst.fd(), at, end.min(size) - at)?;
    }
    if size < end {
        call::ftruncate(dst.fd(), end)?;
    }
    dst.seek_by(len as i64)
}
