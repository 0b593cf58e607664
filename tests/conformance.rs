//! Every backend on every pair that it says it fits, at sizes on both sides of every boundary
//! within kernel and crate, and the verdicts on all other pairs.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use common::oracle::arrived;
use common::{
    Before, Claim, Content, Data, Destination, DestinationKind, Pulse, Source, SourceKind, drive,
    kernel_can, make, skipped, within,
};
use zcio::backend::{Facts, Kind};
use zcio::{Backend, End, Error, ErrorKind, Side, TransferOptions, Unfit};

/// The expected verdicts, by hand: one row a source, one word a destination, one letter a backend
/// in the order reflink, copy-file-range, sendfile, splice, mmap, direct, read-write:
///
/// `+` it fits; `k` not from this kind of source; `K` not to this kind of destination; `s` the
/// filesystem cannot share extents; `x` other filesystem; `a` the destination appends; `d` the
/// source has O_DIRECT, `D` the destination; `e` it fits by the facts, and the kernel refuses all
/// the same (EXDEV).
const DESTINATIONS: [DestinationKind; 10] = {
    use DestinationKind::*;
    [
        DiskFile,
        ShmFile,
        Memfd,
        AppendFile,
        DirectFile,
        BlockDevice,
        Pipe,
        Tcp,
        Unix,
        Null,
    ]
};
#[rustfmt::skip]
const EXPECTED: [(SourceKind, &str); 12] = [
    //                         disk    shm     memfd   append  direct  block   pipe    tcp     unix    null
    (SourceKind::DiskFile,    "s++++++ xx+++++ xx+++++ saaa+++ sDDDD+D KK+++++ KK+++++ KK+++++ KK+++++ KKKK+++"),
    (SourceKind::ShmFile,     "xx+++++ s++++++ se+++++ xxaa+++ xxDDD+D KK+++++ KK+++++ KK+++++ KK+++++ KKKK+++"),
    (SourceKind::Memfd,       "xx+++++ se+++++ s++++++ xxaa+++ xxDDD+D KK+++++ KK+++++ KK+++++ KK+++++ KKKK+++"),
    (SourceKind::SealedMemfd, "xx+++++ se+++++ s++++++ xxaa+++ xxDDD+D KK+++++ KK+++++ KK+++++ KK+++++ KKKK+++"),
    (SourceKind::DirectFile,  "sdddd+d xxddd+d xxddd+d saaad+d sdddd+d KKddd+d KKddd+d KKddd+d KKddd+d KKKKd+d"),
    (SourceKind::BlockDevice, "kk+++++ kk+++++ kk+++++ kkaa+++ kkDDD+D kk+++++ kk+++++ kk+++++ kk+++++ kkKK+++"),
    (SourceKind::ProcVersion, "kkkkk++ kkkkk++ kkkkk++ kkkkka+ kkkkk+D kkkkk++ kkkkkk+ kkkkkk+ kkkkkk+ kkkkkk+"),
    (SourceKind::Sysfs,       "kkkkk++ kkkkk++ kkkkk++ kkkkka+ kkkkk+D kkkkk++ kkkkkk+ kkkkkk+ kkkkkk+ kkkkkk+"),
    (SourceKind::Zero,        "kkkkk++ kkkkk++ kkkkk++ kkkkka+ kkkkk+D kkkkk++ kkkkkk+ kkkkkk+ kkkkkk+ kkkkkk+"),
    (SourceKind::Pipe,        "kkk+k++ kkk+k++ kkk+k++ kkkaka+ kkkDk+D kkk+k++ kkk+kk+ kkk+kk+ kkk+kk+ kkkKkk+"),
    (SourceKind::Tcp,         "kkk+k++ kkk+k++ kkk+k++ kkkaka+ kkkDk+D kkk+k++ kk++kk+ kkk+kk+ kkk+kk+ kkkKkk+"),
    (SourceKind::Unix,        "kkk+k++ kkk+k++ kkk+k++ kkkaka+ kkkDk+D kkk+k++ kk++kk+ kkk+kk+ kkk+kk+ kkkKkk+"),
];

