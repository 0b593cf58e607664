//! A backend of somebody else's that counts wrongly, and backends that are driven by hand with what
//! makes no sense: an error, and no panic.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use bytes::BytesMut;
use nix::fcntl::OFlag;
use zcio::backend::Facts;
use zcio::{Backend, Endpoint, ErrorKind, Fault, Side, Status, Step, Transfer, Unfit};
use zcio::{ZeroCopyTransfer, transfer};

use crate::common::{make, within};

const LEN: u64 = 10_000;

/// What each step claims, and what is in flight then; the last one for ever. What a reclaim gives.
#[derive(Clone, Debug)]
struct Liar {
    steps: Vec<(Claim, usize)>,
    gives: usize,
    at: usize,
}

#[derive(Clone, Copy, Debug)]
enum Claim {
    Moved(usize),
    Blocked,
    Ended,
    Fault,
}

use Claim::{Blocked, Ended, Moved};

impl ZeroCopyTransfer for Liar {
    fn backend(&self) -> Backend {
        Backend::ReadWrite
    }

    fn assess(&self, _: &Endpoint<'_>, _: &Endpoint<'_>) -> Result<(), Unfit> {
        Ok(())
    }

    fn step(
        &mut self,
        _: &mut Endpoint<'_>,
        _: &mut Endpoint<'_>,
        _: NonZeroUsize,
    ) -> Result<Step, Fault> {
        self.at += 1;
        match self.steps[(self.at - 1).min(self.steps.len() - 1)].0 {
            Moved(bytes) => Ok(Step::Moved(NonZeroUsize::new(bytes).expect("not zero"))),
            Blocked => Ok(Step::Blocked(Side::Destination)),
            Ended => Ok(Step::Ended),
            Claim::Fault => Err(Fault::new(Side::Source, io::ErrorKind::Other.into())),
        }
    }

    fn in_flight(&self) -> usize {
        match self.at.checked_sub(1) {
            None => 0,
            Some(at) => self.steps[at.min(self.steps.len() - 1)].1,
        }
    }

    fn reclaim(&mut self, into: &mut BytesMut) -> io::Result<()> {
        into.resize(into.len() + self.gives, 7);
        Ok(())
    }
}

/// What it claims, bytes that a reclaim gives, and what was counted when it was found out.
type Lie = (Vec<(Claim, usize)>, usize, u64);

fn lies() -> Vec<Lie> {
    let (len, most) = (LEN as usize, usize::MAX);
    vec![
        // More than was asked for, at once and later.
        (vec![(Moved(len + 1), 0)], 0, 0),
        (vec![(Moved(most), 0)], 0, 0),
        (vec![(Moved(9_000), 0), (Moved(1_001), 0)], 0, 9_000),
        (vec![(Moved(9_000), 0), (Moved(most), most)], 0, 9_000),
        // More in flight than was asked for.
        (vec![(Blocked, len + 1)], len + 1, 0),
        (vec![(Blocked, most)], 5, 0),
        (vec![(Blocked, most / 2 + 1)], 0, 0),
        (vec![(Moved(6_000), 4_001)], 4_001, 0),
        (vec![(Moved(1), most)], 0, 0),
        // What was in flight is gone.
        (vec![(Moved(100), 500), (Moved(300), 100)], 0, 100),
        (vec![(Blocked, 500), (Blocked, 0)], 0, 0),
        (vec![(Blocked, 500), (Claim::Fault, 10)], 10, 0),
    ]
}

#[test]
fn counts_that_do_not_hold_are_an_error() {
    within(20, |pulse| {
        for (steps, gives, counted) in lies() {
            for from_file in [false, true] {
                let case = format!("{steps:?}, from a file: {from_file}");
                pulse.at(&case);
                let liar = Liar {
                    steps: steps.clone(),
                    gives,
                    at: 0,
                };
                found_out(&case, source(from_file), liar, counted);
            }
        }
    });
}

fn source(from_file: bool) -> OwnedFd {
    if from_file {
        let file = make::disk_file();
        file.write_all_at(&[1; LEN as usize], 0).expect("room");
        make::seek(&file, 5_000);
        file.into()
    } else {
        make::pipe().0
    }
}

