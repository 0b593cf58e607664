//! Sources of every kind, with what stands behind them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Sender, channel};

use nix::fcntl::OFlag;
use nix::sys::socket::AddressFamily;

use super::watch::apart;
use super::{Data, make};

/// Every kind of descriptor that a transfer may be asked to read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKind {
    DiskFile,
    ShmFile,
    Memfd,
    SealedMemfd,
    DirectFile,
    SparseFile,
    EmptyFile,
    BlockDevice,
    SecretMemfd,
    Pipe,
    Fifo,
    Tcp,
    Unix,
    PtySlave,
    PtyMaster,
    Zero,
    Full,
    Urandom,
    Null,
    ProcVersion,
    ProcMaps,
    ProcSys,
    Sysfs,
    UnixDatagram,
    Seqpacket,
    Udp,
    Eventfd,
    Timerfd,
    Epoll,
    Inotify,
    Namespace,
    Directory,
    OPath,
    /// Its peer sends one byte of urgent data in the middle, which is none of the stream's.
    TcpUrgent,
    /// The urgent byte is one of the stream's (`SO_OOBINLINE`).
    TcpUrgentInline,
    /// Something lies unread on its error queue.
    TcpErrorQueue,
    /// Others append to it meanwhile.
    GrowingFile,
    TcpListener,
    UnixListener,
    TcpUnconnected,
    UnixUnconnected,
    VsockUnconnected,
}

/// What a source holds, from where a transfer begins.
#[derive(Clone, Debug)]
pub enum Content {
    /// So many known bytes, then the end.
    Known(Data, u64),
    /// The same with holes: of every 256 KiB, the last 128 KiB are zeros.
    Sparse(Data, u64),
    /// So many known bytes, and more of them as time goes by.
    Growing(Data, u64),
    /// Text, as another descriptor read it beforehand.
    Text(Vec<u8>),
    /// Zeros without end.
    Zeros,
    /// Bytes without end that nobody can foretell.
    Noise,
    /// Text that changes from one read to the next.
    Volatile,
    /// One message of known bytes, which no transfer may take.
    Message(Data),
    /// Nothing can be read: a transfer refuses it.
    Refused,
}

const SPARSE_UNIT: u64 = 256 << 10;
const SPARSE_DATA: u64 = 128 << 10;

impl Content {
    /// How many bytes there are; `None` where there is no end or no telling.
    pub fn len(&self) -> Option<u64> {
        match self {
            Self::Known(_, len) | Self::Sparse(_, len) => Some(*len),
            Self::Text(text) => Some(text.len() as u64),
            Self::Refused | Self::Message(_) => Some(0),
            Self::Growing(..) | Self::Zeros | Self::Noise | Self::Volatile => None,
        }
    }

    /// The bytes from `at` on; `None` where nobody can know them.
    pub fn bytes(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        match self {
            Self::Known(data, _) | Self::Growing(data, _) => Some(data.bytes(at, len)),
            Self::Sparse(data, _) => {
                let mut bytes = data.bytes(at, len);
                let mut done = 0;
                while done < len {
                    let within = (at + done as u64) % SPARSE_UNIT;
                    let edge = if within < SPARSE_DATA {
                        SPARSE_DATA
                    } else {
                        SPARSE_UNIT
                    };
                    let next = len.min(done + (edge - within) as usize);
                    if edge == SPARSE_UNIT {
                        bytes[done..next].fill(0);
                    }
                    done = next;
                }
                Some(bytes)
            }
            Self::Text(text) => {
                let at = usize::try_from(at).ok()?;
                text.get(at..at.checked_add(len)?).map(<[u8]>::to_vec)
            }
            Self::Zeros => Some(vec![0; len]),
            Self::Noise | Self::Volatile | Self::Refused | Self::Message(_) => None,
        }
    }

    /// Whether `got` is what stands from `at` on.
    pub fn check(&self, at: u64, got: &[u8]) -> Result<(), String> {
        let wrong = match self {
            Self::Known(data, _) | Self::Growing(data, _) => data.check(at, got).err(),
            Self::Noise | Self::Volatile => None,
            _ if got.is_empty() => None,
            _ => match self.bytes(at, got.len()) {
                // Compared whole first: byte by byte is slow without optimisation.
                Some(bytes) if bytes == got => None,
                Some(bytes) => {
                    let same = bytes.iter().zip(got).take_while(|(a, b)| a == b).count();
                    Some(at + same as u64)
                }
                None => Some(at),
            },
        };
        wrong.map_or(Ok(()), |wrong| Err(format!("wrong byte at {wrong}")))
    }
}

