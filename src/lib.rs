//! Moves bytes between two file descriptors by the cheapest way that Linux offers for that pair,
//! says which way it took and why, and never loses a byte that it took.
//!
//! ```
//! use std::fs::File;
//! use std::os::unix::net::UnixStream;
//!
//! let file = File::open("Cargo.toml")?;
//! let (socket, _peer) = UnixStream::pair()?;
//! let report = zcio::transfer(&file, &socket, u64::MAX)?;
//! println!("{} bytes by {}", report.bytes, report.backend);
//! # assert_eq!(report.bytes, file.metadata()?.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which call to use
//!
//! | You want to | Use |
//! |---|---|
//! | move bytes and wait until they are moved | [`transfer()`] |
//! | give offsets, watch or stop it, choose a backend, spare the page cache | [`TransferOptions`] |
//! | drive it from an event loop, put it aside and go on | [`Transfer`], by [`TransferOptions::start`] |
//! | pass both directions between two sockets, as a proxy does | [`relay()`], [`relay::Relay`] |
//! | send one source to many destinations | [`fan_out()`], [`fan_out::FanOut`] |
//! | send a header, a range of a file and a trailer as one | [`Message`], [`message::Sending`] |
//! | have a sealed memfd as [`Bytes`] | [`map_file()`] |
//! | know beforehand what would be done, and why | [`Probe`] |
//! | bring a mechanism of your own | [`ZeroCopyTransfer`], by [`Transfer::with_backend`] |
//!
//! Seven backends stand behind these, in [`backend`]: reflink, copy_file_range(2), sendfile(2),
//! splice(2), mmap(2) with write(2), O_DIRECT, and read(2) with write(2). Which of them serve a
//! pair and in which order they are tried is measured, not guessed; the tables are in
//! `docs/backends.md`.
//!
//! # What is promised
//!
//! Bytes taken from the source = bytes delivered + bytes handed back, whatever fails. A
//! [`Report`] or an [`Error`] has the exact count. After an error a seekable source stands at the
//! first byte that was not delivered; what was taken from a socket or a pipe comes back in
//! [`Error::undelivered`].
//!
//! ```
//! use std::io::Write;
//! use std::os::unix::net::UnixStream;
//!
//! let (mut client, source) = UnixStream::pair()?;
//! client.write_all(b"nobody will read this")?;
//! let (reader, writer) = std::io::pipe()?;
//! drop(reader);
//!
//! let error = zcio::transfer(&source, &writer, 21).unwrap_err();
//! assert_eq!(error.delivered(), 0);
//! assert_eq!(error.side(), Some(zcio::Side::Destination));
//! // Whatever had been taken by then is here, and the rest is still in the socket.
//! let taken = error.into_undelivered();
//! assert!(b"nobody will read this".starts_with(&taken));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Delivered means that the destination's kernel has taken the bytes: they are neither acknowledged by a
//! socket's peer nor on a disk. A file is durable after fsync(2) ([`File::sync_all`](std::fs::File::sync_all)),
//! and one that replaces another by rename(2) once its directory is synced as well; what a peer has got,
//! only its answer tells.
//!
//! # Hazards
//!
//! - **Zero copy is not a snapshot.** What sits in a pipe or a socket buffer after sendfile(2) or
//!   splice(2) from a file is the file's own page: a later write to the file shows through until
//!   the reader has taken it. [`Consistency::Snapshot`] leaves those backends out.
//! - **Zero copy is not promised either.** The kernel may copy silently, and on some pairs
//!   read(2) and write(2) are the cheapest. The report names the backend; the promise is bytes.
//! - **A blocking descriptor blocks.** [`Transfer::advance`] never waits on a non-blocking
//!   descriptor; where one side is blocking, it waits on that side as the kernel's call does. A blocking
//!   socket's own time limit (`SO_RCVTIMEO`, `SO_SNDTIMEO`) holds: each signal makes the kernel begin it
//!   anew, so from the first one on it is kept by a clock, and may last twice as long at most.
//! - **Descriptors are shared.** An own position belongs to the open file description: another
//!   process or thread that moves it moves it for the transfer. Explicit offsets are immune.
//! - **Others may write to the same files.** What is delivered is what the source holds at that moment.
//!   What has been delivered is not touched again. What others put where it is yet to be delivered is
//!   overwritten then, or punched out where the source has a hole, with the blocks that are reserved
//!   there.
//! - **A file or a disk onto itself** is copied where the ranges lie apart, and refused where they
//!   overlap; disks are told by device number, a partition and its disk by sysfs. What lies on a disk by
//!   a detour is not: a loop device and its file, a volume of the device mapper and what it maps, a file
//!   and the device of its filesystem.
//! - **Record locks** (fcntl(2) `F_SETLK`) are gone once a process closes any descriptor of the file. So
//!   a file on which anybody has one when a transfer comes to it (the kernel does not always tell
//!   whose) is neither opened anew nor duplicated: from an explicit offset its holes are copied, with
//!   [`Cache::Bypass`] it goes through the page cache, and [`Backend::Direct`] by force is unfit.
//!   Who takes a lock on a file while one of these transfers is under way with it, or while `zcio::tokio`
//!   fetches it from the disk, loses that. Locks of open file descriptions (`F_OFD_SETLK`, flock(2)) stay.
//! - **Permission listeners** (fanotify(7), `FAN_OPEN_PERM` and `FAN_ACCESS_PERM`) hold up whoever reads a
//!   file until they answer, and whoever opens it: by its name a transfer opens none, but anew a sparse
//!   source with an explicit offset, the files of [`Cache::Bypass`], and a destination with O_DIRECT for
//!   bytes that fill no block. A listener that transfers files which it watches, on the thread that
//!   answers, waits for itself.
//! - **fork(2)** copies a transfer like all memory, and both processes have its descriptors. What is
//!   in flight belongs to the process that advanced it last: in the other, drop the copy, which then
//!   touches neither descriptor. Advanced in both, bytes in flight are delivered twice, or wait for
//!   what the other has taken. With nothing in flight, each may go on for itself, as far as the two
//!   share no position and no stream. A relay or a fan-out in a child has pipes of its own.
//! - **Buffers above a descriptor are not seen.** What a `BufReader` has read ahead is not
//!   transferred, and what a `BufWriter`, [`Stdout`](std::io::Stdout) or `tokio::fs::File` has not
//!   flushed comes later, or at the same time: flush first.
//! - **A pipe in packet mode** (`O_DIRECT` in pipe2(2)) drops the rest of a packet that is read in
//!   part, and its reading end does not tell that it is one: give such a source no length or chunk
//!   below 4096 bytes.
//! - **Futures that are dropped**: `drive`, `drive_sending` and `drive_relay` of `zcio::tokio` leave what is
//!   in flight in the transfer, which goes on when it is driven again. `transfer`, `send`, `relay` and
//!   `relay_with` own theirs: a file is rewound, and what was taken from a stream is lost. The blocking
//!   verbs block the thread, also on tokio's streams.
//! - **SIGXFSZ**, which a write beyond `RLIMIT_FSIZE` raises, kills a process that does not ignore it, as
//!   with any write(2); ignored, it is an error of EFBIG with the exact count.
//! - **SIGPIPE** does not kill the process: where it is not ignored, it is blocked around each call
//!   in this thread that can raise it, and one that the call raised is taken away. Whether it is ignored is
//!   looked at when a transfer starts: do not change that while one is under way.
//!
//! # Features
//!
//! None is on by default, and none changes what the default does.
//!
//! - `tokio`: the same verbs, awaiting readiness, in `zcio::tokio`.
//! - `io-uring`: O_DIRECT reads ahead by a ring (Linux 6.1), where the kernel has and allows one;
//!   else, as without it, by a thread.