fn found_out(case: &str, src: OwnedFd, liar: Liar, counted: u64) {
    let (_reader, dst) = make::pipe();
    let mut transfer = Transfer::with_backend(src, dst, LEN, Box::new(liar)).expect(case);
    let error = loop {
        match transfer.advance() {
            Ok(Status::Finished(end)) => panic!("{case}: {end:?}"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Io, "{case}: {error}");
    let kind = error.io_error().map(io::Error::kind);
    assert_eq!(kind, Some(io::ErrorKind::InvalidData), "{case}: {error}");
    assert_eq!(error.delivered(), counted, "{case}: {error}");
    assert_eq!(transfer.delivered(), counted, "{case}");
    // It lies on: there is no end to it, and no panic.
    for more in [3, 3, u64::MAX, 3] {
        let _ = transfer.advance();
        let _ = (transfer.remaining(), transfer.report());
        let sum = transfer.delivered().checked_add(transfer.in_flight());
        assert!(sum.is_some(), "{case}");
        transfer.extend(more);
        let _ = transfer.reclaim();
    }
    drop(transfer.into_parts());
}

/// What was taken comes back, and that it is another number is said.
#[test]
fn a_reclaim_of_another_number_of_bytes_is_an_error() {
    for (held, gives) in [(500, 499), (500, 501), (1, 0), (500, 500)] {
        let liar = Liar {
            steps: vec![(Moved(100), held)],
            gives,
            at: 0,
        };
        let ((src, _writer), (_reader, dst)) = (make::pipe(), make::pipe());
        let mut transfer = Transfer::with_backend(src, dst, LEN, Box::new(liar)).expect("pipes");
        assert!(matches!(transfer.advance(), Ok(Status::Moved(n)) if n.get() == 100));
        assert_eq!(transfer.in_flight(), held as u64);
        match transfer.reclaim() {
            Ok(bytes) => assert_eq!((bytes.len(), gives), (held, held)),
            Err(error) => {
                assert_ne!(gives, held, "{error}");
                assert_eq!(error.delivered(), 100, "{error}");
                assert_eq!(error.undelivered().len(), gives, "{error}");
                let kind = error.io_error().map(io::Error::kind);
                assert_eq!(kind, Some(io::ErrorKind::InvalidData), "{error}");
            }
        }
        assert_eq!(transfer.in_flight(), 0);
    }
}

/// One that counts rightly is not disturbed.
#[test]
fn counts_that_hold_are_taken() {
    let steps = [
        (Blocked, 300),
        (Moved(200), 100),
        (Moved(100), 0),
        (Ended, 0),
    ];
    let (steps, gives, at) = (steps.to_vec(), 0, 0);
    let ((src, _writer), (_reader, dst)) = (make::pipe(), make::pipe());
    let liar = Box::new(Liar { steps, gives, at });
    let mut transfer = Transfer::with_backend(src, dst, LEN, liar).expect("pipes");
    while !matches!(transfer.advance().expect("right"), Status::Finished(_)) {}
    assert_eq!((transfer.delivered(), transfer.in_flight()), (300, 0));
}

/// Descriptors of many kinds, none of which waits.
fn kinds() -> Vec<(&'static str, OwnedFd)> {
    let file = || {
        let file = make::disk_file();
        file.write_all_at(&[3; 20_000], 0).expect("room");
        file
    };
    let mut all: Vec<(&str, OwnedFd)> = vec![
        ("a file", file().into()),
        ("a memfd", make::memfd().into()),
        (
            "/dev/null",
            make::open("/dev/null", libc::O_RDWR).expect("/dev/null"),
        ),
        (
            "/proc",
            File::open("/proc/self/stat").expect("procfs").into(),
        ),
        (
            "/proc/ns",
            File::open("/proc/self/ns/net").expect("procfs").into(),
        ),
    ];
    if let Ok(direct) = make::reopen(file(), OFlag::O_RDWR | OFlag::O_DIRECT) {
        all.push(("O_DIRECT", direct));
    }
    if let Ok(secret) = make::secret_memfd(8192) {
        all.push(("a secret", secret.into()));
    }
    // Each with something in it, and with its other end open for good.
    let ((reader, writer), (near, far)) = (make::pipe(), make::unix());
    for (fd, with) in [
        ("a pipe's reader", (reader, &writer)),
        ("a socket", (near.into(), &far.into())),
    ]
    .map(|(name, (fd, with))| ((name, fd), with))
    {
        make::set_nonblocking(&fd.1, true);
        let with: File = with.try_clone().expect("dup(2)").into();
        (&with).write_all(&[5; 3000]).expect("room");
        std::mem::forget(with);
        all.push(fd);
    }
    make::set_nonblocking(&writer, true);
    all.push(("a pipe's writer", writer));
    all
}

/// `Endpoint::new` takes any facts, any descriptor and any offset.
#[test]
fn steps_by_hand_with_what_makes_no_sense() {
    const EDGE: u64 = i64::MAX as u64;
    let offsets = [
        None,
        Some(0),
        Some(4097),
        Some(EDGE - 4096),
        Some(EDGE),
        Some(EDGE + 1),
        Some(u64::MAX - 5),
        Some(u64::MAX),
    ];
    let limits = [1, 70_000, 9 << 20, usize::MAX].map(|n| NonZeroUsize::new(n).expect("not zero"));
    within(60, move |pulse| {
        let fds = kinds();
        let facts: Vec<Facts> = fds
            .iter()
            .map(|(_, fd)| Facts::new(fd).expect("open"))
            .collect();
        let mut steps = 0_u64;
        for backend in Backend::ALL {
            for of_src in &facts {
                pulse.at(format!("{backend}, {of_src:?}"));
                for of_dst in &facts {
                    // Not all with all: the pairs of descriptors move on by one each time.
                    for (i, (_, src)) in fds.iter().enumerate() {
                        let (_, dst) = &fds[(i + steps as usize) % fds.len()];
                        let mut mechanism = backend.instance();
                        for round in 0..3_usize {
                            let nth = steps as usize + round;
                            let (from, to) = (offsets[nth % 8], offsets[nth / 8 % 8]);
                            let mut from = Endpoint::new(src.as_fd(), of_src, from);
                            let mut to = Endpoint::new(dst.as_fd(), of_dst, to);
                            let _ = mechanism.assess(&from, &to);
                            let limit = limits[nth / 64 % 4].get().max(mechanism.in_flight());
                            let limit = NonZeroUsize::new(limit).expect("not zero");
                            let _ = mechanism.step(&mut from, &mut to, limit);
                            let _ = mechanism.in_flight();
                        }
                        let _ = mechanism.reclaim(&mut BytesMut::new());
                        // Whatever was written there goes again.
                        let _ = nix::unistd::ftruncate(dst, 20_000);
                        steps += 1;
                    }
                }
            }
        }
        println!("{steps} pairs");
        // All of that has left the process whole.
        let (src, dst) = (make::disk_file(), make::memfd());
        (&src).write_all(b"whole").expect("room");
        make::seek(&src, 0);
        assert_eq!(transfer(&src, &dst, u64::MAX).expect("files").bytes, 5);
    });
}
