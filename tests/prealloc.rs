//! Blocks that are reserved before the bytes cost nobody anything: not those who append to the same
//! file, not those who have reserved blocks of their own, and the disk no more than a window.

mod common;

use std::fs::File;
use std::io::{Seek, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::Data;
use zcio::{Backend, End, Status, TransferOptions};

/// What a file may own beyond its bytes: the rest of its last block, and blocks of its tree.
const SLACK: u64 = 64 << 10;
/// What is reserved ahead of bytes from a file, and stays where those do not come.
const WINDOW: u64 = 4 << 20;

fn on_ext4() -> bool {
    let fs = nix::sys::statfs::fstatfs(tempfile::tempfile().unwrap()).unwrap();
    let ext4 = fs.filesystem_type() == nix::sys::statfs::EXT4_SUPER_MAGIC;
    if !ext4 {
        common::skipped(
            "preallocation",
            "the directory for temporary files is not on ext4",
        );
    }
    ext4
}

fn file(len: usize) -> (File, Vec<u8>) {
    let content = Data::new(len as u64).bytes(0, len);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    file.sync_all().unwrap();
    file.rewind().unwrap();
    (file, content)
}

fn content(file: &File) -> Vec<u8> {
    let mut all = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut all, 0).unwrap();
    all
}

