//! fork(2) (B50): what the child does with its copy neither crashes it, nor unmaps what is its own, nor
//! takes anything from the parent.
// fork(2) and mmap(2) have no safe calls among the dependencies.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::thread;

use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use zcio::{Backend, Side, Status, Transfer, TransferOptions};

use crate::child;
use crate::common::{Data, drive, make, skipped, within};

const MIB: usize = 1 << 20;

/// A child process that runs `body` and then is gone, without any destructor but the body's own.
struct Child(Pid);

impl Child {
    fn new(body: impl FnOnce()) -> Self {
        // SAFETY: glibc has its locks in order in the child, and only this thread is there; it ends by
        // `_exit`, whatever becomes of the body.
        match unsafe { libc::fork() } {
            -1 => panic!("fork(2): {}", io::Error::last_os_error()),
            0 => {
                // SAFETY: no memory is involved.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                let passed = catch_unwind(AssertUnwindSafe(body)).is_ok();
                // SAFETY: ends this process.
                unsafe { libc::_exit(if passed { 0 } else { 1 }) }
            }
            pid => Self(Pid::from_raw(pid)),
        }
    }

    fn passes(self, case: &str) {
        let status = waitpid(self.0, None).expect("a child");
        assert!(
            matches!(status, WaitStatus::Exited(_, 0)),
            "{case}: {status:?}"
        );
    }
}

/// Pages of this process's own, at whatever addresses are free.
struct Pages(Vec<*mut u8>);

const PAGE: usize = 4096;

impl Pages {
    /// Single ones, until they fill every gap that is there.
    fn new() -> Self {
        let page = |i: usize| {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, access, flags, -1, 0) };
            assert_ne!(page, libc::MAP_FAILED);
            let page = page.cast::<u8>();
            // SAFETY: within the mapping.
            unsafe { page.write(i as u8) };
            page
        };
        Self((0..512).map(page).collect())
    }

    fn assert_there(&self) {
        for (i, page) in self.0.iter().enumerate() {
            let mut there = 0;
            // SAFETY: mincore(2) writes one byte for the one page.
            let asked = unsafe { libc::mincore(page.cast(), PAGE, &raw mut there) };
            assert_eq!(asked, 0, "page {i} is unmapped");
            // SAFETY: it is mapped.
            assert_eq!(unsafe { page.read() }, i as u8, "page {i}");
        }
    }
}

fn source(data: Data, len: usize) -> File {
    let file = make::disk_file();
    file.write_all_at(&data.bytes(0, len), 0).expect("room");
    file.sync_all().expect("fsync(2)");
    file
}

fn content(file: &File, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).expect("a file");
    bytes
}

/// With the feature `io-uring`, the direct backend reads through a ring, of which queues and buffers
/// are mapped.
#[test]
fn what_reads_ahead_is_left_to_the_parent() {
    child::alone("fork::what_reads_ahead_is_left_to_the_parent", || {
        within(60, |pulse| {
            const LEN: usize = 40 * MIB + 777;
            let data = Data::new(0xf0);
            let src = source(data, LEN);
            if make::reopen(&src, OFlag::O_RDONLY | OFlag::O_DIRECT).is_err() {
                return skipped("fork", "the temporary directory does not take O_DIRECT");
            }
            for case in ["drop", "advance", "take apart"] {
                pulse.at(case);
                let dst = make::disk_file();
                let mut options = TransferOptions::new();
                options.backend(Backend::Direct).src_offset(0).dst_offset(0);
                options.chunk_size(NonZeroUsize::new(9 * MIB).expect("not zero"));
                let mut transfer = options.start(&src, &dst, u64::MAX).expect("files");
                let status = transfer.advance().expect("a step");
                assert!(matches!(status, Status::Moved(n) if n.get() > 8 * MIB));
                // The child's copy is moved out of this one's place: nothing is dropped twice here.
                let child = Child::new(|| {
                    let pages = Pages::new();
                    // SAFETY: this process's only use of it; the parent's is in another's memory.
                    let mut copy = unsafe { ptr::read(&raw const transfer) };
                    match case {
                        "advance" => {
                            drive::to_end(&mut copy).expect("as in the parent");
                            assert_eq!(copy.delivered(), LEN as u64);
                            drop(copy);
                        }
                        "take apart" => drop(copy.into_parts()),
                        _ => drop(copy),
                    }
                    pages.assert_there();
                });
                child.passes(case);
                drive::to_end(&mut transfer).expect("on it goes");
                drop(transfer);
                assert_eq!(data.check(0, &content(&dst, LEN)), Ok(()), "{case}");
            }
        });
    });
}

/// What is in flight is in a pipe that both have, or was read from where the file now stands for both.
#[test]
fn a_child_that_lets_go_takes_nothing_along() {
    child::alone("fork::a_child_that_lets_go_takes_nothing_along", || {
        within(20, |pulse| {
            for (backend, from_file) in [
                (Backend::Splice, false),
                (Backend::ReadWrite, false),
                (Backend::Splice, true),
                (Backend::ReadWrite, true),
            ] {
                let case = format!("{backend}, from a file: {from_file}");
                pulse.at(&case);
                let mut options = TransferOptions::new();
                options.backend(backend);
                if from_file {
                    lets_go(&case, &options, source(DATA, LEN));
                } else {
                    let (mut feed, src) = make::unix();
                    thread::spawn(move || feed.write_all(&DATA.bytes(0, LEN)).expect("a reader"));
                    lets_go(&case, &options, src);
                }
            }
        });
    });
}