/// What stands in the table for a pair and a backend.
fn expected(source: SourceKind, destination: DestinationKind, backend: Backend) -> char {
    let row = EXPECTED.iter().find(|(kind, _)| *kind == source);
    let column = DESTINATIONS.iter().position(|kind| *kind == destination);
    let word = row.and_then(|(_, row)| row.split_whitespace().nth(column?));
    let letter = word.and_then(|word| word.chars().nth(backend as usize));
    letter.expect("the table is complete")
}

/// The destinations that can be had here; the others are said aloud.
fn destinations() -> Vec<(DestinationKind, Destination)> {
    let make = |kind: DestinationKind| match kind.make() {
        Ok(destination) => Some((kind, destination)),
        Err(e) => {
            skipped(&format!("conformance to {kind:?}"), e);
            None
        }
    };
    DESTINATIONS.into_iter().filter_map(make).collect()
}

#[test]
fn verdicts_are_those_of_the_table() {
    within(30, |pulse| {
        let disk = make::disk_file();
        let (shares, in_memory) = (make::may_share_extents(&disk), make::is_tmpfs(&disk));
        for (kind, _) in EXPECTED {
            let source = match kind.make(Data::new(1), 10_000) {
                Ok(source) => source,
                Err(e) => {
                    skipped(&format!("verdicts for {kind:?}"), e);
                    continue;
                }
            };
            for (to, destination) in destinations() {
                pulse.at(format!("{kind:?} to {to:?}"));
                let facts = (
                    Facts::new(&source).unwrap(),
                    Facts::new(&destination).unwrap(),
                );
                let (from_kind, to_kind) = (facts.0.kind(), facts.1.kind());
                if in_memory && (from_kind, to_kind) == (Kind::File, Kind::File) {
                    skipped(
                        &format!("verdicts for {kind:?} to {to:?}"),
                        "all files are on tmpfs",
                    );
                    continue;
                }
                for backend in Backend::ALL {
                    let probe = TransferOptions::new()
                        .backend(backend)
                        .probe(&source, &destination)
                        .unwrap();
                    let letter = expected(kind, to, backend);
                    let wanted = match letter {
                        's' if shares && to == DestinationKind::AppendFile => Err(Unfit::Appends),
                        's' if shares => Ok(()),
                        '+' | 'e' => Ok(()),
                        'k' => Err(Unfit::Kind(Side::Source, from_kind)),
                        'K' => Err(Unfit::Kind(Side::Destination, to_kind)),
                        's' => Err(Unfit::CannotShare),
                        'x' => Err(Unfit::OtherFilesystem),
                        'a' => Err(Unfit::Appends),
                        'd' => Err(Unfit::DirectIo(Side::Source)),
                        'D' => Err(Unfit::DirectIo(Side::Destination)),
                        other => panic!("the table has {other:?}"),
                    };
                    let verdict = probe.verdict(backend);
                    assert_eq!(verdict, wanted, "{backend}, {kind:?} to {to:?}");
                    // Forced, it is the only one; refused, the transfer says why and moves nothing.
                    assert_eq!(probe.candidates().count(), usize::from(wanted.is_ok()));
                    if let Err(unfit) = wanted {
                        let error = TransferOptions::new()
                            .backend(backend)
                            .transfer(&source, &destination, 10)
                            .expect_err("a refused backend");
                        assert_eq!(error.kind(), ErrorKind::Unfit, "{error}");
                        assert_eq!((error.backend(), error.delivered()), (Some(backend), 0));
                        assert!(error.to_string().ends_with(&unfit.to_string()), "{error}");
                    }
                }
            }
        }
    });
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Where something changes within the kernel or the crate, whatever the backend: a page, the
/// smallest and the usual pipe, the buffer of read/write.
const COMMON: [u64; 3] = [4 * KIB, 64 * KIB, 256 * KIB];

/// Both sides of every boundary that a backend (or the probe's choice) has, and several times each.
fn sizes(backend: Option<Backend>) -> Vec<u64> {
    let own: &[u64] = match backend {
        // The inner pipe of 16 pages is COMMON; the most that one call is asked for.
        Some(Backend::Sendfile) => &[2 * MIB],
        // The large pipe, and the most that one direct call is asked for.
        Some(Backend::Splice) => &[MIB, 2 * MIB],
        // The window.
        Some(Backend::Mmap) => &[8 * MIB],
        // The buffer.
        Some(Backend::Direct) => &[4 * MIB],
        // One call for all.
        Some(_) => &[],
        None => &[MIB, 2 * MIB],
    };
    let edges = COMMON.into_iter().chain(own.iter().copied());
    let mut sizes: Vec<u64> = edges.flat_map(|n| [n - 1, n, n + 1, 3 * n + 5]).collect();
    sizes.sort_unstable();
    sizes
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    /// Until the source ends, in one call.
    Blocking,
    /// So many bytes, step by step, on descriptors with O_NONBLOCK.
    NonBlocking,
}

/// One transfer against the oracle. The source is lent: the caller settles it.
fn run(
    case: &str,
    source: &Source,
    to: Destination,
    backend: Option<Backend>,
    mode: Mode,
    len: u64,
) {
    let mut options = TransferOptions::new();
    if let Some(backend) = backend {
        options.backend(backend);
    }
    let kind = to.kind;
    make::set_nonblocking(source, mode == Mode::NonBlocking);
    make::set_nonblocking(&to, mode == Mode::NonBlocking);
    let before = Before::new(source, &to);
    let result = match mode {
        Mode::Blocking if !has_end(source) => options.transfer(source, &to, len),
        Mode::Blocking => options.transfer(source, &to, u64::MAX),
        Mode::NonBlocking => options.start(source, &to, len).and_then(|mut transfer| {
            drive::to_end(&mut transfer)?;
            assert_eq!(
                (transfer.in_flight(), transfer.remaining()),
                (0, 0),
                "{case}"
            );
            Ok(transfer.report())
        }),
    };
    let claim = Claim::from(&result);
    let outcome = before
        .leaves(source, &to, (None, None), &claim)
        .and_then(|()| arrived(&source.content, to, 0, &claim));
    if let Err(breach) = outcome {
        panic!("{case}: {breach} ({result:?})");
    }
    match result {
        Ok(report) => {
            assert_eq!(report.bytes, len, "{case}: {report:?}");
            let ended = mode == Mode::Blocking && has_end(source);
            let end = if ended {
                End::SourceEnded
            } else {
                End::Complete
            };
            assert_eq!(report.end, end, "{case}");
            if let Some(backend) = backend {
                assert_eq!(report.shares(), [(backend, len)], "{case}");
            }
        }
        // A filesystem that shares extents in general may not share these.
        Err(error) if backend == Some(Backend::Reflink) => {
            assert_eq!(error.kind(), ErrorKind::Unfit, "{case}: {error}");
        }
        // Linux 5.3 to 5.18 copied between any two filesystems.
        Err(error) if is_exdev(&error) && backend == Some(Backend::CopyFileRange) => {
            let letter = expected(source.kind, kind, Backend::CopyFileRange);
            assert_eq!(letter, 'e', "{case}: {error}");
        }
        Err(error) => panic!("{case}: {error}"),
    }
}

fn is_exdev(error: &Error) -> bool {
    error.io_error().and_then(io::Error::raw_os_error) == Some(libc::EXDEV)
}

/// Every destination that can be had, with the backends that fit by the table, and `None` for the
/// probe's choice.
fn fitting(source: &Source) -> Vec<(DestinationKind, Vec<Option<Backend>>)> {
    let shares = make::may_share_extents(make::disk_file());
    let fits = |to: &Destination, backend: Backend| match expected(source.kind, to.kind, backend) {
        's' => shares && to.kind == DestinationKind::DiskFile,
        '+' | 'e' => kernel_can(backend, source, to),
        _ => false,
    };
    let with_backends = |(kind, to): (DestinationKind, Destination)| {
        let backends = Backend::ALL
            .into_iter()
            .filter(|backend| fits(&to, *backend));
        (kind, backends.map(Some).chain([None]).collect())
    };
    destinations().into_iter().map(with_backends).collect()
}

/// All destinations and backends for one kind of source.
fn conform(pulse: &Pulse, kind: SourceKind) {
    let seed = 0x5eed + kind as u64;
    let data = Data::new(seed);
    let fresh = |len| kind.make(data, len);
    // Largest first, so that a shared source file is only ever cut.
    let by = Backend::ALL.map(Some).into_iter().chain([None]);
    let all: BTreeSet<u64> = by.flat_map(sizes).collect();
    let largest = *all.last().expect("some");
    let mut shared = match (kind.is_stream(), fresh(largest)) {
        (_, Err(e)) => return skipped(&format!("conformance from {kind:?}"), e),
        (true, Ok(_)) => None,
        (false, Ok(source)) => Some(source),
    };
    let sample = fresh(10).expect("made before");
    let pairs = fitting(&sample);
    drop(sample);
    for size in all.into_iter().rev() {
        if let Some(source) = &mut shared {
            cut(source, size);
        }
        for (to, backends) in &pairs {
            for backend in backends.iter().copied() {
                if !sizes(backend).contains(&size) {
                    continue;
                }
                for mode in [Mode::Blocking, Mode::NonBlocking] {
                    let by = backend.map_or("the probe's choice".to_owned(), |b| b.to_string());
                    let case = format!(
                        "{kind:?} to {to:?} by {by}, {size} bytes, {mode:?}, seed {seed:#x}"
                    );
                    pulse.at(&case);
                    let destination = to.make().expect("made before");
                    match &shared {
                        Some(source) => {
                            rewind(source);
                            run(&case, source, destination, backend, mode, size);
                        }
                        None => {
                            let source = fresh(size).expect("made before");
                            run(&case, &source, destination, backend, mode, size);
                            source
                                .settle(size)
                                .unwrap_or_else(|e| panic!("{case}: the source: {e}"));
                        }
                    }
                }
            }
        }
    }
    if let Some(source) = shared {
        source.settle(0).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
    }
}

/// Whether the source ends where the transfer shall: what cannot be cut is read by a length.
fn has_end(source: &Source) -> bool {
    !source.kind.is_endless() && source.kind != SourceKind::BlockDevice
}

/// Cuts a shared source file to `size`, by a description of its own.
fn cut(source: &mut Source, size: u64) {
    if !has_end(source) {
        return;
    }
    if let Content::Known(_, len) = &mut source.content {
        let view = make::reopen(&source.fd, nix::fcntl::OFlag::O_RDWR).expect("the same file");
        File::from(view).set_len(size).expect("shorter than it was");
        *len = size;
    }
}

fn rewind(source: &Source) {
    let mut file = File::from(source.fd.try_clone().expect("a descriptor"));
    let _ = file.seek(SeekFrom::Start(0));
}

macro_rules! conforms {
    ($($name:ident: $kind:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            within(20, |pulse| conform(pulse, SourceKind::$kind));
        }
    )*};
}

conforms! {
    from_a_file_on_disk: DiskFile,
    from_a_file_on_tmpfs: ShmFile,
    from_a_memfd: Memfd,
    from_a_file_with_o_direct: DirectFile,
    from_a_block_device: BlockDevice,
    from_a_pipe: Pipe,
    from_tcp: Tcp,
    from_a_unix_socket: Unix,
    from_dev_zero: Zero,
}
