//! A second writer between any two system calls of a transfer: at each place once, as far as there are
//! places. What arrives was in the source at some moment, and what he wrote beside it stays.
//!
//! The files are small, so that no blocks are allocated ahead of the bytes.

#[path = "faulty.rs"]
mod faulty;

use std::ffi::c_long;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use zcio::{Backend, Status, TransferOptions};

use crate::common::{Data, make, skipped};
use crate::interpose::{self, Answer, kernel};
pub(crate) use faulty::faulty;

const PIECE: u64 = 16 << 10;
/// Data, a hole, data, a hole.
const WHOLE: u64 = 4 * PIECE;

/// What he does, in one place or in two that follow one another.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// The source's last hole is not its end any more: data follow.
    Grow,
    /// The source is cut in front of its last data; then it is as long as before, all data.
    CutAndRegrow,
    Punch,
    Fill,
    /// The destination, which is longer than the source, gets a record.
    Append,
    /// What is delivered is written over.
    WriteOver,
}

const DEEDS: [Deed; 6] = [
    Deed::Grow,
    Deed::CutAndRegrow,
    Deed::Punch,
    Deed::Fill,
    Deed::Append,
    Deed::WriteOver,
];

const RECORD: &[u8] = b"a record";

struct Second<'a> {
    deed: Deed,
    src: &'a File,
    dst: &'a File,
    /// Calls until he acts.
    left: usize,
    acted: usize,
    /// Delivered by the advances before this one.
    delivered: u64,
}

impl Second<'_> {
    fn act(&mut self) {
        match (self.deed, self.acted) {
            (Deed::Grow, 0) => write(self.src, WHOLE, &new(WHOLE, 2 * PIECE)),
            (Deed::CutAndRegrow, 0) => self.src.set_len(PIECE).expect("ftruncate(2)"),
            (Deed::CutAndRegrow, 1) => write(self.src, PIECE, &new(PIECE, WHOLE - PIECE)),
            (Deed::Punch, 0) => {
                let mode =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let (at, len) = (2 * PIECE as i64, PIECE as i64);
                fallocate(self.src, mode, at, len).expect("a hole");
            }
            (Deed::Fill, 0) => write(self.src, PIECE, &new(PIECE, WHOLE - PIECE)),
            (Deed::Append, 0) => {
                let end = make::reopen(self.dst, OFlag::O_WRONLY | OFlag::O_APPEND);
                let end = File::from(end.expect("a description that appends"));
                (&end).write_all(RECORD).expect("room");
            }
            (Deed::WriteOver, 0) => write(self.dst, 0, &vec![b'x'; self.delivered as usize]),
            _ => return,
        }
        self.acted += 1;
    }
}

impl interpose::Stage for Second<'_> {
    fn answer(&mut self, nr: c_long, args: [usize; 6]) -> Answer {
        match self.left {
            0 => self.act(),
            _ => self.left -= 1,
        }
        kernel(nr, args)
    }
}

fn write(file: &File, at: u64, bytes: &[u8]) {
    file.write_all_at(bytes, at).expect("room");
}

fn old() -> Vec<u8> {
    let mut bytes = Data::new(1).bytes(0, WHOLE as usize);
    bytes.iter_mut().for_each(|byte| *byte |= 1);
    for hole in [PIECE, 3 * PIECE] {
        bytes[hole as usize..][..PIECE as usize].fill(0);
    }
    bytes
}

/// What he writes, no byte of which is zero.
fn new(at: u64, len: u64) -> Vec<u8> {
    let mut bytes = Data::new(2).bytes(at, len as usize);
    bytes.iter_mut().for_each(|byte| *byte |= 1);
    bytes
}

