//! What others do to the same files meanwhile, and what of theirs a transfer leaves alone: ranges
//! that other threads fill, records that others append, locks, leases, reserved blocks.
// A lease cannot be had without it.
#![allow(unsafe_code)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{make, skipped};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use zcio::{Backend, ErrorKind, Side, Status, TransferOptions};

const MIB: u64 = 1 << 20;

/// Data of 4 KiB at 0 and at 8 MiB, and nothing in between.
fn sparse() -> File {
    let file = make::disk_file();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.write_all_at(&[2; 4096], 8 * MIB).unwrap();
    file.sync_all().unwrap();
    file
}

fn content(mut file: &File) -> Vec<u8> {
    let mut all = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut all).unwrap();
    all
}

/// A second description of a file that appends.
fn appender(file: &File) -> File {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().append(true).open(path).unwrap()
}

fn set_append(file: &File) {
    let flags = fcntl(file, FcntlArg::F_GETFL).unwrap() | libc::O_APPEND;
    fcntl(file, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags))).unwrap();
}

/// A file is copied by four threads, each its quarter by explicit offsets: what one makes of its holes
/// takes nothing from the others.
#[test]
fn parallel_ranges_of_a_sparse_file() {
    let src = make::disk_file();
    src.set_len(64 * MIB).unwrap();
    for i in 0..256 {
        src.write_all_at(&[1; 4096], i * (128 << 10)).unwrap();
        src.write_all_at(&[2; 4096], 32 * MIB + i * (128 << 10))
            .unwrap();
    }
    src.sync_all().unwrap();
    let want = content(&src);
    for round in 0..10 {
        let dst = make::disk_file();
        thread::scope(|scope| {
            for part in 0..4_u64 {
                let (src, dst) = (&src, &dst);
                scope.spawn(move || {
                    let mut options = TransferOptions::new();
                    options
                        .src_offset(part * 16 * MIB)
                        .dst_offset(part * 16 * MIB);
                    let report = options.transfer(src, dst, 16 * MIB).unwrap();
                    assert_eq!(report.bytes, 16 * MIB);
                });
            }
        });
        assert!(content(&dst) == want, "round {round}");
        dst.sync_all().unwrap();
        let (from, to) = (src.metadata().unwrap(), dst.metadata().unwrap());
        assert!(
            to.blocks() <= from.blocks() + 1024,
            "{} blocks of {}",
            to.blocks(),
            from.blocks()
        );
    }
}

/// Transfers of nothing at the end of a log that others append to.
#[test]
fn no_appended_record_is_lost() {
    let dst = make::disk_file();
    let log = appender(&dst);
    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                (&log).write_all(b"a").unwrap();
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..3000 {
            (&dst).seek(std::io::SeekFrom::End(0)).unwrap();
            let (reader, writer) = std::io::pipe().unwrap();
            drop(writer);
            assert_eq!(zcio::transfer(&reader, &dst, MIB).unwrap().bytes, 0);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(dst.metadata().unwrap().len(), written.into_inner());
}

/// Blocks that the caller has reserved beyond the end are not taken for the transfer's own.
#[test]
fn the_callers_own_reservation_stays() {
    let dst = make::disk_file();
    let keep = nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if let Err(e) = nix::fcntl::fallocate(&dst, keep, 0, 64 << 20) {
        return skipped("reserved blocks", e);
    }
    let before = dst.metadata().unwrap().blocks();
    for _ in 0..2 {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&[1; 1000]).unwrap();
        drop(writer);
        assert_eq!(zcio::transfer(&reader, &dst, MIB).unwrap().bytes, 1000);
    }
    let after = dst.metadata().unwrap().blocks();
    assert!(after >= before, "{before} blocks reserved, {after} left");
}

