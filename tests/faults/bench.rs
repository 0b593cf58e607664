//! Pairs of descriptors whose other ends are served in lockstep, and what both hold in the end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Linger, RcvBuf};
use nix::unistd::{Whence, lseek64};

use crate::common::make;
use crate::sources::{CHUNK, FILLER, Medium, OFFSETS, OWN, Sources, content, filled};

/// What one side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    File,
    Tcp,
    Unix,
    Pipe,
}

impl End {
    pub(crate) fn name(self) -> &'static str {
        match self {
            End::File => "file",
            End::Tcp => "tcp",
            End::Unix => "unix",
            End::Pipe => "pipe",
        }
    }
}

/// The pairs that faults are tried on.
pub(crate) const PAIRS: [(End, End); 10] = [
    (End::File, End::File),
    (End::File, End::Tcp),
    (End::File, End::Unix),
    (End::File, End::Pipe),
    (End::Tcp, End::Tcp),
    (End::Unix, End::Pipe),
    (End::Unix, End::File),
    (End::Pipe, End::File),
    (End::Pipe, End::Tcp),
    (End::Pipe, End::Pipe),
];

/// A pair ready for one transfer.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) src: OwnedFd,
    pub(crate) dst: OwnedFd,
    pub(crate) peers: Peers,
    pub(crate) offsets: (Option<u64>, Option<u64>),
    pair: (End, End),
    before: [Look; 2],
}

/// The other ends, served when they are told to be, without ever waiting.
#[derive(Debug)]
pub(crate) struct Peers {
    /// What the source's other end still has to write; closed once that is all in.
    feeder: Option<File>,
    unfed: &'static [u8],
    /// What the destination's other end reads.
    taker: Option<File>,
    landed: Landed,
}

/// Bytes that arrived, compared as they come.
#[derive(Debug)]
struct Landed {
    expected: &'static [u8],
    count: usize,
    wrong_at: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    flags: OFlag,
    pipe_size: Option<i32>,
}

impl Look {
    fn at(fd: &OwnedFd) -> Self {
        Self {
            flags: make::flags(fd),
            pipe_size: make::pipe_size(fd),
        }
    }
}

/// What the ends hold after a transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// Bytes that the destination has, all of them the source's, in order.
    pub(crate) delivered: u64,
    /// Bytes that the source no longer has: by its position, or by what is left in the stream.
    pub(crate) taken: u64,
}

impl Bench {
    /// Makes a pair. With `by_offset`, files are to be used at explicit offsets.
    pub(crate) fn new(
        (from, to): (End, End),
        by_offset: bool,
        medium: Medium,
        sources: &Sources,
    ) -> Self {
        let (src, feeder) = match from {
            End::File => (sources.open(medium), None),
            _ => {
                let (src, feeder) = stream(from, sources);
                (src, Some(feeder))
            }
        };
        let (dst, taker) = match to {
            End::File => (
                filled(medium, if by_offset { OFFSETS.1 } else { OWN }),
                None,
            ),
            _ => {
                let (taker, dst) = stream(to, sources);
                (dst, Some(taker))
            }
        };
        let expected = match (from, by_offset) {
            (End::File, true) => &content()[OFFSETS.0 as usize..],
            _ => &content()[OWN as usize..],
        };
        let offset = |end, at| (by_offset && end == End::File).then_some(at);
        let offsets = (offset(from, OFFSETS.0), offset(to, OFFSETS.1));
        for (end, fd) in [(from, &src), (to, &dst)] {
            if end == End::File {
                lseek64(fd, OWN as i64, Whence::SeekSet).expect("a file seeks");
            }
        }
        let before = [Look::at(&src), Look::at(&dst)];
        Self {
            src,
            dst,
            peers: Peers {
                feeder: feeder.map(other_end),
                unfed: expected,
                taker: taker.map(other_end),
                landed: Landed {
                    expected,
                    count: 0,
                    wrong_at: None,
                },
            },
            offsets,
            pair: (from, to),
            before,
        }
    }

    /// The bytes that a complete transfer moves.
    pub(crate) fn whole(&self) -> &'static [u8] {
        self.peers.landed.expected
    }

    /// Looks at both ends after a transfer: what was delivered and what was taken, or what was
    /// found that must not be.
    pub(crate) fn settle(mut self) -> Result<Held, String> {
        let after = [Look::at(&self.src), Look::at(&self.dst)];
        if after != self.before {
            return Err(format!("flags {after:?}, were {:?}", self.before));
        }
        let taken = match self.pair.0 {
            End::File => position(&self.src) - OWN,
            _ => self.whole().len() as u64 - self.rest()?,
        };
        if self.pair.1 == End::File {
            self.peers.landed.look_at(self.dst, self.offsets.1)?;
        } else {
            drop(self.dst);
            self.peers.take_all().map_err(|e| e.to_string())?;
        }
        leave_no_trace(&self.src);
        let landed = &self.peers.landed;
        if let Some(at) = landed.wrong_at {
            return Err(format!("wrong from byte {at} of {} on", landed.count));
        }
        let delivered = landed.count as u64;
        // A file read by offset tells nothing of how much was taken: that its position stood still
        // is all there is to see.
        match self.offsets.0 {
            None => Ok(Held { delivered, taken }),
            Some(_) if taken == 0 => Ok(Held {
                delivered,
                taken: delivered,
            }),
            Some(_) => Err(format!("the source's own position moved by {taken}")),
        }
    }

    /// How many bytes are left in the source, which must be the last ones.
    fn rest(&mut self) -> Result<u64, String> {
        let whole = self.whole();
        make::set_nonblocking(&self.src, false);
        let mut src = File::from(self.src.try_clone().map_err(|e| e.to_string())?);
        let mut bytes = Vec::new();
        let mut buf = vec![0; CHUNK];
        loop {
            self.peers.pump();
            match src.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => bytes.extend_from_slice(&buf[..n]),
                Err(e) => return Err(format!("reading the rest: {e}")),
            }
        }
        if whole.ends_with(&bytes) {
            Ok(bytes.len() as u64)
        } else {
            let len = bytes.len();
            Err(format!(
                "{len} bytes are left in the source, not the last ones"
            ))
        }
    }
}