/// A source and what stands behind it.
#[derive(Debug)]
pub struct Source {
    pub kind: SourceKind,
    pub fd: OwnedFd,
    pub content: Content,
    /// The other end of a message socket.
    peer: Option<OwnedFd>,
    /// Dropped with the source: the feeder of a terminal keeps its end open until then.
    feeder: Option<Sender<()>>,
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl SourceKind {
    pub const ALL: [SourceKind; 42] = {
        use SourceKind::*;
        [
            DiskFile,
            ShmFile,
            Memfd,
            SealedMemfd,
            DirectFile,
            SparseFile,
            EmptyFile,
            BlockDevice,
            SecretMemfd,
            Pipe,
            Fifo,
            Tcp,
            Unix,
            PtySlave,
            PtyMaster,
            Zero,
            Full,
            Urandom,
            Null,
            ProcVersion,
            ProcMaps,
            ProcSys,
            Sysfs,
            UnixDatagram,
            Seqpacket,
            Udp,
            Eventfd,
            Timerfd,
            Epoll,
            Inotify,
            Namespace,
            Directory,
            OPath,
            TcpUrgent,
            TcpUrgentInline,
            TcpErrorQueue,
            GrowingFile,
            TcpListener,
            UnixListener,
            TcpUnconnected,
            UnixUnconnected,
            VsockUnconnected,
        ]
    };

    /// Whether its bytes flow once, from a feeding thread.
    pub fn is_stream(self) -> bool {
        use SourceKind::*;
        let plain = matches!(self, Pipe | Fifo | Tcp | Unix | PtySlave | PtyMaster);
        plain || matches!(self, TcpUrgent | TcpUrgentInline | TcpErrorQueue)
    }

    /// Whether reading it never meets an end, so that a transfer needs a length: a terminal ends
    /// only by hanging up, which throws away what was not read yet.
    pub fn is_endless(self) -> bool {
        use SourceKind::*;
        matches!(self, PtySlave | PtyMaster | Zero | Full | Urandom)
    }

    /// Makes one that holds `len` bytes of `data`, as far as it is up to us what it holds. An error
    /// says why it cannot be had here.
    pub fn make(self, data: Data, len: u64) -> io::Result<Source> {
        let known = Content::Known(data, len);
        let file = |file: File, content: Content| {
            fill(&file, &content)?;
            Ok(self.plain(file.into(), content))
        };
        let text = |path: &str| {
            let text = std::fs::read(path)?;
            Ok(self.plain(make::open(path, libc::O_RDONLY)?, Content::Text(text)))
        };
        let device = |path, content| Ok(self.plain(make::open(path, libc::O_RDONLY)?, content));
        let refused = |fd| Ok(self.plain(fd, Content::Refused));
        let message = |fd: OwnedFd, peer: OwnedFd| {
            nix::unistd::write(&peer, &data.bytes(0, MESSAGE))?;
            let mut source = self.plain(fd, Content::Message(data));
            source.peer = Some(peer);
            Ok(source)
        };
        match self {
            Self::DiskFile => file(make::disk_file(), known),
            Self::ShmFile => file(make::shm_file()?, known),
            Self::Memfd => file(make::memfd(), known),
            Self::SecretMemfd => {
                let size = usize::try_from(len).map_err(io::Error::other)?;
                let zeros = Content::Text(vec![0; size]);
                Ok(self.plain(make::secret_memfd(len)?.into(), zeros))
            }
            Self::SealedMemfd => {
                let size = usize::try_from(len).map_err(io::Error::other)?;
                Ok(self.plain(make::sealed_memfd(&data.bytes(0, size)).into(), known))
            }
            Self::DirectFile => {
                let mut source = file(make::disk_file(), known)?;
                source.fd = make::reopen(&source, OFlag::O_RDONLY | OFlag::O_DIRECT)?;
                Ok(source)
            }
            Self::SparseFile => file(make::disk_file(), Content::Sparse(data, len)),
            Self::EmptyFile => file(make::disk_file(), Content::Known(data, 0)),
            Self::BlockDevice => {
                let backing = make::disk_file();
                let content = Content::Known(data, len.next_multiple_of(4096));
                fill(&backing, &content)?;
                Ok(self.plain(make::loop_device(&backing)?.into(), content))
            }
            Self::Pipe => Ok(self.fed(make::pipe(), known)),
            Self::Fifo => Ok(self.fed(make::fifo(), known)),
            Self::Tcp => Ok(self.fed(make::tcp(), known)),
            Self::Unix => Ok(self.fed(make::unix(), known)),
            Self::PtySlave => {
                let (master, slave) = make::pty()?;
                Ok(self.fed((slave, master), known))
            }
            Self::PtyMaster => Ok(self.fed(make::pty()?, known)),
            Self::Zero => device("/dev/zero", Content::Zeros),
            Self::Full => device("/dev/full", Content::Zeros),
            Self::Urandom => device("/dev/urandom", Content::Noise),
            Self::Null => device("/dev/null", Content::Text(Vec::new())),
            Self::ProcVersion => text("/proc/version"),
            Self::ProcSys => text("/proc/sys/kernel/ostype"),
            Self::Sysfs => text("/sys/devices/system/cpu/online"),
            Self::ProcMaps => device("/proc/self/maps", Content::Volatile),
            Self::UnixDatagram => {
                let (one, other) = make::unix_datagram();
                message(one.into(), other.into())
            }
            Self::Seqpacket => {
                let (one, other) = make::seqpacket();
                message(one, other)
            }
            Self::Udp => {
                let (one, other) = make::udp();
                message(one.into(), other.into())
            }
            Self::Eventfd => refused(make::eventfd()),
            Self::Timerfd => refused(make::timerfd()),
            Self::Epoll => refused(make::epoll()),
            Self::Inotify => refused(make::inotify()),
            Self::Namespace => refused(make::open("/proc/self/ns/mnt", libc::O_RDONLY)?),
            Self::Directory => refused(make::directory()),
            Self::OPath => refused(make::o_path()),
            Self::TcpUrgent => Ok(self.fed_in_two(known, false)),
            Self::TcpUrgentInline => Ok(self.fed_in_two(known, true)),
            Self::TcpErrorQueue => Ok(self.fed(make::tcp_with_error_queue()?, known)),
            Self::GrowingFile => self.growing(data, len),
            Self::TcpListener => refused(make::tcp_listener()),
            Self::UnixListener => refused(make::unix_listener()),
            Self::TcpUnconnected => refused(make::unconnected(AddressFamily::Inet)?),
            Self::UnixUnconnected => refused(make::unconnected(AddressFamily::Unix)?),
            Self::VsockUnconnected => refused(make::unconnected(AddressFamily::Vsock)?),
        }
    }

    fn plain(self, fd: OwnedFd, content: Content) -> Source {
        Source {
            kind: self,
            fd,
            content,
            peer: None,
            feeder: None,
        }
    }

    /// A stream that a thread writes the content into, as fast as it is taken, and then closes (a
    /// terminal is kept open: see [`is_endless`](Self::is_endless)).
    fn fed<R: Into<OwnedFd>, W: Into<OwnedFd>>(
        self,
        (reader, writer): (R, W),
        content: Content,
    ) -> Source {
        let (bytes, len) = (content.clone(), content.len().unwrap_or(0));
        self.fed_by((reader, writer), content, move |writer| {
            feed(writer, &bytes, 0..len)
        })
    }

    /// A TCP stream with one byte of urgent data in the middle.
    fn fed_in_two(self, content: Content, inline: bool) -> Source {
        let (reader, writer) = make::tcp();
        if inline {
            make::set_urgent_inline(&reader);
        }
        let (bytes, len) = (content.clone(), content.len().unwrap_or(0));
        self.fed_by((reader, writer), content, move |writer| {
            let middle = len / 2;
            feed(writer, &bytes, 0..middle)?;
            let urgent = bytes.bytes(middle, 1).expect("known")[0];
            make::send_urgent(&*writer, urgent)?;
            feed(writer, &bytes, middle + u64::from(inline)..len)
        })
    }

    /// A file that a thread appends to, until it is twice as long.
    fn growing(self, data: Data, len: u64) -> io::Result<Source> {
        let file = make::disk_file();
        let content = Content::Growing(data, len);
        feed(&mut &file, &content, 0..len)?;
        let writer = make::reopen(&file, OFlag::O_WRONLY | OFlag::O_APPEND)?;
        make::seek(&file, 0);
        let bytes = content.clone();
        apart(writer, move |mut writer| {
            for at in (len..2 * len).step_by(GROWTH as usize) {
                feed(&mut writer, &bytes, at..at + GROWTH).expect("room for a small file");
            }
        });
        Ok(self.plain(file.into(), content))
    }

    fn fed_by<R: Into<OwnedFd>, W: Into<OwnedFd>>(
        self,
        (reader, writer): (R, W),
        content: Content,
        work: impl FnOnce(&mut File) -> io::Result<()> + Send + 'static,
    ) -> Source {
        let (sender, dropped) = channel();
        let keep = self.is_endless();
        apart(writer, move |mut writer| {
            // An error says that the reader is gone: it knows how far it went.
            let _ = work(&mut writer);
            if keep {
                let _ = dropped.recv() as Result<(), _>;
            }
        });
        let mut source = self.plain(reader.into(), content);
        source.feeder = Some(sender);
        source
    }
}

/// Bytes written or read at a time, beside a transfer.
const PIECE: u64 = 128 << 10;

/// Bytes in the one message of a message socket.
const MESSAGE: usize = 64;

/// Bytes appended at a time.
const GROWTH: u64 = 1777;

fn feed(into: &mut impl Write, content: &Content, range: Range<u64>) -> io::Result<()> {
    for at in range.clone().step_by(PIECE as usize) {
        let piece = content.bytes(at, (range.end - at).min(PIECE) as usize);
        into.write_all(&piece.expect("known"))?;
    }
    Ok(())
}

/// Writes the content into a file, holes left out, without moving its position.
fn fill(file: &File, content: &Content) -> io::Result<()> {
    let len = content.len().unwrap_or(0);
    file.set_len(len)?;
    for at in (0..len).step_by(PIECE as usize) {
        let piece = content.bytes(at, (len - at).min(PIECE) as usize);
        let piece = piece.expect("known");
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(&piece, at)?;
        }
    }
    Ok(())
}

