//! The controls: code that is wrong on purpose must fail the checks that the crate passes, or their
//! passing proves nothing. Each test runs the same check on both, and says what caught the wrong
//! one.

#[path = "hazards/arrival.rs"]
mod arrival;
#[path = "hazards/child.rs"]
mod child;
mod common;
#[path = "streams/lane.rs"]
mod lane;
#[path = "controls/planted.rs"]
mod planted;
#[path = "hazards/rlimit.rs"]
mod rlimit;
#[path = "streams/slow.rs"]
mod slow;
#[path = "hazards/tended.rs"]
mod tended;
#[path = "controls/wrong.rs"]
mod wrong;

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Before, Claim, Data, DestinationKind, SourceKind, within};
use lane::{Kind, case};
use wrong::{Flaw, Restarts, SpliceLoop, std_copy};
use zcio::{Status, Transfer, ZeroCopyTransfer};

/// Several times a pipe and the buffer.
const TOTAL: u64 = (1 << 20) + 77;

/// What a check found, or what it panicked with.
fn finding(check: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        Err(text.unwrap_or_else(|| "a panic without a text".to_owned()))
    })
}

/// Holds that the check passes what is right and fails what is wrong, for the reason expected.
fn caught(control: &str, right: &Result<(), String>, wrong: Result<(), String>, reason: &str) {
    assert_eq!(right, &Ok(()), "{control}: the check fails what is right");
    let found = wrong.expect_err(control);
    assert!(
        found.contains(reason),
        "{control}: caught by chance: {found}"
    );
    println!("{control}: caught: {found}");
}

/// The oracle on a whole transfer by `move_all`.
fn judged(
    source: SourceKind,
    destination: DestinationKind,
    move_all: impl FnOnce(&OwnedFd, &OwnedFd) -> Claim,
) -> Result<(), String> {
    let source = source.make(Data::new(5), TOTAL).expect("a source");
    let destination = destination.make().expect("a destination");
    let before = Before::new(&source, &destination);
    let claim = move_all(&source.fd, &destination.fd);
    before.verdict(source, destination, (None, None), 0, &claim)
}

/// Runs a backend of one's own to the end, waiting where it says.
fn run(src: &OwnedFd, dst: &OwnedFd, backend: Box<dyn ZeroCopyTransfer + Send>) -> Claim {
    let mut transfer = Transfer::with_backend(src, dst, u64::MAX, backend).expect("it serves");
    loop {
        match transfer.advance() {
            Ok(Status::Moved(_)) => {}
            Ok(Status::Blocked(side)) => {
                let (src, dst) = (std::os::fd::AsFd::as_fd(src), std::os::fd::AsFd::as_fd(dst));
                assert!(lane::ready(side, src, dst, 5_000), "stalled for the {side}");
            }
            Ok(Status::Finished(_)) => return Claim::complete(transfer.delivered()),
            Err(error) => {
                return Claim {
                    delivered: error.delivered(),
                    handed_back: error.undelivered().to_vec(),
                };
            }
        }
    }
}

fn by_zcio(src: &OwnedFd, dst: &OwnedFd) -> Claim {
    Claim::from(&zcio::transfer(src, dst, u64::MAX))
}

