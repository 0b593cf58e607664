//! Blocks that are allocated before the bytes leave no trace but speed: not on a short end, not on
//! a drop, not in what lay in the destination before.

mod common;

use std::fs::File;
use std::io::{Seek, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;

use common::Data;
use zcio::{Backend, End, Status, TransferOptions};

/// What a file may own beyond its bytes: the rest of its last block, and blocks of its tree.
const SLACK: u64 = 64 << 10;

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
fn a_source_that_becomes_shorter_leaves_no_blocks_behind() {
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
            owned <= delivered + SLACK,
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
fn one_that_is_dropped_leaves_no_blocks_behind() {
    if !on_ext4() {
        return;
    }
    let (src, sent) = file(9 << 20);
    let dst = tempfile::tempfile().unwrap();
    let mut transfer = TransferOptions::new().start(&src, &dst, u64::MAX).unwrap();
    while transfer.delivered() < 2 << 20 {
        assert!(matches!(transfer.advance().unwrap(), Status::Moved(_)));
    }
    let delivered = transfer.delivered();
    drop(transfer);
    assert!(content(&dst) == sent[..delivered as usize]);
    let owned = owned(&dst);
    assert!(owned <= delivered + SLACK, "{owned} for {delivered}");
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
