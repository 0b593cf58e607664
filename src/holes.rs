//! Holes stay holes: what a sparse source leaves out is left out of the destination too.
//!
//! Others may write to both files meanwhile. A hole of the source is one as far as a single call has
//! said so of bytes that were in the file by then. Of the destination nothing is freed but what is
//! about to be delivered and lay within its size; and nothing is put where a hole ends beyond that
//! size, unless no data follow. What has been delivered is not touched any more.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::Whence;

use crate::backend::{Endpoint, Fault, Side};
use crate::sys::{call, errno};

/// Bytes that are copied without a look, where the file changed during the last one.
const UNSURE: u64 = 64 << 10;

/// The map of a sparse source, read as the transfer comes to it.
#[derive(Debug)]
pub(crate) struct Holes {
    /// `SEEK_DATA` moves the position. Where that is not the transfer's to move, a description of
    /// our own.
    view: Option<OwnedFd>,
    /// Bytes to be copied before the next look.
    data: u64,
    /// Where each side stood before the hole that was passed last.
    before: (u64, u64),
    /// Where a side's own position belongs, while it is elsewhere because an lseek(2) failed.
    astray: (Option<u64>, Option<u64>),
}

/// What comes next in the source.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Next {
    /// At most so many bytes of data.
    Data(NonZeroUsize),
    /// A hole of so many bytes, which the destination now has as well.
    Made(NonZeroUsize),
    /// A hole of so many bytes, beyond the destination's end; both sides stand behind it, and the
    /// data that follow are to make the file that long.
    Passed(NonZeroUsize),
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
            before: (0, 0),
            astray: (None, None),
        })
    }

    /// What comes next, of `limit` bytes at most. `None` where no map is to be had: the caller then
    /// copies without one.
    ///
    /// # Errors
    /// Where a position cannot be set to where the counts say, which is tried again by the next call;
    /// and where the destination cannot have a hole that large or has no room for its end.
    pub(crate) fn next(
        &mut self,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Option<Next>, Fault> {
        self.put_back(src, dst)?;
        if self.data == 0 {
            let Ok(at) = src.position() else {
                return Ok(None);
            };
            let seen = match &self.view {
                Some(view) => look(view.as_fd(), at),
                None => {
                    let seen = look(src.fd(), at);
                    self.astray.0 = Some(at);
                    self.put_back(src, dst)?;
                    seen
                }
            };
            match seen {
                Ok(Seen::Data(data)) => self.data = data,
                // The backend says what there is to say.
                Ok(Seen::End) => return Ok(Some(Next::Data(limit))),
                Ok(Seen::Hole { len, data }) => {
                    let all = usize::try_from(len).unwrap_or(usize::MAX);
                    let hole = NonZeroUsize::new(all).unwrap_or(limit).min(limit);
                    let data = if hole.get() == all { data } else { 0 };
                    if let Some(next) = self.pass(src, dst, at, hole, data)? {
                        return Ok(Some(next));
                    }
                }
                Err(_) => return Ok(None),
            }
        }
        let data = usize::try_from(self.data).unwrap_or(usize::MAX);
        let data = NonZeroUsize::new(data.min(limit.get()));
        Ok(Some(Next::Data(data.unwrap_or(limit))))
    }

    /// Has each side's own position where it belongs.
    pub(crate) fn put_back(&mut self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Fault> {
        let sides = [
            (Side::Source, src, &mut self.astray.0),
            (Side::Destination, dst, &mut self.astray.1),
        ];
        for (side, end, astray) in sides {
            if let Some(at) = *astray {
                call::seek(end.fd(), at as i64, Whence::SeekSet)
                    .map_err(|e| Fault::new(side, e))?;
                *astray = None;
            }
        }
        Ok(())
    }

    /// Passes over a hole on both sides, from `at` on in the source, with `data` bytes behind it as
    /// far as is known. `None` where the destination cannot have one: its zeros are to be copied.
    fn pass(
        &mut self,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
        at: u64,
        hole: NonZeroUsize,
        data: u64,
    ) -> Result<Option<Next>, Fault> {
        let Ok(to) = dst.position() else {
            self.data = hole.get() as u64;
            return Ok(None);
        };
        let next = match make(dst, to, hole, data > 0) {
            Ok(next) => next,
            Err(Refused::Fill(bytes)) => {
                self.data = bytes;
                return Ok(None);
            }
            Err(Refused::Failed(error)) => return Err(Fault::new(Side::Destination, error)),
        };
        let (Next::Data(len) | Next::Made(len) | Next::Passed(len)) = next;
        let len = len.get() as i64;
        src.seek_by(len).map_err(|e| Fault::new(Side::Source, e))?;
        if let Err(mut error) = dst.seek_by(len) {
            if error.raw_os_error() == Some(libc::EINVAL) {
                // No file is that long there: what a write would say.
                error = io::Error::from_raw_os_error(libc::EFBIG);
            }
            // What the destination has of it by then is made anew when this goes on.
            self.astray.0 = src.offset().is_none().then_some(at);
            self.put_back(src, dst)?;
            return Err(Fault::new(Side::Destination, error));
        }
        if matches!(next, Next::Passed(_)) {
            self.before = (at, to);
            self.data = data;
        }
        Ok(Some(next))
    }

    /// Has both sides stand again where the hole begins that was passed last, so that its zeros are
    /// copied next: `bytes` of them.
    pub(crate) fn go_back(
        &mut self,
        src: &Endpoint<'_>,
        dst: &Endpoint<'_>,
        bytes: u64,
    ) -> Result<(), Fault> {
        self.data = bytes;
        let (from, to) = self.before;
        self.astray.0 = src.offset().is_none().then_some(from);
        self.astray.1 = dst.offset().is_none().then_some(to);
        self.put_back(src, dst)
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

/// Why there is no hole in the destination.
enum Refused {
    /// It cannot be made. So many zeros can be written instead.
    Fill(u64),
    /// Nor could they.
    Failed(io::Error),
}

/// Makes a hole of what the `len` bytes from `at` on begin with: what the destination has there is
/// punched, what lies beyond its end is one already. The end of a hole is made only where no data
/// follow.
fn make(
    dst: &Endpoint<'_>,
    at: u64,
    len: NonZeroUsize,
    data_follow: bool,
) -> Result<Next, Refused> {
    let fill = |_| Refused::Fill(len.get() as u64);
    refuse_append(dst).map_err(fill)?;
    let size = call::stat(dst.fd()).map_err(fill)?.size;
    let inside = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
    if let Some(inside) = NonZeroUsize::new(inside) {
        // Not a byte beyond the size that was seen: it is another's, appended since.
        let inside = inside.min(len);
        let bytes = inside.get() as u64;
        // Where that fails, there are blocks for the zeros.
        let punched = call::punch_hole(dst.fd(), at, bytes);
        return punched
            .map(|()| Next::Made(inside))
            .map_err(|_| Refused::Fill(bytes));
    }
    if data_follow {
        return Ok(Next::Passed(len));
    }
    match call::extend(dst.fd(), at.saturating_add(len.get() as u64)) {
        Ok(()) => Ok(Next::Made(len)),
        Err(e) if is_final(&e) => Err(Refused::Failed(e)),
        Err(e) => Err(fill(e)),
    }
}

/// Has the destination end behind the hole that was passed, where it now stands, at least: for where
/// its data did not follow.
pub(crate) fn close(dst: &Endpoint<'_>) -> io::Result<()> {
    refuse_append(dst)?;
    let end = dst.position()?;
    if call::stat(dst.fd())?.size >= end {
        return Ok(());
    }
    call::extend(dst.fd(), end)
}

/// A destination that appends since the transfer began: others do, and where is not ours to say.
fn refuse_append(dst: &Endpoint<'_>) -> io::Result<()> {
    if call::status_flags(dst.fd())? & libc::O_APPEND != 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(())
}

/// Whether zeros that are written would meet the same error: the file cannot be that long (EFBIG),
/// there is no room for its last block, or its device fails.
pub(crate) fn is_final(error: &io::Error) -> bool {
    errno::is_destinations(error) || errno::is_of_storage(error)
}

/// What a file has from a position on.
enum Seen {
    /// So many bytes that are not known to be a hole.
    Data(u64),
    /// A hole of so many bytes, and behind it data, or nothing.
    Hole { len: u64, data: u64 },
    /// Neither.
    End,
}

/// Looks, and moves the descriptor's position.
///
/// A hole in front of data is told by one call. One at the end has no such end: the size does not tell
/// of the moment when the kernel found no data, but of one before or after it. So it counts only where
/// size and time of change are the same before and after.
fn look(fd: BorrowedFd<'_>, at: u64) -> io::Result<Seen> {
    if let Some(next) = call::seek_data(fd, at)? {
        let data = match call::seek_hole(fd, next) {
            Ok(end) if end > next => end - next,
            // Cut or punched since.
            Ok(_) => UNSURE,
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => UNSURE,
            Err(e) => return Err(e),
        };
        return Ok(match next.saturating_sub(at) {
            0 => Seen::Data(data),
            len => Seen::Hole { len, data },
        });
    }
    let before = call::extent(fd)?;
    if before.size <= at {
        return Ok(Seen::End);
    }
    let changed = call::seek_data(fd, at)?.is_some() || call::extent(fd)? != before;
    Ok(if changed {
        Seen::Data(UNSURE)
    } else {
        let (len, data) = (before.size - at, 0);
        Seen::Hole { len, data }
    })
}
