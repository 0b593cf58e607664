//! What fails beside the calls that move bytes: lseek(2), statx(2) and poll(2). A byte is neither
//! lost nor blamed on the wrong side for that.
// The calls are put in front of libc's, which the linker prefers.
#![allow(unsafe_code)]

mod common;

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint};
use std::fs::File;
use std::io::{Read, Seek};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::thread::{self, JoinHandle};

use common::{Data, make};
use nix::errno::Errno;
use zcio::{Backend, End, Side, Status, TransferOptions, fan_out};

thread_local! {
    /// How many of this thread's calls fail from now on, and by what.
    static SEEKS_BACK: Cell<u32> = const { Cell::new(0) };
    /// Which of this thread's next seeks fails, of whatever kind; 0 for none.
    static SEEK: Cell<u32> = const { Cell::new(0) };
    static LOOKS: Cell<u32> = const { Cell::new(0) };
    static POLLS: Cell<u32> = const { Cell::new(0) };
    static WRITE_BACKS: Cell<u32> = const { Cell::new(0) };
}

fn fails(left: &'static thread::LocalKey<Cell<u32>>, errno: Errno) -> bool {
    let some = left.get() > 0;
    if some {
        left.set(left.get() - 1);
        errno.set();
    }
    some
}

#[unsafe(no_mangle)]
extern "C" fn lseek64(fd: c_int, offset: i64, whence: c_int) -> i64 {
    if offset < 0 && fails(&SEEKS_BACK, Errno::EIO) {
        return -1;
    }
    let nth = SEEK.get();
    SEEK.set(nth.saturating_sub(1));
    if nth == 1 {
        Errno::EPERM.set();
        return -1;
    }
    // SAFETY: lseek(2) touches no memory.
    unsafe { libc::syscall(libc::SYS_lseek, fd, offset, whence) }
}

#[unsafe(no_mangle)]
extern "C" fn statx(
    fd: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    stat: *mut libc::statx,
) -> c_int {
    if fails(&LOOKS, Errno::ESTALE) {
        return -1;
    }
    // SAFETY: the caller's `stat` has room for one, and the path is a C string.
    unsafe { libc::syscall(libc::SYS_statx, fd, path, flags, mask, stat) as c_int }
}

#[unsafe(no_mangle)]
extern "C" fn poll(fds: *mut libc::pollfd, count: libc::nfds_t, limit: c_int) -> c_int {
    if fails(&POLLS, Errno::EINVAL) {
        return -1;
    }
    let time = libc::timespec {
        tv_sec: (limit / 1000).into(),
        tv_nsec: (limit % 1000 * 1_000_000).into(),
    };
    let time = if limit < 0 {
        ptr::null()
    } else {
        &raw const time
    };
    // SAFETY: the caller's `fds` are `count` many; the time outlives the call, the mask is none.
    unsafe { libc::ppoll(fds, count, time, ptr::null()) }
}

#[unsafe(no_mangle)]
extern "C" fn sync_file_range(fd: c_int, offset: i64, len: i64, flags: u32) -> c_int {
    if fails(&WRITE_BACKS, Errno::EIO) {
        return -1;
    }
    // SAFETY: sync_file_range(2) touches no memory.
    unsafe { libc::syscall(libc::SYS_sync_file_range, fd, offset, len, flags) as c_int }
}

const LEN: usize = (3 << 20) + 77;

/// What cannot be written back is told to whoever waits for that, and not to fsync(2) after him: so
/// it is the transfer's error.
#[test]
fn what_cannot_be_written_back_is_said() {
    let long = make::disk_file();
    for at in 0..7 {
        let piece = Data::new(1).bytes(at * LEN as u64, LEN);
        long.write_all_at(&piece, at * LEN as u64).unwrap();
    }
    let mut options = TransferOptions::new();
    options
        .cache(zcio::Cache::DropBehind)
        .backend(Backend::Splice)
        .src_offset(0);
    // In the midst of it, and at its end.
    for (len, least) in [(7 * LEN as u64, 8 << 20), (1 << 20, 1 << 20)] {
        let dst = make::disk_file();
        WRITE_BACKS.set(1);
        let result = options.transfer(&long, &dst, len);
        assert_eq!(WRITE_BACKS.replace(0), 0, "it was written back");
        let error = result.unwrap_err();
        assert_eq!(error.side(), Some(Side::Destination), "{error}");
        assert_eq!(error.io_error().unwrap().raw_os_error(), Some(libc::EIO));
        assert!(
            error.delivered() >= least && error.delivered() <= len,
            "{error}"
        );
        assert_eq!(dst.metadata().unwrap().len(), error.delivered());
    }
    // An unaligned tail of O_DIRECT goes through the page cache, and is written back at once.
    let dst = make::disk_file();
    options.cache(zcio::Cache::Bypass).backend(Backend::Direct);
    WRITE_BACKS.set(1);
    let result = options.transfer(&long, &dst, LEN as u64);
    if WRITE_BACKS.replace(0) == 1 {
        return common::skipped("O_DIRECT", "nothing was written back");
    }
    let error = result.unwrap_err();
    assert_eq!(error.side(), Some(Side::Destination), "{error}");
    assert!(error.delivered() < LEN as u64, "{error}");
}

