//! The direct backend reads ahead: what is delivered is exact all the same, and nothing of it outlives
//! the call. Sizes are several times what it has in flight.
//!
//! Run with the feature `io-uring` as well, the same is held of the ring.
// ioctl(2) and mincore(2) have no safe calls among the dependencies that fit.
#![allow(unsafe_code)]

#[path = "hazards/child.rs"]
mod child;
mod common;
#[path = "seccomp/filter.rs"]
#[allow(dead_code)]
mod filter;
#[path = "hazards/rlimit.rs"]
mod rlimit;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread;

use nix::fcntl::OFlag;
use zcio::{Backend, Cache, End, Side, Status, TransferOptions};

use common::oracle::position;
use common::watch::descriptors;
use common::{Data, make, skipped, within};

const MIB: u64 = 1 << 20;
const OLD: Data = Data::new(0xa1);
const NEW: Data = Data::new(0xa2);
/// More than is read ahead at a time, twice, and no whole block at its end.
const LEN: u64 = 40 * MIB + 777;
/// The most that can be read before it is written.
const AHEAD: u64 = 16 * MIB;

fn source(len: u64) -> File {
    let mut file = make::disk_file();
    file.write_all(&OLD.bytes(0, len as usize)).expect("room");
    file.sync_all().expect("fsync(2)");
    make::seek(&file, 0);
    file
}

fn direct() -> TransferOptions {
    TransferOptions::new().backend(Backend::Direct).clone()
}

/// Whether the temporary directory takes O_DIRECT; says so where not.
fn takes_it(what: &str) -> bool {
    let file = make::disk_file();
    let takes = make::reopen(&file, OFlag::O_RDONLY | OFlag::O_DIRECT).is_ok();
    if !takes {
        skipped(what, "the temporary directory does not take O_DIRECT");
    }
    takes
}

/// The bytes from `from` on.
fn content(file: &File, from: u64) -> Vec<u8> {
    let len = file
        .metadata()
        .expect("fstat(2)")
        .len()
        .saturating_sub(from);
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, from).expect("a file");
    bytes
}

#[test]
fn it_arrives_whole_from_and_to_wherever_it_begins() {
    within(60, |pulse| {
        if !takes_it("reading ahead") {
            return;
        }
        let src = source(LEN);
        // Alike within their blocks, not alike, and to a place in the midst of a file.
        let places = [(0, 0), (1, 1), (4096, 8192), (5000, 904), (513, 0)];
        for (from, to) in places {
            for (explicit, len) in [(false, u64::MAX), (true, 20 * MIB + 5)] {
                let case = format!("from {from} to {to}, {len} bytes, explicit {explicit}");
                pulse.at(&case);
                let dst = make::disk_file();
                let mut options = direct();
                if explicit {
                    options.src_offset(from).dst_offset(to);
                } else {
                    make::seek(&src, from);
                    make::seek(&dst, to);
                }
                let before = (position(&src), position(&dst));
                let (mut largest, mut last) = (0, 0);
                let report = options
                    .transfer_with(&src, &dst, len, |progress| {
                        largest = largest.max(progress.delivered - last);
                        last = progress.delivered;
                        ControlFlow::Continue(())
                    })
                    .unwrap_or_else(|e| panic!("{case}: {e}"));
                let whole = len.min(LEN - from);
                assert_eq!(report.bytes, whole, "{case}");
                let moved = if explicit { 0 } else { whole };
                let after = (before.0 + moved, before.1 + moved);
                assert_eq!((position(&src), position(&dst)), after, "{case}");
                assert_eq!(OLD.check(from, &content(&dst, to)), Ok(()), "{case}");
                // Else this test is of something else.
                let alike = from % 4096 == to % 4096;
                assert_eq!(largest > 4 * MIB, alike, "{case}: {largest} in one step");
            }
        }
    });
}

