//! Bare descriptors of every kind.
// Several kinds (eventfd, pty, memfd_secret) have no safe maker among the dependencies.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::sockopt::{OobInline, Timestamping};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, TimestampingFlag, UnixAddr, bind, listen,
    send, setsockopt, socket, socketpair,
};
use nix::sys::stat::Mode;
use nix::unistd;

/// The answer of a call that makes a descriptor.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        Ok(number @ 0..) => {
            // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

// --- files --------------------------------------------------------------------------------------

/// A nameless file in the directory for temporary files: on a disk, as a rule.
pub fn disk_file() -> File {
    tempfile::tempfile().expect("a temporary file")
}

/// Has the table of descriptors grow to so many at least.
pub fn room_for_descriptors(count: usize) {
    let file = memfd();
    let far = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(count as i32)).expect("below RLIMIT_NOFILE");
    drop(owned(far.into()));
}

/// A nameless file on the tmpfs at /dev/shm.
pub fn shm_file() -> io::Result<File> {
    tempfile::tempfile_in("/dev/shm")
}

pub fn memfd() -> File {
    memfd_create(c"zcio-test", MFdFlags::MFD_CLOEXEC)
        .expect("memfd_create(2)")
        .into()
}

/// A memfd that can neither be written nor change its size any more, at position 0.
pub fn sealed_memfd(content: &[u8]) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"zcio-sealed", flags).expect("memfd_create(2)"));
    file.write_all(content).expect("room in a memfd");
    file.rewind().expect("a memfd seeks");
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("F_ADD_SEALS");
    file
}

/// A memfd of `len` zeros that takes no byte beyond them: EPERM.
pub fn sealed_against_growing(len: u64) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"zcio-sealed", flags).expect("memfd_create(2)"));
    file.set_len(len).expect("a memfd grows");
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).expect("F_ADD_SEALS");
    file
}

/// A file in memory that the kernel itself has no mapping of; not every kernel has it enabled.
pub fn secret_memfd(len: u64) -> io::Result<File> {
    // SAFETY: no pointer is passed.
    let file = File::from(owned(unsafe {
        libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC)
    })?);
    file.set_len(len)?;
    Ok(file)
}

