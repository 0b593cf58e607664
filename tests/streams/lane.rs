//! A source and a destination whose other ends the test itself feeds and empties, so that it knows
//! at every moment which side must block.
// FIONREAD and F_SETPIPE_SZ have no safe wrapper among the dependencies.
#![allow(unsafe_code, dead_code, unreachable_pub)]

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use zcio::{Backend, Side, TransferOptions};

use crate::common::{Data, kernel_can, make};

/// The kinds of ends that bytes commonly travel between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Pipe,
    Tcp,
    Unix,
}

pub const STREAMS: [Kind; 3] = [Kind::Pipe, Kind::Tcp, Kind::Unix];
pub const KINDS: [Kind; 4] = [Kind::File, Kind::Pipe, Kind::Tcp, Kind::Unix];

/// What a small segment carries on an Ethernet of 1500 bytes.
pub const SEGMENT: usize = 1448;

/// The backends that serve the pair, and `None` for the probe's choice. Written out, so that a
/// backend that stops serving a pair fails here instead of going untested; where it is the kernel
/// that cannot do it, that is found out by trying, and said aloud.
pub fn engines(from: Kind, to: Kind) -> Vec<Option<Backend>> {
    use Backend::{CopyFileRange, Direct, Mmap, ReadWrite, Sendfile, Splice};
    let forced: &[Backend] = match (from, to) {
        (Kind::File, Kind::File) => &[CopyFileRange, Sendfile, Splice, Mmap, Direct, ReadWrite],
        (Kind::File, _) => &[Sendfile, Splice, Mmap, Direct, ReadWrite],
        (_, Kind::File) => &[Splice, Direct, ReadWrite],
        (Kind::Tcp | Kind::Unix, Kind::Pipe) => &[Sendfile, Splice, ReadWrite],
        _ => &[Splice, ReadWrite],
    };
    let able = |backend: &Backend| match backend {
        Direct => kernel_can(*backend, make::disk_file(), make::disk_file()),
        Sendfile if from != Kind::File => {
            let (reader, _feed) = pair(from);
            let (_sink, writer) = pair(to);
            make::set_nonblocking(&reader, true);
            kernel_can(*backend, &reader, &writer)
        }
        _ => true,
    };
    let forced = forced.iter().copied().filter(able).map(Some);
    std::iter::once(None).chain(forced).collect()
}

/// The options that force one of [`engines`].
pub fn by(engine: Option<Backend>) -> TransferOptions {
    let mut options = TransferOptions::new();
    if let Some(backend) = engine {
        options.backend(backend);
    }
    options
}

/// What is tried, for messages.
pub fn case(from: Kind, to: Kind, engine: Option<Backend>) -> String {
    let name = engine.map_or("the probe's choice", Backend::name);
    format!("{from:?} to {to:?} by {name}")
}

#[derive(Debug)]
pub struct Lane {
    pub src: OwnedFd,
    pub dst: OwnedFd,
    /// What the source gets its bytes from; `None` for a file, and once it has ended.
    pub feed: Option<OwnedFd>,
    /// Where the destination's bytes arrive; `None` for a file.
    pub sink: Option<OwnedFd>,
    pub data: Data,
    /// Bytes that the source has been given so far.
    pub fed: u64,
    /// Bytes that have arrived so far, all of them checked.
    pub received: u64,
}

impl Lane {
    /// With nothing in the streams yet. A file source holds `len` bytes.
    pub fn new(from: Kind, to: Kind, len: u64) -> Self {
        let data = Data::new(len ^ 0x51ed);
        let (src, feed): (OwnedFd, _) = match from {
            Kind::File => {
                let mut file = make::disk_file();
                let bytes = data.bytes(0, usize::try_from(len).expect("a test's size"));
                file.write_all(&bytes).expect("room on the disk");
                file.rewind().expect("files seek");
                (file.into(), None)
            }
            stream => {
                let (reader, writer) = pair(stream);
                (reader, Some(writer))
            }
        };
        let (dst, sink): (OwnedFd, _) = match to {
            Kind::File => (make::disk_file().into(), None),
            stream => {
                let (reader, writer) = pair(stream);
                if stream == Kind::Tcp {
                    // Left to itself, the kernel would let MiBs pile up before anything blocks.
                    setsockopt(&reader, sockopt::RcvBuf, &(256 << 10)).expect("SO_RCVBUF");
                    setsockopt(&writer, sockopt::SndBuf, &(128 << 10)).expect("SO_SNDBUF");
                }
                (writer, Some(reader))
            }
        };
        for fd in [&feed, &sink].into_iter().flatten() {
            make::set_nonblocking(fd, true);
        }
        let fed = if feed.is_some() { 0 } else { len };
        Self {
            src,
            dst,
            feed,
            sink,
            data,
            fed,
            received: 0,
        }
    }

