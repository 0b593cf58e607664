//! A range of a file as memory that this process does touch: sound only where nobody can change
//! the file.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::slice;

use bytes::Bytes;
use memmap2::MmapRaw;

use super::mapping::whole_blocks;
use super::{call, errno};

/// Maps a range of a memfd whose seals keep it as it is.
pub(crate) fn map_sealed(file: BorrowedFd<'_>, range: Range<u64>) -> io::Result<Bytes> {
    if !call::is_sealed(file) {
        let text = "only a memfd sealed against writing and shrinking can be mapped safely";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    // SAFETY: this very descriptor has been asked, and stays open while it is borrowed. The seals
    // cannot be taken off; they keep everyone from writing and from shrinking.
    unsafe { map(file, range) }
}

/// Maps a range of any file as [`Bytes`], on the caller's word that nobody changes it.
///
/// For a memfd whose seals say so, [`map_file`](crate::map_file()) takes no such word.
///
/// # Safety
/// For as long as the `Bytes`, its clones and its slices live, nobody may write to the range or
/// truncate the file to before its end: no thread, no other process, no other host of a network
/// filesystem. A write changes memory behind a `&[u8]`, which is undefined behaviour; a page that is
/// cut off kills the process by SIGBUS when it is touched, here or in whatever was handed the bytes.
/// Being owner of the file, or its only opener, is no such guarantee; a filesystem mounted read-only
/// or an immutable file comes near it.
///
/// # Errors
/// Those of statx(2) and mmap(2); [`io::ErrorKind::InvalidInput`] where the range is reversed or
/// does not lie within the file.
pub unsafe fn map_file_unchecked<F: AsFd>(file: F, range: Range<u64>) -> io::Result<Bytes> {
    // SAFETY: the caller's word, of the descriptor that `file` now answers.
    unsafe { map(file.as_fd(), range) }
}

/// A range of what is mapped.
struct Mapped {
    raw: MmapRaw,
    skip: usize,
    len: usize,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        let start = self.raw.as_ptr().wrapping_add(self.skip);
        // SAFETY: the range lies within the mapping, which lives as long as `self`, and within the
        // file, which whoever mapped it has vouched for.
        unsafe { slice::from_raw_parts(start, self.len) }
    }
}

/// # Safety
/// As [`map_file_unchecked`].
unsafe fn map(file: BorrowedFd<'_>, range: Range<u64>) -> io::Result<Bytes> {
    let stat = call::stat(file).map_err(errno::told)?;
    let len = range.end.checked_sub(range.start).map(usize::try_from);
    let Some(Ok(len)) = len.filter(|_| range.end <= stat.size) else {
        let text = format!("{range:?} is no range of a file of {} bytes", stat.size);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    if len == 0 {
        return Ok(Bytes::new());
    }
    let (options, skip) = whole_blocks(range.start, len, stat.block)?;
    call::count(1);
    // SAFETY: the caller vouches for the file. Private, because before Linux 6.7 a memfd sealed
    // against writing could not be mapped shared; never written, its pages are the file's own. Of
    // the pages behind the file's end, which this may have as well, no reference is made.
    let mapping = unsafe { options.map_copy_read_only(file.as_raw_fd()) }?;
    let raw = MmapRaw::from(mapping);
    Ok(Bytes::from_owner(Mapped { raw, skip, len }))
}
