//! A transfer and other writers at the same time: what must be there at the end follows from what
//! each of them did, however the threads took turns.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, fallocate};
use zcio::{Backend, Status, TransferOptions};

use super::{BLOCK, PUNCH, RESERVE, seed};
use crate::common::{Data, make};

/// What the source holds before it grows: data and holes in turn, a hole last.
const FIRST: u64 = 32 * 32 * BLOCK;
/// What it grows by, block by block, so that it is followed to its end again and again.
const GROWTH: u64 = 1500 * BLOCK;
const WHOLE: u64 = FIRST + GROWTH;

/// What the second writer appends at once.
const RECORD: usize = 100;
/// What he reserves, and where: beyond all that is appended.
const RESERVED: (u64, u64) = (4 * WHOLE, 16 << 20);

/// The source's bytes: zeros where it has holes, and nowhere else.
fn content() -> Vec<u8> {
    let mut bytes = Data::new(5).bytes(0, WHOLE as usize);
    bytes.iter_mut().for_each(|byte| *byte |= 1);
    for hole in (0..FIRST as usize / (32 * BLOCK as usize))
        .skip(1)
        .step_by(2)
    {
        let len = 32 * BLOCK as usize;
        bytes[hole * len..][..len].fill(0);
    }
    bytes
}

fn grow(src: &File, content: &[u8]) {
    for at in (FIRST..WHOLE).step_by(BLOCK as usize) {
        let block = &content[at as usize..][..BLOCK as usize];
        src.write_all_at(block, at).expect("room");
    }
}

/// The second writer: what the delivered range then holds, and how many records were appended.
fn write(
    dst: &File,
    seed: u64,
    delivered: &AtomicU64,
    over: &AtomicBool,
    appends: bool,
) -> (Vec<Option<u8>>, u64) {
    let appender = make::reopen(dst, OFlag::O_WRONLY | OFlag::O_APPEND);
    let appender = File::from(appender.expect("a description that appends"));
    let mut wanted = vec![None; WHOLE as usize];
    let (mut records, mut state) = (0, seed | 1);
    let mut draw = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below.max(1)
    };
    while !over.load(Ordering::Acquire) {
        if appends {
            let record = [(records % 251) as u8 + 1; RECORD];
            (&appender).write_all(&record).expect("room");
            records += 1;
        }
        let end = delivered.load(Ordering::Acquire);
        // Most often just behind the transfer.
        let far = if draw(4) > 0 { 3 * BLOCK } else { WHOLE };
        let back = draw(far);
        let at = end.saturating_sub(back);
        let len = (end - at).min(1 + draw(2 * BLOCK));
        if len == 0 {
            continue;
        }
        let byte = if draw(8) == 0 {
            fallocate(dst, PUNCH, at as i64, len as i64).expect("a hole");
            0
        } else {
            let byte = draw(255) as u8 + 1;
            dst.write_all_at(&vec![byte; len as usize], at)
                .expect("room");
            byte
        };
        wanted[at as usize..][..len as usize].fill(Some(byte));
    }
    (wanted, records)
}

fn run(case: &str, src: &File, dst: &File, options: &TransferOptions, appends: bool) {
    let content = content();
    for at in (0..FIRST).step_by(BLOCK as usize) {
        let block = &content[at as usize..][..BLOCK as usize];
        if block.iter().any(|byte| *byte != 0) {
            src.write_all_at(block, at).expect("room");
        }
    }
    src.set_len(FIRST).expect("ftruncate(2)");
    if appends {
        // What is appended lies beyond all that is delivered.
        dst.set_len(WHOLE).expect("ftruncate(2)");
    }
    let others = |of| File::from(make::reopen(of, OFlag::O_RDWR).expect("a description"));
    let (src_of_others, dst_of_others) = (others(src), others(dst));
    // Not on ext2 and ext3.
    let (at, len) = RESERVED;
    let reserved = fallocate(dst, RESERVE, at as i64, len as i64).map_or(0, |()| len);
    let (delivered, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    let (wanted, records) = thread::scope(|scope| {
        let second = scope.spawn(|| write(&dst_of_others, seed(), &delivered, &over, appends));
        let mut transfer = options.start(src, dst, u64::MAX).expect(case);
        let mut grower = None;
        while delivered.load(Ordering::Relaxed) < WHOLE {
            let status = transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}"));
            assert!(!matches!(status, Status::Blocked(_)), "{case}: {status:?}");
            delivered.store(transfer.delivered(), Ordering::Release);
            if grower.is_none() && transfer.delivered() > FIRST / 2 {
                grower = Some(scope.spawn(|| grow(&src_of_others, &content)));
            }
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{case}: {transfer:?}"
            );
        }
        over.store(true, Ordering::Release);
        drop(transfer);
        second.join().expect("the second writer")
    });
    let size = dst.metadata().expect("fstat(2)").len();
    assert_eq!(size, WHOLE + records * RECORD as u64, "{case}: the size");
    let mut held = vec![0; size as usize];
    dst.read_exact_at(&mut held, 0).expect("readable");
    let (range, log) = held.split_at(WHOLE as usize);
    let wrong = |at: &usize| range[*at] != wanted[*at].unwrap_or(content[*at]);
    let wrong: Vec<_> = (0..range.len()).filter(wrong).collect();
    let (first, count) = (wrong.first(), wrong.len());
    let own = wrong.iter().filter(|at| wanted[**at].is_none()).count();
    assert!(
        wrong.is_empty(),
        "{case}: {count} bytes are wrong, {own} of them the source's, from {first:?} on"
    );
    for (nth, record) in log.chunks(RECORD).enumerate() {
        let expected = [(nth % 251) as u8 + 1; RECORD];
        assert!(record == expected, "{case}: record {nth} of {records}");
    }
    let there = dst.metadata().expect("fstat(2)").blocks() * 512;
    assert!(there >= reserved, "{case}: {there} bytes of blocks");
}

/// On files that `make` makes, both on one filesystem.
pub(crate) fn at_once(place: &str, make: impl Fn() -> File) {
    let seed = seed();
    println!("{place}: ZCIO_MODEL_SEED={seed}");
    for backend in [None, Some(Backend::ReadWrite), Some(Backend::Splice)] {
        for (explicit, appends) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut options = TransferOptions::new();
            backend.map(|backend| options.backend(backend));
            if explicit {
                options.src_offset(0).dst_offset(0);
            }
            let case = format!(
                "ZCIO_MODEL_SEED={seed}: {place}, {backend:?}, explicit {explicit}, appends {appends}"
            );
            run(&case, &make(), &make(), &options, appends);
        }
    }
}