    /// Makes both ends that the transfer sees non-blocking.
    pub fn nonblocking(self) -> Self {
        make::set_nonblocking(&self.src, true);
        make::set_nonblocking(&self.dst, true);
        self
    }

    /// Keeps a socket, and the one that feeds it, from taking in ever more without being read.
    pub fn bound_source(&self) {
        setsockopt(&self.src, sockopt::RcvBuf, &(256 << 10)).expect("SO_RCVBUF");
        if let Some(feed) = &self.feed {
            setsockopt(feed, sockopt::SndBuf, &(128 << 10)).expect("SO_SNDBUF");
        }
    }

    /// Both ends once more, for a transfer to own: the same descriptions.
    pub fn ends(&self) -> (OwnedFd, OwnedFd) {
        let again = |fd: &OwnedFd| fd.try_clone().expect("dup(2)");
        (again(&self.src), again(&self.dst))
    }

    /// Whether a side is ready for a transfer, within `ms`.
    pub fn is_ready(&self, side: Side, ms: u16) -> bool {
        ready(side, self.src.as_fd(), self.dst.as_fd(), ms)
    }

    /// Gives the source up to `count` segments of `size` bytes, each by a call of its own, as many
    /// as it takes, up to `total` bytes in all. The bytes given now.
    pub fn feed(&mut self, size: usize, count: usize, total: u64) -> u64 {
        let Some(feed) = &self.feed else { return 0 };
        let before = self.fed;
        for _ in 0..count {
            let len = usize::try_from(total - self.fed).map_or(size, |left| left.min(size));
            match nix::unistd::write(feed, &self.data.bytes(self.fed, len)) {
                _ if len == 0 => break,
                Ok(n) => self.fed += n as u64,
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(e) => panic!("feeding: {e}"),
            }
        }
        self.fed - before
    }

    /// Ends the source.
    pub fn end(&mut self) {
        self.feed = None;
    }

    /// Takes up to `max` bytes that have arrived, and checks them.
    pub fn take(&mut self, max: usize) -> usize {
        let arrived = self.take_unchecked(max);
        let checked = self.data.check(self.received, &arrived);
        assert_eq!(checked, Ok(()), "what arrived");
        self.received += arrived.len() as u64;
        arrived.len()
    }

    /// Takes up to `max` bytes that have arrived, whatever they are.
    pub fn take_unchecked(&mut self, max: usize) -> Vec<u8> {
        let mut bytes = vec![0; max];
        let mut taken = 0;
        while let (Some(sink), true) = (&self.sink, taken < max) {
            match nix::unistd::read(sink, &mut bytes[taken..]) {
                Ok(0) | Err(nix::errno::Errno::EAGAIN) => break,
                Ok(n) => taken += n,
                Err(e) => panic!("taking: {e}"),
            }
        }
        bytes.truncate(taken);
        bytes
    }

    /// Closes the destination, and takes everything that arrives up to its end, whatever it is: what
    /// a socket took may still be on its way. The source, and these bytes.
    pub fn close(self) -> (OwnedFd, Vec<u8>) {
        let arrived = match self.sink {
            None => contents(&self.dst),
            Some(sink) => {
                drop(self.dst);
                make::set_nonblocking(&sink, false);
                to_end(sink)
            }
        };
        (self.src, arrived)
    }

    /// The end of the lane, and of the account: closes the destination, and finds there `delivered`
    /// bytes, then in the source, behind what was handed back, the rest of what it was fed.
    pub fn settle(self, case: &str, delivered: u64, handed_back: &[u8]) {
        let taken = delivered + handed_back.len() as u64;
        self.settle_at(case, delivered, handed_back, taken);
    }

