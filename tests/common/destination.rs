//! Destinations of every kind, with what takes the bytes behind them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use nix::fcntl::OFlag;
use nix::sys::socket::AddressFamily;

use super::make;
use super::watch::apart;

/// Every kind of descriptor that a transfer may be asked to write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DestinationKind {
    DiskFile,
    ShmFile,
    Memfd,
    AppendFile,
    DirectFile,
    BlockDevice,
    Pipe,
    Fifo,
    Tcp,
    Unix,
    PtySlave,
    PtyMaster,
    Null,
    Zero,
    Full,
    UnixDatagram,
    Seqpacket,
    Udp,
    Eventfd,
    OPath,
    /// Something lies unread on its error queue.
    TcpErrorQueue,
    TcpListener,
    UnixListener,
    TcpUnconnected,
    UnixUnconnected,
    VsockUnconnected,
}

/// A destination and what stands behind it.
#[derive(Debug)]
pub struct Destination {
    pub kind: DestinationKind,
    pub fd: OwnedFd,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    /// A file, whose bytes from this offset on are the ones delivered.
    File(u64),
    /// A stream, with a thread that reads its other end and says how much it has.
    Reader(JoinHandle<io::Result<Vec<u8>>>, Receiver<usize>),
    /// A message socket's other end, which must have got nothing.
    Messages(OwnedFd),
    /// What is written is gone.
    Nowhere,
    /// No byte can be written.
    Refuses,
}

/// What a destination holds in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    Bytes(Vec<u8>),
    /// Nobody can tell: `/dev/null`.
    Unknown,
}

impl AsFd for Destination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl DestinationKind {
    pub const ALL: [DestinationKind; 26] = {
        use DestinationKind::*;
        [
            DiskFile,
            ShmFile,
            Memfd,
            AppendFile,
            DirectFile,
            BlockDevice,
            Pipe,
            Fifo,
            Tcp,
            Unix,
            PtySlave,
            PtyMaster,
            Null,
            Zero,
            Full,
            UnixDatagram,
            Seqpacket,
            Udp,
            Eventfd,
            OPath,
            TcpErrorQueue,
            TcpListener,
            UnixListener,
            TcpUnconnected,
            UnixUnconnected,
            VsockUnconnected,
        ]
    };

    /// Makes an empty one. An error says why it cannot be had here.
    pub fn make(self) -> io::Result<Destination> {
        let with = |fd: OwnedFd, sink| {
            Ok(Destination {
                kind: self,
                fd,
                sink,
            })
        };
        let device = |path, sink| with(make::open(path, libc::O_WRONLY)?, sink);
        match self {
            Self::DiskFile => with(make::disk_file().into(), Sink::File(0)),
            Self::ShmFile => with(make::shm_file()?.into(), Sink::File(0)),
            Self::Memfd => with(make::memfd().into(), Sink::File(0)),
            Self::AppendFile => {
                let file = make::disk_file();
                with(
                    make::reopen(&file, OFlag::O_RDWR | OFlag::O_APPEND)?,
                    Sink::File(0),
                )
            }
            Self::DirectFile => {
                let file = make::disk_file();
                with(
                    make::reopen(&file, OFlag::O_RDWR | OFlag::O_DIRECT)?,
                    Sink::File(0),
                )
            }
            Self::BlockDevice => {
                let backing = make::disk_file();
                backing.set_len(32 << 20)?;
                with(make::loop_device(&backing)?.into(), Sink::File(0))
            }
            Self::Pipe => Ok(self.drained(make::pipe())),
            Self::Fifo => Ok(self.drained(make::fifo())),
            Self::Tcp => Ok(self.drained(make::tcp())),
            Self::Unix => Ok(self.drained(make::unix())),
            Self::PtySlave => Ok(self.drained(make::pty()?)),
            Self::PtyMaster => {
                let (master, slave) = make::pty()?;
                Ok(self.drained((slave, master)))
            }
            Self::Null => device("/dev/null", Sink::Nowhere),
            Self::Zero => device("/dev/zero", Sink::Nowhere),
            Self::Full => device("/dev/full", Sink::Refuses),
            Self::UnixDatagram => {
                let (one, other) = make::unix_datagram();
                with(one.into(), Sink::Messages(other.into()))
            }
            Self::Seqpacket => {
                let (one, other) = make::seqpacket();
                with(one, Sink::Messages(other))
            }
            Self::Udp => {
                let (one, other) = make::udp();
                with(one.into(), Sink::Messages(other.into()))
            }
            Self::Eventfd => with(make::eventfd(), Sink::Refuses),
            Self::OPath => with(make::o_path(), Sink::Refuses),
            Self::TcpErrorQueue => {
                let (writer, reader) = make::tcp_with_error_queue()?;
                Ok(self.drained((reader, writer)))
            }
            Self::TcpListener => with(make::tcp_listener(), Sink::Refuses),
            Self::UnixListener => with(make::unix_listener(), Sink::Refuses),
            Self::TcpUnconnected => with(make::unconnected(AddressFamily::Inet)?, Sink::Refuses),
            Self::UnixUnconnected => with(make::unconnected(AddressFamily::Unix)?, Sink::Refuses),
            Self::VsockUnconnected => with(make::unconnected(AddressFamily::Vsock)?, Sink::Refuses),
        }
    }

