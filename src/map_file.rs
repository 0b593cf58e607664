//! A range of a file as [`Bytes`], without a copy.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use bytes::Bytes;

pub use crate::sys::mapped::map_file_unchecked;

/// Maps a range of a sealed memfd as [`Bytes`]: no copy, and the descriptor may be closed.
///
/// Only memfds with `F_SEAL_WRITE` and `F_SEAL_SHRINK` are mapped, because no one can change those
/// any more. Other files can be truncated or written by anyone who has them open, and mapped memory
/// changes or vanishes with them: for these there is [`map_file_unchecked`], or a file part of a
/// [`Message`](crate::Message), which is never mapped.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] where the file has not both seals,
/// [`io::ErrorKind::InvalidInput`] where the range does not lie within it, and those of mmap(2).
///
/// ```
/// use nix::fcntl::{FcntlArg, SealFlag, fcntl};
/// use nix::sys::memfd::{MFdFlags, memfd_create};
/// use std::fs::File;
/// use std::io::Write;
///
/// let mut file = File::from(memfd_create(c"page", MFdFlags::MFD_ALLOW_SEALING)?);
/// file.write_all(b"built once, sent to many")?;
/// assert!(zcio::map_file(&file, 0..24).is_err());
///
/// fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK))?;
/// let page = zcio::map_file(&file, 0..24)?;
/// assert_eq!(page.slice(12..), "sent to many");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn map_file<F: AsFd>(file: F, range: Range<u64>) -> io::Result<Bytes> {
    crate::sys::mapped::map_sealed(file.as_fd(), range)
}
