//! What 4 KiB cost: the bare calls, a one-shot `transfer`, the calls by which that looks at the
//! descriptors made bare, and an advance of a transfer that is reused (`extend`), on five pairs; and
//! 100,000 files of 4 KiB through one `Sending`.
//!
//! All are interleaved in pieces of a few calls; the other end is emptied in between, by the
//! same thread, and not counted. CPU time of the thread; the median over the rounds and its 95 %
//! interval. Bare is the better of sendfile(2) and read(2) with write(2), for each pair.
//! `cargo bench --bench small`; `-- --test` runs one short round.

// statx(2) is nowhere to be had without.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::sendfile::sendfile64;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{self, Pid};
use zcio::{Message, Status, Transfer, TransferOptions};

const LEN: usize = 4096;
/// Transfers between two looks at the clock: what a pipe and every socket buffer has room for.
const PIECE: usize = 8;

fn cpu_us() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    now.tv_sec() as f64 * 1e6 + now.tv_nsec() as f64 / 1e3
}

/// How a transfer finds out what a descriptor is.
#[derive(Clone, Copy)]
enum Looks {
    File,
    Pipe,
    Tcp,
    Unix,
}

/// Makes the calls that look at one side.
fn look(fd: BorrowedFd<'_>, looks: Looks) {
    let fd = fd.as_raw_fd();
    let option = |level, name| {
        let (mut value, mut len) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        let to: *mut libc::c_int = &raw mut value;
        // SAFETY: `value` is one int, and both outlive the call.
        unsafe { libc::getsockopt(fd, level, name, to.cast(), &raw mut len) };
    };
    // SAFETY: no memory is involved.
    unsafe { libc::fcntl(fd, libc::F_GETFL) };
    match looks {
        Looks::File => {
            let mask = libc::STATX_TYPE
                | libc::STATX_MODE
                | libc::STATX_SIZE
                | libc::STATX_BLOCKS
                | libc::STATX_INO;
            let mut stat = MaybeUninit::<libc::statx>::uninit();
            let (path, to) = (c"".as_ptr(), stat.as_mut_ptr());
            // SAFETY: the path is a C string, and `stat` has room for one.
            unsafe { libc::statx(fd, path, libc::AT_EMPTY_PATH, mask, to) };
        }
        // SAFETY: no memory is involved.
        Looks::Pipe => drop(unsafe { libc::fcntl(fd, libc::F_GETPIPE_SZ) }),
        Looks::Tcp => option(libc::IPPROTO_TCP, libc::TCP_NODELAY),
        Looks::Unix => {
            option(libc::IPPROTO_TCP, libc::TCP_NODELAY);
            option(libc::SOL_SOCKET, libc::SO_TYPE);
        }
    }
}

/// Makes the calls that look at a pair.
fn look_at(src: &End, dst: &End) {
    look(src.fd(), src.looks());
    look(dst.fd(), dst.looks());
    match (src.looks(), dst.looks()) {
        (_, Looks::File) => {
            let mut stat = MaybeUninit::<libc::statfs>::uninit();
            // SAFETY: `stat` has room for one.
            unsafe { libc::fstatfs(dst.fd().as_raw_fd(), stat.as_mut_ptr()) };
        }
        (Looks::File, _) => {
            let mut old = MaybeUninit::<libc::sigaction>::uninit();
            // SAFETY: a null new action only asks; `old` has room for the answer.
            unsafe { libc::sigaction(libc::SIGPIPE, ptr::null(), old.as_mut_ptr()) };
        }
        // What is sent by send(2) raises nothing.
        _ => {}
    }
}

/// One side, with what is needed to fill or empty it.
enum End {
    File(File),
    Stream {
        near: OwnedFd,
        far: File,
        looks: Looks,
    },
}

impl End {
    fn stream(looks: Looks, near: impl Into<OwnedFd>, far: impl Into<OwnedFd>) -> Self {
        let (near, far) = (near.into(), File::from(far.into()));
        End::Stream { near, far, looks }
    }

    fn looks(&self) -> Looks {
        match self {
            End::File(_) => Looks::File,
            End::Stream { looks, .. } => *looks,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            End::File(file) => file.as_fd(),
            End::Stream { near, .. } => near.as_fd(),
        }
    }

