//! Pairs of descriptors, each with whoever is at the other end.

use std::fs::File;
use std::io::{Seek, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::socket::sockopt::TcpCongestion;
use nix::sys::socket::{getsockopt, setsockopt};
use zcio::{Backend, ErrorKind, TransferOptions};

use super::clock::{self, Cost};
use super::peer::{Peer, TO_THE_END};

/// What a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    File,
    Pipe,
    Tcp,
    Unix,
}

impl End {
    pub(crate) const ALL: [End; 4] = [End::File, End::Pipe, End::Tcp, End::Unix];

    pub(crate) fn name(self) -> &'static str {
        match self {
            End::File => "file",
            End::Pipe => "pipe",
            End::Tcp => "TCP",
            End::Unix => "UNIX",
        }
    }

    /// Our end of a stream and theirs; `None` for a file. Bytes flow to us or from us.
    fn stream(self, to_us: bool) -> Option<(OwnedFd, OwnedFd)> {
        Some(match self {
            End::File => return None,
            End::Pipe => {
                // Not for the child as well: the end would never come.
                let pipe = nix::unistd::pipe2(OFlag::O_CLOEXEC);
                let (reader, writer) = pipe.expect("a pipe");
                if to_us {
                    (reader, writer)
                } else {
                    (writer, reader)
                }
            }
            End::Tcp => {
                let (ours, theirs) = tcp();
                (ours.into(), theirs.into())
            }
            End::Unix => {
                let (ours, theirs) = UnixStream::pair().expect("a socket pair");
                (ours.into(), theirs.into())
            }
        })
    }
}

/// What TCP uses here, where it may be chosen: what nearly all distributions come with. Another that
/// paces what it sends by timers (bbr) charges these to whoever runs, which on loopback can be more
/// than all else and differs from run to run.
const CONGESTION: &str = "cubic";

/// Both ends of a loopback connection.
pub(crate) fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
    let address = listener.local_addr().expect("its address");
    let ours = TcpStream::connect(address).expect("a loopback connection");
    let (theirs, _) = listener.accept().expect("the same, accepted");
    choose_congestion(&ours);
    choose_congestion(&theirs);
    // Small messages would wait for one another.
    ours.set_nodelay(true).expect("TCP_NODELAY");
    theirs.set_nodelay(true).expect("TCP_NODELAY");
    (ours, theirs)
}

/// Has a socket, and what it accepts, use [`CONGESTION`] where that is allowed.
pub(crate) fn choose_congestion(socket: &impl AsFd) {
    let _ = setsockopt(socket, TcpCongestion, &CONGESTION.into());
}

/// The congestion control that [`tcp`] came to.
pub(crate) fn congestion() -> String {
    let name = getsockopt(&tcp().0, TcpCongestion).expect("TCP_CONGESTION");
    name.to_string_lossy().trim_end_matches('\0').to_owned()
}

/// An empty file with no name, in the build directory: on a disk more often than others.
pub(crate) fn file() -> File {
    tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary file")
}

/// A file of so many bytes, written back so that the page cache is warm and clean.
pub(crate) fn source(bytes: u64) -> File {
    let mut file = file();
    fill(&mut file, bytes);
    file
}

/// Writes so many bytes to a file, and writes them back.
pub(crate) fn fill(file: &mut File, bytes: u64) {
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    let mut left = bytes;
    while left > 0 {
        let len = left.min(block.len() as u64);
        file.write_all(&block[..len as usize])
            .expect("room for the source");
        left -= len;
    }
    file.sync_all().expect("the source is written back");
}

/// A pair, connected.
pub(crate) struct Link {
    pub(crate) src: File,
    pub(crate) dst: File,
    from: End,
    to: End,
    peer: Option<Peer>,
    /// Drop the source's pages before each run.
    pub(crate) cold: bool,
}

