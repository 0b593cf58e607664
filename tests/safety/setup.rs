//! What a mechanism needs and cannot have (B51): it gives way, whatever the number, and the bytes go by
//! another; where it is the only one allowed, it is unfit before it has touched anything.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread;

use nix::fcntl::OFlag;
use zcio::backend::Facts;
use zcio::{Backend, Cache, Consistency, Endpoint, ErrorKind, Side, Step, TransferOptions, Unfit};

use crate::common::oracle::position;
use crate::common::{Data, make, skipped, within};
use crate::filter::{self, Call, Verdict};

const LEN: usize = (2 << 20) + 777;
const DATA: Data = Data::new(0xb5);

fn file() -> File {
    let file = make::disk_file();
    file.write_all_at(&DATA.bytes(0, LEN), 0).expect("room");
    file
}

/// Runs `body` in a thread in which `calls` fail. Skips aloud where that cannot be had.
fn failing(calls: &[Call], errno: i32, body: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let work =
            scope.spawn(
                || match filter::install(calls, Verdict::Fail(errno), Verdict::Allow) {
                    Ok(_) => body(),
                    Err(e) => skipped("what cannot be set up", e),
                },
            );
        work.join().expect("no panic");
    });
}

/// Among them those that a path through /proc gives where there is none, or no descriptor, or where
/// what is opened is executed, leased, or on a server that is gone.
const REFUSALS: [i32; 14] = [
    libc::ENOENT,
    libc::ENOTDIR,
    libc::EACCES,
    libc::EPERM,
    libc::ENOSYS,
    libc::EMFILE,
    libc::ENFILE,
    libc::ENODEV,
    libc::ENXIO,
    libc::ELOOP,
    libc::ETXTBSY,
    libc::EROFS,
    libc::EIO,
    libc::ESTALE,
];

fn number(error: &zcio::Error) -> Option<i32> {
    error.io_error().and_then(io::Error::raw_os_error)
}

/// Neither /proc nor a descriptor: nothing can be opened anew.
#[test]
fn without_a_second_description() {
    within(20, |pulse| {
        for errno in REFUSALS {
            pulse.at(io::Error::from_raw_os_error(errno).to_string());
            let (src, dsts) = (file(), [make::memfd(), make::memfd(), make::disk_file()]);
            let opened = [filter::any(libc::SYS_openat)];
            failing(&opened, errno, move || reopens(errno, &src, &dsts));
        }
    });
}

fn reopens(errno: i32, src: &File, [asked, insisted, sparse]: &[File; 3]) {
    let case = io::Error::from_raw_os_error(errno);
    // Asked for, and given up.
    let mut options = TransferOptions::new();
    let report = options.cache(Cache::Bypass).transfer(src, asked, u64::MAX);
    let report = report.unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(
        report.refused(),
        [(Backend::Direct, Unfit::Refused(errno))],
        "{case}"
    );
    holds(asked, &case.to_string());
    // Insisted on.
    make::seek(src, 0);
    let mut options = TransferOptions::new();
    let result = options
        .backend(Backend::Direct)
        .transfer(src, insisted, u64::MAX);
    let error = result.expect_err("it cannot be opened");
    let told = (error.kind(), number(&error), error.delivered());
    assert_eq!(told, (ErrorKind::Unfit, Some(errno), 0), "{case}: {error}");
    assert_eq!((position(src), position(insisted)), (0, 0), "{case}");
    // Holes, from an explicit offset.
    src.set_len(LEN as u64 + (1 << 20)).expect("ftruncate(2)");
    let mut options = TransferOptions::new();
    let report = options.src_offset(0).transfer(src, sparse, LEN as u64);
    assert_eq!(
        report.expect("zeros are copied").bytes,
        LEN as u64,
        "{case}"
    );
    holds(sparse, &case.to_string());
}

fn holds(dst: &File, case: &str) {
    let mut bytes = vec![0; LEN];
    dst.read_exact_at(&mut bytes, 0).expect(case);
    assert_eq!(DATA.check(0, &bytes), Ok(()), "{case}");
}

