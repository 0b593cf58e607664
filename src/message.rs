//! Memory and ranges of files framed into one send: a header before a file, parts of a log behind
//! a length, a page between two others.

mod core;
mod run;
mod sending;
mod zerocopy;

use std::fmt;
use std::ops::{Bound, Range, RangeBounds};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::report::Report;

pub use sending::Sending;

/// A file that a message lends or shares.
pub type SharedFile<'a> = Arc<dyn AsFd + Send + Sync + 'a>;

/// One part of a message.
#[derive(Clone)]
#[non_exhaustive]
pub enum Part<'a> {
    /// Memory.
    Bytes(Bytes),
    /// A range of a file, which is read when it is sent.
    File {
        /// The file. Its own position is neither used nor moved.
        file: SharedFile<'a>,
        /// The bytes of it, from `start` to before `end`.
        range: Range<u64>,
    },
}

impl Part<'_> {
    /// Its bytes. (A message has no empty part.)
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        match self {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::File { range, .. } => range.end - range.start,
        }
    }

    /// The bytes from `from` to before `to`, which lie within it.
    fn slice(&self, from: u64, to: u64) -> Self {
        match self {
            Part::Bytes(bytes) => Part::Bytes(bytes.slice(from as usize..to as usize)),
            Part::File { file, range } => Part::File {
                file: Arc::clone(file),
                range: range.start + from..range.start + to,
            },
        }
    }
}

impl fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Part::File { file, range } => {
                write!(f, "File({}, {range:?})", file.as_fd().as_raw_fd())
            }
        }
    }
}

/// Parts in order, sent as one: [`Bytes`] and ranges of files.
///
/// Built once, it can be sent to many. Clones and slices share the parts' memory and files.
///
/// On a socket, what lies before a file shares a segment with it (`MSG_MORE`, never on the last
/// part), parts in memory that follow one another go by one sendmsg(2), and a small file goes along
/// with them. A large one goes by the backend that a [`Probe`](crate::Probe) chooses, as in
/// [`transfer`](crate::transfer()); for what that means where the file is written to meanwhile, see
/// [Hazards](crate#hazards). Pipes and files are written by writev(2).
///
/// The length of a message is fixed when it is built, and a frame that says so depends on it. So a
/// file that turns out to be shorter is an error,
/// [`SourceTruncated`](crate::ErrorKind::SourceTruncated).
///
/// ```
/// use std::fs::File;
/// use std::io::Read;
/// use std::os::unix::net::UnixStream;
/// use zcio::Message;
///
/// let file = File::open("Cargo.toml")?;
/// let len = file.metadata()?.len();
/// let message = Message::new()
///     .bytes(len.to_be_bytes().to_vec())
///     .file(&file, 0..len)
///     .bytes("end");
///
/// let (mut client, socket) = UnixStream::pair()?;
/// let report = message.send(&socket)?;
/// assert_eq!(report.bytes, 8 + len + 3);
/// # drop(socket);
/// # let mut got = Vec::new();
/// # client.read_to_end(&mut got)?;
/// # assert!(got.ends_with(b"end") && got[8..].starts_with(b"[package]"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a message does nothing until it is sent"]
pub struct Message<'a> {
    parts: Vec<Part<'a>>,
    len: u64,
}

impl<'a> Message<'a> {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends memory. A `Vec`, a `String` or a `'static` slice becomes [`Bytes`] without a copy; of
    /// anything shorter-lived make a `Vec`: `len.to_be_bytes().to_vec()`.
    pub fn bytes(mut self, bytes: impl Into<Bytes>) -> Self {
        self.push(Part::Bytes(bytes.into()));
        self
    }

    /// Appends a range of a file, lent (`&file`), shared (`Arc<File>`) or handed over (`File`).
    ///
    /// # Panics
    /// Where the range is reversed.
    pub fn file<F: AsFd + Send + Sync + 'a>(mut self, file: F, range: Range<u64>) -> Self {
        assert!(range.start <= range.end, "{range:?} is reversed");
        let file = Arc::new(file);
        self.push(Part::File { file, range });
        self
    }

    /// Appends another message.
    pub fn chain(mut self, other: Message<'a>) -> Self {
        other.parts.into_iter().for_each(|part| self.push(part));
        self
    }

    /// A part of the message: what is left to send, a range of a resource with its own header.
    ///
    /// # Panics
    /// Where the range is reversed or goes beyond the message, as for a slice.
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Self {
        let start = match range.start_bound() {
            Bound::Included(at) => *at,
            Bound::Excluded(at) => at.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(at) => at.saturating_add(1),
            Bound::Excluded(at) => *at,
            Bound::Unbounded => self.len,
        };
        let fits = start <= end && end <= self.len;
        assert!(fits, "{start}..{end} of a message of {} bytes", self.len);
        let (mut slice, mut at) = (Self::new(), 0);
        for part in &self.parts {
            let within = |place: u64| place.saturating_sub(at).min(part.len());
            slice.push(part.slice(within(start), within(end)));
            at += part.len();
        }
        slice
    }

    /// Its bytes, those of all parts.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parts, none of them empty.
    pub fn parts(&self) -> &[Part<'a>] {
        &self.parts
    }

    /// Sends it whole and returns when all of it is delivered. A non-blocking destination is waited
    /// for with poll(2). In the report, what was sent from memory counts as read-write.
    ///
    /// # Errors
    /// As [`Sending::advance`]. The count is over the whole message, so that
    /// [`slice`](Self::slice)`(error.delivered()..)` is what is left.
    pub fn send<D: AsFd>(&self, dst: D) -> Result<Report> {
        if self.is_empty() {
            // The destination is not even looked at.
            return Ok(Report::nothing());
        }
        self.start(dst.as_fd())?.finish()
    }

    /// Starts to send it: nothing moves until the [`Sending`] is told to.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) where no transfer could serve the destination.
    pub fn start<D: AsFd>(&self, dst: D) -> Result<Sending<'a, D>> {
        Sending::new(self, dst)
    }

    fn push(&mut self, part: Part<'a>) {
        if part.len() > 0 {
            let len = self.len.checked_add(part.len());
            self.len = len.expect("a message of more than u64::MAX bytes");
            self.parts.push(part);
        }
    }
}