/// The same file by an open file description of its own: own flags, own position.
pub fn reopen(fd: impl AsFd, flags: OFlag) -> io::Result<OwnedFd> {
    let path = format!("/proc/thread-self/fd/{}", fd.as_fd().as_raw_fd());
    Ok(nix::fcntl::open(
        path.as_str(),
        flags | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

pub fn open(path: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let access = flags & libc::O_ACCMODE;
    let mut options = OpenOptions::new();
    options.read(access != libc::O_WRONLY);
    options.write(access != libc::O_RDONLY);
    Ok(options
        .custom_flags(flags & !libc::O_ACCMODE)
        .open(path)?
        .into())
}

/// A file on a filesystem that may share extents, as far as anybody can tell beforehand: overlay,
/// mounted in a user namespace, so without root. It lives as long as its descriptor.
pub fn overlay_file() -> io::Result<File> {
    const MOUNT: &str = "mount -t tmpfs tmpfs \"$0\" && cd \"$0\" && mkdir lower upper work all \
        && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work,userxattr overlay all \
        && echo mounted && read _";
    let dir = tempfile::tempdir()?;
    let mut child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", MOUNT])
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut said = String::new();
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    stdout.read_line(&mut said)?;
    let place = format!("/proc/{}/root{}/all/file", child.id(), dir.path().display());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(place);
    // The end of its standard input ends it; the open file keeps the mount.
    drop(child.stdin.take());
    child.wait()?;
    match said.trim() {
        "mounted" => file,
        _ => Err(io::Error::other("no overlay in a user namespace")),
    }
}

// --- pipes, sockets, terminals: (reading end, writing end) where they differ ----------------------

pub fn pipe() -> (OwnedFd, OwnedFd) {
    unistd::pipe2(OFlag::O_CLOEXEC).expect("pipe2(2)")
}

/// Both ends of a named pipe, whose name is gone already.
pub fn fifo() -> (OwnedFd, OwnedFd) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("fifo");
    unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("mkfifo(3)");
    let path = path.to_str().expect("a plain path");
    // A reader that would wait for its writer does not with O_NONBLOCK.
    let reader = open(path, libc::O_RDONLY | libc::O_NONBLOCK).expect("the reading end");
    let writer = open(path, libc::O_WRONLY).expect("the writing end");
    set_nonblocking(&reader, false);
    (reader, writer)
}

/// Two ends of one connection on loopback.
pub fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port on loopback");
    let one = TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
    let (other, _) = listener.accept().expect("the connection made above");
    (one, other)
}

/// The same, with something on the first one's error queue: the transmit time stamp of a byte that has
/// come and gone. Nobody ever reads it. An error says why it cannot be had here.
pub fn tcp_with_error_queue() -> io::Result<(TcpStream, TcpStream)> {
    let (mut one, mut other) = tcp();
    let stamps = TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE;
    setsockopt(&one, Timestamping, &stamps)?;
    one.write_all(&[0])?;
    other.read_exact(&mut [0])?;
    setsockopt(&one, Timestamping, &TimestampingFlag::empty())?;
    let mut fds = [PollFd::new(one.as_fd(), PollFlags::empty())];
    // It is there before the byte is; of a kernel that makes none, it never will be.
    match poll(&mut fds, PollTimeout::from(1000_u16))? {
        0 => Err(io::Error::other("no transmit time stamp has come")),
        _ => Ok((one, other)),
    }
}

/// Sends one byte of urgent data.
pub fn send_urgent(fd: impl AsFd, byte: u8) -> io::Result<()> {
    send(fd.as_fd().as_raw_fd(), &[byte], MsgFlags::MSG_OOB)?;
    Ok(())
}

/// Has urgent data come in their place among the others.
pub fn set_urgent_inline(fd: impl AsFd) {
    setsockopt(&fd, OobInline, &true).expect("SO_OOBINLINE");
}

pub fn tcp_listener() -> OwnedFd {
    let listener = TcpListener::bind(("127.0.0.1", 0));
    listener.expect("a port on loopback").into()
}

pub fn unix_listener() -> OwnedFd {
    let listener = unconnected(AddressFamily::Unix).expect("a UNIX socket");
    // The kernel finds a name for it.
    bind(listener.as_raw_fd(), &UnixAddr::new_unnamed()).expect("bind(2)");
    listen(&listener, Backlog::new(1).expect("a small number")).expect("listen(2)");
    listener
}

/// A stream socket that is connected to nothing. An error says why there is none of that family.
pub fn unconnected(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

pub fn unix() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("socketpair(2)")
}

pub fn unix_datagram() -> (UnixDatagram, UnixDatagram) {
    UnixDatagram::pair().expect("socketpair(2)")
}

pub fn seqpacket() -> (OwnedFd, OwnedFd) {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).expect("socketpair(2)")
}

/// Two UDP sockets on loopback, connected to one another.
pub fn udp() -> (UdpSocket, UdpSocket) {
    let one = UdpSocket::bind(("127.0.0.1", 0)).expect("a port on loopback");
    let other = UdpSocket::bind(("127.0.0.1", 0)).expect("a port on loopback");
    one.connect(other.local_addr().expect("bound"))
        .expect("loopback");
    other
        .connect(one.local_addr().expect("bound"))
        .expect("loopback");
    (one, other)
}

/// A pseudo-terminal that passes bytes as they are: (master, slave).
pub fn pty() -> io::Result<(OwnedFd, OwnedFd)> {
    let master = open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY)?;
    let mut number: libc::c_int = 0;
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    let unlock = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) };
    // SAFETY: TIOCGPTN writes one int.
    let ask = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) };
    if unlock != 0 || ask != 0 {
        return Err(io::Error::last_os_error());
    }
    let slave = open(&format!("/dev/pts/{number}"), libc::O_RDWR | libc::O_NOCTTY)?;
    // SAFETY: a termios is plain integers, for which zero is a value.
    let mut raw: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `raw` has room for one termios.
    let got = unsafe { libc::tcgetattr(slave.as_raw_fd(), &raw mut raw) };
    // SAFETY: as above.
    unsafe { libc::cfmakeraw(&raw mut raw) };
    // SAFETY: as above, only read.
    let set = unsafe { libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &raw const raw) };
    if got != 0 || set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((master, slave))
}

// --- what no bytes flow through -------------------------------------------------------------------

pub fn eventfd() -> OwnedFd {
    // SAFETY: no pointer is passed.
    owned(unsafe { libc::eventfd(1, libc::EFD_CLOEXEC) }.into()).expect("eventfd(2)")
}