/// One transfer, with the deed before its `nth` call. `false` where it has not so many.
fn run(
    case: &str,
    (src, dst): (&File, &File),
    deed: Deed,
    nth: usize,
    options: &TransferOptions,
) -> bool {
    let old = old();
    for at in [0, 2 * PIECE] {
        write(src, at, &old[at as usize..][..PIECE as usize]);
    }
    src.set_len(WHOLE).expect("ftruncate(2)");
    let before = matches!(deed, Deed::Append);
    if before {
        write(dst, 0, &vec![b'o'; WHOLE as usize]);
    }
    let others = |of| File::from(make::reopen(of, OFlag::O_RDWR).expect("a description"));
    let (his_src, his_dst) = (others(src), others(dst));
    let mut second = Second {
        deed,
        src: &his_src,
        dst: &his_dst,
        left: nth,
        acted: 0,
        delivered: 0,
    };
    let start = || options.start(src, dst, u64::MAX).expect(case);
    let mut transfer = interpose::run(&mut second, start);
    let (mut ends, mut written_over) = (0, 0);
    // Ended once more after his deed, it has seen all of it.
    while ends < 2 {
        let acted = second.acted;
        second.delivered = transfer.delivered();
        let status = interpose::run(&mut second, || transfer.advance());
        if second.acted > acted && matches!(deed, Deed::WriteOver) {
            written_over = second.delivered as usize;
        }
        match status.unwrap_or_else(|e| panic!("{case}: {e}")) {
            Status::Finished(_) => ends += 1,
            _ => ends = 0,
        }
    }
    let delivered = transfer.delivered() as usize;
    drop(transfer);
    let mut held = vec![0; dst.metadata().expect("fstat(2)").len() as usize];
    dst.read_exact_at(&mut held, 0).expect("readable");
    let now = {
        let mut now = vec![0; src.metadata().expect("fstat(2)").len() as usize];
        src.read_exact_at(&mut now, 0).expect("readable");
        now
    };
    assert!(
        delivered >= now.len(),
        "{case}: {delivered} of {}",
        now.len()
    );
    for (at, byte) in held[..delivered].iter().enumerate() {
        let is = if at < written_over {
            *byte == b'x'
        } else {
            old.get(at) == Some(byte) || now.get(at) == Some(byte)
        };
        assert!(
            is,
            "{case}: {byte} at {at} of {delivered}, {written_over} written over"
        );
    }
    let rest = &held[delivered..];
    if before && second.acted > 0 {
        assert_eq!(rest, RECORD, "{case}: what was appended");
    } else {
        assert!(rest.is_empty(), "{case}: {} bytes behind", rest.len());
    }
    second.acted > 0
}

/// Whether the time of change tells two writes apart that follow one another at once: since Linux
/// 6.13, and not on every filesystem.
fn tells_changes_apart(file: &File) -> bool {
    let changed = || {
        let metadata = file.metadata().expect("statx(2)");
        (metadata.ctime(), metadata.ctime_nsec())
    };
    (0..5).all(|at| {
        let before = changed();
        write(file, at, b"x");
        changed() != before
    })
}

/// On files that `make` makes, both on one filesystem.
pub(crate) fn between_calls(place: &str, make: impl Fn() -> File) {
    let mut places = 0;
    let exact = tells_changes_apart(&make());
    for deed in DEEDS {
        if matches!(deed, Deed::CutAndRegrow) && !exact {
            let what = format!("a source cut and regrown between two calls, {place}");
            skipped(&what, "its time of change is a coarse one");
            continue;
        }
        for backend in [None, Some(Backend::ReadWrite), Some(Backend::Splice)] {
            for explicit in [false, true] {
                for nth in 0.. {
                    let case = format!("{place}, {deed:?} by {backend:?}, {explicit}, call {nth}");
                    let mut options = TransferOptions::new();
                    backend.map(|backend| options.backend(backend));
                    if explicit {
                        options.src_offset(0).dst_offset(0);
                    }
                    if !run(&case, (&make(), &make()), deed, nth, &options) {
                        break;
                    }
                    places += 1;
                }
            }
        }
    }
    println!("{place}: {places} places");
    assert!(places > 300, "{place}: {places}");
}
