//! A backend of one's own, scripted: what the driver promises to it, and what it makes of its
//! answers.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, BytesMut};
use tempfile::NamedTempFile;
use zcio::backend::{Endpoint, Fault, Side, Step, Unfit, ZeroCopyTransfer};
use zcio::{Backend, End, ErrorKind, Status, Transfer};

use crate::common::oracle::position;
use crate::common::{skipped, within};
use crate::lane::{Kind, Lane};

/// What a step does.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Takes so many bytes as far as the limit allows, then delivers so many.
    Move(usize, usize),
    Answer(Step),
    Fail(Option<Side>, i32),
    /// Fails as the mmap backend does where the source was cut short.
    Cut,
}

/// The limit and the bytes in flight of each step.
type Log = Arc<Mutex<Vec<(usize, usize)>>>;

#[derive(Debug, Default)]
struct Script {
    acts: VecDeque<Act>,
    held: Vec<u8>,
    log: Log,
    fails_to_reclaim: bool,
    refuses: bool,
}

impl ZeroCopyTransfer for Script {
    fn backend(&self) -> Backend {
        Backend::ReadWrite
    }

    fn assess(&self, _: &Endpoint<'_>, _: &Endpoint<'_>) -> Result<(), Unfit> {
        if self.refuses {
            Err(Unfit::Other("it will not"))
        } else {
            Ok(())
        }
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        let limit = limit.get();
        self.log
            .lock()
            .expect("no panic")
            .push((limit, self.held.len()));
        match self.acts.pop_front().expect("no step beyond the script") {
            Act::Move(take, put) => {
                let mut buf = vec![0; take.min(limit - self.held.len())];
                let taken = nix::unistd::read(src.fd(), &mut buf).expect("there are bytes");
                self.held.extend_from_slice(&buf[..taken]);
                let put = put.min(self.held.len());
                let put = nix::unistd::write(dst.fd(), &self.held[..put]).expect("there is room");
                self.held.drain(..put);
                Ok(NonZeroUsize::new(put).map_or(Step::Blocked(Side::Destination), Step::Moved))
            }
            Act::Answer(step) => Ok(step),
            Act::Fail(side, number) => Err(Fault {
                side,
                error: io::Error::from_raw_os_error(number),
            }),
            Act::Cut => Err(Fault::new(
                Side::Source,
                io::ErrorKind::UnexpectedEof.into(),
            )),
        }
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }

    fn reclaim(&mut self, into: &mut BytesMut) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        if self.fails_to_reclaim {
            into.put_slice(&held[..held.len() / 2]);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        into.put_slice(&held);
        Ok(())
    }
}

const TOTAL: u64 = 100_000;

/// A lane with its bytes waiting, a transfer of `len` by `script`, and the log of its steps.
fn start(from: Kind, len: u64, script: Script) -> (Lane, Transfer<OwnedFd, OwnedFd>, Log) {
    let mut lane = Lane::new(from, Kind::Unix, TOTAL);
    lane.feed(10_000, 10, TOTAL);
    let (src, dst) = lane.ends();
    let log = Arc::clone(&script.log);
    let transfer = Transfer::with_backend(src, dst, len, Box::new(script)).expect("it serves");
    (lane, transfer, log)
}

fn script(acts: &[Act]) -> Script {
    Script {
        acts: acts.iter().copied().collect(),
        ..Script::default()
    }
}

fn moved(bytes: usize) -> Status {
    Status::Moved(NonZeroUsize::new(bytes).expect("not zero"))
}

