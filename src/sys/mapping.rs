//! A window of a file in memory that this process never touches.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use memmap2::{MmapOptions, MmapRaw};

use super::call::{count, loff, retry, size};

/// A read-only shared mapping of a range of a file.
///
/// It is never a `&[u8]`: others may truncate or rewrite the file at any time. The kernel alone
/// reads it, through the pointer that [`Mapping::write_to`] hands to write(2); a page that is gone
/// by then makes that call fail with EFAULT, where a load in user space would raise SIGBUS.
#[derive(Debug)]
pub(crate) struct Mapping {
    raw: MmapRaw,
}

impl Mapping {
    /// Maps `len` bytes (at least one) from `offset`.
    pub(crate) fn new(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        // mmap(2) now and munmap(2) later.
        count(2);
        let raw = MmapOptions::new()
            .offset(offset)
            .len(len)
            .map_raw_read_only(fd.as_raw_fd())?;
        Ok(Self { raw })
    }

    pub(crate) fn len(&self) -> usize {
        self.raw.len()
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
        let from = self.raw.as_ptr().wrapping_add(start).cast::<libc::c_void>();
        let offset = offset.map(loff).transpose()?;
        let fd = fd.as_raw_fd();
        retry(|| match offset {
            // SAFETY: `from` and `len` lie within the mapping, which lives as long as `self`. The
            // kernel checks each page itself and answers EFAULT for one that is gone.
            None => size(unsafe { libc::write(fd, from, len) }),
            // SAFETY: as above.
            Some(offset) => size(unsafe { libc::pwrite64(fd, from, len, offset) }),
        })
    }
}
