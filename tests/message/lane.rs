//! A message of every sort of part, and destinations whose other end says what has arrived.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{SndBuf, TcpNoDelay};
use zcio::Message;

use crate::common::{Data, make};
use crate::hooks::{self, Stage};

/// Where messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Unix,
    Pipe,
    File,
    Append,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] = [Kind::Tcp, Kind::Unix, Kind::Pipe, Kind::File, Kind::Append];

    pub(crate) fn is_socket(self) -> bool {
        matches!(self, Kind::Tcp | Kind::Unix)
    }
}

/// The reading end of a lane, which never waits.
#[derive(Debug)]
pub(crate) struct Taker {
    from: File,
    /// A file is read at the end, not emptied.
    is_file: bool,
    pub(crate) landed: Vec<u8>,
    buf: Vec<u8>,
}

impl Taker {
    /// Takes all that has arrived.
    pub(crate) fn pump(&mut self) {
        if self.is_file {
            return;
        }
        loop {
            match self.from.read(&mut self.buf) {
                Ok(0) => return,
                Ok(n) => self.landed.extend_from_slice(&self.buf[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => panic!("the other end: {e}"),
            }
        }
    }
}

/// A destination and its other end.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) dst: OwnedFd,
    pub(crate) taker: Taker,
}

/// What a destination file holds before.
const BEFORE: &[u8] = b"what was there";

impl Lane {
    /// Non-blocking at both ends.
    pub(crate) fn new(kind: Kind) -> Self {
        let (dst, from): (OwnedFd, OwnedFd) = match kind {
            Kind::Tcp => {
                let (dst, from) = make::tcp();
                // So that it fills within a message.
                setsockopt(&dst, SndBuf, &(64 << 10)).expect("SO_SNDBUF");
                (dst.into(), from.into())
            }
            Kind::Unix => {
                let (dst, from) = make::unix();
                (dst.into(), from.into())
            }
            Kind::Pipe => {
                let (from, dst) = make::pipe();
                (dst, from)
            }
            Kind::File | Kind::Append => {
                let mut file = make::disk_file();
                file.write_all(BEFORE).expect("room");
                let from = file.try_clone().expect("dup");
                if kind == Kind::Append {
                    let flags = make::flags(&file);
                    make::set_flags(&file, flags | nix::fcntl::OFlag::O_APPEND);
                }
                (file.into(), from.into())
            }
        };
        let is_file = matches!(kind, Kind::File | Kind::Append);
        if !is_file {
            make::set_nonblocking(&dst, true);
            make::set_nonblocking(&from, true);
        }
        let taker = Taker {
            from: from.into(),
            is_file,
            landed: Vec::new(),
            buf: vec![0; 64 << 10],
        };
        Self { dst, taker }
    }

    /// Runs `work` on the destination, with its calls on a stage that `set` arranges.
    pub(crate) fn run<T>(
        &mut self,
        set: impl FnOnce(&mut Stage<'_>),
        work: impl FnOnce(BorrowedFd<'_>) -> T,
    ) -> (T, Stage<'static>) {
        let mut stage = Stage {
            taker: Some(&mut self.taker),
            ..Stage::default()
        };
        set(&mut stage);
        let result = hooks::run(&mut stage, || work(self.dst.as_fd()));
        let done = Stage {
            calls: std::mem::take(&mut stage.calls),
            ..Stage::default()
        };
        (result, done)
    }

    /// All that has arrived, once `claimed` bytes have. That more comes afterwards shows where the
    /// end of a message is compared.
    pub(crate) fn landed(&mut self, claimed: usize) -> Vec<u8> {
        if self.taker.is_file {
            let len = self.taker.from.metadata().expect("fstat").len() as usize;
            let mut all = vec![0; len];
            self.taker.from.read_exact_at(&mut all, 0).expect("a file");
            assert!(all.starts_with(BEFORE), "what was there before is gone");
            return all.split_off(BEFORE.len());
        }
        // What waits for more to follow it (MSG_MORE) need not, from here on.
        let _ = setsockopt(&self.dst, TcpNoDelay, &true);
        let mut patience = 50;
        self.taker.pump();
        while self.taker.landed.len() < claimed && patience > 0 {
            let mut fds = [PollFd::new(self.taker.from.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, 100_u16).expect("poll(2)");
            self.taker.pump();
            patience -= 1;
        }
        self.taker.landed.clone()
    }

    /// That this is what has arrived, and nothing else.
    pub(crate) fn assert_landed(&mut self, what: impl std::fmt::Debug, expected: &[u8]) {
        assert_same(&format!("{what:?}"), &self.landed(expected.len()), expected);
    }
}

/// A file with `len` bytes of known content.
pub(crate) fn file(seed: u64, len: usize) -> File {
    let mut file = make::disk_file();
    file.write_all(&Data::new(seed).bytes(0, len))
        .expect("room");
    file
}

/// A large file's range: more than a pipe holds, and more than any gather takes along.
pub(crate) const LARGE: u64 = (300 << 10) + 7;
/// A small one's.
pub(crate) const SMALL: u64 = 5003;

/// Headers before a small file, a large one between two pieces of memory, one small file at once
/// behind another, a large one at once behind a large one, and a trailer.
pub(crate) fn mixed(file: &File) -> Message<'_> {
    let data = Data::new(9);
    Message::new()
        .bytes(data.bytes(0, 137))
        .bytes(data.bytes(137, 64))
        .file(file, 11..11 + SMALL)
        .bytes(data.bytes(201, 3))
        .file(file, 4099..4099 + LARGE)
        .bytes(data.bytes(204, 90_000))
        .file(file, 0..2000)
        .file(file, 2000..2001)
        .file(file, 70_000..70_000 + 2 * LARGE)
        .file(file, 5..5 + LARGE)
        .bytes(data.bytes(90_204, 1))
}

/// The file that [`mixed`] is made of.
pub(crate) fn mixed_file() -> File {
    file(7, 1 << 20)
}

/// What has to arrive of a message, by its parts.
pub(crate) fn content(message: &Message<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    for part in message.parts() {
        match part {
            zcio::message::Part::Bytes(bytes) => all.extend_from_slice(bytes),
            zcio::message::Part::File { file, range } => {
                let owned = file.as_fd().try_clone_to_owned().expect("dup");
                let mut bytes = vec![0; (range.end - range.start) as usize];
                let file = File::from(owned);
                file.read_exact_at(&mut bytes, range.start).expect("a file");
                all.extend_from_slice(&bytes);
            }
            _ => unreachable!("there are no other parts"),
        }
    }
    assert_eq!(all.len() as u64, message.len());
    all
}

/// The offsets at which the parts of a message begin, and its end.
pub(crate) fn boundaries(message: &Message<'_>) -> Vec<u64> {
    let ends = message.parts().iter().scan(0, |at, part| {
        *at += part.len();
        Some(*at)
    });
    std::iter::once(0).chain(ends).collect()
}

/// Compares without printing a megabyte.
pub(crate) fn assert_same(what: &str, got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len(), "{what}: the length");
    if got == expected {
        return;
    }
    let wrong = got.iter().zip(expected).position(|(a, b)| a != b);
    panic!("{what}: the first wrong byte is at {wrong:?}");
}
