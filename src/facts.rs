//! What the kernel says of one descriptor: F_GETFL, and then what its flags suggest to ask, a socket
//! option, F_GETPIPE_SZ or statx(2); fstatfs(2) where that matters. No I/O, and nothing
//! changes on the descriptor.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::{call, errno};

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
    /// Its magic number; `None` while nobody has asked. Then it is taken for one of which nothing
    /// is known.
    filesystem: Option<i64>,
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
const OVERLAY: i64 = 0x794c_7630;
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

/// Whether this is a filesystem of this kernel alone, which decides itself how long a file is.
const fn is_local(filesystem: i64) -> bool {
    matches!(
        filesystem,
        EXT | XFS | BTRFS | TMPFS | F2FS | HUGETLBFS | RAMFS | MSDOS | EXFAT | ISO9660 | SQUASHFS
    )
}

impl Facts {
    /// Looks at a descriptor: two system calls, three for a UNIX socket, four for any other that is not
    /// TCP's. Of a regular file it is not asked here what filesystem it lies on: see
    /// [`complete`](Self::complete).
    pub(crate) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = call::status_flags(fd)?;
        let mut facts = Self {
            kind: Kind::Anonymous,
            flags,
            size: 0,
            allocated: 0,
            device: 0,
            inode: 0,
            filesystem: None,
            block: 0,
            sealed: false,
            alignment: None,
        };
        // Of what has no name, statx(2) tells nothing that is needed and not told for less.
        if let Some(kind) = nameless(fd, flags) {
            facts.kind = kind;
            return Ok(facts);
        }
        let stat = call::stat(fd)?;
        (facts.size, facts.allocated) = (stat.size, stat.allocated);
        (facts.device, facts.inode) = (stat.device, stat.inode);
        facts.block = stat.block;
        facts.kind = match stat.mode & libc::S_IFMT {
            _ if flags & libc::O_PATH != 0 => Kind::Path,
            libc::S_IFREG => Kind::File,
            libc::S_IFBLK => Kind::BlockDevice,
            libc::S_IFCHR => Kind::CharDevice,
            libc::S_IFIFO => Kind::Pipe,
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFSOCK => socket_kind(fd)?,
            _ => Kind::Anonymous,
        };
        if facts.kind == Kind::BlockDevice {
            // Its node is one of many.
            (facts.device, facts.inode) = (stat.itself, 0);
        }
        Ok(facts)
    }

    /// Asks what filesystem a regular file lies on, unless that is known: one system call. On some,
    /// its bytes turn out to be made when it is read.
    pub(crate) fn look_up_filesystem(&mut self, fd: BorrowedFd<'_>) {
        if self.kind != Kind::File || self.filesystem.is_some() {
            return;
        }
        // Where a seccomp profile forbids to ask, it is one that nobody knows.
        let known = call::fstatfs(fd).unwrap_or((0, self.block));
        self.is_on(known);
    }

    /// The same, where it matters only now whether its size is its own.
    pub(crate) fn look_up_doubtful(&mut self, fd: BorrowedFd<'_>) {
        if !self.has_own_size() {
            self.look_up_filesystem(fd);
        }
    }

    fn is_on(&mut self, (filesystem, block): (i64, u64)) {
        (self.filesystem, self.block) = (Some(filesystem), block);
        if GENERATED.contains(&filesystem) {
            self.kind = Kind::Generated;
        }
    }

    /// Looks up the filesystems of a pair, as far as it matters on which ones they lie: at most
    /// one system call a side, one for both where they lie on the same.
    pub(crate) fn complete(
        (src, from): (BorrowedFd<'_>, &mut Facts),
        (dst, to): (BorrowedFd<'_>, &mut Facts),
    ) {
        to.look_up_filesystem(dst);
        if from.kind != Kind::File || from.filesystem.is_some() {
            return;
        }
        match to.filesystem {
            Some(known) if from.device == to.device => from.is_on((known, to.block)),
            // Towards a stream all filesystems are alike but those that make their files' bytes;
            // and what has blocks, these have not made.
            None if from.allocated > 0 => {}
            _ => from.look_up_filesystem(src),
        }
    }

    /// Asks in addition for the alignment that O_DIRECT wants: one system call, for files and
    /// block devices only.
    pub(crate) fn look_up_alignment(&mut self, fd: BorrowedFd<'_>) {
        // tmpfs has no device below it, and nothing to say.
        if self.kind.is_cached() && self.filesystem != Some(TMPFS) {
            self.alignment = call::direct_alignment(fd);
        }
    }

    /// Asks in addition whether seals keep the file's bytes as they are: one system call, for
    /// files in memory only.
    pub(crate) fn look_up_seals(&mut self, fd: BorrowedFd<'_>) {
        let in_memory = matches!(self.filesystem, None | Some(TMPFS | HUGETLBFS));
        if self.kind == Kind::File && in_memory {
            self.sealed = call::is_sealed(fd);
        }
    }

    /// What the descriptor leads to.
    #[inline]
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
    #[inline]
    pub fn is_nonblocking(&self) -> bool {
        self.flags & libc::O_NONBLOCK != 0
    }

    /// Whether O_APPEND is set.
    #[inline]
    pub fn is_append(&self) -> bool {
        self.flags & libc::O_APPEND != 0
    }

    /// Whether O_DIRECT is set on a file or block device. (On a pipe the same bit means packets.)
    #[inline]
    pub fn is_direct(&self) -> bool {
        self.kind.is_cached() && self.flags & libc::O_DIRECT != 0
    }

    /// Whether fewer blocks are allocated than the size needs: the file has holes.
    pub(crate) fn looks_sparse(&self) -> bool {
        self.allocated < self.size
    }

    /// Whether `SEEK_DATA` is known to tell the truth about freshly written files here, and what
    /// lies beyond the size that is told is a hole. (Overlay asks the filesystem below, which is one
    /// of the others as a rule.)
    pub(crate) fn has_true_holes(&self) -> bool {
        let known = matches!(self.filesystem, Some(EXT | XFS | BTRFS | TMPFS | OVERLAY));
        self.kind == Kind::File && known
    }

    /// Whether allocating blocks ahead of writing is measured to pay on this filesystem.
    pub(crate) fn allocates_ahead(&self) -> bool {
        self.kind == Kind::File && self.filesystem == Some(EXT)
    }

    /// Whether its size is the filesystem's own: then a call that finds no more bytes has found the end.
    /// Behind a network or a daemon the size may be stale or made up, and only read(2) tells. Where
    /// nobody has asked for the filesystem, one without a device of its own may be such.
    pub(crate) fn has_own_size(&self) -> bool {
        match (self.kind, self.filesystem) {
            (Kind::BlockDevice, _) => true,
            (Kind::File, Some(filesystem)) => is_local(filesystem),
            (Kind::File, None) => libc::major(self.device) != 0,
            _ => false,
        }
    }

    /// Where both lead to the same file or the same disk: at which byte of that each begins. A file and
    /// a whole disk begin at 0, a partition where it lies. (Of what stands on a disk by a detour, a
    /// loop device or a volume, that is not known.)
    pub(crate) fn in_common(&self, other: &Facts) -> Option<(u64, u64)> {
        match (self.kind, other.kind) {
            (Kind::File, Kind::File) => {
                let same = (self.device, self.inode) == (other.device, other.inode);
                same.then_some((0, 0))
            }
            (Kind::BlockDevice, Kind::BlockDevice) => {
                let place = |device| call::partition(device).unwrap_or((device, 0));
                let ((one, from), (other, to)) = (place(self.device), place(other.device));
                (one == other).then_some((from, to))
            }
            _ => None,
        }
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
            Some(EXT | TMPFS | F2FS | HUGETLBFS | RAMFS | MSDOS | EXFAT | ISO9660 | SQUASHFS)
        )
    }

    /// Whether the filesystem is remote or served by a daemon.
    pub(crate) fn is_remote(&self) -> bool {
        self.filesystem
            .is_some_and(|filesystem| REMOTE.contains(&filesystem))
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

/// The mark of a file that may be larger than 2 GiB, which the kernel sets on all that a process of
/// 64 bits opens; 0 where its value is not known here. (libc has it as 0 everywhere, for open(2).)
const LARGE: i32 = if cfg!(any(target_arch = "x86_64", target_arch = "riscv64")) {
    0o100_000
} else if cfg!(target_arch = "aarch64") {
    0o400_000
} else {
    0
};

/// The kind of a descriptor whose flags look like those of a socket or a pipe: without the mark of
/// what was opened by its name. A few others look alike, and get `None` as everything else does.
fn nameless(fd: BorrowedFd<'_>, flags: i32) -> Option<Kind> {
    if LARGE == 0 || flags & (LARGE | libc::O_PATH) != 0 {
        return None;
    }
    if flags & libc::O_ACCMODE != libc::O_RDWR {
        return call::pipe_size(fd).ok().map(|_| Kind::Pipe);
    }
    // Only TCP has TCP's options, and SMC, which stands on it: one question for the most frequent
    // kind.
    let Err(error) = call::has_tcp_options(fd) else {
        return Some(Kind::Tcp);
    };
    match error.raw_os_error() {
        Some(libc::ENOTSOCK) => None,
        // No protocol below the socket has options: of streams, these are UNIX's (and CAIF's, of
        // modems). Other families know the level, or know that they do not: ENOPROTOOPT.
        Some(libc::EOPNOTSUPP) => match call::socket_option(fd, libc::SO_TYPE).ok()? {
            libc::SOCK_STREAM => Some(Kind::Unix),
            _ => Some(Kind::Datagram),
        },
        _ => socket_kind(fd).ok(),
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
    /// Those of statx(2), fcntl(2), fstatfs(2) and getsockopt(2): EBADF for a closed descriptor.
    pub fn new<F: AsFd>(fd: F) -> io::Result<Self> {
        let fd = fd.as_fd();
        let mut facts = Self::of(fd).map_err(errno::told)?;
        facts.look_up_filesystem(fd);
        facts.look_up_alignment(fd);
        facts.look_up_seals(fd);
        Ok(facts)
    }
}
