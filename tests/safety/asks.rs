//! `AsFd` may answer another descriptor each time it is asked (B49). Each operation asks once, and what
//! is found out about the answer is used of that descriptor and of no other.
// `map_file_unchecked` is unsafe.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::fcntl::OFlag;
use zcio::backend::{Facts, ReadWrite};
use zcio::fan_out::FanOutOptions;
use zcio::relay::{Direction, RelayOptions, RelayStatus};
use zcio::{Backend, Message, Probe, Transfer, TransferOptions, fan_out, map_file};

use crate::common::{Data, make, within};

/// Answers its descriptors in turn, and counts how often it was asked.
#[derive(Debug)]
struct Fickle {
    fds: Vec<OwnedFd>,
    asked: Arc<AtomicUsize>,
}

impl Fickle {
    fn new(fds: impl IntoIterator<Item = OwnedFd>) -> Self {
        let (fds, asked) = (fds.into_iter().collect(), Arc::default());
        Self { fds, asked }
    }

    fn of(fd: impl Into<OwnedFd>) -> (Self, Asked) {
        let this = Self::new([fd.into()]);
        let asked = Asked(Arc::clone(&this.asked));
        (this, asked)
    }

    fn answer(&self) -> BorrowedFd<'_> {
        let nth = self.asked.fetch_add(1, Ordering::Relaxed);
        self.fds[nth % self.fds.len()].as_fd()
    }
}

impl AsFd for Fickle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.answer()
    }
}

/// How often it was asked since that was last looked at.
struct Asked(Arc<AtomicUsize>);