#[test]
fn a_chunk_bounds_each_step() {
    within(30, |_| {
        if !takes_it("a chunk") {
            return;
        }
        let (src, dst) = (source(LEN), make::disk_file());
        for chunk in [9 * MIB + 1, 50_000] {
            make::seek(&src, 0);
            make::seek(&dst, 0);
            let chunk = NonZeroUsize::new(chunk as usize).expect("not zero");
            let mut options = direct();
            options.chunk_size(chunk);
            let mut transfer = options.start(&src, &dst, LEN - 3).expect("a pair of files");
            loop {
                let at = transfer.delivered();
                match transfer.advance().expect("a step") {
                    Status::Moved(n) => assert!(n <= chunk, "{n} at {at}"),
                    Status::Finished(end) => break assert_eq!(end, End::Complete),
                    Status::Blocked(side) => panic!("{side}"),
                }
                let taken = transfer.delivered() + transfer.in_flight();
                assert_eq!(position(transfer.src()), taken);
                assert!(transfer.in_flight() <= chunk.get() as u64);
            }
            drop(transfer);
            assert_eq!(position(&src), LEN - 3);
            assert_eq!(OLD.check(0, &content(&dst, 0)[..LEN as usize - 3]), Ok(()));
        }
    });
}

/// What happens to the source while the writing waits for its reader.
#[derive(Clone, Copy, Debug)]
enum Change {
    Cut(u64),
    Grow,
    Overwrite,
}

/// Waits until a pipe is full.
fn full(reader: &OwnedFd) {
    let capacity = make::pipe_size(reader).expect("a pipe");
    loop {
        let mut count = 0;
        // SAFETY: FIONREAD writes one int.
        let asked = unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &raw mut count) };
        assert_eq!(asked, 0);
        if count == capacity {
            return;
        }
        thread::yield_now();
    }
}

#[test]
fn a_source_that_changes_while_it_is_read_ahead() {
    within(60, |pulse| {
        if !takes_it("a source that changes") {
            return;
        }
        let changes = [0, 1, 5 * MIB + 13, AHEAD + 100, 30 * MIB].map(Change::Cut);
        for change in changes.into_iter().chain([Change::Grow, Change::Overwrite]) {
            let case = format!("{change:?}");
            pulse.at(&case);
            let src = source(LEN);
            let (reader, writer) = make::pipe();
            let given = src.try_clone().expect("dup(2)");
            let moving = thread::spawn(move || direct().transfer(&given, &writer, u64::MAX));
            full(&reader);
            let (size, data) = match change {
                Change::Cut(size) => {
                    src.set_len(size).expect("ftruncate(2)");
                    (size, OLD)
                }
                Change::Grow => {
                    let more = OLD.bytes(LEN, 3 * MIB as usize);
                    src.write_all_at(&more, LEN).expect("room");
                    (LEN + 3 * MIB, OLD)
                }
                Change::Overwrite => {
                    let bytes = NEW.bytes(0, LEN as usize);
                    src.write_all_at(&bytes, 0).expect("room");
                    (LEN, NEW)
                }
            };
            let mut arrived = Vec::new();
            File::from(reader)
                .read_to_end(&mut arrived)
                .expect("a pipe");
            let report = moving.join().expect("no panic").expect(&case);
            assert_eq!(report.end, End::SourceEnded, "{case}");
            let count = arrived.len() as u64;
            assert_eq!((report.bytes, position(&src)), (count, count), "{case}");
            // To the end as it now is; what had been read by then is all that may lie beyond it.
            assert!(count >= size && count <= size.max(AHEAD), "{case}: {count}");
            let (old, new) = (OLD.bytes(0, arrived.len()), data.bytes(0, arrived.len()));
            let made_up = |at: &usize| arrived[*at] != old[*at] && arrived[*at] != new[*at];
            assert_eq!((0..arrived.len()).find(made_up), None, "{case}");
            // Read afterwards, it is as it is.
            let later = arrived.get(AHEAD as usize..).unwrap_or_default();
            assert_eq!(data.check(AHEAD, later), Ok(()), "{case}");
        }
    });
}

/// The names of this process's threads, and the signals that each blocks.
fn threads() -> Vec<(String, u64)> {
    let tasks = fs::read_dir("/proc/self/task").expect("procfs");
    let look = |task: std::io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find(|line: &&str| line.starts_with(name))?;
            Some(line[name.len()..].trim().to_owned())
        };
        let blocked = u64::from_str_radix(&field("SigBlk:")?, 16).ok()?;
        Some((field("Name:")?, blocked))
    };
    tasks.filter_map(look).collect()
}

fn helpers() -> Vec<u64> {
    let all = threads().into_iter();
    all.filter(|(name, _)| name == "zcio-ahead")
        .map(|(_, blocked)| blocked)
        .collect()
}

