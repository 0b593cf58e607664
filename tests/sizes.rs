//! Small sizes and offsets in every combination, and large ones: beyond 2, 4 and 6 GiB, and a
//! sparse terabyte.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use common::oracle::position;
use common::{Content, Data, Pulse, SourceKind, each_backend, make, skipped, watch, within};
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use zcio::{Backend, End, ErrorKind, TransferOptions};

const DATA: Data = Data::new(0x512e);

// --- small ------------------------------------------------------------------------------------

/// 0 to 9, and around every power of two up to four pages.
fn small() -> Vec<u64> {
    let around = (4..=14).flat_map(|i| [(1 << i) - 1, 1 << i, (1 << i) + 1]);
    (0..=9).chain(around).chain([16_386]).collect()
}

/// So long that some ranges lie within, some beyond its end, and some reach past it.
const LEN: u64 = 20_011;

/// What takes the bytes, and gives them back by a read.
enum Target {
    File(File),
    Stream(OwnedFd, File),
}

impl Target {
    fn end(&self) -> impl AsFd + '_ {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Stream(end, _) => end.as_fd(),
        }
    }

    /// The bytes from `at` on, of which there must be exactly `len`; then it is empty again.
    fn take(&mut self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        match self {
            Self::File(file) => {
                file.read_exact_at(&mut bytes, at).unwrap();
                let size = if len > 0 { at + len } else { 0 };
                assert_eq!(file.metadata().unwrap().len(), size);
                file.set_len(0).unwrap();
            }
            Self::Stream(_, reader) => {
                // One too many would be the first of the next, and wrong there.
                reader.read_exact(&mut bytes).unwrap();
            }
        }
        bytes
    }
}

/// All pairs of offset and length from one source to one target, by one way.
fn all_small(
    pulse: &Pulse,
    name: &str,
    options: &TransferOptions,
    (src, content): (&OwnedFd, &Content),
    target: &mut Target,
) {
    let (values, open) = (small(), watch::descriptors());
    let (own_src, is_file) = (position(src), matches!(target, Target::File(_)));
    for (i, offset) in values.iter().copied().enumerate() {
        for (j, len) in values.iter().copied().enumerate() {
            // Another value each time, so that source and destination lie differently.
            let put = if is_file {
                values[(i + 7 * j) % values.len()]
            } else {
                0
            };
            let case = format!("{name}: {len} from {offset} to {put}");
            let mut options = options.clone();
            options.src_offset(offset);
            if is_file {
                options.dst_offset(put);
            }
            let expected = len.min(LEN.saturating_sub(offset));
            let report = options
                .transfer(src, target.end(), len)
                .unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(report.bytes, expected, "{case}");
            let end = if expected < len {
                End::SourceEnded
            } else {
                End::Complete
            };
            assert_eq!(report.end, end, "{case}");
            let bytes = target.take(put, expected);
            content
                .check(offset, &bytes)
                .unwrap_or_else(|e| panic!("{case}: {e}"));
        }
        pulse.at(format!("{name} from {offset}"));
    }
    assert_eq!(position(src), own_src, "{name}: the source's own position");
    if let Target::File(file) = target {
        assert_eq!(
            position(&*file),
            0,
            "{name}: the destination's own position"
        );
    }
    assert_eq!(watch::descriptors(), open, "{name}: descriptors");
}

fn small_from(pulse: &Pulse, from: SourceKind, targets: &mut [(&str, Target)]) {
    let source = from.make(DATA, LEN).unwrap();
    for (to, target) in targets {
        for (name, mut options) in each_backend(&source, target.end()) {
            options.src_offset(0);
            if matches!(target, Target::File(_)) {
                options.dst_offset(0);
            }
            if options
                .probe(&source, target.end())
                .unwrap()
                .candidates()
                .next()
                .is_none()
            {
                // sendfile(2) takes no offset for its destination.
                continue;
            }
            // A filesystem that shares extents shares whole blocks: the root tier has these.
            if name == Backend::Reflink.name() {
                skipped(
                    &format!("small sizes by {name}, {from:?} to {to}"),
                    "blocks only",
                );
                continue;
            }
            let name = format!("{from:?} to {to} by {name}");
            all_small(
                pulse,
                &name,
                &options,
                (&source.fd, &source.content),
                target,
            );
        }
    }
    source.settle(0).unwrap();
}

