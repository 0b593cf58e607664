//! The mechanisms, one type each, and the contract that they share.
//!
//! [`transfer`](crate::transfer) chooses among these by itself. They are public so that a caller
//! can drive one by hand, and so that [`ZeroCopyTransfer`] can be implemented for a mechanism of
//! one's own and run by [`Transfer::with_backend`](crate::Transfer::with_backend).

mod copy_file_range;
mod direct;
mod mmap;
mod outcome;
mod read_write;
mod reflink;
mod reserve;
mod sendfile;
mod splice;

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;

use bytes::BytesMut;
use nix::unistd::Whence;

pub use crate::facts::{Facts, Kind};
use crate::sys::call;

pub use copy_file_range::CopyFileRange;
pub use direct::Direct;
pub use mmap::Mmap;
pub(crate) use outcome::{FAIR, attempt};
use outcome::{
    delivered, ended, moved_or_ended, require, require_buffered, require_no_append, side_of,
    unfit_or_fault, would_hold_lock,
};
pub use read_write::ReadWrite;
pub use reflink::Reflink;
pub(crate) use reserve::Reservation;
pub use sendfile::Sendfile;
pub use splice::Splice;

/// The ways to move bytes, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// FICLONERANGE: the destination shares the source's extents.
    Reflink,
    /// copy_file_range(2): the filesystem copies, or shares, or asks its server to.
    CopyFileRange,
    /// sendfile(2): the kernel moves a file's pages to the destination.
    Sendfile,
    /// splice(2): straight where a side is a pipe, else through a private one.
    Splice,
    /// mmap(2) and write(2): one copy, out of a mapping that this process never touches.
    Mmap,
    /// O_DIRECT through aligned buffers: around the page cache.
    Direct,
    /// read(2) and write(2): two copies, any pair.
    ReadWrite,
}

impl Backend {
    /// Every backend.
    pub const ALL: [Backend; 7] = [
        Backend::Reflink,
        Backend::CopyFileRange,
        Backend::Sendfile,
        Backend::Splice,
        Backend::Mmap,
        Backend::Direct,
        Backend::ReadWrite,
    ];