#[test]
fn the_limit_covers_what_is_in_flight_and_answers_are_passed_on() {
    within(10, |_| {
        let acts = [
            Act::Move(1000, 400),
            Act::Answer(Step::Blocked(Side::Destination)),
            Act::Move(0, 500),
            Act::Answer(Step::Blocked(Side::Source)),
            Act::Move(9000, 0),
            Act::Move(0, 4100),
            Act::Move(9000, 9000),
        ];
        let (lane, mut transfer, log) = start(Kind::Unix, 5000, script(&acts));
        let mut advance = |status, delivered, in_flight| {
            assert_eq!(transfer.advance().expect("no fault"), status);
            assert_eq!(transfer.delivered(), delivered);
            assert_eq!(transfer.in_flight(), in_flight);
            assert_eq!(transfer.remaining(), 5000 - delivered);
        };
        advance(moved(400), 400, 600);
        advance(Status::Blocked(Side::Destination), 400, 600);
        advance(moved(500), 900, 100);
        advance(Status::Blocked(Side::Source), 900, 100);
        // It would take 9,000, and may take 4,000.
        advance(Status::Blocked(Side::Destination), 900, 4100);
        advance(moved(4100), 5000, 0);
        advance(Status::Finished(End::Complete), 5000, 0);
        let log: Vec<_> = log.lock().expect("no panic").clone();
        let expected = [
            (5000, 0),
            (4600, 600),
            (4600, 600),
            (4100, 100),
            (4100, 100),
            (4100, 4100),
        ];
        assert_eq!(log, expected, "(limit, in flight) of each step");
        // More is asked for, on the same pair: the last act has its turn.
        transfer.extend(u64::MAX);
        assert_eq!(transfer.advance().expect("no fault"), moved(9000));
        assert_eq!(transfer.delivered(), 14_000);
        assert_eq!(transfer.report().bytes, 14_000);
        assert_eq!(transfer.report().shares(), [(Backend::ReadWrite, 14_000)]);
        drop(transfer);
        lane.settle("a script", 14_000, &[]);
    });
}

#[test]
fn a_fault_becomes_an_error_with_what_was_in_flight() {
    within(10, |_| {
        for side in [None, Some(Side::Source), Some(Side::Destination)] {
            // A number that makes other backends give way: this one is the only one.
            for number in [libc::EIO, libc::EINVAL, libc::ENOSPC] {
                let case = format!("{side:?}, {number}");
                let acts = [
                    Act::Move(3000, 1000),
                    Act::Fail(side, number),
                    Act::Move(50, 50),
                ];
                let (lane, mut transfer, _) = start(Kind::Unix, u64::MAX, script(&acts));
                assert_eq!(transfer.advance().expect(&case), moved(1000));
                let error = transfer.advance().expect_err(&case);
                assert_eq!(error.kind(), ErrorKind::Io, "{case}");
                assert_eq!(error.side(), side, "{case}");
                assert_eq!(error.backend(), Some(Backend::ReadWrite), "{case}");
                let raw = error.io_error().and_then(io::Error::raw_os_error);
                assert_eq!(raw, Some(number), "{case}");
                assert_eq!(error.delivered(), 1000, "{case}");
                assert_eq!(error.undelivered().len(), 2000, "{case}");
                assert_eq!(transfer.in_flight(), 0, "{case}");
                drop(transfer);
                lane.settle(&case, 1000, error.undelivered());
            }
        }
    });
}

#[test]
fn a_fault_rewinds_a_file() {
    within(10, |_| {
        let acts = [
            Act::Move(3000, 1000),
            Act::Fail(None, libc::EIO),
            Act::Move(500, 500),
        ];
        let (lane, mut transfer, _) = start(Kind::File, u64::MAX, script(&acts));
        assert_eq!(transfer.advance().expect("no fault"), moved(1000));
        assert_eq!(position(&lane.src), 3000);
        let error = transfer.advance().expect_err("the fault");
        assert!(error.undelivered().is_empty());
        assert_eq!((error.delivered(), position(&lane.src)), (1000, 1000));
        // It goes on from there.
        assert_eq!(transfer.advance().expect("no fault"), moved(500));
        drop(transfer);
        lane.settle("a script", 1500, &[]);
    });
}

