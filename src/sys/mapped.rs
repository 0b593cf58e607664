//! A range of a file as memory that this process does touch: sound only where nobody can change
//! the file.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use bytes::Bytes;
use memmap2::MmapOptions;

use super::call;

/// Maps a range of a memfd whose seals keep it as it is.
pub(crate) fn map_sealed<F: AsFd>(file: F, range: Range<u64>) -> io::Result<Bytes> {
    if !call::is_sealed(file.as_fd()) {
        let text = "only a memfd sealed against writing and shrinking can be mapped safely";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    // SAFETY: the seals cannot be taken off. They keep everyone from writing and from shrinking.
    unsafe { map_file_unchecked(file, range) }
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
    let size = call::stat(file.as_fd())?.size;
    let len = range.end.checked_sub(range.start).map(usize::try_from);
    let Some(Ok(len)) = len.filter(|_| range.end <= size) else {
        let text = format!("{range:?} is no range of a file of {size} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    if len == 0 {
        return Ok(Bytes::new());
    }
    call::count(1);
    let options = MmapOptions::new().offset(range.start).len(len).clone();
    // SAFETY: the caller vouches for the file. Private, because before Linux 6.7 a memfd sealed
    // against writing could not be mapped shared; never written, its pages are the file's own.
    let mapping = unsafe { options.map_copy_read_only(file.as_fd().as_raw_fd()) }?;
    Ok(Bytes::from_owner(mapping))
}