    /// A stream that a thread reads until it ends.
    fn drained<R: Into<OwnedFd>, W: Into<OwnedFd>>(self, (reader, writer): (R, W)) -> Destination {
        let (sender, counts) = channel();
        let reader = apart(reader, move |mut reader| {
            let mut bytes = Vec::new();
            let mut buf = vec![0; 256 << 10];
            loop {
                match reader.read(&mut buf) {
                    Ok(0) => return Ok(bytes),
                    Ok(n) => {
                        bytes.extend_from_slice(&buf[..n]);
                        // Nobody may be asking any more.
                        let _ = sender.send(bytes.len());
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // How a terminal says that the other end hung up.
                    Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(bytes),
                    Err(e) => return Err(e),
                }
            }
        });
        Destination {
            kind: self,
            fd: writer.into(),
            sink: Sink::Reader(reader, counts),
        }
    }

    pub fn is_block_device(self) -> bool {
        self == Self::BlockDevice
    }

    fn is_terminal(self) -> bool {
        matches!(self, Self::PtySlave | Self::PtyMaster)
    }
}

impl Destination {
    /// Says that bytes are delivered from this offset on: what stands before is not looked at.
    pub fn delivered_from(mut self, at: u64) -> Self {
        self.sink = Sink::File(at);
        self
    }

    /// Closes it and says what it holds. On a block device, of which the end tells nothing, the
    /// first `claimed` bytes.
    pub fn settle(self, claimed: u64) -> Result<Held, String> {
        let of_io = |e: io::Error| e.to_string();
        match self.sink {
            Sink::File(start) => {
                let mut view = File::from(make::reopen(&self.fd, OFlag::O_RDONLY).map_err(of_io)?);
                view.seek(SeekFrom::Start(start)).map_err(of_io)?;
                let mut bytes = Vec::new();
                let limit = match self.kind.is_block_device() {
                    true => claimed,
                    false => u64::MAX,
                };
                view.take(limit).read_to_end(&mut bytes).map_err(of_io)?;
                Ok(Held::Bytes(bytes))
            }
            Sink::Reader(reader, counts) => {
                // Closing either end of a terminal throws away what the other has not read: always
                // the master, now and then the slave (Linux 6.18, a bare loop of write(2): once in
                // 400 times).
                let mut read = 0;
                while self.kind.is_terminal() && read < claimed {
                    read = counts.recv().map_err(|_| "the reader ended")? as u64;
                }
                // The only descriptor of the writing end: the reader now meets its end.
                drop(self.fd);
                let bytes = reader.join().map_err(|_| "the reader panicked")?;
                bytes.map(Held::Bytes).map_err(of_io)
            }
            Sink::Messages(peer) => {
                make::set_nonblocking(&peer, true);
                let mut buf = [0; 4096];
                match nix::unistd::read(&peer, &mut buf) {
                    Err(nix::errno::Errno::EAGAIN) => Ok(Held::Bytes(Vec::new())),
                    other => Err(format!("a message came through: {other:?}")),
                }
            }
            Sink::Nowhere => Ok(Held::Unknown),
            Sink::Refuses => Ok(Held::Bytes(Vec::new())),
        }
    }
}
