//! The only door to `unsafe`: the system calls, and the three kinds of memory and descriptor that
//! need care (a mapping, an aligned buffer, a private pipe).
//!
//! Everything here is safe to call. Each function is one system call under its own name; it
//! retries `EINTR`, counts itself ([`call::made`]), and turns offsets into the kernel's signed
//! type, so that no caller repeats any of that.

pub(crate) mod aligned;
pub(crate) mod call;
pub(crate) mod errno;
pub(crate) mod fork;
pub(crate) mod gather;
pub(crate) mod helper;
pub(crate) mod mapped;
pub(crate) mod mapping;
pub(crate) mod pipe;
#[cfg(feature = "io-uring")]
pub(crate) mod ring;
pub(crate) mod sigpipe;
pub(crate) mod socket;
pub(crate) mod zerocopy;

pub(crate) use aligned::AlignedBuf;
pub(crate) use mapping::Mapping;
pub(crate) use pipe::{PipePool, PrivatePipe};
