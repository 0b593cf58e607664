//! copy_file_range(2): the filesystem copies between two files by itself.
//!
//! XFS, Btrfs and their like share extents, NFS, CIFS and their like let the server copy. On a
//! filesystem that can do neither (ext4, tmpfs) the kernel copies, 64 KiB at a time: the cheapest way
//! for a few, since it is one call, and not in quantity. Between filesystems of different types it answers EXDEV
//! (Linux 5.19), to a destination that appends EBADF, and on generated files 0.

use std::num::NonZeroUsize;

use super::{Backend, Endpoint, Fault, Kind, Side, Step, Unfit, ZeroCopyTransfer};
use crate::sys::call;
use crate::sys::errno::Call;

/// copy_file_range(2).
#[derive(Debug, Default)]
pub struct CopyFileRange(());

impl CopyFileRange {
    /// Without state: each step is one call.
    pub fn new() -> Self {
        Self(())
    }
}

impl ZeroCopyTransfer for CopyFileRange {
    fn backend(&self) -> Backend {
        Backend::CopyFileRange
    }

    fn assess(&self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
        super::require(Side::Source, src, |kind| kind == Kind::File)?;
        super::require(Side::Destination, dst, |kind| kind == Kind::File)?;
        if !src.facts().is_akin(dst.facts()) {
            return Err(Unfit::OtherFilesystem);
        }
        super::require_no_append(dst)?;
        super::require_buffered(src, dst)
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        let (from, to) = (src.offset(), dst.offset());
        match call::copy_file_range(src.fd(), from, dst.fd(), to, limit.get()) {
            Ok(n) => Ok(super::moved_or_ended(n)),
            Err(e) => super::unfit_or_fault(Call::CopyFileRange, None, e),
        }
    }
}