#[test]
fn an_answer_against_the_contract_loses_nothing_either() {
    within(10, |_| {
        let unfit = Step::Unfit(Unfit::Other("after all"));
        // C6: "unfit" with bytes in flight.
        let acts = [Act::Move(3000, 1000), Act::Answer(unfit)];
        let (lane, mut transfer, _) = start(Kind::Unix, u64::MAX, script(&acts));
        assert_eq!(transfer.advance().expect("no fault"), moved(1000));
        let error = transfer.advance().expect_err("nothing to give way to");
        assert_eq!(error.kind(), ErrorKind::Unfit);
        assert_eq!((error.delivered(), error.undelivered().len()), (1000, 2000));
        drop(transfer);
        lane.settle("unfit", 1000, error.undelivered());

        // C5: "ended" with bytes in flight; they can still be taken back.
        let acts = [Act::Move(3000, 1000), Act::Answer(Step::Ended)];
        let (lane, mut transfer, _) = start(Kind::Unix, u64::MAX, script(&acts));
        assert_eq!(transfer.advance().expect("no fault"), moved(1000));
        assert!(matches!(transfer.advance(), Ok(Status::Finished(_))));
        assert_eq!(transfer.in_flight(), 2000);
        let back = transfer.reclaim().expect("they are there");
        drop(transfer);
        lane.settle("ended", 1000, &back);
    });
}

#[test]
fn what_cannot_be_reclaimed_is_an_error_with_what_can() {
    within(10, |_| {
        let acts = [
            Act::Move(3000, 1000),
            Act::Fail(Some(Side::Destination), libc::ENOSPC),
        ];
        let script = Script {
            fails_to_reclaim: true,
            ..script(&acts)
        };
        let (lane, mut transfer, _) = start(Kind::Unix, u64::MAX, script);
        assert_eq!(transfer.advance().expect("no fault"), moved(1000));
        let error = transfer.advance().expect_err("the fault");
        // Worse than the fault is that the bytes are gone: that is the error.
        let raw = error.io_error().and_then(io::Error::raw_os_error);
        assert_eq!(raw, Some(libc::EIO));
        assert_eq!((error.delivered(), error.undelivered().len()), (1000, 1000));
        assert_eq!(lane.data.check(1000, error.undelivered()), Ok(()));
    });
}

/// It is asked, and no other: what none of the crate's own could do may be just what it is for.
#[test]
fn it_serves_where_nothing_else_does() {
    within(10, |_| {
        let lane = Lane::new(Kind::Pipe, Kind::Pipe, 100);
        let dst = NamedTempFile::new().expect("a temporary file");
        let flags = nix::libc::O_DIRECT;
        let mut options = OpenOptions::new();
        let opened = options.append(true).custom_flags(flags).open(dst.path());
        let Ok(appends) = opened else {
            return skipped("O_DIRECT", "this filesystem has none");
        };
        let (src, _) = lane.ends();
        let ours = zcio::transfer(&src, &appends, 100).expect_err("unaligned, at the end");
        assert_eq!(ours.kind(), ErrorKind::Unfit);
        let script = script(&[Act::Answer(Step::Blocked(Side::Source))]);
        let own = Transfer::with_backend(src, &appends, 100, Box::new(script));
        let mut own = own.expect("its own verdict counts");
        let status = own.advance().expect("no fault");
        assert_eq!(status, Status::Blocked(Side::Source));
    });
}

#[test]
fn its_verdict_and_its_ends_are_heeded() {
    within(10, |_| {
        let lane = Lane::new(Kind::Unix, Kind::Unix, 0);
        let (src, dst) = lane.ends();
        let refusing = Script {
            refuses: true,
            ..Script::default()
        };
        let error = Transfer::with_backend(src, dst, 1, Box::new(refusing)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unfit);
        assert!(error.to_string().contains("it will not"), "{error}");

        let acts = [Act::Move(10, 10), Act::Answer(Step::Ended)];
        let (_lane, mut transfer, _) = start(Kind::Unix, 99, script(&acts));
        assert_eq!(transfer.advance().expect("no fault"), moved(10));
        let end = transfer.advance().expect("no fault");
        assert_eq!(end, Status::Finished(End::SourceEnded));

        let (lane, mut transfer, _) = start(Kind::File, 99, script(&[Act::Move(10, 5), Act::Cut]));
        assert_eq!(transfer.advance().expect("no fault"), moved(5));
        let error = transfer.advance().expect_err("cut short");
        assert_eq!(error.kind(), ErrorKind::SourceTruncated);
        assert_eq!((error.delivered(), position(&lane.src)), (5, 5));
    });
}
