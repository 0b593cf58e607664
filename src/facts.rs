//! What the kernel says of one descriptor: fstat(2), F_GETFL, fstatfs(2), `SO_DOMAIN` and
//! `SO_TYPE`, statx(2). No I/O, and nothing changes on the descriptor.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::call;

/// What a descriptor leads to, as far as moving bytes is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A regular file whose bytes lie on a filesystem.
    File,
    /// A regular file whose bytes are made when it is read (procfs, sysfs and their kin): its size
    /// means nothing, and its content may differ from one read to the next.
    Generated,
    /// A block device.
    BlockDevice,
    /// A character device: a terminal, `/dev/null`, `/dev/zero`.
    CharDevice,
    /// A pipe or FIFO.
    Pipe,
    /// A stream socket of the internet families: TCP, MPTCP.
    Tcp,
    /// A stream socket of the UNIX family.
    Unix,
    /// A stream socket of another family (AF_VSOCK and its kin).
    Stream,
    /// A datagram, seqpacket or raw socket: message boundaries, which a transfer cannot keep.
    Datagram,
    /// A directory.
    Directory,
    /// Opened with `O_PATH`: a place in the tree, not a file to read or write.
    Path,
    /// An anonymous inode: eventfd, timerfd, epoll, inotify and their kin.
    Anonymous,
}

impl Kind {
    /// Whether bytes flow through it once: no position, no second read.
    pub(crate) fn is_stream(self) -> bool {
        matches!(
            self,
            Kind::Pipe | Kind::Tcp | Kind::Unix | Kind::Stream | Kind::CharDevice
        )
    }

    pub(crate) fn is_socket(self) -> bool {
        matches!(self, Kind::Tcp | Kind::Unix | Kind::Stream | Kind::Datagram)
    }

    /// Whether its bytes lie in the page cache: read again, they are the same.
    pub(crate) fn is_cached(self) -> bool {
        matches!(self, Kind::File | Kind::BlockDevice)
    }

    /// Whether no transfer can serve it at all.
    pub(crate) fn is_refused(self) -> bool {
        matches!(
            self,
            Kind::Datagram | Kind::Directory | Kind::Path | Kind::Anonymous
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::File => "a file",
            Kind::Generated => "a generated file",
            Kind::BlockDevice => "a block device",
            Kind::CharDevice => "a character device",
            Kind::Pipe => "a pipe",
            Kind::Tcp => "a TCP socket",
            Kind::Unix => "a UNIX stream socket",
            Kind::Stream => "a stream socket",
            Kind::Datagram => "a socket that keeps message boundaries",
            Kind::Directory => "a directory",
            Kind::Path => "an O_PATH descriptor",
            Kind::Anonymous => "an anonymous inode",
        })
    }
}

/// The facts of one descriptor, as they were when it was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    kind: Kind,
    flags: i32,
    size: u64,
    allocated: u64,
    device: u64,
    inode: u64,
    filesystem: i64,
    block: u64,
    sealed: bool,
    alignment: Option<(u32, u32)>,
}

/// Filesystems whose files are generated on reading.
const GENERATED: [i64; 12] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x6265_6570, // configfs
    0x6367_7270, // cgroup2
    0x0027_e0eb, // cgroup
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0xde5e_81e4, // efivarfs
    0xf97c_ff8c, // selinuxfs
    0x6165_676c, // pstore
];

const EXT: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;
const BTRFS: i64 = 0x9123_683e;
const TMPFS: i64 = 0x0102_1994;
const F2FS: i64 = 0xf2f5_2010;
const HUGETLBFS: i64 = 0x9584_58f6;
const RAMFS: i64 = 0x8584_58f6;
const MSDOS: i64 = 0x4d44;
const EXFAT: i64 = 0x2011_bab0;
const ISO9660: i64 = 0x9660;
const SQUASHFS: i64 = 0x7371_7368;
/// Filesystems behind a network or a daemon: there one call that stays on the other side beats
/// every read and write. NFS, CIFS, SMB2, Ceph, FUSE, AFS, 9P.
const REMOTE: [i64; 7] = [
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x6573_5546,
    0x6b41_4653,
    0x0102_1997,
];