impl Source {
    /// Whether the source is as it must be after a transfer took `taken` bytes: a file unchanged,
    /// a stream with exactly the rest in it, a message socket with its message.
    pub fn settle(self, taken: u64) -> Result<(), String> {
        let of_io = |e: io::Error| e.to_string();
        let len = self.content.len();
        match (&self.content, self.kind) {
            (Content::Message(data), _) => {
                let mut buf = [0; 2 * MESSAGE];
                let got = nix::unistd::read(&self.fd, &mut buf).map_err(|e| e.to_string())?;
                if buf[..got] != data.bytes(0, MESSAGE) {
                    return Err(format!("the message is not there any more: {got} bytes"));
                }
                Ok(())
            }
            (content, kind) if kind.is_stream() => {
                make::set_nonblocking(&self.fd, false);
                let mut left = len.unwrap_or(0).checked_sub(taken).ok_or("more than all")?;
                let mut file = File::from(self.fd);
                let (mut at, mut buf) = (taken, vec![0; PIECE as usize]);
                // A terminal's end never comes; any other's is met by one read more.
                while left > 0 || !kind.is_endless() {
                    let want = left.clamp(1, PIECE) as usize;
                    let got = file.read(&mut buf[..want]).map_err(of_io)?;
                    if got == 0 && left == 0 {
                        break;
                    }
                    if got == 0 || left == 0 {
                        return Err(format!("{left} bytes should be left at {at}, read {got}"));
                    }
                    content.check(at, &buf[..got])?;
                    (at, left) = (at + got as u64, left - got as u64);
                }
                Ok(())
            }
            (content @ (Content::Known(..) | Content::Sparse(..) | Content::Growing(..)), _) => {
                let view = File::from(make::reopen(&self.fd, OFlag::O_RDONLY).map_err(of_io)?);
                let (mut at, mut buf) = (0, vec![0; PIECE as usize]);
                loop {
                    let got = view.read_at(&mut buf, at).map_err(of_io)?;
                    content
                        .check(at, &buf[..got])
                        .map_err(|e| format!("the source was changed: {e}"))?;
                    at += got as u64;
                    if got == 0 {
                        break;
                    }
                }
                match len.map_or(at >= taken, |len| at == len) {
                    true => Ok(()),
                    false => Err(format!("the source has {at} bytes, and had {len:?}")),
                }
            }
            _ => Ok(()),
        }
    }
}