    /// The name that [`Display`](fmt::Display) prints and [`FromStr`] reads.
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Reflink => "reflink",
            Backend::CopyFileRange => "copy-file-range",
            Backend::Sendfile => "sendfile",
            Backend::Splice => "splice",
            Backend::Mmap => "mmap",
            Backend::Direct => "direct",
            Backend::ReadWrite => "read-write",
        }
    }

    /// A fresh instance of this mechanism with its defaults.
    pub fn instance(self) -> Box<dyn ZeroCopyTransfer + Send> {
        match self {
            Backend::Reflink => Box::new(Reflink::new()),
            Backend::CopyFileRange => Box::new(CopyFileRange::new()),
            Backend::Sendfile => Box::new(Sendfile::new()),
            Backend::Splice => Box::new(Splice::new()),
            Backend::Mmap => Box::new(Mmap::new()),
            Backend::Direct => Box::new(Direct::new()),
            Backend::ReadWrite => Box::new(ReadWrite::new()),
        }
    }

    /// What [`instance`](Self::instance) would assess, without making one.
    pub(crate) fn assess(self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
        match self {
            Backend::Reflink => Reflink::new().assess(src, dst),
            Backend::CopyFileRange => CopyFileRange::new().assess(src, dst),
            Backend::Sendfile => Sendfile::new().assess(src, dst),
            Backend::Splice => Splice::new().assess(src, dst),
            Backend::Mmap => Mmap::new().assess(src, dst),
            Backend::Direct => Direct::new().assess(src, dst),
            Backend::ReadWrite => ReadWrite::new().assess(src, dst),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Backend {
    type Err = io::Error;

    fn from_str(name: &str) -> io::Result<Self> {
        Backend::ALL
            .into_iter()
            .find(|backend| backend.name() == name)
            .ok_or_else(|| {
                let names = Backend::ALL.map(Backend::name).join(", ");
                let text = format!("no backend is called {name:?}; there are {names}");
                io::Error::new(io::ErrorKind::InvalidInput, text)
            })
    }
}

/// A way to move bytes between two descriptors, one bounded piece at a time.
///
/// The contract, which tests cite by number:
///
/// - **C1** It never takes more from `src` than `limit` allows.
/// - **C2** The order of the bytes is kept.
/// - **C3** Bytes taken = bytes delivered + [`in_flight`](Self::in_flight), always.
/// - **C4** [`Step::Blocked`] names the side that really blocked.
/// - **C5** [`Step::Ended`] only with nothing in flight.
/// - **C6** [`Step::Unfit`] only with nothing in flight and nothing moved by this call, so that
///   another backend can go on from the offsets that the transfer owns.
/// - **C7** An explicit offset never moves the descriptor's own position. The transfer derives
///   offsets from the counts; a backend finds the current one in [`Endpoint::offset`].
/// - **C8** The caller's descriptors keep their flags and pipe size. A side without an explicit
///   offset has its own position moved by exactly what was taken or delivered; a backend that
///   works by offset sets it afterwards ([`Endpoint::seek_by`]).
/// - **C9** A private pipe that still holds bytes is destroyed, never pooled.
/// - **C10** EAGAIN never escapes, nor does EINTR from a signal, and nothing is assumed of what the
///   kernel may answer. EINTR that a call answers for ever though there is nothing to wait for (a
///   filesystem's daemon may) is a failure of that side, after a thousand in a row.
///
/// A step that moved something and then failed says [`Step::Moved`]; the failure comes with the
/// next step.
pub trait ZeroCopyTransfer: fmt::Debug {
    /// Which of the named mechanisms this is; one's own goes by the name that describes it best.
    fn backend(&self) -> Backend;

    /// Whether this mechanism can serve the pair, from the facts alone: no I/O.
    ///
    /// # Errors
    /// The reason why it cannot.
    fn assess(&self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> std::result::Result<(), Unfit>;

    /// Moves once. `limit` is the most that may still reach `dst`; it is never below
    /// [`in_flight`](Self::in_flight).
    ///
    /// # Errors
    /// The failed side, where it is known, and the error. Bytes in flight stay with the backend.
    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> std::result::Result<Step, Fault>;

    /// Bytes taken from the source that have not reached the destination.
    fn in_flight(&self) -> usize {
        0
    }

    /// Appends the bytes in flight to `into`, in order, and forgets them.
    ///
    /// # Errors
    /// Where they cannot be had; those that were read by then are in `into`.
    fn reclaim(&mut self, into: &mut BytesMut) -> io::Result<()> {
        let _ = into;
        Ok(())
    }

    /// Whether this backend, as it works now, leaves nothing in the page cache by itself. Where it
    /// says no, a transfer with [`Cache::DropBehind`](crate::Cache::DropBehind) drops the pages.
    fn is_uncached(&self) -> bool {
        false
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes reached the destination.
    Moved(NonZeroUsize),
    /// Nothing moved: this side has to become ready first.
    Blocked(Side),
    /// The source has no more bytes, and none are in flight.
    Ended,
    /// Nothing moved: this mechanism does not serve the pair after all.
    Unfit(Unfit),
}

/// A step's failure.
#[derive(Debug)]
pub struct Fault {
    /// The side that failed; `None` where the kernel does not tell (sendfile's EIO).
    pub side: Option<Side>,
    /// What the kernel said.
    pub error: io::Error,
}

impl Fault {
    /// A failure of one side.
    pub fn new(side: Side, error: io::Error) -> Self {
        Self {
            side: Some(side),
            error,
        }
    }
}

/// One of the two descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that bytes are taken from.
    Source,
    /// The one that bytes are delivered to.
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Side::Source => "source",
            Side::Destination => "destination",
        })
    }
}

