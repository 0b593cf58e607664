//! O_DIRECT (B31, B32): unaligned heads and tails, files shorter than a block, the flag already set
//! on either side, filesystems that name no alignment. What lies beside the range stays as it is.

use std::fs::File;
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek64};
use zcio::backend::Unfit;
use zcio::{Backend, Cache, End, ErrorKind, Side, TransferOptions};

use crate::common::oracle::position;
use crate::common::{Data, make, skipped, within};
use crate::lane::contents;

/// Where the files lie.
#[derive(Clone, Copy, Debug)]
enum Place {
    Disk,
    /// Takes O_DIRECT, and names no alignment.
    Shm,
}

/// Which sides the caller opened with O_DIRECT.
const FLAGS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// Bytes on both sides of every border that O_DIRECT may have.
const EDGES: [u64; 7] = [0, 1, 511, 512, 4095, 4097, 69_633];

const SRC: Data = Data::new(0xd1);
const DST: Data = Data::new(0xd2);

/// A file with `len` bytes of `data`, opened with or without O_DIRECT; `None` where that is refused.
fn file(place: Place, data: Data, len: u64, direct: bool) -> Option<OwnedFd> {
    let mut file = match place {
        Place::Disk => make::disk_file(),
        Place::Shm => make::shm_file().ok()?,
    };
    file.write_all(&data.bytes(0, len as usize)).expect("room");
    let flags = if direct {
        OFlag::O_RDWR | OFlag::O_DIRECT
    } else {
        OFlag::O_RDWR
    };
    make::reopen(&file, flags).ok()
}

/// One copy, between `from` and `to`, of `len` bytes, into a destination that has bytes before and
/// behind; own positions or explicit offsets.
struct Copy {
    place: Place,
    flags: (bool, bool),
    from: u64,
    to: u64,
    len: u64,
    explicit: bool,
}

impl Copy {
    fn run(&self, options: &mut TransferOptions) {
        let Self {
            place,
            flags,
            from,
            to,
            len,
            explicit,
        } = *self;
        let case = format!(
            "{place:?}, O_DIRECT {flags:?}, {len} bytes from {from} to {to}, explicit {explicit}"
        );
        let before = DST.bytes(0, (to + len + 10_000) as usize);
        let src = file(place, SRC, from + len, flags.0).expect("tried before");
        let dst = file(place, DST, before.len() as u64, flags.1).expect("tried before");
        let (of_src, of_dst) = (make::flags(&src), make::flags(&dst));
        if explicit {
            options.src_offset(from).dst_offset(to);
        } else {
            for (fd, at) in [(&src, from), (&dst, to)] {
                lseek64(fd, at as i64, Whence::SeekSet).expect("files seek");
            }
        }
        let report = options.transfer(&src, &dst, u64::MAX);
        let report = report.unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(
            (report.bytes, report.end),
            (len, End::SourceEnded),
            "{case}"
        );
        if !explicit {
            assert_eq!(
                (position(&src), position(&dst)),
                (from + len, to + len),
                "{case}"
            );
        }
        assert_eq!(
            (make::flags(&src), make::flags(&dst)),
            (of_src, of_dst),
            "{case}: flags"
        );
        let mut expected = before;
        expected[to as usize..(to + len) as usize].copy_from_slice(&SRC.bytes(from, len as usize));
        let found = contents(&dst);
        let wrong = expected
            .iter()
            .zip(&found)
            .position(|(one, other)| one != other);
        let wrong = wrong.or((found.len() != expected.len()).then_some(found.len()));
        assert_eq!(wrong, None, "{case}: the destination");
        assert_eq!(SRC.check(0, &contents(&src)), Ok(()), "{case}: the source");
    }
}

fn places() -> Vec<Place> {
    [Place::Disk, Place::Shm]
        .into_iter()
        .filter(|place| {
            let takes = file(*place, SRC, 0, true).is_some();
            if !takes {
                skipped(
                    &format!("O_DIRECT on {place:?}"),
                    "the filesystem does not take it",
                );
            }
            takes
        })
        .collect()
}

#[test]
fn heads_and_tails_and_what_lies_beside_them() {
    within(30, |pulse| {
        let mut copies = 0;
        for place in places() {
            for flags in FLAGS {
                for (i, from) in EDGES.into_iter().enumerate() {
                    pulse.at(format!("{place:?}, {flags:?}, from {from}"));
                    for (j, to) in EDGES.into_iter().enumerate() {
                        // Every length meets every pair of offsets in one of the four flags.
                        let len = EDGES[(i + 2 * j + copies) % EDGES.len()];
                        let explicit = (i + j) % 2 == 0;
                        let copy = Copy {
                            place,
                            flags,
                            from,
                            to,
                            len,
                            explicit,
                        };
                        copy.run(TransferOptions::new().backend(Backend::Direct));
                        copies += 1;
                    }
                }
            }
        }
        println!("{copies} copies");
    });
}