impl Asked {
    fn times(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

const DATA: Data = Data::new(0xa5);

fn file(len: usize) -> File {
    let file = make::disk_file();
    file.write_all_at(&DATA.bytes(0, len), 0).expect("room");
    file
}

/// A mapping of a file that can still be cut would be a `&[u8]` that kills the process.
#[test]
fn what_was_seen_to_be_sealed_is_what_is_mapped() {
    let sealed = || OwnedFd::from(make::sealed_memfd(&[1; 8192]));
    let open = || {
        let file = make::memfd();
        file.write_all_at(&[2; 8192], 0).expect("room");
        file
    };
    let cut = open();
    let given = cut.try_clone().expect("dup(2)");
    for others in 1..4 {
        let mut fds = vec![sealed()];
        fds.resize_with(1 + others, || given.try_clone().expect("dup(2)").into());
        let bytes = map_file(Fickle::new(fds), 0..8192).expect("it is sealed");
        cut.set_len(0).expect("ftruncate(2)");
        assert!(bytes.iter().all(|byte| *byte == 1), "of another file");
        cut.write_all_at(&[2; 8192], 0).expect("room");
    }
    let error = map_file(Fickle::new([open().into(), sealed()]), 0..8192).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    let (fickle, asked) = Fickle::of(open());
    // SAFETY: nobody else has it.
    let bytes = unsafe { zcio::map_file_unchecked(&fickle, 0..8192) }.expect("a file");
    assert_eq!((bytes.len(), asked.times()), (8192, 1));
}

#[test]
fn a_transfer_asks_each_side_once() {
    let ((src, of_src), (dst, of_dst)) = (Fickle::of(file(300_000)), Fickle::of(make::disk_file()));
    let both = || (of_src.times(), of_dst.times());
    Facts::new(&src).expect("a file");
    assert_eq!(both(), (1, 0));
    Probe::new(&src, &dst).expect("files");
    assert_eq!(both(), (1, 1));
    let mut options = TransferOptions::new();
    options.src_offset(0).dst_offset(0);
    options.chunk_size(NonZeroUsize::new(100_000).expect("not zero"));
    options.probe(&src, &dst).expect("files");
    assert_eq!(both(), (1, 1));
    options.transfer(&src, &dst, u64::MAX).expect("files");
    assert_eq!(both(), (1, 1), "three pieces");
    let mut transfer = options.start(&src, &dst, u64::MAX).expect("files");
    assert_eq!(both(), (1, 1));
    for _ in 0..5 {
        transfer.advance().expect("files");
        assert_eq!(both(), (1, 1));
    }
    transfer.reclaim().expect("nothing");
    assert!(both() <= (1, 1));
    let _ = transfer.into_parts();
    assert!(both() <= (1, 1));
    let own = Box::new(ReadWrite::new());
    let transfer = Transfer::with_backend(&src, &dst, 5, own).expect("files");
    assert_eq!(both(), (1, 1));
    drop(transfer);
    assert!(both() <= (1, 1));
}

#[test]
fn a_relay_asks_each_side_once() {
    within(10, |_| {
        let ((mut near, a), (b, mut far)) = (make::tcp(), make::tcp());
        make::set_nonblocking(&a, true);
        make::set_nonblocking(&b, true);
        let ((a, of_a), (b, of_b)) = (Fickle::of(a), Fickle::of(b));
        let both = || (of_a.times(), of_b.times());
        let mut relay = RelayOptions::new().start(&a, &b).expect("sockets");
        assert_eq!(both(), (1, 1));
        near.write_all(b"one").expect("a relay");
        while relay.delivered(Direction::AToB) < 3 {
            relay.advance().expect("sockets");
            assert_eq!(both(), (1, 1));
        }
        let mut got = [0; 3];
        far.read_exact(&mut got).expect("a relay");
        // A reset is a failure, which is summed up.
        let (l_onoff, l_linger) = (1, 0);
        let at_once = libc::linger { l_onoff, l_linger };
        nix::sys::socket::setsockopt(&near, nix::sys::socket::sockopt::Linger, &at_once)
            .expect("SO_LINGER");
        far.write_all(b"two").expect("a relay");
        drop((near, far));
        loop {
            let status = relay.advance();
            assert_eq!(both(), (1, 1), "{status:?}");
            match status {
                Ok(RelayStatus::Finished) => panic!("a reset was taken for an end"),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        relay.into_report();
        assert!(both() <= (1, 1));

        let ((near, a), (b, far)) = (make::tcp(), make::tcp());
        let ((a, of_a), (b, of_b)) = (Fickle::of(a), Fickle::of(b));
        drop((near, far));
        zcio::relay(&a, &b).expect("sockets");
        assert_eq!((of_a.times(), of_b.times()), (1, 1));
    });
}

/// Where the first way is refused, the second is of the same descriptor.
#[test]
fn a_fan_out_asks_each_once() {
    within(10, |pulse| {
        // Where splice(2) is refused, and write(2) appends.
        let append = || {
            let flags = OFlag::O_WRONLY | OFlag::O_APPEND;
            make::reopen(make::disk_file(), flags).expect("a file")
        };
        for verb in ["state", "call"] {
            pulse.at(verb);
            let (src, of_src) = Fickle::of(file(3 << 20));
            let (dsts, asked): (Vec<_>, Vec<_>) = [make::disk_file().into(), append()]
                .map(Fickle::of)
                .into_iter()
                .unzip();
            let each = || (of_src.times(), asked.iter().map(Asked::times).max());
            if verb == "call" {
                let report = fan_out(&src, &dsts, u64::MAX).expect("files");
                assert_eq!(report.taken, 3 << 20);
                assert_eq!(each(), (1, Some(1)));
                continue;
            }
            let mut fan = FanOutOptions::new()
                .start(&src, &dsts, u64::MAX)
                .expect("files");
            assert_eq!(each(), (1, Some(1)));
            loop {
                let status = fan.advance().expect("files");
                let (source, destination) = each();
                assert!(
                    source <= 1 && destination <= Some(1),
                    "{source} {destination:?}"
                );
                if matches!(status, zcio::fan_out::FanOutStatus::Finished(_)) {
                    break;
                }
            }
            fan.into_report();
        }
        // A generated file is refused by splice(2), and read.
        let (src, of_src) = Fickle::of(File::open("/proc/self/maps").expect("procfs"));
        let mut fan = FanOutOptions::new()
            .start(&src, [make::disk_file()], u64::MAX)
            .expect("both");
        of_src.times();
        while !matches!(fan.advance(), Ok(zcio::fan_out::FanOutStatus::Finished(_))) {
            assert!(of_src.times() <= 1);
        }
    });
}

#[test]
fn a_message_asks_each_once() {
    within(10, |_| {
        let (small, of_small) = Fickle::of(file(3_000));
        let (large, of_large) = Fickle::of(file(300_000));
        let message = Message::new()
            .file(&large, 0..200_000)
            .bytes("between")
            .file(&small, 0..3_000)
            .file(&large, 100_000..300_000)
            .bytes("end");
        for verb in ["call", "finish", "state"] {
            let (near, mut far) = make::unix();
            let drain = thread::spawn(move || {
                let mut all = Vec::new();
                far.read_to_end(&mut all).expect("a socket");
                all.len() as u64
            });
            let (dst, asked) = Fickle::of(near);
            match verb {
                "call" => {
                    message.send(&dst).expect("a socket");
                    assert_eq!(asked.times(), 1);
                }
                "finish" => {
                    let mut sending = message.start(&dst).expect("a socket");
                    assert_eq!(asked.times(), 1);
                    sending.finish().expect("a socket");
                    assert_eq!(asked.times(), 1);
                }
                _ => {
                    let mut sending = message.start(&dst).expect("a socket");
                    for asked in [&asked, &of_small, &of_large] {
                        asked.times();
                    }
                    loop {
                        let status = sending.advance().expect("a socket");
                        assert_eq!(asked.times(), 1);
                        assert!(of_small.times() <= 1 && of_large.times() <= 1);
                        if matches!(status, zcio::Status::Finished(_)) {
                            break;
                        }
                    }
                }
            }
            drop(dst);
            assert_eq!(drain.join().expect("no panic"), message.len(), "{verb}");
        }
    });
}

/// Between two operations of one transfer it may be anything: the bytes are then what they are, and
/// nothing else breaks.
#[test]
fn another_descriptor_for_each_step() {
    within(60, |pulse| {
        let len = 9 << 20;
        let direct = |file: &File| make::reopen(file, OFlag::O_RDWR | OFlag::O_DIRECT).ok();
        let fds = || {
            let short = file(100);
            let mut fds: Vec<OwnedFd> = vec![file(len).into(), short.into(), make::memfd().into()];
            fds.extend(direct(&file(len)));
            let ((reader, writer), (near, far)) = (make::pipe(), make::unix());
            for fd in [reader, near.into()] {
                make::set_nonblocking(&fd, true);
                fds.push(fd);
            }
            std::mem::forget((writer, far));
            fds.push(make::open("/dev/null", libc::O_RDWR).expect("/dev/null"));
            fds
        };
        for backend in Backend::ALL {
            for chunk in [10_000, 700_000, 20 << 20] {
                for turn in 0..6 {
                    pulse.at(format!("{backend}, {chunk}, {turn}"));
                    let (mut src, mut dst) = (fds(), fds());
                    // What it starts on, it serves.
                    src.rotate_left(turn % 3);
                    src.insert(0, file(len).into());
                    dst.rotate_left(turn);
                    dst.insert(0, make::disk_file().into());
                    let mut options = TransferOptions::new();
                    options
                        .backend(backend)
                        .chunk_size(NonZeroUsize::new(chunk).expect("not zero"));
                    let (src, dst) = (Fickle::new(src), Fickle::new(dst));
                    let Ok(mut transfer) = options.start(src, dst, u64::MAX) else {
                        continue;
                    };
                    for _ in 0..12 {
                        if transfer.advance().is_err() {
                            let _ = transfer.reclaim();
                        }
                    }
                    drop(transfer);
                }
            }
        }
        let (src, dst) = (file(3), make::memfd());
        assert_eq!(
            zcio::transfer(&src, &dst, u64::MAX).expect("whole").bytes,
            3
        );
    });
}

#[cfg(feature = "tokio")]
mod awaiting {
    use std::io;

    use tokio::io::unix::AsyncFd;
    use tokio::runtime::Runtime;
    use zcio::Side;
    use zcio::tokio::{Readiness, drive, drive_relay, drive_sending, relay, send, transfer};

    use super::*;

    /// The same with readiness.
    struct Ready {
        inner: AsyncFd<OwnedFd>,
        asked: Arc<AtomicUsize>,
    }

    impl Ready {
        fn of(fd: impl Into<OwnedFd>) -> (Self, Asked) {
            let fd = fd.into();
            make::set_nonblocking(&fd, true);
            // What replaces it is newer than the oldest tokio that this builds with.
            #[allow(deprecated)]
            let inner = AsyncFd::new(fd).expect("epoll");
            let asked = Arc::default();
            let counter = Asked(Arc::clone(&asked));
            (Self { inner, asked }, counter)
        }
    }

    impl AsFd for Ready {
        fn as_fd(&self) -> BorrowedFd<'_> {
            Readiness::fd(self)
        }
    }

    impl Readiness for Ready {
        fn fd(&self) -> BorrowedFd<'_> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Readiness::fd(&self.inner)
        }

        fn try_io(&self, side: Side, op: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
            Readiness::try_io(&self.inner, side, op)
        }

        fn ready(&self, side: Side) -> impl Future<Output = io::Result<()>> + Send {
            Readiness::ready(&self.inner, side)
        }
    }

    #[test]
    fn awaiting_asks_once() {
        within(20, |_| {
            let runtime = Runtime::new().expect("a runtime");
            runtime.block_on(async {
                const LEN: usize = 3 << 20;
                let pair = || {
                    let ((mut near, a), (b, mut far)) = (make::tcp(), make::tcp());
                    let write = thread::spawn(move || {
                        near.write_all(&DATA.bytes(0, LEN)).expect("a reader");
                        near
                    });
                    let read = thread::spawn(move || {
                        let mut all = vec![0; LEN];
                        far.read_exact(&mut all).expect("a writer");
                        assert_eq!(DATA.check(0, &all), Ok(()));
                        far
                    });
                    let ends =
                        move || drop((write.join().expect("fed"), read.join().expect("read")));
                    (Ready::of(a), Ready::of(b), ends)
                };
                let ((a, of_a), (b, of_b), ends) = pair();
                transfer(&a, &b, LEN as u64).await.expect("sockets");
                assert_eq!((of_a.times(), of_b.times()), (1, 1));
                ends();

                let ((a, of_a), (b, of_b), ends) = pair();
                let mut started = TransferOptions::new()
                    .start(a, b, LEN as u64)
                    .expect("sockets");
                assert_eq!((of_a.times(), of_b.times()), (1, 1));
                drive(&mut started).await.expect("sockets");
                assert_eq!((of_a.times(), of_b.times()), (1, 1));
                ends();

                let ((a, of_a), (b, of_b), ends) = pair();
                thread::spawn(ends);
                relay(&a, &b).await.expect("sockets");
                assert_eq!((of_a.times(), of_b.times()), (1, 1));

                let ((a, of_a), (b, of_b), ends) = pair();
                thread::spawn(ends);
                let mut started = RelayOptions::new().start(&a, &b).expect("sockets");
                assert_eq!((of_a.times(), of_b.times()), (1, 1));
                drive_relay(&mut started).await.expect("sockets");
                assert_eq!((of_a.times(), of_b.times()), (1, 1));

                let content = file(LEN);
                let message = Message::new().bytes("head").file(&content, 0..LEN as u64);
                for driven in [false, true] {
                    let (near, mut far) = make::unix();
                    let read = thread::spawn(move || far.read_to_end(&mut Vec::new()));
                    let (dst, asked) = Ready::of(near);
                    if driven {
                        let mut sending = message.start(&dst).expect("a socket");
                        assert_eq!(asked.times(), 1);
                        drive_sending(&mut sending).await.expect("a socket");
                        assert_eq!(asked.times(), 1);
                        // Which is asked once more.
                        drop(sending);
                    } else {
                        send(&message, &dst).await.expect("a socket");
                    }
                    assert_eq!(asked.times(), 1);
                    drop(dst);
                    read.join().expect("no panic").expect("a socket");
                }
            });
        });
    }
}