const DATA: Data = Data::new(0xf1);
const LEN: usize = 3 * MIB;

fn lets_go<S: std::os::fd::AsFd>(case: &str, options: &TransferOptions, src: S) {
    let (dst, mut sink) = make::unix();
    dst.set_nonblocking(true).expect("a socket");
    let mut transfer = options.start(src, dst, u64::MAX).expect("a pair");
    // Until the destination is full, with bytes taken.
    while !matches!(
        transfer.advance().expect(case),
        Status::Blocked(Side::Destination)
    ) {}
    assert!(transfer.in_flight() > 0, "{case}");
    let child = Child::new(|| {
        // SAFETY: this process's only use of it; the parent's is in another's memory.
        drop(unsafe { ptr::read(&raw const transfer) });
    });
    child.passes(case);
    let drain = thread::spawn(move || {
        let mut all = Vec::new();
        sink.read_to_end(&mut all).expect("a socket");
        all
    });
    drive::to_end(&mut transfer).expect(case);
    drop(transfer);
    let arrived = drain.join().expect("no panic");
    assert_eq!(arrived.len(), LEN, "{case}");
    assert_eq!(DATA.check(0, &arrived), Ok(()), "{case}");
}

/// A transfer with nothing in flight has a pipe all the same, which must not become one between the
/// two processes.
#[test]
fn an_empty_pipe_of_ones_own_is_not_shared() {
    child::alone("fork::an_empty_pipe_of_ones_own_is_not_shared", || {
        within(60, |_| {
            const LEN: usize = 64 * MIB;
            let data = Data::new(0xf2);
            let src = source(data, LEN);
            let start = |dst| {
                let mut options = TransferOptions::new();
                options.backend(Backend::Splice).src_offset(0).dst_offset(0);
                // Less than the pipe holds: pieces of both would be in it at once.
                options.chunk_size(NonZeroUsize::new(300_001).expect("not zero"));
                let mut transfer: Transfer<&File, File> =
                    options.start(&src, dst, u64::MAX).expect("files");
                assert!(matches!(transfer.advance(), Ok(Status::Moved(_))));
                assert_eq!(transfer.in_flight(), 0);
                transfer
            };
            for round in 0..4 {
                let dst = make::disk_file();
                let mut transfer = start(dst);
                let child = Child::new(|| {
                    // SAFETY: this process's only use of it; the parent's is in another's memory.
                    let mut copy = unsafe { ptr::read(&raw const transfer) };
                    drive::to_end(&mut copy).expect("in the child");
                    assert_eq!(copy.delivered(), LEN as u64);
                });
                drive::to_end(&mut transfer).expect("in the parent");
                child.passes(&format!("round {round}"));
                let (_, dst) = transfer.into_parts();
                assert_eq!(data.check(0, &content(&dst, LEN)), Ok(()), "round {round}");
                assert_eq!(dst.metadata().expect("fstat(2)").len(), LEN as u64);
            }
        });
    });
}

/// Relays of one process share a pool of pipes: not with those of a child.
#[test]
fn relays_of_two_processes_share_no_pipe() {
    child::alone("fork::relays_of_two_processes_share_no_pipe", || {
        within(60, |_| {
            // Keeps the pool, which then keeps the pipes.
            let (idle, _peer) = make::tcp();
            let (other, _peer) = make::tcp();
            let options = zcio::relay::RelayOptions::new();
            let _keeps = options.start(&idle, &other).expect("sockets");
            through_a_relay(1);
            assert!(zcio::relay::pipes() > 0, "no pipe is left in the pool");
            let child = Child::new(|| through_a_relay(2));
            through_a_relay(3);
            child.passes("the child's");
        });
    });
}

/// Both ways through a relay between two TCP connections.
fn through_a_relay(seed: u64) {
    const LEN: usize = 48 * MIB;
    let ((near, a), (b, far)) = (make::tcp(), make::tcp());
    let ends = [(near, 2 * seed), (far, 2 * seed + 1)];
    let talk = ends.map(|(end, says)| {
        let mut writer = end.try_clone().expect("dup(2)");
        let write = thread::spawn(move || {
            let piece = Data::new(says).bytes(0, LEN);
            writer.write_all(&piece).expect("a relay");
            writer
                .shutdown(std::net::Shutdown::Write)
                .expect("a socket");
        });
        let mut reader = end;
        let read = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).expect("a relay");
            assert_eq!(all.len(), LEN);
            assert_eq!(Data::new(says ^ 1).check(0, &all), Ok(()));
        });
        (write, read)
    });
    let report = zcio::relay(&a, &b).expect("both ends");
    for (write, read) in talk {
        write.join().expect("no panic");
        read.join().expect("what was sent arrives");
    }
    let by_splice = |flow: &zcio::relay::Flow| {
        flow.shares()
            .iter()
            .any(|(by, bytes)| *by == Backend::Splice && *bytes > 0)
    };
    assert!(
        by_splice(&report.a_to_b) || by_splice(&report.b_to_a),
        "no pipe was used"
    );
}
