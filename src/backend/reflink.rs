//! FICLONERANGE: the destination shares the source's extents, and no byte moves.
//!
//! Works within one filesystem that can share (Btrfs, XFS with `reflink=1`, bcachefs, OCFS2, NFS
//! 4.2, some servers behind CIFS), for whole blocks; the last one of the source may be short
//! where it lands at the destination's end. Later writes to either file get blocks of their own.
//! A range that does not end on a block is shared up to its last whole block, and the rest is
//! another backend's.

use std::num::NonZeroUsize;

use super::{Backend, Endpoint, Fault, Kind, Side, Step, Unfit, ZeroCopyTransfer};
use crate::sys::call;
use crate::sys::errno::Call;

/// FICLONERANGE, ioctl_ficlonerange(2).
#[derive(Debug, Default)]
pub struct Reflink(());

impl Reflink {
    /// Without state: each step is one call.
    pub fn new() -> Self {
        Self(())
    }
}

impl ZeroCopyTransfer for Reflink {
    fn backend(&self) -> Backend {
        Backend::Reflink
    }

    fn assess(&self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
        super::require(Side::Source, src, |kind| kind == Kind::File)?;
        super::require(Side::Destination, dst, |kind| kind == Kind::File)?;
        if !src.facts().is_akin(dst.facts()) {
            return Err(Unfit::OtherFilesystem);
        }
        if !src.facts().may_share_extents() {
            return Err(Unfit::CannotShare);
        }
        super::require_no_append(dst)
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        let block = src.facts().block_size();
        // It works by offset: where there is none, or no size, another way does without.
        let places = || Ok((call::stat(src.fd())?.size, src.position()?, dst.position()?));
        let (size, from, to) = match places() {
            Ok(places) => places,
            Err(e) => return super::unfit_or_fault(Call::SetUp, None, e),
        };
        let Some(left @ 1..) = size.checked_sub(from) else {
            return Ok(Step::Ended);
        };
        let wanted = left.min(limit.get() as u64);
        // Only the file's own end may lie inside a block.
        let whole = if wanted == left {
            wanted
        } else {
            wanted - wanted % block
        };
        let Some(len) = usize::try_from(whole).ok().and_then(NonZeroUsize::new) else {
            return Ok(Step::Unfit(Unfit::Unaligned));
        };
        if from % block != 0 || to % block != 0 {
            return Ok(Step::Unfit(Unfit::Unaligned));
        }
        match call::clone_range(src.fd(), from, dst.fd(), to, whole) {
            Ok(()) => {
                // Shared is shared and counts, whatever lseek(2) says; it has just answered for
                // these very descriptors.
                let _ = src.seek_by(whole as i64).and(dst.seek_by(whole as i64));
                Ok(Step::Moved(len))
            }
            Err(e) => super::unfit_or_fault(Call::Clone, None, e),
        }
    }
}