/// Why a backend does not serve a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The options leave it out.
    #[error("left out by the options")]
    Denied,
    /// It is only used where asked for.
    #[error("only where asked for")]
    NotAsked,
    /// It does not work with a descriptor of this kind on this side.
    #[error("the {0} is {1}")]
    Kind(Side, Kind),
    /// It needs a pipe on one side.
    #[error("neither side is a pipe")]
    NoPipe,
    /// What it delivers would still change with the source, and a snapshot was asked for.
    #[error("a later write to the source would show through")]
    Aliases,
    /// The destination appends.
    #[error("the destination appends (O_APPEND)")]
    Appends,
    /// The descriptor has O_DIRECT, which wants aligned buffers, offsets and lengths.
    #[error("the {0} has O_DIRECT")]
    DirectIo(Side),
    /// It works at the descriptor's own position only, and an explicit offset was given.
    #[error("it takes no offset for the {0}")]
    Offset(Side),
    /// The filesystem cannot share extents.
    #[error("the filesystem cannot share extents")]
    CannotShare,
    /// The two files lie on filesystems of different types.
    #[error("the files lie on different filesystems")]
    OtherFilesystem,
    /// Offset or length is not a multiple of the filesystem's block.
    #[error("offset or length is not a multiple of the block size")]
    Unaligned,
    /// No pipe is to be had, or only one so small that read/write is cheaper.
    #[error("no pipe of a useful size is to be had")]
    SmallPipe,
    /// It reported the end although read(2) found more.
    #[error("it found no bytes where read(2) found some")]
    FalseEnd,
    /// The kernel refused, by this error number.
    #[error("the kernel refused: {}", io::Error::from_raw_os_error(*.0))]
    Refused(i32),
    /// Another reason, in words: for backends of one's own.
    #[error("{0}")]
    Other(&'static str),
}

/// One side of a transfer as a backend sees it: the descriptor, the facts, and the offset.
#[derive(Debug)]
pub struct Endpoint<'a> {
    fd: BorrowedFd<'a>,
    facts: &'a Facts,
    offset: Option<u64>,
}

impl<'a> Endpoint<'a> {
    /// A side of which `facts` tells; `offset` is explicit, `None` stands for the descriptor's own
    /// position.
    #[inline]
    pub fn new(fd: BorrowedFd<'a>, facts: &'a Facts, offset: Option<u64>) -> Self {
        Self { fd, facts, offset }
    }

    /// The descriptor, for as long as the caller lends it.
    #[inline]
    pub fn fd(&self) -> BorrowedFd<'a> {
        self.fd
    }

    /// What is known of the descriptor.
    #[inline]
    pub fn facts(&self) -> &Facts {
        self.facts
    }

    /// What the descriptor leads to.
    #[inline]
    pub fn kind(&self) -> Kind {
        self.facts.kind()
    }

    /// The explicit offset where the next byte is taken or put, if there is one. It stands for the
    /// whole step: the transfer moves it by what the step reports.
    #[inline]
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// Where the next byte is taken or put in a file: the explicit offset, or the descriptor's own
    /// position by lseek(2).
    ///
    /// # Errors
    /// Those of lseek(2): ESPIPE for a pipe or a socket.
    pub fn position(&self) -> io::Result<u64> {
        self.offset.map_or_else(|| call::position(self.fd), Ok)
    }

    /// Moves the descriptor's own position by `bytes`, for a backend that worked by offset. Where
    /// the offset is explicit, does nothing.
    ///
    /// # Errors
    /// Those of lseek(2).
    pub fn seek_by(&self, bytes: i64) -> io::Result<()> {
        match self.offset {
            Some(_) => Ok(()),
            None => call::seek(self.fd, bytes, Whence::SeekCur).map(drop),
        }
    }
}

impl AsFd for Endpoint<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
    }
}