/// Stopped early, it leaves few blocks behind, over an existing file or with an offset as well.
#[test]
fn a_stop_leaves_few_blocks_behind() {
    let src = make::disk_file();
    for at in 0..64 {
        src.write_all_at(&[7; MIB as usize], at * MIB).unwrap();
    }
    for offset in [None, Some(0)] {
        let dst = make::disk_file();
        dst.write_all_at(&[1; MIB as usize], 0).unwrap();
        dst.sync_all().unwrap();
        let mut options = TransferOptions::new();
        options
            .src_offset(0)
            .chunk_size(NonZeroUsize::new(256 << 10).unwrap());
        offset.map(|at| options.dst_offset(at));
        options
            .transfer_with(&src, &dst, u64::MAX, |_| ControlFlow::Break(()))
            .unwrap();
        let owned = dst.metadata().unwrap().blocks() * 512;
        // A window of 4 MiB is reserved, on the way to which blocks are that were there.
        assert!(
            owned <= 5 * MIB,
            "offset {offset:?}: {owned} bytes of blocks"
        );
    }
}

/// `O_APPEND`, set by somebody while bytes go to an explicit offset: nothing is said to be there that
/// was appended.
#[test]
fn append_set_later_with_an_explicit_offset() {
    let (src, dst) = (make::disk_file(), make::disk_file());
    src.write_all_at(&[7; 2 * MIB as usize], 0).unwrap();
    dst.write_all_at(&[1; 4 * MIB as usize], 0).unwrap();
    let mut options = TransferOptions::new();
    options
        .src_offset(0)
        .dst_offset(0)
        .chunk_size(NonZeroUsize::new(256 << 10).unwrap());
    let mut transfer = options.start(&src, &dst, 2 * MIB).unwrap();
    assert!(matches!(transfer.advance(), Ok(Status::Moved(_))));
    set_append(&dst);
    let error = loop {
        match transfer.advance() {
            Ok(Status::Finished(_)) => panic!("{:?}", transfer.report()),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::Io, Some(Side::Destination)),
        "{error}"
    );
    let there = content(&dst).iter().take_while(|byte| **byte == 7).count();
    assert_eq!(there as u64, error.delivered());
    assert_eq!(
        dst.metadata().unwrap().len(),
        4 * MIB,
        "nothing was appended"
    );
}

/// The same, with a hole to come: what another appends meanwhile is not punched away.
#[test]
fn a_hole_is_not_made_of_what_others_append() {
    let (src, dst) = (sparse(), make::disk_file());
    let mut options = TransferOptions::new();
    let mut transfer = options.src_offset(0).start(&src, &dst, u64::MAX).unwrap();
    assert!(matches!(transfer.advance(), Ok(Status::Moved(_))));
    set_append(&dst);
    appender(&dst).write_all(&vec![b'z'; MIB as usize]).unwrap();
    while !matches!(transfer.advance().unwrap(), Status::Finished(_)) {}
    let kept = content(&dst).iter().filter(|byte| **byte == b'z').count();
    assert_eq!(kept, MIB as usize);
}

/// What has been delivered is the caller's, whatever the transfer does behind it: the end of a hole
/// was punched once data followed, with what he had written there.
#[test]
fn a_header_written_into_a_delivered_hole_stays() {
    const PIECE: u64 = 128 << 10;
    for (own, chunk) in [
        (true, PIECE),
        (true, 30_000),
        (false, 30_000),
        (false, PIECE),
    ] {
        let src = make::disk_file();
        for piece in 0..16 {
            let at = 2 * piece * PIECE + PIECE;
            src.write_all_at(&[piece as u8 + 1; PIECE as usize], at)
                .unwrap();
        }
        src.set_len(33 * PIECE).unwrap();
        let (dst, mut wanted) = (make::disk_file(), content(&src));
        (&src).rewind().unwrap();
        let mut options = TransferOptions::new();
        options.chunk_size(NonZeroUsize::new(chunk as usize).unwrap());
        if !own {
            options.src_offset(0).dst_offset(0);
        }
        let mut transfer = options.start(&src, &dst, u64::MAX).unwrap();
        let mut steps = 0;
        while !matches!(transfer.advance().unwrap(), Status::Finished(_)) {
            // At the very end of what is there, and at the end of the hole before it.
            let end = transfer.delivered();
            for at in [end, end - end % PIECE, end / PIECE / 2 * 2 * PIECE + PIECE] {
                let at = at.min(end).saturating_sub(100);
                dst.write_all_at(b"header", at).unwrap();
                wanted[at as usize..][..6].copy_from_slice(b"header");
            }
            steps += 1;
        }
        assert!(steps > 16, "{steps} steps");
        drop(transfer);
        assert!(
            content(&dst) == wanted,
            "own positions {own}, chunk {chunk}"
        );
    }
}