fn streams() -> [(&'static str, Target); 3] {
    let (pipe, unix, tcp) = (make::pipe(), make::unix(), make::tcp());
    [
        ("a pipe", pipe.0, pipe.1),
        ("a UNIX socket", unix.0.into(), unix.1.into()),
        ("TCP", tcp.0.into(), tcp.1.into()),
    ]
    .map(|(name, reader, end)| (name, Target::Stream(end, reader.into())))
}

#[test]
fn small_from_a_memfd_to_files() {
    within(10, |pulse| {
        let mut targets = [
            ("a memfd", Target::File(make::memfd())),
            ("a file", Target::File(make::disk_file())),
        ];
        small_from(pulse, SourceKind::Memfd, &mut targets);
    });
}

#[test]
fn small_from_a_file_to_files() {
    within(10, |pulse| {
        let mut targets = [
            ("a memfd", Target::File(make::memfd())),
            ("a file", Target::File(make::disk_file())),
        ];
        small_from(pulse, SourceKind::DiskFile, &mut targets);
    });
}

#[test]
fn small_from_a_memfd_to_streams() {
    within(10, |pulse| {
        small_from(pulse, SourceKind::Memfd, &mut streams());
    });
}

#[test]
fn small_from_a_file_to_streams() {
    within(10, |pulse| {
        small_from(pulse, SourceKind::DiskFile, &mut streams());
    });
}

// --- large ------------------------------------------------------------------------------------

const GIB: u64 = 1 << 30;
/// Known bytes on both sides of each edge.
const AROUND: u64 = 5000;

/// Where known bytes stand in a sparse file of `len`: at its ends, and around 2, 4 and 6 GiB, where
/// counts of 31 and 32 bits end.
fn marks(len: u64) -> Vec<(u64, u64)> {
    [0, 2 * GIB, 4 * GIB, 6 * GIB, len]
        .into_iter()
        .filter(|edge| *edge <= len)
        .map(|edge| (edge.saturating_sub(AROUND), len.min(edge + AROUND)))
        // Edges near the end overlap: what is there twice is there once.
        .fold(Vec::new(), |mut all: Vec<(u64, u64)>, (from, to)| {
            match all.last_mut() {
                Some(last) if from <= last.1 => last.1 = to.max(last.1),
                _ => all.push((from, to)),
            }
            all
        })
}

fn sparse(file: File, len: u64) -> File {
    file.set_len(len).unwrap();
    for (from, to) in marks(len) {
        let bytes = DATA.bytes(from, (to - from) as usize);
        file.write_all_at(&bytes, from).unwrap();
    }
    file
}

/// Whether the copy has the same size, the same bytes, and holes where the original has.
fn check_sparse(case: &str, copy: &File, original: &File, len: u64) {
    let (size, blocks) = (
        copy.metadata().unwrap().len(),
        copy.metadata().unwrap().blocks(),
    );
    assert_eq!(size, len, "{case}");
    let most = original.metadata().unwrap().blocks() + 8 * 8 * marks(len).len() as u64;
    assert!(
        blocks <= most,
        "{case}: {blocks} blocks of 512 bytes, expected {most} at most"
    );
    // All that is not a hole, and with it all that can differ from zero.
    let mut at = 0;
    let view = make::reopen(copy, OFlag::O_RDONLY).unwrap();
    let seek =
        |at: u64, whence| nix::unistd::lseek64(&view, at as i64, whence).map(i64::unsigned_abs);
    let mut seen = 0;
    while let Ok(data) = seek(at, nix::unistd::Whence::SeekData) {
        let hole = seek(data, nix::unistd::Whence::SeekHole).unwrap();
        let mut bytes = vec![0; (hole - data) as usize];
        copy.read_exact_at(&mut bytes, data).unwrap();
        for (from, to) in marks(len) {
            let (from, to) = (from.clamp(data, hole), to.clamp(data, hole));
            let marked = &mut bytes[(from - data) as usize..(to - data) as usize];
            assert_eq!(DATA.check(from, marked), Ok(()), "{case}");
            seen += marked.len() as u64;
            marked.fill(0);
        }
        assert!(
            bytes.iter().all(|byte| *byte == 0),
            "{case}: between the marks"
        );
        at = hole;
    }
    let marked: u64 = marks(len).iter().map(|(from, to)| to - from).sum();
    assert_eq!(seen, marked, "{case}");
}

/// Sparse files by every backend: right, sparse, and in few calls.
fn sparse_to_files(pulse: &Pulse, lens: &[u64]) {
    for len in lens.iter().copied() {
        for (from, src) in [("a memfd", make::memfd()), ("a file", make::disk_file())] {
            let src = sparse(src, len);
            for (to, make_dst) in [
                ("a memfd", make::memfd as fn() -> File),
                ("a file", make::disk_file),
            ] {
                for (name, options) in each_backend(&src, make_dst()) {
                    let case = format!("{len} bytes, sparse, {from} to {to} by {name}");
                    pulse.at(&case);
                    make::seek(&src, 0);
                    let dst = make_dst();
                    let report = match options.transfer(&src, &dst, u64::MAX) {
                        Ok(report) => report,
                        Err(e) if e.kind() == ErrorKind::Unfit && !name.starts_with("the") => {
                            // EXDEV between two mounts of tmpfs, a filesystem that cannot share.
                            let refused = ["copy-file-range", "reflink"].contains(&&*name);
                            assert!(refused, "{case}: {e}");
                            skipped(&case, e);
                            continue;
                        }
                        Err(e) => panic!("{case}: {e}"),
                    };
                    assert_eq!(
                        (report.bytes, report.end),
                        (len, End::SourceEnded),
                        "{case}"
                    );
                    assert_eq!((position(&src), position(&dst)), (len, len), "{case}");
                    assert!(
                        report.syscalls() < 200,
                        "{case}: {} calls",
                        report.syscalls()
                    );
                    check_sparse(&case, &dst, &src, len);
                }
            }
        }
    }
}

#[test]
fn sparse_gibibytes_between_files() {
    within(20, |pulse| {
        sparse_to_files(pulse, &[2 * GIB + 1, 4 * GIB + 1, 5 * GIB + 1, 6 * GIB + 1]);
    });
}

#[test]
fn a_sparse_tebibyte_in_one_call() {
    within(20, |pulse| sparse_to_files(pulse, &[1 << 40]));
}

/// A file whose holes cost nothing to read: a memfd, unless this kernel gives each of its holes a page
/// when splice(2) comes by.
fn cheap_file() -> File {
    let sample = make::memfd();
    sample.set_len(64 << 10).unwrap();
    let (_reader, writer) = make::pipe();
    let flags = SpliceFFlags::empty();
    splice(&sample, Some(&mut 0), &writer, None, 4096, flags).unwrap();
    match sample.metadata().unwrap().blocks() {
        0 => make::memfd(),
        _ => make::disk_file(),
    }
}

/// Six gibibytes of real calls: every zero goes through the pipe. What is between the marks is
/// counted, the marks are looked at.
fn through_a_pipe(pulse: &Pulse, backend: Backend, len: u64) {
    pulse.at(format!("{len} bytes to a pipe by {backend}"));
    let src = sparse(cheap_file(), len);
    let (reader, writer) = make::pipe();
    let drain = watch::apart(reader, move |mut reader| {
        let null = File::from(make::open("/dev/null", libc::O_WRONLY).unwrap());
        let mut at = 0;
        for (from, to) in marks(len) {
            while at < from {
                let want = usize::try_from(from - at).unwrap().min(1 << 30);
                let flags = SpliceFFlags::empty();
                match splice(&reader, None, &null, None, want, flags).unwrap() {
                    0 => return Err(at),
                    n => at += n as u64,
                }
            }
            let mut bytes = vec![0; (to - from) as usize];
            reader.read_exact(&mut bytes).map_err(|_| at)?;
            DATA.check(from, &bytes)?;
            at = to;
        }
        match reader.read(&mut [0]) {
            Ok(0) => Ok(at),
            _ => Err(at),
        }
    });
    let result = TransferOptions::new()
        .backend(backend)
        .transfer(&src, &writer, u64::MAX);
    drop(writer);
    let report = result.unwrap();
    assert_eq!(
        (report.bytes, report.end),
        (len, End::SourceEnded),
        "{backend}"
    );
    assert_eq!(drain.join().unwrap(), Ok(len), "{backend}");
    assert_eq!(position(&src), len, "{backend}");
}

#[test]
fn six_gibibytes_through_a_pipe() {
    within(60, |pulse| {
        for backend in [Backend::Sendfile, Backend::Splice] {
            through_a_pipe(pulse, backend, 6 * GIB + 1);
        }
    });
}

/// The same by the backends that touch each byte, to where writing costs nothing.
#[test]
fn six_gibibytes_to_dev_null() {
    within(60, |pulse| {
        let len = 6 * GIB + 1;
        let src = sparse(cheap_file(), len);
        let null = make::open("/dev/null", libc::O_WRONLY).unwrap();
        for backend in [Backend::Mmap, Backend::ReadWrite] {
            pulse.at(backend.name());
            make::seek(&src, 0);
            let mut options = TransferOptions::new();
            let report = options
                .backend(backend)
                .transfer(&src, &null, u64::MAX)
                .unwrap();
            assert_eq!(
                (report.bytes, report.end),
                (len, End::SourceEnded),
                "{backend}"
            );
            assert_eq!(position(&src), len, "{backend}");
        }
    });
}