#[cfg(not(target_os = "linux"))]
compile_error!("zcio moves bytes by Linux system calls: it builds for Linux only");

pub mod backend;
mod driver;
mod drop_behind;
mod error;
mod facts;
pub mod fan_out;
mod holes;
mod map_file;
pub mod message;
mod options;
mod pace;
mod policy;
mod prealloc;
pub mod probe;
pub mod relay;
mod report;
mod sys;
#[cfg(feature = "tokio")]
pub mod tokio;
mod transfer;

/// Memory as results hand it back and messages take it: that of the crate `bytes`.
pub use bytes::Bytes;

pub use backend::{Backend, Endpoint, Fault, Side, Step, Unfit, ZeroCopyTransfer};
pub use error::{Error, ErrorKind, Result};
pub use fan_out::fan_out;
pub use map_file::{map_file, map_file_unchecked};
pub use message::Message;
pub use options::{TransferOptions, transfer};
pub use policy::{Cache, Consistency, Reflink};
pub use probe::Probe;
pub use relay::relay;
pub use report::{End, Progress, Report, Status};
pub use transfer::Transfer;

/// The README's code, compiled and run like the rest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// As is the page on backends of one's own.
#[cfg(doctest)]
#[doc = include_str!("../docs/adding-a-backend.md")]
struct AddingABackend;

/// And the page for those who come from another call.
#[cfg(doctest)]
#[doc = include_str!("../docs/coming-from.md")]
struct ComingFrom;