    /// The same with where the source stands, which an explicit offset never moves.
    pub fn settle_at(mut self, case: &str, delivered: u64, handed_back: &[u8], at: u64) {
        let arrived = match self.sink.take() {
            None => contents(&self.dst),
            Some(sink) => {
                drop(self.dst);
                make::set_nonblocking(&sink, false);
                to_end(sink)
            }
        };
        let checked = self.data.check(self.received, &arrived);
        assert_eq!(checked, Ok(()), "{case}: what arrived");
        let received = self.received + arrived.len() as u64;
        assert_eq!(received, delivered, "{case}: arrived, against delivered");
        let ends = (self.src, self.feed);
        source_holds(
            case,
            ends,
            self.data,
            self.fed,
            (delivered, handed_back, at),
        );
    }

    /// The part of [`settle`](Self::settle) that can be had where the other end is gone.
    pub fn settle_source(self, case: &str, delivered: u64, handed_back: &[u8]) {
        let taken = delivered + handed_back.len() as u64;
        let ends = (self.src, self.feed);
        source_holds(
            case,
            ends,
            self.data,
            self.fed,
            (delivered, handed_back, taken),
        );
    }
}

pub fn source_holds(
    case: &str,
    (src, feed): (OwnedFd, Option<OwnedFd>),
    data: Data,
    fed: u64,
    (delivered, handed_back, at): (u64, &[u8], u64),
) {
    let checked = data.check(delivered, handed_back);
    assert_eq!(checked, Ok(()), "{case}: what was handed back");
    drop(feed);
    make::set_nonblocking(&src, false);
    let rest = to_end(src);
    let checked = data.check(at, &rest);
    assert_eq!(checked, Ok(()), "{case}: what is left in the source");
    let all = at + rest.len() as u64;
    assert_eq!(all, fed, "{case}: delivered + handed back + left");
}

/// (reading end, writing end)
fn pair(kind: Kind) -> (OwnedFd, OwnedFd) {
    match kind {
        Kind::Pipe => make::pipe(),
        Kind::Unix => {
            let (one, other) = make::unix();
            (one.into(), other.into())
        }
        Kind::Tcp => {
            let (one, other) = make::tcp();
            // Each write a segment of its own, at once.
            other.set_nodelay(true).expect("TCP_NODELAY");
            (one.into(), other.into())
        }
        Kind::File => unreachable!("a file has one end"),
    }
}

/// What is left up to the end. A reset counts as an end: what had arrived before it was read.
pub fn to_end(fd: OwnedFd) -> Vec<u8> {
    let (mut file, mut bytes) = (File::from(fd), Vec::new());
    let mut buf = vec![0; 128 << 10];
    loop {
        match file.read(&mut buf) {
            Ok(0) => return bytes,
            Ok(n) => bytes.extend_from_slice(&buf[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return bytes,
            Err(e) => panic!("reading the rest: {e}"),
        }
    }
}

/// Whether a side is ready for what a transfer wants of it, within `ms`.
pub fn ready(side: Side, src: BorrowedFd<'_>, dst: BorrowedFd<'_>, ms: u16) -> bool {
    let (fd, events) = match side {
        Side::Source => (src, PollFlags::POLLIN),
        Side::Destination => (dst, PollFlags::POLLOUT),
    };
    let mut fds = [PollFd::new(fd, events)];
    loop {
        match nix::poll::poll(&mut fds, PollTimeout::from(ms)) {
            Ok(n) => return n > 0,
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => panic!("poll(2): {e}"),
        }
    }
}

/// How many bytes can be read from a pipe or a socket right now.
pub fn waiting(fd: impl AsFd) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    assert_eq!(result, 0, "FIONREAD: {}", io::Error::last_os_error());
    bytes.unsigned_abs() as usize
}

/// Gives a pipe this size, a whole number of pages.
pub fn set_pipe_size(fd: impl AsFd, size: libc::c_int) {
    // SAFETY: no pointer is passed.
    let set = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETPIPE_SZ, size) };
    assert_eq!(set, size, "{}", std::io::Error::last_os_error());
}

/// All bytes of a file, whatever its position.
pub fn contents(fd: impl AsFd) -> Vec<u8> {
    let view = make::reopen(fd, OFlag::O_RDONLY).expect("a second description");
    to_end(view)
}
