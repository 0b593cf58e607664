//! The files that bytes come from and go to, and the bytes.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use crate::common::{Data, make};

/// At most so much moves at once: enough steps for the eighth call of every site, and so few bytes
/// in each that one step's always find room on the other side.
pub(crate) const CHUNK: usize = 64 << 10;
/// Eleven chunks and a bit: ten times a pipe's default, almost three buffers of read/write.
const LEN: usize = 11 * CHUNK + 777;
/// Where transfers begin by the files' own positions: on a page.
pub(crate) const OWN: u64 = 4096;
/// Where they begin by explicit offsets: nowhere in particular.
pub(crate) const OFFSETS: (u64, u64) = (4099, 12_289);
/// What a destination file holds before; some of it stands in front of what is delivered.
pub(crate) const FILLER: u8 = 0x5a;

/// The content of the source, from the start of the file.
pub(crate) fn content() -> &'static [u8] {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENT.get_or_init(|| Data::new(3).bytes(0, OFFSETS.0 as usize + LEN))
}

/// Where files lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// In the directory for temporary files.
    Disk,
    /// In memory: for O_DIRECT, which would wait for a disk, and takes any length there.
    Memory,
}

impl Medium {
    fn file(self) -> File {
        match self {
            Medium::Disk => make::disk_file(),
            Medium::Memory => make::memfd(),
        }
    }
}

/// What all runs of a matrix have in common.
#[derive(Debug)]
pub(crate) struct Sources {
    files: [File; 2],
    listener: TcpListener,
}

impl Sources {
    pub(crate) fn new() -> Self {
        let files = [Medium::Disk, Medium::Memory].map(|medium| {
            let mut file = medium.file();
            file.write_all(content()).expect("room for a small file");
            file
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port on loopback");
        Self { files, listener }
    }

    /// Both ends of a new connection.
    pub(crate) fn connection(&self) -> (TcpStream, TcpStream) {
        let address = self.listener.local_addr().expect("bound");
        let one = TcpStream::connect(address).expect("loopback");
        let (other, _) = self.listener.accept().expect("the connection made above");
        (one, other)
    }

    pub(crate) fn open(&self, medium: Medium) -> OwnedFd {
        let number = self.files[medium as usize].as_raw_fd();
        let file = File::open(format!("/proc/thread-self/fd/{number}"));
        file.expect("our own file").into()
    }

    /// That no transfer has written to one.
    pub(crate) fn are_unchanged(&self) -> bool {
        let mut bytes = vec![0; content().len() + 1];
        let mut same = |file: &File| {
            let n = file.read_at(&mut bytes, 0);
            n.is_ok_and(|n| bytes[..n] == *content())
        };
        self.files.iter().all(&mut same)
    }
}

/// A new file that holds `len` bytes of filler.
pub(crate) fn filled(medium: Medium, len: u64) -> OwnedFd {
    let mut file = medium.file();
    file.write_all(&vec![FILLER; len as usize])
        .expect("room for a small file");
    file.into()
}