/// By a thread of its own or by a ring: at work while the call lasts, and gone with it.
#[test]
fn nothing_of_it_is_left_behind() {
    child::alone("nothing_of_it_is_left_behind", || {
        within(30, |pulse| {
            if takes_it("what is left behind") {
                for exit in ["end", "stop", "drop", "error"] {
                    pulse.at(exit);
                    leave(exit);
                }
            }
        });
    });
}

fn leave(exit: &'static str) {
    let src = source(LEN);
    let before = descriptors();
    let (reader, writer) = make::pipe();
    let capacity = make::pipe_size(&reader).expect("a pipe").unsigned_abs();
    let given = src.try_clone().expect("dup(2)");
    let moving = thread::spawn(move || {
        if exit == "drop" {
            let mut transfer = direct().start(&given, &writer, u64::MAX)?;
            let status = transfer.advance()?;
            assert!(matches!(status, Status::Moved(_)), "{status:?}");
            return Ok(transfer.delivered());
        }
        let watch = |_| match exit {
            "stop" => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let report = direct().transfer_with(&given, &writer, u64::MAX, watch);
        report.map(|report| report.bytes)
    });
    full(&reader);
    let blocked = helpers();
    let ring = || descriptors().values().any(|to| to.contains("io_uring"));
    match blocked[..] {
        // SIGKILL and SIGSTOP cannot be blocked, 32 and 33 are the C library's own.
        [mask] => assert_eq!(mask | 0x1_8004_0100, u64::MAX, "{exit}: {mask:x}"),
        _ => assert!(
            blocked.is_empty() && cfg!(feature = "io-uring") && ring(),
            "{exit}: {:?}",
            threads()
        ),
    }
    let expected = match exit {
        "error" => u64::from(capacity),
        "end" => LEN,
        // One step.
        _ => LEN / 4096 * 4096,
    };
    if exit == "error" {
        drop(reader);
        let error = moving.join().expect("no panic").expect_err(exit);
        assert_eq!(error.delivered(), expected, "{error}");
        assert_eq!(error.side(), Some(Side::Destination), "{error}");
        assert!(error.undelivered().is_empty(), "{error}");
    } else {
        let mut arrived = Vec::new();
        let mut reader = File::from(reader);
        reader.read_to_end(&mut arrived).expect("a pipe");
        let moved = moving.join().expect("no panic").expect(exit);
        assert_eq!(
            (moved, arrived.len() as u64),
            (expected, expected),
            "{exit}"
        );
        assert_eq!(OLD.check(0, &arrived), Ok(()), "{exit}");
    }
    assert_eq!(position(&src), expected, "{exit}");
    assert_eq!(helpers(), [], "{exit}: {:?}", threads());
    assert_eq!(descriptors(), before, "{exit}");
}

/// Room for so much, in the midst of what is read ahead.
fn without_room(options: &TransferOptions, src: &File, dst: &File, room: u64, errno: i32) {
    let error = options.transfer(src, dst, u64::MAX).expect_err("no room");
    let number = error.io_error().and_then(std::io::Error::raw_os_error);
    assert_eq!(number, Some(errno), "{error}");
    assert_eq!(error.side(), Some(Side::Destination), "{error}");
    assert!(error.undelivered().is_empty(), "{error}");
    let delivered = error.delivered();
    assert!((room - 4 * MIB..=room).contains(&delivered), "{error}");
    assert_eq!(
        (position(src), position(dst)),
        (delivered, delivered),
        "{error}"
    );
    // Nothing lies behind what was counted.
    let held = content(dst, 0);
    assert_eq!(held.len() as u64, delivered, "{error}");
    assert_eq!(OLD.check(0, &held), Ok(()), "{error}");
}

#[test]
fn a_file_at_its_limit_holds_what_is_counted() {
    child::alone("a_file_at_its_limit_holds_what_is_counted", || {
        rlimit::ignore_sigxfsz();
        within(30, |pulse| {
            if !takes_it("a file at its limit") {
                return;
            }
            let src = source(LEN);
            for room in [12 * MIB, 13 * MIB + 4096, 21 * MIB + 100] {
                pulse.at(format!("{room} bytes"));
                make::seek(&src, 0);
                let dst = make::disk_file();
                let limit = rlimit::Limit::new(libc::RLIMIT_FSIZE, room);
                without_room(&direct(), &src, &dst, room, libc::EFBIG);
                drop(limit);
                assert_eq!(content(&dst, 0).len() as u64, room);
            }
        });
    });
}

#[test]
fn a_full_filesystem_holds_what_is_counted() {
    const ROOM: u64 = 22 * MIB;
    let name = "a_full_filesystem_holds_what_is_counted";
    child::on_small_tmpfs(name, ROOM, |_| {
        within(30, |_| {
            if !takes_it("a full filesystem") {
                return;
            }
            let mut src = make::shm_file().expect("/dev/shm");
            src.write_all(&OLD.bytes(0, LEN as usize)).expect("room");
            make::seek(&src, 0);
            let dst = make::disk_file();
            without_room(&direct(), &src, &dst, ROOM, libc::ENOSPC);
        });
    });
}

/// Where io_uring is forbidden, as in most containers, it goes without, and so it does where no
/// thread is to be had either.
#[test]
fn without_a_ring_and_without_a_thread() {
    within(30, |pulse| {
        if !takes_it("without a ring") {
            return;
        }
        let src = source(LEN);
        let ring = filter::any(libc::SYS_io_uring_setup);
        let threads = [libc::SYS_clone3, libc::SYS_clone].map(filter::any);
        let forbid = |calls: &[filter::Call], errno| {
            let failed = filter::Verdict::Fail(errno);
            filter::install(calls, failed, filter::Verdict::Allow)
        };
        for (calls, errno) in [
            (vec![ring], libc::EPERM),
            (vec![ring], libc::ENOSYS),
            (vec![ring, threads[0], threads[1]], libc::EAGAIN),
        ] {
            pulse.at(format!("{calls:?}, {errno}"));
            make::seek(&src, 0);
            let given = &src;
            let dst = make::disk_file();
            thread::scope(|scope| {
                let moving = scope.spawn(|| {
                    if let Err(e) = forbid(&calls, errno) {
                        return skipped("a transfer without io_uring", e);
                    }
                    let report = direct().transfer(given, &dst, u64::MAX).expect("without");
                    assert_eq!(report.shares(), [(Backend::Direct, LEN)]);
                    assert_eq!(OLD.check(0, &content(&dst, 0)), Ok(()));
                    assert_eq!((position(given), position(&dst)), (LEN, LEN));
                });
                moving.join().expect("no panic");
            });
        }
    });
}

/// Pages in the cache, by mincore(2).
fn cached(file: &File) -> usize {
    let map = memmap2::MmapOptions::new().map_raw_read_only(file);
    let map = map.expect("mmap(2)");
    let mut pages = vec![0_u8; map.len().div_ceil(4096)];
    // SAFETY: the range is the mapping, and `pages` has a byte for each of its pages.
    let asked = unsafe { libc::mincore(map.as_mut_ptr().cast(), map.len(), pages.as_mut_ptr()) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|page| **page & 1 == 1).count()
}

#[test]
fn bypassing_leaves_no_page_of_either_file() {
    within(60, |pulse| {
        if !takes_it("pages in the cache") {
            return;
        }
        let src = source(LEN);
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&src, 0, 0, advice).expect("advice");
        if cached(&src) > 0 {
            return skipped(
                "pages in the cache",
                "the filesystem keeps them in any case",
            );
        }
        let mut options = TransferOptions::new();
        options.cache(Cache::Bypass);
        for (from, to) in [(0, 0), (4096, 0), (1, 1), (777, 0), (0, 513)] {
            pulse.at(format!("from {from} to {to}"));
            make::seek(&src, from);
            let dst = make::disk_file();
            make::seek(&dst, to);
            let report = options.transfer(&src, &dst, u64::MAX).expect("a copy");
            assert_eq!(report.shares(), [(Backend::Direct, LEN - from)]);
            assert_eq!((cached(&src), cached(&dst)), (0, 0), "from {from} to {to}");
            assert_eq!(
                OLD.check(from, &content(&dst, to)),
                Ok(()),
                "from {from} to {to}"
            );
            // That looked at the destination's pages, and not at the source's.
            assert_eq!(cached(&src), 0);
        }
    });
}
