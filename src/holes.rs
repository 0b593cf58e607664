//! Holes stay holes: what a sparse source leaves out is left out of the destination too.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::Whence;

use crate::backend::{Endpoint, Fault, Side};
use crate::sys::call;

/// The map of a sparse source, read as the transfer comes to it.
#[derive(Debug)]
pub(crate) struct Holes {
    /// `SEEK_DATA` moves the position. Where that is not the transfer's to move, a description of
    /// our own.
    view: Option<OwnedFd>,
    /// Bytes known to be data before the next hole.
    data: u64,
    /// The last block of a hole that was made beyond the destination's end: it is there to make the
    /// file that long, until data follow.
    pad: Option<Range<u64>>,
    /// They have followed.
    followed: bool,
    /// Where the source's own position belongs, while it is elsewhere because an lseek(2) failed.
    astray: Option<u64>,
}

/// What comes next in the source.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Next {
    /// At most so many bytes of data.
    Data(NonZeroUsize),
    /// A hole of so many bytes, which the destination now has as well.
    Made(NonZeroUsize),
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
        let view = match src.offset() {
            None => None,
            Some(_) => Some(call::reopen(src.fd(), OFlag::O_RDONLY).ok()?),
        };
        Some(Self {
            view,
            data: 0,
            pad: None,
            followed: false,
            astray: None,
        })
    }

    /// What comes next, of `limit` bytes at most. `None` where no map is to be had: the caller then
    /// copies without one.
    ///
    /// # Errors
    /// Where a position cannot be set to where the counts say; that is tried again by the next call.
    pub(crate) fn next(
        &mut self,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Option<Next>, Fault> {
        self.put_back(src)?;
        if self.data == 0 {
            self.unpad(dst);
            let Ok(at) = src.position() else {
                return Ok(None);
            };
            let seen = match &self.view {
                Some(view) => look(view.as_fd(), at),
                None => {
                    let seen = look(src.fd(), at);
                    self.astray = Some(at);
                    self.put_back(src)?;
                    seen
                }
            };
            let Ok(seen) = seen else {
                return Ok(None);
            };
            let hole = usize::try_from(seen.hole).unwrap_or(usize::MAX);
            if let Some(hole) = NonZeroUsize::new(hole.min(limit.get())) {
                if self.pass(src, dst, at, hole)? {
                    return Ok(Some(Next::Made(hole)));
                }
                // The destination cannot have it: its zeros are copied.
                self.data = seen.hole;
            } else if seen.to_end {
                // At or beyond the end: the backend says what there is to say.
                return Ok(Some(Next::Data(limit)));
            } else {
                self.data = seen.data;
            }
        }
        let data = usize::try_from(self.data).unwrap_or(usize::MAX);
        let data = NonZeroUsize::new(data.min(limit.get()));
        Ok(Some(Next::Data(data.unwrap_or(limit))))
    }

    /// Has the source's own position where it belongs.
    pub(crate) fn put_back(&mut self, src: &Endpoint<'_>) -> Result<(), Fault> {
        if let Some(at) = self.astray {
            call::seek(src.fd(), at as i64, Whence::SeekSet)
                .map_err(|e| Fault::new(Side::Source, e))?;
            self.astray = None;
        }
        Ok(())
    }

    /// Passes over a hole on both sides, from `at` on in the source. `false` where the destination
    /// cannot have one.
    fn pass(
        &mut self,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
        at: u64,
        len: NonZeroUsize,
    ) -> Result<bool, Fault> {
        let bytes = len.get() as i64;
        src.seek_by(bytes)
            .map_err(|e| Fault::new(Side::Source, e))?;
        let made = self.make_hole(dst, len).is_ok();
        let passed = if made { dst.seek_by(bytes) } else { Ok(()) };
        if made && passed.is_ok() {
            return Ok(true);
        }
        // What the destination has of it by then is made anew when this goes on.
        self.astray = src.offset().is_none().then_some(at);
        let back = self.put_back(src);
        passed.map_err(|e| Fault::new(Side::Destination, e))?;
        back.map(|()| false)
    }

    /// Makes the next `len` bytes of the destination a hole: punched as far as it has bytes there,
    /// extended beyond.
    fn make_hole(&mut self, dst: &Endpoint<'_>, len: NonZeroUsize) -> io::Result<()> {
        let at = dst.position()?;
        let end = at
            .checked_add(len.get() as u64)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if call::status_flags(dst.fd())? & libc::O_APPEND != 0 {
            // It does since the transfer began: others append, and where is not ours to say.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = call::stat(dst.fd())?.size;
        if at < size {
            call::punch_hole(dst.fd(), at, end.min(size) - at)?;
        }
        if size < end {
            call::extend(dst.fd(), end)?;
            let block = dst.facts().block_size();
            self.pad = Some(at.max((end - 1) / block * block)..end);
            self.followed = false;
        }
        Ok(())
    }

    /// Makes the last block of a hole one as well, where it is not the end of the file any more.
    pub(crate) fn unpad(&mut self, dst: &Endpoint<'_>) {
        if let Some(pad) = self.pad.take_if(|_| self.followed) {
            // Its bytes are zeros either way.
            let _ = call::punch_hole(dst.fd(), pad.start, pad.end - pad.start);
        }
    }

    /// Bytes of data known to come before the next hole.
    pub(crate) fn data(&self) -> u64 {
        self.data
    }

    /// Takes note of bytes moved as data.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.data = self.data.saturating_sub(bytes);
        self.followed = true;
    }
}

/// What a file has from a position on.
struct Seen {
    /// Bytes before the next data.
    hole: u64,
    /// Bytes of data before the next hole, where data come first.
    data: u64,
    /// No data follow.
    to_end: bool,
}

/// Looks, and moves the descriptor's position.
fn look(fd: BorrowedFd<'_>, at: u64) -> io::Result<Seen> {
    let (next, to_end) = match call::seek_data(fd, at)? {
        Some(data) => (data, false),
        None => (call::stat(fd)?.size, true),
    };
    let hole = next.saturating_sub(at);
    let data = if hole > 0 || to_end {
        0
    } else {
        call::seek_hole(fd, at)?.saturating_sub(at).max(1)
    };
    Ok(Seen { hole, data, to_end })
}