/// A destination that the caller has opened with O_DIRECT: what fills its blocks needs nothing else.
#[test]
fn blocks_to_o_direct_need_no_second_description() {
    within(10, |_| {
        let whole = LEN / 4096 * 4096;
        let to = make::disk_file();
        let Ok(dst) = make::reopen(&to, OFlag::O_RDWR | OFlag::O_DIRECT) else {
            return skipped("O_DIRECT", "the temporary directory does not take it");
        };
        let src = file();
        failing(&[filter::any(libc::SYS_openat)], libc::ENOENT, || {
            let report = zcio::transfer(&src, &dst, whole as u64).expect("aligned");
            assert_eq!(
                (report.bytes, report.backend),
                (whole as u64, Backend::Direct)
            );
            // The rest does, and is said not to be there.
            let error = zcio::transfer(&src, &dst, u64::MAX).expect_err("no block");
            let told = (error.side(), number(&error), error.delivered());
            assert_eq!(
                told,
                (Some(Side::Destination), Some(libc::ENOENT), 0),
                "{error}"
            );
            let at = (position(&src), position(&dst));
            assert_eq!(at, (whole as u64, whole as u64));
        });
        let mut bytes = Vec::new();
        make::seek(&to, 0);
        (&to).read_to_end(&mut bytes).expect("a file");
        assert_eq!((bytes.len(), DATA.check(0, &bytes)), (whole, Ok(())));
    });
}

/// The table of descriptors is full: what fills no block of the caller's O_DIRECT goes all the same.
#[test]
fn a_tail_to_o_direct_needs_no_room_in_the_table() {
    crate::child::alone(
        "setup::a_tail_to_o_direct_needs_no_room_in_the_table",
        || {
            within(10, |_| {
                let to = make::disk_file();
                let Ok(dst) = make::reopen(&to, OFlag::O_RDWR | OFlag::O_DIRECT) else {
                    return skipped("O_DIRECT", "the temporary directory does not take it");
                };
                let src = file();
                let next = src.try_clone().expect("dup(2)").as_raw_fd();
                let limit =
                    crate::rlimit::Limit::new(libc::RLIMIT_NOFILE, next.unsigned_abs().into());
                let result = zcio::transfer(&src, &dst, u64::MAX);
                drop(limit);
                assert_eq!(result.expect("with its tail").bytes, LEN as u64);
                holds(&to, "the tail");
            });
        },
    );
}

/// mmap(2) of the source is refused.
#[test]
fn without_a_mapping() {
    within(20, |pulse| {
        for errno in REFUSALS
            .into_iter()
            .chain([libc::ENOMEM, libc::EAGAIN, libc::EOVERFLOW])
        {
            let case = io::Error::from_raw_os_error(errno).to_string();
            pulse.at(&case);
            let src = file();
            let map = filter::with(libc::SYS_mmap, 4, src.as_raw_fd().unsigned_abs());
            failing(&[map], errno, move || {
                let dst = make::disk_file();
                let forced =
                    TransferOptions::new()
                        .backend(Backend::Mmap)
                        .transfer(&src, &dst, u64::MAX);
                let error = forced.expect_err("it cannot be mapped");
                let told = (error.kind(), number(&error), error.delivered());
                assert_eq!(told, (ErrorKind::Unfit, Some(errno), 0), "{case}: {error}");
                // A copy is wanted, for which mapping is the cheapest.
                let (near, mut far) = make::unix();
                let drain = thread::spawn(move || {
                    let mut all = Vec::new();
                    far.read_to_end(&mut all).expect("a socket");
                    all
                });
                let mut options = TransferOptions::new();
                options.consistency(Consistency::Snapshot);
                let report = options.transfer(&src, &near, u64::MAX).expect(&case);
                let refused = [(Backend::Mmap, Unfit::Refused(errno))];
                assert_eq!(report.refused(), refused, "{case}");
                drop(near);
                let arrived = drain.join().expect("no panic");
                assert_eq!(
                    (arrived.len(), DATA.check(0, &arrived)),
                    (LEN, Ok(())),
                    "{case}"
                );
            });
        }
    });
}

/// A file of a kind has no position, or none of its size, or no mapping.
#[test]
fn regular_files_that_cannot_be_read_or_seek() {
    within(20, |_| {
        type Maker = Box<dyn Fn() -> OwnedFd>;
        let nsfs = || OwnedFd::from(File::open("/proc/self/ns/net").expect("procfs"));
        let mut made: Vec<(&str, Maker)> = vec![("nsfs", Box::new(nsfs))];
        match make::secret_memfd(8192) {
            Ok(_) => made.push((
                "a secret",
                Box::new(|| make::secret_memfd(8192).expect("as before").into()),
            )),
            Err(e) => skipped("memfd_secret", e),
        }
        for (name, make_one) in made {
            for backend in [None].into_iter().chain(Backend::ALL.map(Some)) {
                for explicit in [false, true] {
                    let case = format!("{name}, {backend:?}, explicit {explicit}");
                    let (src, dst) = (make_one(), make::disk_file());
                    let mut options = TransferOptions::new();
                    backend.map(|backend| options.backend(backend));
                    explicit.then(|| options.src_offset(0));
                    let result = options.transfer(&src, &dst, u64::MAX);
                    match result {
                        // A secret can be mapped, from an offset.
                        Ok(report) => {
                            let mapped = backend.is_none_or(|b| b == Backend::Mmap);
                            assert!(
                                explicit && mapped && name == "a secret",
                                "{case}: {report:?}"
                            );
                            assert_eq!(report.bytes, 8192, "{case}");
                        }
                        Err(error) => {
                            assert_eq!(error.delivered(), 0, "{case}: {error}");
                            match backend {
                                // Reading it is what tells.
                                None | Some(Backend::ReadWrite) => {
                                    assert_eq!(error.kind(), ErrorKind::Io, "{case}: {error}");
                                    assert_eq!(error.side(), Some(Side::Source), "{case}: {error}");
                                }
                                Some(_) => {
                                    assert_eq!(error.kind(), ErrorKind::Unfit, "{case}: {error}");
                                }
                            }
                        }
                    }
                }
            }
        }
    });
}