#[test]
fn std_io_copy_loses_the_count_and_what_it_holds() {
    // The limit on a file's size is the process's.
    child::alone("std_io_copy_loses_the_count_and_what_it_holds", || {
        rlimit::ignore_sigxfsz();
        within(20, |_| {
            let at_the_limit = |move_all: &dyn Fn(&OwnedFd, &OwnedFd) -> Claim| {
                judged(SourceKind::Unix, DestinationKind::DiskFile, |src, dst| {
                    let _limit = rlimit::Limit::new(libc::RLIMIT_FSIZE, 300_001);
                    move_all(src, dst)
                })
            };
            let copied = |src: &OwnedFd, dst: &OwnedFd| {
                let error = std_copy(src, dst).expect_err("the limit");
                assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
            };
            let as_told = at_the_limit(&|src, dst| {
                copied(src, dst);
                Claim::complete(0)
            });
            let reason = "position Some(300001), expected Some(0)";
            caught(
                "std::io::copy's count",
                &at_the_limit(&by_zcio),
                as_told,
                reason,
            );
            // Were the count known by other means, the source no longer goes on there.
            let in_its_favour = at_the_limit(&|src, dst| {
                copied(src, dst);
                Claim::complete(300_001)
            });
            let reason = "wrong byte at 300001";
            caught(
                "std::io::copy's buffer",
                &at_the_limit(&by_zcio),
                in_its_favour,
                reason,
            );
        });
    });
}

#[test]
fn a_splice_loop_that_forgets_its_pipe() {
    within(20, |_| {
        let (from, to) = (SourceKind::Tcp, DestinationKind::Unix);
        let with = |flaw| {
            finding(|| {
                judged(from, to, |src, dst| {
                    run(src, dst, Box::new(SpliceLoop::new(flaw)))
                })
            })
        };
        let right = judged(from, to, by_zcio).and(with(Flaw::None));
        let wrong = with(Flaw::ForgetsThePipe);
        // Bytes are neither delivered, nor handed back, nor in the source.
        caught(
            "stops with bytes in the pipe",
            &right,
            wrong,
            "bytes should be left",
        );
    });
}

#[test]
fn eagain_always_taken_for_the_sources() {
    within(20, |_| {
        let pair = (Kind::Tcp, Kind::Tcp);
        let name = case(pair.0, pair.1, None);
        let with = |flaw| {
            finding(|| {
                slow::slow_destination(&name, pair, |src, dst| {
                    let backend = Box::new(SpliceLoop::new(flaw));
                    Transfer::with_backend(src, dst, u64::MAX, backend).expect("it serves")
                });
                Ok(())
            })
        };
        let right = finding(|| {
            slow::slow_destination(&name, pair, |src, dst| {
                zcio::TransferOptions::new()
                    .start(src, dst, u64::MAX)
                    .expect("it serves")
            });
            Ok(())
        });
        let wrong = with(Flaw::BlamesTheSource);
        let reason = "waits for the source with bytes in flight";
        caught("EAGAIN is the source's", &right, wrong, reason);
    });
}

#[test]
fn a_fallback_that_begins_again() {
    within(20, |_| {
        for to in [DestinationKind::Pipe, DestinationKind::DiskFile] {
            let from = SourceKind::DiskFile;
            let with = |wrong| {
                finding(|| {
                    judged(from, to, |src, dst| {
                        run(src, dst, Box::new(Restarts::new(wrong)))
                    })
                })
            };
            let right = judged(from, to, by_zcio).and(with(false));
            let control = format!("falls back to offset 0, to {to:?}");
            // The bytes of the start where others belong.
            caught(&control, &right, with(true), "delivered: wrong byte");
        }
    });
}

#[test]
fn more_to_follow_on_every_call() {
    within(30, |_| {
        let with = |flaw| {
            finding(|| {
                arrival::in_time("splice in a loop", Kind::File, 5000, |src, dst| {
                    run(src, dst, Box::new(SpliceLoop::new(flaw)));
                })
                .map(drop)
            })
        };
        let by_zcio = |src: &OwnedFd, dst: &OwnedFd| {
            zcio::TransferOptions::new()
                .backend(zcio::Backend::Splice)
                .transfer(src, dst, u64::MAX)
                .map(drop)
                .expect("it serves");
        };
        let right = arrival::in_time("splice", Kind::File, 5000, by_zcio).map(drop);
        let wrong = with(Flaw::AlwaysMore);
        caught(
            "SPLICE_F_MORE on every call",
            &right.and(with(Flaw::None)),
            wrong,
            "held back",
        );
    });
}