    /// Has a piece ready to be taken.
    fn fill(&mut self) {
        match self {
            End::File(file) => file.rewind().unwrap(),
            End::Stream { far, .. } => far.write_all(&[0x5a; PIECE * LEN]).unwrap(),
        }
    }

    /// Takes a piece away.
    fn empty(&mut self) {
        match self {
            End::File(file) => file.rewind().unwrap(),
            End::Stream { far, .. } => far.read_exact(&mut [0; PIECE * LEN]).unwrap(),
        }
    }
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn file() -> End {
    let mut file = tempfile::tempfile().unwrap();
    // Long enough for its end not to be met.
    file.write_all(&vec![0x5a; 1 << 20]).unwrap();
    file.sync_all().unwrap();
    End::File(file)
}

fn pairs() -> [(&'static str, End, End); 5] {
    let to_tcp = || {
        let (near, far) = tcp();
        End::stream(Looks::Tcp, near, far)
    };
    let (unix, taker) = UnixStream::pair().unwrap();
    let (reader, writer) = unistd::pipe().unwrap();
    [
        ("file to TCP", file(), to_tcp()),
        (
            "file to UNIX",
            file(),
            End::stream(Looks::Unix, unix, taker),
        ),
        (
            "file to pipe",
            file(),
            End::stream(Looks::Pipe, writer, reader),
        ),
        ("file to file", file(), file()),
        ("TCP to TCP", to_tcp(), to_tcp()),
    ]
}

/// CPU time of so many calls of `work`, in microseconds; with `looked`, after those that look.
fn cost(
    src: &mut End,
    dst: &mut End,
    looked: bool,
    mut work: impl FnMut(BorrowedFd<'_>, BorrowedFd<'_>),
) -> f64 {
    src.fill();
    let before = cpu_us();
    for _ in 0..PIECE {
        if looked {
            look_at(src, dst);
        }
        work(src.fd(), dst.fd());
    }
    let used = cpu_us() - before;
    dst.empty();
    used
}

fn by_sendfile(src: BorrowedFd<'_>, dst: BorrowedFd<'_>) {
    assert_eq!(sendfile64(dst, src, None, LEN), Ok(LEN));
}

fn by_read_write(buf: &mut [u8], src: BorrowedFd<'_>, dst: BorrowedFd<'_>) {
    assert_eq!(unistd::read(src, buf), Ok(LEN));
    assert_eq!(unistd::write(dst, buf), Ok(LEN));
}

fn once(src: BorrowedFd<'_>, dst: BorrowedFd<'_>) {
    assert_eq!(
        zcio::transfer(src, dst, LEN as u64).unwrap().bytes,
        LEN as u64
    );
}

fn again(transfer: &mut Transfer<BorrowedFd<'_>, BorrowedFd<'_>>) {
    transfer.extend(LEN as u64);
    let status = transfer.advance().unwrap();
    assert!(
        matches!(status, Status::Moved(n) if n.get() == LEN),
        "{status:?}"
    );
}

/// The five ways, each in turn: CPU time per transfer of sendfile, of read and write, of the cheaper
/// one after the looks, of a one-shot and of a reused transfer.
fn round(src: &mut End, dst: &mut End, pieces: usize) -> [f64; 5] {
    let (mut used, mut buf) = ([0.0; 5], vec![0; LEN]);
    let stream = matches!(src, End::Stream { .. });
    // Both outlive the transfer: descriptors of their own for the same ends.
    let (from, to) = (
        src.fd().try_clone_to_owned().unwrap(),
        dst.fd().try_clone_to_owned().unwrap(),
    );
    let mut reused = TransferOptions::new()
        .start(from.as_fd(), to.as_fd(), 0)
        .unwrap();
    cost(src, dst, false, |_, _| again(&mut reused));
    for piece in 0..pieces {
        for way in 0..5 {
            let way = (way + piece) % 5;
            used[way] += match way {
                0 if stream => f64::INFINITY,
                0 => cost(src, dst, false, by_sendfile),
                1 => cost(src, dst, false, |s, d| by_read_write(&mut buf, s, d)),
                2 if stream => cost(src, dst, true, |s, d| by_read_write(&mut buf, s, d)),
                2 => cost(src, dst, true, by_sendfile),
                3 => cost(src, dst, false, once),
                _ => cost(src, dst, false, |_, _| again(&mut reused)),
            };
        }
    }
    assert_eq!(reused.delivered() as usize, (pieces + 1) * PIECE * LEN);
    used.map(|us| us / (pieces * PIECE) as f64)
}

/// The median, and the interval that holds it in 95 of 100 cases (order statistics).
fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let (middle, last) = (values.len() / 2, values.len() - 1);
    let half = (0.98 * (values.len() as f64).sqrt()).ceil() as usize;
    let (low, high) = (middle.saturating_sub(half), (middle + half).min(last));
    (values[middle], values[low], values[high])
}

fn print(what: &str, unit: &str, values: Vec<f64>) {
    let (median, low, high) = median(values);
    println!("  {what:<28} {median:>7.3} [{low:.3}, {high:.3}] {unit}");
}

fn ways(rounds: usize, pieces: usize) {
    for (name, mut src, mut dst) in pairs() {
        round(&mut src, &mut dst, pieces);
        let all: Vec<[f64; 5]> = (0..rounds)
            .map(|_| round(&mut src, &mut dst, pieces))
            .collect();
        let column = |way: usize| all.iter().map(|used| used[way]).collect::<Vec<f64>>();
        let bare = usize::from(median(column(1)).0 < median(column(0)).0);
        let against = |of: fn(f64, f64) -> f64, way: usize| {
            let pairs = all.iter().map(|used| of(used[way], used[bare]));
            pairs.collect::<Vec<f64>>()
        };
        println!("{name}, 4 KiB, {rounds} rounds of {} each", pieces * PIECE);
        print(
            ["bare: sendfile", "bare: read and write"][bare],
            "us",
            column(bare),
        );
        print("bare after looks - bare", "us", against(|a, b| a - b, 2));
        print("one-shot", "us", column(3));
        print("one-shot - bare", "us", against(|a, b| a - b, 3));
        print("reused", "us", column(4));
        print("reused / bare", "x", against(|a, b| a / b, 4));
    }
}

/// Opens each of `count` files, sends it and closes it: by read and write, and by one `Sending`.
fn files(count: usize, rounds: usize) -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = |i: usize| dir.path().join(i.to_string());
    for i in 0..count {
        fs::write(path(i), [0x5a; LEN])?;
    }
    let (near, mut far) = tcp();
    // Else one file in some thousand waits for the answer to the one before, for 40 ms.
    near.set_nodelay(true)?;
    let (mut ratios, mut costs) = (Vec::new(), [Vec::new(), Vec::new()]);
    let mut sending = Message::new().start(&near).unwrap();
    for _ in 0..rounds {
        let (mut used, mut buf) = ([0.0; 2], vec![0; LEN]);
        for from in (0..count).step_by(PIECE) {
            let piece = from..(from + PIECE).min(count);
            for way in 0..2 {
                let way = (way + from / PIECE) % 2;
                let before = cpu_us();
                for i in piece.clone() {
                    let file = File::open(path(i))?;
                    if way == 0 {
                        by_read_write(&mut buf, file.as_fd(), near.as_fd());
                    } else {
                        sending.extend(&Message::new().file(file, 0..LEN as u64));
                        sending.finish().unwrap();
                    }
                }
                used[way] += cpu_us() - before;
                far.read_exact(&mut vec![0; piece.len() * LEN])?;
            }
        }
        ratios.push(used[1] / used[0]);
        for (all, us) in costs.iter_mut().zip(used) {
            all.push(us / count as f64);
        }
    }
    assert_eq!(sending.delivered() as usize, rounds * count * LEN);
    let [bare, ours] = costs;
    println!("{count} files of 4 KiB to TCP, opened, sent and closed, {rounds} rounds");
    print("bare: read and write", "us", bare);
    print("one Sending", "us", ours);
    print("Sending / bare", "x", ratios);
    Ok(())
}

fn main() -> io::Result<()> {
    let short = std::env::args().any(|arg| arg == "--test");
    let mut set = CpuSet::new();
    let _ = set.set(0);
    // Where that is not allowed, the rounds scatter more.
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
    let (rounds, pieces) = if short { (1, 4) } else { (51, 100) };
    ways(rounds, pieces);
    files(if short { 100 } else { 100_000 }, if short { 1 } else { 5 })
}