impl Peers {
    /// The descriptor that serves the source, as a bit.
    pub(crate) fn feeder(&self) -> u64 {
        self.feeder.as_ref().map_or(0, |file| 1 << file.as_raw_fd())
    }

    /// Writes and reads as much as goes without waiting.
    pub(crate) fn pump(&mut self) {
        while let Some(feeder) = &mut self.feeder {
            if self.unfed.is_empty() {
                self.feeder = None;
                break;
            }
            match feeder.write(&self.unfed[..self.unfed.len().min(4 * CHUNK)]) {
                Ok(n) => self.unfed = &self.unfed[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => panic!("feeding the source: {e}"),
            }
        }
        let Some(taker) = &mut self.taker else {
            return;
        };
        let mut buf = [0; CHUNK];
        loop {
            match taker.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => self.landed.arrive(&buf[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => panic!("taking from the destination: {e}"),
            }
        }
    }

    /// Reads until the destination's end, which is closed.
    fn take_all(&mut self) -> io::Result<()> {
        let Some(mut taker) = self.taker.take() else {
            return Ok(());
        };
        make::set_nonblocking(&taker, false);
        let mut buf = vec![0; CHUNK];
        loop {
            match taker.read(&mut buf)? {
                0 => break,
                n => self.landed.arrive(&buf[..n]),
            }
        }
        leave_no_trace(&taker.into());
        Ok(())
    }
}

impl Landed {
    fn arrive(&mut self, bytes: &[u8]) {
        let expected = self.expected.get(self.count..self.count + bytes.len());
        if self.wrong_at.is_none() && expected != Some(bytes) {
            self.wrong_at = Some(self.count);
        }
        self.count += bytes.len();
    }

    /// Looks at a destination file.
    fn look_at(&mut self, dst: OwnedFd, offset: Option<u64>) -> Result<(), String> {
        let start = offset.unwrap_or(OWN);
        let at = position(&dst);
        let mut bytes = vec![0; start as usize + self.expected.len() + 1];
        let n = File::from(dst)
            .read_at(&mut bytes, 0)
            .map_err(|e| e.to_string())?;
        let (before, landed) = bytes[..n].split_at(start as usize);
        if before.iter().any(|&b| b != FILLER) {
            return Err("what stood before the destination's offset was changed".to_owned());
        }
        self.arrive(landed);
        let moved = if offset.is_none() { landed.len() } else { 0 } as u64;
        if at != OWN + moved {
            return Err(format!(
                "the destination's position is {at}, not {}",
                OWN + moved
            ));
        }
        Ok(())
    }
}

/// Two ends of a stream: what is written to the second is read from the first.
fn stream(end: End, sources: &Sources) -> (OwnedFd, OwnedFd) {
    match end {
        End::Tcp => {
            let (one, other) = sources.connection();
            // A short piece is not held back until the one before is acknowledged.
            other.set_nodelay(true).expect("TCP_NODELAY");
            // Nor does it wait for a window that opens by large segments only.
            setsockopt(&one, RcvBuf, &(4 * CHUNK)).expect("SO_RCVBUF");
            (one.into(), other.into())
        }
        End::Unix => {
            let (one, other) = make::unix();
            (one.into(), other.into())
        }
        End::Pipe | End::File => {
            let (reader, writer) = make::pipe();
            // A chunk that does not begin on a page takes one slot more than a pipe has by default.
            fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4 * CHUNK as i32)).expect("a larger pipe");
            (reader, writer)
        }
    }
}

/// Arranges that nothing of a connection waits for stray segments once this end is closed: thousands
/// of runs would use up the ports. On any other descriptor it does nothing.
fn leave_no_trace(fd: &OwnedFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let _ = setsockopt(fd, Linger, &linger);
}

fn other_end(fd: OwnedFd) -> File {
    make::set_nonblocking(&fd, true);
    File::from(fd)
}

fn position(fd: impl AsFd) -> u64 {
    lseek64(fd, 0, Whence::SeekCur).map_or(0, i64::unsigned_abs)
}