fn file() -> File {
    let file = make::disk_file();
    file.write_all_at(&Data::new(1).bytes(0, LEN), 0).unwrap();
    file
}

/// A non-blocking socket, and a peer that takes everything.
fn slow_peer() -> (UnixStream, JoinHandle<Vec<u8>>) {
    let (near, mut far) = make::unix();
    near.set_nonblocking(true).unwrap();
    let peer = thread::spawn(move || {
        let mut all = Vec::new();
        far.read_to_end(&mut all).unwrap();
        all
    });
    (near, peer)
}

#[test]
fn what_does_not_go_back_to_its_source_goes_on() {
    let mut held = false;
    for stop_at in 1..=12 {
        let mut src = file();
        let (near, peer) = slow_peer();
        let mut pieces = 0;
        let mut delivered = 0;
        let report = TransferOptions::new()
            .backend(Backend::ReadWrite)
            .transfer_with(&src, &near, u64::MAX, |progress| {
                (pieces, delivered) = (pieces + 1, progress.delivered);
                SEEKS_BACK.set(1);
                if pieces == stop_at {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .unwrap();
        // Tried, and refused: so something was in flight.
        held |= SEEKS_BACK.replace(0) == 0;
        drop(near);
        let got = peer.join().unwrap();
        assert!(report.end == End::Stopped && report.bytes >= delivered);
        assert_eq!(report.bytes, got.len() as u64);
        assert_eq!(src.stream_position().unwrap(), report.bytes, "{stop_at}");
        assert_eq!(Data::new(1).check(0, &got), Ok(()));
    }
    assert!(held, "nothing was in flight at any stop");
}

/// A seccomp profile may refuse any lseek(2). At their own positions, a map of holes is made of these:
/// where one fails, the bytes are the right ones up to the count, and both sides stand there; and
/// when it goes on, nothing is left out.
#[test]
fn a_seek_that_fails_among_holes_puts_no_byte_out_of_place() {
    const PIECE: u64 = 1 << 20;
    // Data, a hole, data, two holes, data, and a hole at the end.
    let mut wanted = vec![0; 7 * PIECE as usize];
    let data = [0, 2, 5].map(|at| (at * PIECE, Data::new(at).bytes(0, PIECE as usize)));
    for (at, piece) in &data {
        wanted[*at as usize..][..piece.len()].copy_from_slice(piece);
    }
    let (mut failed, mut gave_up) = (0, 0);
    'all: for nth in 1.. {
        for goes_on in [false, true] {
            // Anew each time: Linux 5.10 fills a hole of a file in memory when splice(2) reads it.
            let (mut src, mut dst) = (make::memfd(), make::memfd());
            src.set_len(7 * PIECE).unwrap();
            for (at, piece) in &data {
                src.write_all_at(piece, *at).unwrap();
            }
            SEEK.set(nth);
            let mut transfer = TransferOptions::new().start(&src, &dst, u64::MAX).unwrap();
            let mut got = vec![0; wanted.len()];
            loop {
                match transfer.advance() {
                    Ok(Status::Finished(end)) => {
                        assert_eq!(end, End::SourceEnded);
                        assert_eq!(transfer.delivered(), 7 * PIECE, "{nth}");
                        break;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        gave_up += 1;
                        let number = error.io_error().unwrap().raw_os_error();
                        assert_eq!(number, Some(libc::EPERM));
                        assert!(error.side().is_some(), "{nth}: {error}");
                        assert_eq!(error.delivered(), transfer.delivered());
                        if !goes_on {
                            break;
                        }
                    }
                }
            }
            let delivered = transfer.delivered();
            drop(transfer);
            if SEEK.replace(0) > 0 {
                break 'all;
            }
            failed += 1;
            // A hole that is made and not counted may follow; of zeros no other trace is left.
            let got = &mut got[..delivered as usize];
            dst.read_exact_at(got, 0).unwrap();
            assert!(got == &wanted[..got.len()], "{nth}");
            assert_eq!(src.stream_position().unwrap(), delivered, "{nth}");
            assert_eq!(dst.stream_position().unwrap(), delivered, "{nth}");
        }
    }
    assert!(
        failed > 40 && gave_up > 6,
        "{failed} seeks failed, {gave_up} for good"
    );
}

#[test]
fn a_source_that_cannot_be_looked_at_is_not_the_destinations_failure() {
    let src = file();
    let dst = make::disk_file();
    let mut transfer = TransferOptions::new()
        .backend(Backend::ReadWrite)
        .start(&src, &dst, u64::MAX)
        .unwrap();
    LOOKS.set(1);
    let moved = transfer.advance();
    LOOKS.set(0);
    // Reading it may well succeed; where not, it is the source's.
    if let Err(error) = moved {
        assert_eq!(error.side(), Some(Side::Source));
    }
}

#[test]
fn a_fan_out_that_cannot_wait_loses_nothing() {
    let src = file();
    let (near, peer) = slow_peer();
    POLLS.set(3);
    let report = fan_out(&src, [near], u64::MAX).unwrap();
    POLLS.set(0);
    assert_eq!((report.taken, report.end), (LEN as u64, End::SourceEnded));
    assert_eq!(report.branches[0].bytes, LEN as u64);
    let got = peer.join().unwrap();
    assert_eq!((got.len(), Data::new(1).check(0, &got)), (LEN, Ok(())));
}