/// A record lock of this process on all of a file.
fn lock(file: &File, kind: libc::c_int) {
    // SAFETY: a `flock` is integers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    fcntl(file, FcntlArg::F_SETLK(&lock)).unwrap();
}

fn is_locked(file: &File) -> bool {
    let (inode, mine) = (file.metadata().unwrap().ino(), std::process::id());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| {
        line.contains("POSIX")
            && line.contains(&format!(" {mine} "))
            && line.contains(&format!(":{inode} "))
    })
}

/// Whether record locks can be seen at all; says so where not.
fn can_tell_locks() -> bool {
    let file = make::disk_file();
    lock(&file, libc::F_WRLCK);
    if !is_locked(&file) {
        skipped("record locks", "/proc/locks does not show this process's");
    }
    is_locked(&file)
}

/// Closing any descriptor of a file lets go of the process's record locks on it: fcntl(2).
#[test]
fn record_locks_survive_at_own_positions() {
    if !can_tell_locks() {
        return;
    }
    let (src, dst) = (sparse(), make::disk_file());
    for file in [&src, &dst] {
        lock(file, libc::F_WRLCK);
    }
    (&src).rewind().unwrap();
    assert_eq!(
        zcio::transfer(&src, &dst, u64::MAX).unwrap().bytes,
        8 * MIB + 4096
    );
    assert!(is_locked(&src) && is_locked(&dst));
    assert!(content(&src) == content(&dst));
}

/// By every backend and policy, with explicit offsets, with O_DIRECT on either side and bytes that fill
/// no block: whatever a transfer would open anew for, it goes without where there are locks.
#[test]
fn record_locks_survive_every_transfer() {
    if !can_tell_locks() {
        return;
    }
    let len = 9 * MIB + 777;
    let whole = make::disk_file();
    whole.write_all_at(&vec![7; len as usize], 0).unwrap();
    whole.write_all_at(&[8; 100], len - 100).unwrap();
    whole.sync_all().unwrap();
    let caches = [
        zcio::Cache::Normal,
        zcio::Cache::DropBehind,
        zcio::Cache::Bypass,
    ];
    let mut moved = 0;
    for flags in [(false, false), (true, false), (false, true), (true, true)] {
        for offsets in [None, Some(0), Some(5)] {
            for backend in [None].into_iter().chain(Backend::ALL.map(Some)) {
                for (cache, from) in caches.into_iter().flat_map(|cache| {
                    [sparse(), whole.try_clone().unwrap()].map(|from| (cache, from))
                }) {
                    let case = format!("{flags:?} {offsets:?} {backend:?} {cache:?}");
                    let open = |file: &File, direct: bool| {
                        let direct = if direct {
                            OFlag::O_DIRECT
                        } else {
                            OFlag::empty()
                        };
                        make::reopen(file, OFlag::O_RDWR | direct).map(File::from)
                    };
                    let to = make::disk_file();
                    let (Ok(src), Ok(dst)) = (open(&from, flags.0), open(&to, flags.1)) else {
                        skipped("O_DIRECT", "the temporary directory does not take it");
                        continue;
                    };
                    lock(&src, libc::F_RDLCK);
                    lock(&dst, libc::F_WRLCK);
                    let mut options = TransferOptions::new();
                    options.cache(cache);
                    backend.map(|backend| options.backend(backend));
                    offsets.map(|at| options.src_offset(at).dst_offset(at));
                    match options.transfer(&src, &dst, u64::MAX) {
                        Ok(report) => {
                            let at = offsets.unwrap_or(0) as usize;
                            assert!(content(&from)[at..] == content(&to)[at..], "{case}");
                            assert_eq!(report.bytes as usize, content(&to).len() - at, "{case}");
                            moved += 1;
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Unfit, "{case}: {error}");
                            assert!(backend.is_some(), "{case}: {error}");
                        }
                    }
                    assert!(is_locked(&src), "{case}: the source");
                    assert!(is_locked(&dst), "{case}: the destination");
                }
            }
        }
    }
    assert!(moved > 60, "{moved}");
}