/// The blocks that a file owns once everything is written, in bytes.
fn owned(file: &File) -> u64 {
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

const CHUNK: NonZeroUsize = NonZeroUsize::new(1 << 20).unwrap();

/// The backends that fill allocated blocks.
const FILLERS: [Backend; 5] = [
    Backend::CopyFileRange,
    Backend::ReadWrite,
    Backend::Splice,
    Backend::Sendfile,
    Backend::Mmap,
];

#[test]
fn a_source_that_becomes_shorter_leaves_a_window_behind_at_most() {
    if !on_ext4() {
        return;
    }
    for backend in FILLERS {
        let (src, sent) = file(9 << 20);
        let dst = tempfile::tempfile().unwrap();
        let cut = 4 << 20;
        let mut shortened = false;
        let mut options = TransferOptions::new();
        // One call of copy_file_range(2) would copy it all.
        options.backend(backend).chunk_size(CHUNK);
        let result = options.transfer_with(&src, &dst, u64::MAX, |progress| {
            if !shortened && progress.delivered >= 1 << 20 {
                src.set_len(cut.max(progress.delivered)).unwrap();
                shortened = true;
            }
            ControlFlow::Continue(())
        });
        let delivered = match result {
            Ok(report) => report.bytes,
            Err(error) => error.delivered(),
        };
        assert!(
            (1 << 20..9 << 20).contains(&delivered),
            "{backend}: {delivered}"
        );
        assert!(content(&dst) == sent[..delivered as usize], "{backend}");
        let owned = owned(&dst);
        assert!(
            owned <= delivered + WINDOW + SLACK,
            "{backend}: {owned} for {delivered}"
        );
    }
}

#[test]
fn a_stream_that_ends_before_its_length_leaves_no_blocks_behind() {
    if !on_ext4() {
        return;
    }
    let sent = Data::new(3).bytes(0, 3_000_000);
    let (mut near, far) = UnixStream::pair().unwrap();
    let dst = tempfile::tempfile().unwrap();
    let writer = {
        let sent = sent.clone();
        std::thread::spawn(move || near.write_all(&sent))
    };
    let report = zcio::transfer(&far, &dst, 1 << 30).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!((report.bytes, report.end), (3_000_000, End::SourceEnded));
    assert!(content(&dst) == sent);
    let owned = owned(&dst);
    assert!(owned <= 3_000_000 + SLACK, "{owned}");
}

#[test]
fn one_that_is_dropped_or_killed_leaves_a_window_behind_at_most() {
    if !on_ext4() {
        return;
    }
    for killed in [false, true] {
        let (src, sent) = file(19 << 20);
        let dst = tempfile::tempfile().unwrap();
        let mut transfer = TransferOptions::new().start(&src, &dst, u64::MAX).unwrap();
        while transfer.delivered() < 2 << 20 {
            assert!(matches!(transfer.advance().unwrap(), Status::Moved(_)));
        }
        let delivered = transfer.delivered();
        if killed {
            // As by kill -9: nothing is done any more.
            std::mem::forget(transfer);
        } else {
            drop(transfer);
        }
        assert!(content(&dst) == sent[..delivered as usize]);
        let owned = owned(&dst);
        assert!(
            owned <= delivered + WINDOW + SLACK,
            "{owned} for {delivered}"
        );
    }
}

/// What a record is: its number, as often as it has room.
fn record(number: u64) -> [u8; 64] {
    let mut record = [0; 64];
    for place in record.chunks_exact_mut(8) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    record
}

/// While a transfer fills a file, and when it ends before its length, another descriptor appends.
#[test]
fn what_others_append_meanwhile_stays() {
    let path = tempfile::NamedTempFile::new().unwrap();
    for (ends_early, told) in [(true, 1 << 30), (true, 40 << 20), (false, 24 << 20)] {
        let dst = File::create(path.path()).unwrap();
        let log = File::options().append(true).open(path.path()).unwrap();
        let sent = Data::new(8).bytes(0, 24 << 20);
        let (mut near, far) = UnixStream::pair().unwrap();
        let done = AtomicBool::new(false);
        let (report, appended) = thread::scope(|scope| {
            // Beyond all that the transfer writes, so that no record is written over.
            log.set_len(1 << 26).unwrap();
            let appending = scope.spawn(|| {
                let mut number = 0;
                while !done.load(Ordering::Relaxed) {
                    number += 1;
                    (&log).write_all(&record(number)).unwrap();
                }
                number
            });
            let feeding = scope.spawn(|| {
                near.write_all(&sent).unwrap();
                near.shutdown(std::net::Shutdown::Both).unwrap();
            });
            let report = zcio::transfer(&far, &dst, told).unwrap();
            feeding.join().unwrap();
            // Some more appends, after the end.
            let more = Instant::now() + Duration::from_millis(20);
            while Instant::now() < more {
                thread::yield_now();
            }
            done.store(true, Ordering::Relaxed);
            (report, appending.join().unwrap())
        });
        assert_eq!(report.bytes, 24 << 20);
        assert_eq!(report.end == End::SourceEnded, ends_early);
        let after = std::fs::read(path.path()).unwrap();
        assert!(after[..24 << 20] == sent);
        let records = &after[1 << 26..];
        assert_eq!(records.len() as u64, appended * 64, "{appended} records");
        for (at, found) in records.chunks_exact(64).enumerate() {
            assert!(found == record(at as u64 + 1), "record {at} of {appended}");
        }
    }
}

/// Records follow each other without a gap, and the transfer's bytes are among them: it appends at
/// its own position, which is where the file ended.
#[test]
fn a_file_that_grows_behind_a_transfer_is_not_cut() {
    let path = tempfile::NamedTempFile::new().unwrap();
    for len in [3 << 20, 9 << 20] {
        let dst = File::create(path.path()).unwrap();
        let sent = Data::new(len as u64).bytes(0, len);
        let (mut near, far) = UnixStream::pair().unwrap();
        let feeding = {
            let sent = sent.clone();
            thread::spawn(move || near.write_all(&sent))
        };
        let mut transfer = TransferOptions::new().start(&far, &dst, 400 << 20).unwrap();
        while transfer.delivered() < len as u64 {
            transfer.advance().unwrap();
        }
        feeding.join().unwrap().unwrap();
        // Between the last byte and the end that is not yet seen, somebody appends.
        let mut log = File::options().append(true).open(path.path()).unwrap();
        log.write_all(&record(7)).unwrap();
        assert_eq!(
            transfer.advance().unwrap(),
            Status::Finished(End::SourceEnded)
        );
        log.write_all(&record(8)).unwrap();
        drop(transfer);
        let after = std::fs::read(path.path()).unwrap();
        assert_eq!(after.len(), len + 128);
        assert!(after[..len] == sent && after[len..len + 64] == record(7));
        assert!(after[len + 64..] == record(8));
    }
}

/// Blocks that somebody else has reserved beyond the end stay his, however the transfer ends.
#[test]
fn the_callers_own_reservation_stays() {
    use nix::fcntl::{FallocateFlags, fallocate};
    if !on_ext4() {
        return;
    }
    let reserve = |dst: &File, at: i64, len: i64| {
        fallocate(dst, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, len).unwrap();
    };
    // Beyond an empty file; beyond a hole of 100 MiB.
    for (hole, reserved) in [(0, 512 << 10), (100 << 20, 50 << 20)] {
        for stream in [false, true] {
            let mut dst = tempfile::tempfile().unwrap();
            dst.set_len(hole).unwrap();
            reserve(&dst, hole as i64 + (8 << 20), reserved);
            dst.seek(std::io::SeekFrom::Start(hole)).unwrap();
            let before = dst.metadata().unwrap().blocks() * 512;
            let sent = Data::new(6).bytes(0, 3_000_000);
            let report = if stream {
                let (mut near, far) = UnixStream::pair().unwrap();
                let sent = sent.clone();
                let feeding = thread::spawn(move || near.write_all(&sent));
                let report = zcio::transfer(&far, &dst, 64 << 20).unwrap();
                feeding.join().unwrap().unwrap();
                report
            } else {
                let (src, _) = file(3_000_000);
                zcio::transfer(&src, &dst, 64 << 20).unwrap()
            };
            assert_eq!(report.bytes, 3_000_000);
            let owned = owned(&dst);
            assert!(
                owned >= before + 3_000_000,
                "hole {hole}, stream {stream}: {owned} of {before}"
            );
        }
    }
}

#[test]
fn what_lies_beyond_in_the_destination_stays() {
    let (src, sent) = file(3 << 20);
    let (dst, before) = file(16 << 20);
    for backend in FILLERS {
        // Shorter than asked for, into the middle of a longer file.
        let mut options = TransferOptions::new();
        options.backend(backend).src_offset(0);
        if backend == Backend::Sendfile {
            (&dst).seek(std::io::SeekFrom::Start(5 << 20)).unwrap();
        } else {
            options.dst_offset(5 << 20);
        }
        let report = options.transfer(&src, &dst, 8 << 20).unwrap();
        assert_eq!(
            (report.bytes, report.end),
            (3 << 20, End::SourceEnded),
            "{backend}"
        );
        let after = content(&dst);
        assert!(after[..5 << 20] == before[..5 << 20], "{backend}");
        assert!(after[5 << 20..8 << 20] == sent, "{backend}");
        assert!(after[8 << 20..] == before[8 << 20..], "{backend}");
    }
}

#[test]
fn a_sparse_source_gets_blocks_for_its_data_alone() {
    if !on_ext4() {
        return;
    }
    let src = tempfile::tempfile().unwrap();
    let piece = Data::new(5).bytes(0, 2 << 20);
    src.write_all_at(&piece, 100 << 20).unwrap();
    src.write_all_at(&piece, 900 << 20).unwrap();
    src.set_len(1 << 30).unwrap();
    src.sync_all().unwrap();
    let dst = tempfile::tempfile().unwrap();
    let report = zcio::transfer(&src, &dst, u64::MAX).unwrap();
    assert_eq!(report.bytes, 1 << 30);
    assert_eq!(dst.metadata().unwrap().len(), 1 << 30);
    let mut got = vec![0; 2 << 20];
    for at in [100 << 20, 900 << 20] {
        dst.read_exact_at(&mut got, at).unwrap();
        assert!(got == piece);
    }
    let owned = owned(&dst);
    assert!(owned <= (4 << 20) + 2 * SLACK, "{owned}");
}