pub fn timerfd() -> OwnedFd {
    // SAFETY: no pointer is passed.
    let result = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) };
    owned(result.into()).expect("timerfd_create(2)")
}

pub fn epoll() -> OwnedFd {
    // SAFETY: no pointer is passed.
    owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }.into()).expect("epoll_create1(2)")
}

pub fn inotify() -> OwnedFd {
    // SAFETY: no pointer is passed.
    owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) }.into()).expect("inotify_init1(2)")
}

pub fn directory() -> OwnedFd {
    File::open("/").expect("the root directory").into()
}

/// A regular file, opened as a place only.
pub fn o_path() -> OwnedFd {
    let file = disk_file();
    reopen(&file, OFlag::O_PATH).expect("O_PATH")
}

// --- block devices --------------------------------------------------------------------------------

/// A loop device over `backing`, which goes away with its last descriptor. Needs root.
pub fn loop_device(backing: &File) -> io::Result<File> {
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    loop_device_with(backing, LO_FLAGS_AUTOCLEAR)
}

/// The same, which may have partitions.
pub fn loop_device_with_partitions(backing: &File) -> io::Result<File> {
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    const LO_FLAGS_PARTSCAN: u32 = 8;
    loop_device_with(backing, LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN)
}

fn loop_device_with(backing: &File, flags: u32) -> io::Result<File> {
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
    const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
    /// `struct loop_config`, whose `struct loop_info64` is all zero but for its flags.
    #[repr(C)]
    struct Config {
        fd: u32,
        block_size: u32,
        info: [u32; 58],
        reserved: [u64; 8],
    }
    let control = open("/dev/loop-control", libc::O_RDWR)?;
    for _ in 0..16 {
        // SAFETY: no pointer is passed.
        let free = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
        if free < 0 {
            return Err(io::Error::last_os_error());
        }
        let device = open(&format!("/dev/loop{free}"), libc::O_RDWR)?;
        let mut config = Config {
            fd: backing.as_raw_fd().unsigned_abs(),
            block_size: 0,
            info: [0; 58],
            reserved: [0; 8],
        };
        // Behind five u64 and three u32.
        config.info[13] = flags;
        // SAFETY: LOOP_CONFIGURE reads one `loop_config`, which `config` has the layout of.
        let set =
            unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
        if set == 0 {
            return Ok(device.into());
        }
        let error = io::Error::last_os_error();
        // Somebody else took this one in between.
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

// --- filesystems ----------------------------------------------------------------------------------

/// The filesystem's magic number.
fn magic(file: impl AsFd) -> i64 {
    let fs = nix::sys::statfs::fstatfs(file).expect("fstatfs(2)");
    // Its type differs from one C library to the next.
    #[allow(clippy::unnecessary_cast)]
    let magic = fs.filesystem_type().0 as i64;
    magic
}

/// Whether files on this filesystem may share extents: XFS, Btrfs, and overlay, which may lie above
/// one of these.
pub fn may_share_extents(file: impl AsFd) -> bool {
    matches!(magic(file), 0x5846_5342 | 0x9123_683e | 0x794c_7630)
}

pub fn is_tmpfs(file: impl AsFd) -> bool {
    magic(file) == 0x0102_1994
}

// --- flags ----------------------------------------------------------------------------------------

pub fn flags(fd: impl AsFd) -> OFlag {
    OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).expect("F_GETFL"))
}

pub fn set_flags(fd: impl AsFd, flags: OFlag) {
    fcntl(fd, FcntlArg::F_SETFL(flags)).expect("F_SETFL");
}

pub fn set_nonblocking(fd: impl AsFd, on: bool) {
    let mut new = flags(fd.as_fd());
    new.set(OFlag::O_NONBLOCK, on);
    set_flags(fd, new);
}

/// What a pipe holds at most; `None` for what is not a pipe.
pub fn pipe_size(fd: impl AsFd) -> Option<i32> {
    fcntl(fd, FcntlArg::F_GETPIPE_SZ).ok()
}

/// Sets a file's own position.
pub fn seek(fd: impl AsFd, to: u64) {
    let to = i64::try_from(to).expect("an offset");
    unistd::lseek64(fd, to, unistd::Whence::SeekSet).expect("lseek(2)");
}