impl Link {
    /// `source` lends its content where the source is a file.
    pub(crate) fn new(from: End, to: End, source: &File) -> Self {
        let (src, fed) = match from.stream(true) {
            Some((ours, theirs)) => (File::from(ours), Some(theirs)),
            None => (source.try_clone().expect("the source, again"), None),
        };
        let (dst, drained) = match to.stream(false) {
            Some((ours, theirs)) => (File::from(ours), Some(theirs)),
            None => (file(), None),
        };
        let stream = fed.is_some() || drained.is_some();
        let peer = stream.then(|| Peer::start(drained, fed));
        Self {
            src,
            dst,
            from,
            to,
            peer,
            cold: false,
        }
    }

    /// What `work` takes to move `bytes` bytes, of which it returns the count, and until they have
    /// been received. Before, what is a file starts anew.
    pub(crate) fn run(&mut self, bytes: u64, work: impl FnOnce(&File, &File) -> u64) -> Cost {
        let drained = if self.to == End::File { 0 } else { bytes };
        self.measure(bytes, drained, work)
    }

    /// What so many runs take. They follow one another at once, unless a file has to start anew.
    pub(crate) fn run_each(
        &mut self,
        bytes: u64,
        rounds: u64,
        work: impl Fn(&File, &File) -> u64,
    ) -> Cost {
        if self.to == End::File || self.cold {
            let mut total = Cost::default();
            for _ in 0..rounds {
                let cost = self.run(bytes, &work);
                total.cpu += cost.cpu;
                total.time += cost.time;
            }
            return total;
        }
        let rewinds = self.from == End::File;
        self.run(bytes * rounds, |mut src, dst| {
            let mut moved = 0;
            for _ in 0..rounds {
                if rewinds {
                    src.rewind().expect("the source rewinds");
                }
                moved += work(src, dst);
            }
            moved
        })
    }

    /// As [`run`](Self::run), but the source ends after `bytes` bytes, and both connections are
    /// closed at the end. Once a link.
    pub(crate) fn run_to_the_end(
        &mut self,
        bytes: u64,
        work: impl FnOnce(&File, &File) -> u64,
    ) -> Cost {
        self.measure(bytes, TO_THE_END, work)
    }

    fn measure(&mut self, bytes: u64, drain: u64, work: impl FnOnce(&File, &File) -> u64) -> Cost {
        if self.from == End::File {
            self.src.rewind().expect("the source rewinds");
            if self.cold {
                let all = (0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
                posix_fadvise(&self.src, all.0, all.1, all.2).expect("the source's pages go");
            }
        }
        if self.to == End::File {
            self.dst.set_len(0).expect("the destination can be emptied");
            self.dst.rewind().expect("the destination rewinds");
            clock::touch(2 * bytes);
        }
        let (cost, (moved, received)) = Cost::of(|| {
            if let Some(peer) = &mut self.peer {
                let fed = if self.from == End::File { 0 } else { bytes };
                peer.go(fed, drain);
            }
            let moved = work(&self.src, &self.dst);
            (moved, self.peer.as_mut().map(Peer::done))
        });
        assert_eq!(moved, bytes, "moved");
        match (self.to, received) {
            (End::File, _) => {
                let found = self.dst.metadata().expect("the destination's size").len();
                assert_eq!(found, bytes, "in the file");
            }
            (_, received) => assert_eq!(received, Some(bytes), "received"),
        }
        cost
    }

    /// Whether a backend serves the pair: as the facts say, and as a small transfer shows.
    pub(crate) fn takes(&mut self, backend: Backend) -> bool {
        const LITTLE: u64 = 4 << 10;
        let mut options = TransferOptions::new();
        let probe = options.backend(backend).probe(&self.src, &self.dst);
        if probe.expect("a pair that serves").verdict(backend).is_err() {
            return false;
        }
        let mut fits = true;
        self.run(LITTLE, |src, dst| {
            let report = options.transfer(src, dst, LITTLE).or_else(|e| {
                assert_eq!(e.kind(), ErrorKind::Unfit, "{e}");
                eprintln!("left out: {e}");
                fits = false;
                // Nothing was moved, and the other end waits for its bytes.
                options
                    .backend(Backend::ReadWrite)
                    .transfer(src, dst, LITTLE)
            });
            report.expect("read/write serves").bytes
        });
        fits
    }
}
