//! A window of a file in memory that this process never touches.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use memmap2::{MmapOptions, MmapRaw};

use super::call::{count, loff, retry_moving, size};

/// A read-only shared mapping of a range of a file.
///
/// It is never a `&[u8]`: others may truncate or rewrite the file at any time. The kernel alone
/// reads it, through the pointer that [`Mapping::write_to`] hands to write(2); a page that is gone
/// by then makes that call fail with EFAULT, where a load in user space would raise SIGBUS.
#[derive(Debug)]
pub(crate) struct Mapping {
    raw: MmapRaw,
    /// Where the range begins within what is mapped, and its length.
    skip: usize,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes (at least one) from `offset`, of a file whose preferred size of I/O
    /// (`stx_blksize`) is `block`.
    pub(crate) fn new(fd: BorrowedFd<'_>, offset: u64, len: usize, block: u64) -> io::Result<Self> {
        let (options, skip) = whole_blocks(offset, len, block)?;
        // mmap(2) now and munmap(2) later.
        count(2);
        let raw = options.map_raw_read_only(fd.as_raw_fd())?;
        Ok(Self { raw, skip, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes the bytes from `start` on, at most `len`, to `fd`: at `offset`, or at the
    /// descriptor's own position.
    pub(crate) fn write_to(
        &self,
        fd: BorrowedFd<'_>,
        offset: Option<u64>,
        start: usize,
        len: usize,
    ) -> io::Result<usize> {
        let start = start.min(self.len());
        let len = len.min(self.len() - start);
        let start = self.skip + start;
        let from = self.raw.as_ptr().wrapping_add(start).cast::<libc::c_void>();
        let offset = offset.map(loff).transpose()?;
        let sides = [(fd, true)];
        let fd = fd.as_raw_fd();
        retry_moving(sides, || match offset {
            // SAFETY: `from` and `len` lie within the mapping, which lives as long as `self`. The
            // kernel checks each page itself and answers EFAULT for one that is gone.
            None => size(unsafe { libc::write(fd, from, len) }),
            // SAFETY: as above.
            Some(offset) => size(unsafe { libc::pwrite64(fd, from, len, offset) }),
        })
    }
}

/// By which options to map a range of a file, and how far behind the start of the mapping the range
/// begins. Huge pages, which are what such a file has for its blocks, are mapped and unmapped whole:
/// an offset within one is refused, and so is a munmap(2) of a part, which would stay mapped.
pub(super) fn whole_blocks(
    offset: u64,
    len: usize,
    block: u64,
) -> io::Result<(MmapOptions, usize)> {
    let block = if block.is_power_of_two() { block } else { 1 };
    let skip = offset % block;
    let whole = (skip + len as u64).checked_next_multiple_of(block);
    let whole = whole.and_then(|whole| usize::try_from(whole).ok());
    let whole = whole.ok_or_else(|| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    let mut options = MmapOptions::new();
    options.offset(offset - skip).len(whole);
    // Below `whole`.
    Ok((options, skip as usize))
}
