//! What bounds the next step: the length, the offsets that there are, a file copied onto itself,
//! fairness, a rate; and the blocks of the files.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;

use bytes::Bytes;

use super::Driver;
use crate::backend::{Backend, Side};
use crate::error::{Error, ErrorKind, Result};
use crate::prealloc::Prealloc;
use crate::report::End;

/// The largest offset that a file can have.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// Bounds for a file or a disk copied onto itself.
#[derive(Debug)]
pub(super) struct SameFile {
    /// Bytes that the source had from its start on; what is appended behind is not its own.
    pub(super) own: u64,
    /// How far source and destination lie apart: more would overlap.
    pub(super) apart: u64,
}

impl Driver {
    /// The most that may reach the destination next, `held` bytes in flight included; or how it has
    /// ended.
    #[inline]
    pub(super) fn limit(&self, held: u64) -> Result<std::result::Result<NonZeroUsize, End>> {
        let mut limit = self.remaining();
        if limit == 0 {
            return Ok(Err(End::Complete));
        }
        if let Some(same) = &self.same_file {
            limit = limit.min(same.own.saturating_sub(self.delivered));
            let clear = same.apart.saturating_sub(self.delivered);
            if limit > 0 && clear == 0 {
                return Err(overlap().after(self.delivered, Bytes::new()));
            }
            limit = limit.min(clear);
        }
        // Where an offset reaches the largest that there is, nothing more can be there.
        if let Some(base) = self.src.base {
            limit = limit.min((MAX_OFFSET - base).saturating_sub(self.delivered));
        }
        if limit == 0 {
            return Ok(Err(End::SourceEnded));
        }
        if let Some(base) = self.dst.base {
            limit = limit.min((MAX_OFFSET - base).saturating_sub(self.delivered));
            if limit == 0 {
                let error = io::Error::from_raw_os_error(libc::EFBIG);
                let error = Error::io(ErrorKind::Io, Some(Side::Destination), error);
                return Err(error.after(self.delivered, Bytes::new()));
            }
        }
        // Sharing extents takes no time, however many.
        if limit > self.most && self.backend() != Backend::Reflink {
            limit = self.most;
        }
        if let Some(grain) = self.pace.as_ref().and_then(|pace| pace.grain()) {
            limit = limit.min(grain);
        }
        let limit = usize::try_from(limit.max(held)).unwrap_or(usize::MAX);
        let limit = self.chunk.map_or(limit, |chunk| limit.min(chunk.get()));
        let limit = limit.max(held as usize);
        Ok(NonZeroUsize::new(limit).ok_or(End::Complete))
    }

    /// Has blocks ready for what comes next.
    pub(super) fn allocate(&mut self, src: BorrowedFd<'_>, dst: BorrowedFd<'_>) {
        if self.prealloc.is_none() || self.in_flight() > 0 || !Prealloc::suits(self.backend()) {
            return;
        }
        let len = self.remaining();
        let Some(prealloc) = &mut self.prealloc else {
            return;
        };
        let data = self.holes.as_ref().map_or(u64::MAX, |holes| holes.data());
        let from = self.src.endpoint(src, self.delivered);
        let to = self.dst.endpoint(dst, self.delivered);
        prealloc.allocate(&from, &to, len.min(data));
    }

    /// Ends what was begun in the destination's file beside the bytes.
    pub(super) fn tidy(&mut self, dst: BorrowedFd<'_>) {
        let to = self.dst.endpoint(dst, self.delivered);
        if let Some(prealloc) = &mut self.prealloc {
            prealloc.finish(&to);
        }
    }
}

pub(super) fn overlap() -> Error {
    let text = "it is the source itself, and the ranges overlap";
    Error::input(Side::Destination, io::ErrorKind::InvalidInput, text)
}
