//! A source that holds its bytes, and a destination that takes them without a wait.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};

use crate::common::make;

/// What a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In memory, so that nothing depends on the filesystem that is here.
    File,
    Pipe,
    Unix,
    Tcp,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            End::File => "file",
            End::Pipe => "pipe",
            End::Unix => "UNIX",
            End::Tcp => "TCP",
        })
    }
}

pub(crate) const PAIRS: [(End, End); 10] = [
    (End::File, End::File),
    (End::File, End::Pipe),
    (End::File, End::Unix),
    (End::File, End::Tcp),
    (End::Pipe, End::File),
    (End::Pipe, End::Tcp),
    (End::Unix, End::Pipe),
    (End::Tcp, End::File),
    (End::Tcp, End::Unix),
    (End::Tcp, End::Tcp),
];

/// What the pipes here hold, as much as a process may ask for without privileges.
const ROOM: i32 = 1 << 20;

/// A pair whose source holds `len` bytes, and whose destination is emptied as it fills.
pub(crate) struct Pair {
    pub(crate) src: OwnedFd,
    /// `None` once it is closed.
    dst: Option<OwnedFd>,
    /// The destination's other end, emptied by a thread; or the destination once more.
    taker: JoinHandle<Vec<u8>>,
    /// The source's other end, so that it does not end.
    _giver: Option<OwnedFd>,
    content: Vec<u8>,
}

fn ends(end: End) -> (OwnedFd, OwnedFd) {
    match end {
        End::File => {
            let file = make::memfd();
            (file.try_clone().expect("dup(2)").into(), file.into())
        }
        End::Pipe => {
            let (reader, writer) = make::pipe();
            fcntl(&writer, FcntlArg::F_SETPIPE_SZ(ROOM)).expect("F_SETPIPE_SZ");
            (reader, writer)
        }
        End::Unix => {
            let (one, other) = make::unix();
            (one.into(), other.into())
        }
        End::Tcp => {
            let (one, other) = make::tcp();
            (one.into(), other.into())
        }
    }
}

impl Pair {
    pub(crate) fn new((from, to): (End, End), len: usize) -> Self {
        let content: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
        let (src, giver) = ends(from);
        let mut into = File::from(giver);
        into.write_all(&content).expect("room at the source");
        if from == End::File {
            into.rewind().expect("a file seeks");
        } else {
            wait_for(src.as_fd(), len);
        }
        let (far, dst) = ends(to);
        let taker = thread::spawn(move || {
            let (mut far, mut got) = (File::from(far), Vec::new());
            if to != End::File {
                far.read_to_end(&mut got).expect("what was sent");
            }
            got
        });
        Self {
            src,
            dst: Some(dst),
            taker,
            _giver: (from != End::File).then(|| into.into()),
            content,
        }
    }

    pub(crate) fn dst(&self) -> BorrowedFd<'_> {
        self.dst.as_ref().expect("open until the end").as_fd()
    }

    /// Checks what has arrived: the source's first `len` bytes.
    pub(crate) fn arrived(mut self, len: usize) {
        let dst = self.dst.take().expect("open until the end");
        let mut got = Vec::new();
        let mut file = File::from(dst);
        if file.rewind().is_ok() {
            file.read_to_end(&mut got).expect("a file reads");
        }
        drop(file);
        got.extend(self.taker.join().expect("the taker"));
        assert!(got == self.content[..len], "{} of {len} bytes", got.len());
    }
}

/// Waits until a stream holds `len` bytes.
fn wait_for(fd: BorrowedFd<'_>, len: usize) {
    use std::os::fd::AsRawFd;
    loop {
        let mut held: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int.
        let asked = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut held) };
        assert_eq!(asked, 0, "FIONREAD");
        if held as usize >= len {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}