/// A cold file is fetched by a thread of the pool, which has a descriptor of it where nothing is locked.
#[cfg(feature = "tokio")]
#[test]
fn record_locks_survive_a_file_that_is_fetched() {
    if !can_tell_locks() {
        return;
    }
    let src = make::disk_file();
    src.write_all_at(&vec![7; 5 * MIB as usize], 0).unwrap();
    src.sync_all().unwrap();
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    for message in [false, true] {
        nix::fcntl::posix_fadvise(&src, 0, 0, advice).unwrap();
        lock(&src, libc::F_WRLCK);
        runtime.block_on(async {
            let (near, mut far) = make::unix();
            near.set_nonblocking(true).unwrap();
            let near = tokio::net::UnixStream::from_std(near).unwrap();
            let read = thread::spawn(move || {
                let mut all = Vec::new();
                far.read_to_end(&mut all).unwrap();
                all
            });
            if message {
                let part = zcio::Message::new().file(&src, 0..5 * MIB);
                zcio::tokio::send(&part, &near).await.unwrap();
            } else {
                (&src).rewind().unwrap();
                zcio::tokio::transfer(&src, &near, u64::MAX).await.unwrap();
            }
            drop(near);
            assert!(read.join().unwrap() == vec![7; 5 * MIB as usize]);
        });
        assert!(is_locked(&src), "message: {message}");
    }
}

/// A lease of this very process on the source: nobody waits for it to be given up.
#[test]
fn a_lease_of_ones_own_is_not_waited_for() {
    let (src, dst) = (sparse(), make::disk_file());
    // What breaks a lease sends SIGIO, which ends a process.
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    // SAFETY: no memory is involved.
    let leased = unsafe { libc::fcntl(src.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    if leased != 0 {
        return skipped("leases", std::io::Error::last_os_error());
    }
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut options = TransferOptions::new();
        let moved = options.src_offset(0).transfer(&src, &dst, u64::MAX);
        let _ = tell.send((moved.unwrap().bytes, content(&src) == content(&dst)));
    });
    let moved = told.recv_timeout(Duration::from_secs(30));
    assert_eq!(moved, Ok((8 * MIB + 4096, true)));
}

/// One of these is enough to serve it all, whatever lies in between.
#[test]
fn holes_by_every_backend_and_position() {
    let want = content(&sparse());
    for backend in [
        None,
        Some(Backend::ReadWrite),
        Some(Backend::Splice),
        Some(Backend::Mmap),
    ] {
        for (from, to) in [
            (None, None),
            (Some(0), None),
            (None, Some(0)),
            (Some(0), Some(0)),
        ] {
            let (src, dst) = (sparse(), make::disk_file());
            // Longer than the source, and not zero.
            dst.write_all_at(&vec![9; 10 * MIB as usize], 0).unwrap();
            (&src).rewind().unwrap();
            let mut options = TransferOptions::new();
            backend.map(|backend| options.backend(backend));
            from.map(|at| options.src_offset(at));
            to.map(|at| options.dst_offset(at));
            let report = options.transfer(&src, &dst, u64::MAX).unwrap();
            assert_eq!(report.bytes, want.len() as u64);
            let position = |mut file: &File| file.stream_position().unwrap();
            assert_eq!(
                position(&src),
                if from.is_none() { report.bytes } else { 0 }
            );
            assert_eq!(position(&dst), if to.is_none() { report.bytes } else { 0 });
            let got = content(&dst);
            assert!(got[..want.len()] == want, "{backend:?} {from:?} {to:?}");
            assert!(got[want.len()..].iter().all(|byte| *byte == 9));
        }
    }
}
