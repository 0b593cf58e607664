//! The pairs of descriptors, each with whoever is at the other end.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::poll::{PollFd, PollFlags};
use zcio::Backend;

use crate::data::{BLOCK, Checksum, Pattern};
use crate::receiver::Receiver;

/// What bytes are moved from and to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pair {
    FileTcp,
    FileUnix,
    FileFile,
    FilePipe,
    TcpTcp,
}

impl Pair {
    pub(crate) const ALL: [Pair; 5] = [
        Pair::FileTcp,
        Pair::FileUnix,
        Pair::FileFile,
        Pair::FilePipe,
        Pair::TcpTcp,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Pair::FileTcp => "file -> TCP",
            Pair::FileUnix => "file -> UNIX socket",
            Pair::FileFile => "file -> file",
            Pair::FilePipe => "file -> pipe",
            Pair::TcpTcp => "TCP -> TCP",
        }
    }

    /// How often the processor copies each byte between source and destination, as the backends'
    /// documentation says. Not counted: the device's own access to memory, and the receiver.
    pub(crate) fn copies(self, backend: Backend) -> u32 {
        let into_a_file = u32::from(self == Pair::FileFile);
        match backend {
            Backend::Reflink => 0,
            Backend::CopyFileRange | Backend::Mmap => 1,
            // Pages are handed on as they are, except that a file takes a copy.
            Backend::Sendfile | Backend::Splice => into_a_file,
            // From the device into a buffer; only a file takes it from there without a copy.
            Backend::Direct => 1 - into_a_file,
            _ => 2,
        }
    }
}

/// An anonymous file of the pattern's first `bytes` bytes, written back so that the page cache is
/// warm and clean.
pub(crate) fn source_file(dir: &Path, bytes: u64) -> io::Result<File> {
    let mut file = tempfile::tempfile_in(dir)?;
    Pattern::for_each(bytes, |piece| file.write_all(piece))?;
    file.sync_all()?;
    Ok(file)
}

/// One pair, connected.
pub(crate) struct Link {
    pub(crate) src: File,
    pub(crate) dst: File,
    bytes: u64,
    checksum: u64,
    /// `None` where the destination is a file, which is read back instead.
    receiver: Option<Receiver>,
    /// The source is a socket, and the other side waits for a byte before it sends.
    fed: bool,
}

impl Link {
    /// Connects a pair for runs of `bytes` each, the receiver on processor `cpu`.
    pub(crate) fn new(
        pair: Pair,
        source: &File,
        dir: &Path,
        bytes: u64,
        cpu: Option<usize>,
    ) -> io::Result<Self> {
        let mut src = source.try_clone()?;
        let mut feeds = None;
        let (dst, peer): (File, Option<OwnedFd>) = match pair {
            Pair::FileTcp => tcp_pair()?,
            Pair::TcpTcp => {
                feeds = Some(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
                tcp_pair()?
            }
            Pair::FileUnix => {
                let (ours, theirs) = UnixStream::pair()?;
                (OwnedFd::from(ours).into(), Some(theirs.into()))
            }
            Pair::FilePipe => {
                let (reader, writer) = nix::unistd::pipe()?;
                (writer.into(), Some(reader))
            }
            Pair::FileFile => (tempfile::tempfile_in(dir)?, None),
        };
        let address: Option<SocketAddr> =
            feeds.as_ref().map(TcpListener::local_addr).transpose()?;
        let receiver = peer
            .map(|peer| Receiver::start(peer, bytes, cpu, address))
            .transpose()?;
        if let Some(listener) = &feeds {
            src = OwnedFd::from(accept(listener)?).into();
        }
        Ok(Self {
            src,
            dst,
            bytes,
            checksum: Checksum::of_pattern(bytes),
            receiver,
            fed: feeds.is_some(),
        })
    }

    pub(crate) fn has_source_file(&self) -> bool {
        !self.fed
    }

    /// Before a run, not measured: the destination file is empty again.
    pub(crate) fn prepare(&mut self) -> io::Result<()> {
        if self.receiver.is_none() {
            self.dst.set_len(0)?;
            self.dst.rewind()?;
            // A virtual machine may hand memory that lies free back to its host, and pays for it
            // dearly when it is next used: so leave as much behind that was in use just now.
            std::hint::black_box(vec![1_u8; self.bytes as usize]);
        }
        self.src.rewind().or_else(|e| match e.kind() {
            io::ErrorKind::NotSeekable => Ok(()),
            _ => Err(e),
        })
    }

    /// At the start of a run: the other side begins to send, where it does.
    pub(crate) fn go(&mut self) -> io::Result<()> {
        if self.fed {
            self.src.write_all(&[1])?;
        }
        Ok(())
    }

    /// At the end of a run: the other side has everything, and it is right.
    pub(crate) fn expect(&mut self) -> io::Result<()> {
        self.receiver
            .as_mut()
            .map_or(Ok(()), |receiver| receiver.expect(self.checksum))
    }

    /// After a run, not measured: a destination file is read back and compared.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        if self.receiver.is_some() {
            return Ok(());
        }
        let mut sum = Checksum::new();
        let mut block = vec![0; BLOCK];
        let mut left = self.bytes;
        // The destination may have been opened for writing by offset: start at its start.
        self.dst.rewind()?;
        while left > 0 {
            let want = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
            self.dst.read_exact(&mut block[..want])?;
            sum.add(&block[..want]);
            left -= want as u64;
        }
        let whole = self.dst.metadata()?.len() == self.bytes;
        if whole && sum.finish() == self.checksum {
            return Ok(());
        }
        let text = "the destination file is not the source's copy";
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

/// A loopback connection: our end, and the receiver's.
fn tcp_pair() -> io::Result<(File, Option<OwnedFd>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let theirs = accept(&listener)?;
    Ok((OwnedFd::from(ours).into(), Some(theirs.into())))
}

/// Accepts the connection that is on its way; not for ever, should the receiver have failed.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    if nix::poll::poll(&mut fds, 10_000_u16)? == 0 {
        let text = "the receiver did not connect within 10 s";
        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
    }
    Ok(listener.accept()?.0)
}