/// More than the buffer, in pieces that are no blocks, and as the policy has it.
#[test]
fn long_ones_in_odd_pieces() {
    within(30, |pulse| {
        for place in places() {
            for (from, to, chunk) in [(0, 0, 0), (1, 0, 0), (0, 4097, 0), (513, 69_633, 100_001)] {
                pulse.at(format!("{place:?}, {from}, {to}, {chunk}"));
                let mut options = TransferOptions::new();
                options.cache(Cache::Bypass);
                if let Some(chunk) = NonZeroUsize::new(chunk) {
                    options.chunk_size(chunk);
                }
                let copy = Copy {
                    place,
                    flags: (false, false),
                    from,
                    to,
                    len: (4 << 20) + 12_345,
                    explicit: false,
                };
                copy.run(&mut options);
            }
        }
    });
}

/// With the flag set by the caller, only the direct backend keeps to its alignment: the others say
/// so before anything moves, and the probe's choice works.
#[test]
fn a_flag_that_is_set_already_is_heeded() {
    within(30, |pulse| {
        for place in places() {
            for flags in &FLAGS[1..] {
                for backend in Backend::ALL {
                    let case = format!("{place:?}, O_DIRECT {flags:?}, {backend}");
                    pulse.at(&case);
                    let src = file(place, SRC, 10_000, flags.0).expect("tried before");
                    let dst = file(place, DST, 0, flags.1).expect("tried before");
                    let mut options = TransferOptions::new();
                    let result = options.backend(backend).transfer(&src, &dst, u64::MAX);
                    match (backend, result) {
                        (Backend::Direct, Ok(report)) => assert_eq!(report.bytes, 10_000, "{case}"),
                        (Backend::Direct, Err(error)) => panic!("{case}: {error}"),
                        (_, Ok(report)) => panic!("{case}: {report:?}"),
                        (_, Err(error)) => {
                            assert_eq!(error.kind(), ErrorKind::Unfit, "{case}: {error}");
                            assert_eq!(error.delivered(), 0, "{case}: {error}");
                            assert_eq!((position(&src), position(&dst)), (0, 0), "{case}");
                        }
                    }
                }
                let copy = Copy {
                    place,
                    flags: *flags,
                    from: 513,
                    to: 4097,
                    len: 300_001,
                    explicit: false,
                };
                copy.run(&mut TransferOptions::new());
            }
        }
        // To a stream, and from one.
        let src = file(Place::Disk, SRC, 300_001, true).expect("ext4, xfs, btrfs take it");
        let verdict = |src: &OwnedFd, dst: &OwnedFd| {
            let probe = TransferOptions::new()
                .probe(src.as_fd(), dst.as_fd())
                .expect("a probe");
            (probe.best(), probe.verdict(Backend::ReadWrite))
        };
        let (reader, writer) = make::pipe();
        let expected = (Backend::Direct, Err(Unfit::DirectIo(Side::Source)));
        assert_eq!(verdict(&src, &writer), expected);
        let drain = std::thread::spawn(move || crate::lane::to_end(reader));
        let report = TransferOptions::new()
            .transfer(&src, &writer, u64::MAX)
            .expect("it fits");
        assert_eq!((report.bytes, report.backend), (300_001, Backend::Direct));
        drop(writer);
        assert_eq!(SRC.check(0, &drain.join().expect("no panic")), Ok(()));

        let dst = file(Place::Disk, DST, 0, true).expect("as above");
        let (reader, writer) = make::pipe();
        let expected = (Backend::Direct, Err(Unfit::DirectIo(Side::Destination)));
        assert_eq!(verdict(&reader, &dst), expected);
        let feed = std::thread::spawn(move || {
            File::from(writer)
                .write_all(&SRC.bytes(0, 300_001))
                .expect("a reader");
        });
        let report = TransferOptions::new()
            .transfer(&reader, &dst, u64::MAX)
            .expect("it fits");
        assert_eq!((report.bytes, report.backend), (300_001, Backend::Direct));
        feed.join().expect("no panic");
        assert_eq!(SRC.check(0, &contents(&dst)), Ok(()));
    });
}