impl Facts {
    /// Looks at a descriptor: three or four system calls.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let stat = call::fstat(fd)?;
        let flags = call::status_flags(fd)?;
        let mut facts = Self {
            kind: Kind::Anonymous,
            flags,
            size: stat.st_size.unsigned_abs(),
            allocated: stat.st_blocks.unsigned_abs().saturating_mul(512),
            device: stat.st_dev,
            inode: stat.st_ino,
            filesystem: 0,
            block: stat.st_blksize.unsigned_abs(),
            sealed: false,
            alignment: None,
        };
        facts.kind = match stat.st_mode & libc::S_IFMT {
            _ if flags & libc::O_PATH != 0 => Kind::Path,
            libc::S_IFREG => {
                // Where a seccomp profile forbids to ask, the filesystem is one that nobody knows.
                let known = call::fstatfs(fd).ok();
                (facts.filesystem, facts.block) = known.unwrap_or((0, facts.block));
                if GENERATED.contains(&facts.filesystem) {
                    Kind::Generated
                } else {
                    Kind::File
                }
            }
            libc::S_IFBLK => Kind::BlockDevice,
            libc::S_IFCHR => Kind::CharDevice,
            libc::S_IFIFO => Kind::Pipe,
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFSOCK => socket_kind(fd)?,
            _ => Kind::Anonymous,
        };
        Ok(facts)
    }

    /// Asks in addition for the alignment that O_DIRECT wants: one system call, for files and
    /// block devices only.
    pub(crate) fn look_up_alignment(&mut self, fd: BorrowedFd<'_>) {
        // tmpfs has no device below it, and nothing to say.
        if self.kind.is_cached() && self.filesystem != TMPFS {
            self.alignment = call::direct_alignment(fd);
        }
    }

    /// Asks in addition whether seals keep the file's bytes as they are: one system call, for
    /// files in memory only.
    pub(crate) fn look_up_seals(&mut self, fd: BorrowedFd<'_>) {
        if self.kind == Kind::File && matches!(self.filesystem, TMPFS | HUGETLBFS) {
            self.sealed = call::is_sealed(fd);
        }
    }

    /// What the descriptor leads to.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The size in bytes when it was looked at: a hint, never a promise. 0 for a block device.
    pub fn size_hint(&self) -> u64 {
        self.size
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// Whether O_NONBLOCK is set.
    pub fn is_nonblocking(&self) -> bool {
        self.flags & libc::O_NONBLOCK != 0
    }

    /// Whether O_APPEND is set.
    pub fn is_append(&self) -> bool {
        self.flags & libc::O_APPEND != 0
    }

    /// Whether O_DIRECT is set on a file or block device. (On a pipe the same bit means packets.)
    pub fn is_direct(&self) -> bool {
        self.kind.is_cached() && self.flags & libc::O_DIRECT != 0
    }

    /// Whether fewer blocks are allocated than the size needs: the file has holes.
    pub(crate) fn looks_sparse(&self) -> bool {
        self.allocated < self.size
    }

    /// Whether `SEEK_DATA` is known to tell the truth about freshly written files here, and a
    /// hole can be made by extending or punching.
    pub(crate) fn has_true_holes(&self) -> bool {
        self.kind == Kind::File && matches!(self.filesystem, EXT | XFS | BTRFS | TMPFS)
    }

    /// Whether allocating blocks ahead of writing is measured to pay on this filesystem.
    pub(crate) fn allocates_ahead(&self) -> bool {
        self.kind == Kind::File && self.filesystem == EXT
    }

    /// Whether both lead to the same file.
    pub(crate) fn is_same_file(&self, other: &Facts) -> bool {
        (self.device, self.inode) == (other.device, other.inode) && self.kind == other.kind
    }

    /// Whether both lie on filesystems of one type, so that a call between them may work. Not
    /// "the same device": subvolumes of one btrfs have a device number each.
    pub(crate) fn is_akin(&self, other: &Facts) -> bool {
        self.filesystem == other.filesystem
    }

    /// Whether this filesystem may be able to share extents; those known not to are not asked.
    pub(crate) fn may_share_extents(&self) -> bool {
        !matches!(
            self.filesystem,
            EXT | TMPFS | F2FS | HUGETLBFS | RAMFS | MSDOS | EXFAT | ISO9660 | SQUASHFS
        )
    }

    /// Whether the filesystem is remote or served by a daemon.
    pub(crate) fn is_remote(&self) -> bool {
        REMOTE.contains(&self.filesystem)
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// The filesystem's block size in bytes.
    pub(crate) fn block_size(&self) -> u64 {
        self.block.max(512)
    }

    /// The alignment in bytes that O_DIRECT wants of memory and of offsets: as statx(2) says, a
    /// page where it is silent.
    pub(crate) fn direct_alignment(&self) -> (usize, usize) {
        self.alignment.map_or((4096, 4096), |(memory, offset)| {
            (memory.max(1) as usize, offset.max(1) as usize)
        })
    }
}

fn socket_kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    if call::socket_option(fd, libc::SO_TYPE)? != libc::SOCK_STREAM {
        return Ok(Kind::Datagram);
    }
    Ok(match call::socket_option(fd, libc::SO_DOMAIN)? {
        libc::AF_INET | libc::AF_INET6 => Kind::Tcp,
        libc::AF_UNIX => Kind::Unix,
        _ => Kind::Stream,
    })
}

impl Facts {
    /// Looks at any descriptor: the same facts that [`Probe`](crate::Probe) starts from, the
    /// alignment for O_DIRECT included.
    ///
    /// # Errors
    /// Those of fstat(2), fcntl(2), fstatfs(2) and getsockopt(2): EBADF for a closed descriptor.
    pub fn new<F: AsFd>(fd: F) -> io::Result<Self> {
        let fd = fd.as_fd();
        let mut facts = Self::of(fd)?;
        facts.look_up_alignment(fd);
        facts.look_up_seals(fd);
        Ok(facts)
    }
}