/// A file may be opened so that it does not seek (`stream_open`, FUSE's `FOPEN_NONSEEKABLE`). By hand:
/// what is known is a file's, and the descriptor does not seek.
#[test]
fn a_file_that_does_not_seek_is_unfit_for_what_works_by_offset() {
    let (src, dst) = (file(), make::disk_file());
    let (from, to) = (
        Facts::new(&src).expect("a file"),
        Facts::new(&dst).expect("a file"),
    );
    let (reader, writer) = make::pipe();
    let limit = NonZeroUsize::new(8192).expect("not zero");
    let unfit = Step::Unfit(Unfit::Refused(libc::ESPIPE));
    for backend in [Backend::Reflink, Backend::Mmap] {
        let mut src = Endpoint::new(reader.as_fd(), &from, None);
        let mut to = Endpoint::new(dst.as_fd(), &to, None);
        let step = backend.instance().step(&mut src, &mut to, limit);
        assert_eq!(step.expect("unfit"), unfit, "{backend}, the source");
    }
    let mut from = Endpoint::new(src.as_fd(), &from, None);
    let mut to = Endpoint::new(writer.as_fd(), &to, None);
    let step = Backend::Reflink.instance().step(&mut from, &mut to, limit);
    assert_eq!(step.expect("unfit"), unfit, "the destination");
    let Ok(direct) = make::reopen(&dst, OFlag::O_RDWR | OFlag::O_DIRECT) else {
        return skipped("O_DIRECT", "the temporary directory does not take it");
    };
    let of_direct = Facts::new(&direct).expect("a file");
    let mut to = Endpoint::new(writer.as_fd(), &of_direct, None);
    let step = Backend::Direct.instance().step(&mut from, &mut to, limit);
    assert_eq!(step.expect("unfit"), unfit, "O_DIRECT");
    assert_eq!(position(&src), 0);
}

/// A cold file is fetched by a thread of the pool, by a descriptor of its own where there is room for one.
#[cfg(feature = "tokio")]
#[test]
fn a_cold_file_where_no_descriptor_is_left() {
    crate::child::alone("setup::a_cold_file_where_no_descriptor_is_left", || {
        let src = file();
        src.sync_all().expect("fsync(2)");
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_io().build().expect("a runtime");
        for message in [false, true] {
            let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            nix::fcntl::posix_fadvise(&src, 0, 0, advice).expect("advice");
            make::seek(&src, 0);
            let (near, mut far) = make::unix();
            near.set_nonblocking(true).expect("a socket");
            let drain = thread::spawn(move || {
                let mut all = Vec::new();
                far.read_to_end(&mut all).expect("a socket");
                all
            });
            let moved = runtime.block_on(async {
                let near = tokio::net::UnixStream::from_std(near).expect("a socket");
                let next = src.try_clone().expect("dup(2)").as_raw_fd();
                let limit =
                    crate::rlimit::Limit::new(libc::RLIMIT_NOFILE, next.unsigned_abs().into());
                let moved = if message {
                    let part = zcio::Message::new().file(&src, 0..LEN as u64);
                    zcio::tokio::send(&part, &near).await
                } else {
                    zcio::tokio::transfer(&src, &near, u64::MAX).await
                };
                drop(limit);
                moved.map(|report| report.bytes)
            });
            assert_eq!(moved.expect("without"), LEN as u64, "message: {message}");
            let arrived = drain.join().expect("no panic");
            assert_eq!((arrived.len(), DATA.check(0, &arrived)), (LEN, Ok(())));
        }
    });
}

/// That it can be told.
#[test]
fn a_filter_does_fail_them() {
    failing(&[filter::any(libc::SYS_openat)], libc::ENOTDIR, || {
        let error = File::open("/proc/self/stat").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
        let _ = io::sink().write(b"");
    });
}
