//! The last bytes towards TCP arrive at once (B40): a last piece sent with "more follows" waits for
//! 200 ms. The one bound on time in these tests, and a wide one.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use zcio::{Backend, ErrorKind, Message, Status};

use crate::arrival::{in_time, in_time_by};
use crate::common::{make, within};
use crate::lane::{Kind, Lane, by, case, engines};

#[test]
fn the_last_piece_is_not_held_back() {
    within(20, |pulse| {
        let mut worst = Duration::ZERO;
        for from in [Kind::File, Kind::Tcp, Kind::Pipe] {
            for engine in engines(from, Kind::Tcp) {
                for len in [1, 5000, 100_000, (1 << 20) + 1] {
                    for chunk in [None, NonZeroUsize::new(65_000)] {
                        let case = case(from, Kind::Tcp, engine);
                        let case = format!("{case}, {len} bytes by {chunk:?}");
                        pulse.at(&case);
                        let mut options = by(engine);
                        if let Some(chunk) = chunk {
                            options.chunk_size(chunk);
                        }
                        let took = in_time(&case, from, len, |src, dst| {
                            let report = options.transfer(src, dst, len);
                            let report = report.unwrap_or_else(|e| panic!("{case}: {e}"));
                            assert_eq!(report.bytes, len, "{case}");
                        });
                        worst = worst.max(took.unwrap_or_else(|late| panic!("{case}: {late}")));
                    }
                }
            }
        }
        println!("the slowest arrival of the accepted ones: {worst:?}");
    });
}

/// Nor is it where the source turns out shorter than it was: what the kernel was asked for in vain
/// must not keep back what it sent. (Linux 5.10 holds back all that comes out shorter than asked.)
#[test]
fn the_last_piece_of_a_source_that_is_cut_is_not_held_back() {
    within(20, |pulse| {
        for engine in engines(Kind::File, Kind::Tcp) {
            let case = case(Kind::File, Kind::Tcp, engine);
            pulse.at(&case);
            let took = in_time_by(|| cut_under_way(&case, engine));
            took.unwrap_or_else(|late| panic!("{case}: {late}"));
        }
    });
}

/// How long after the end of a transfer its last byte arrives, the source having been cut to a few
/// bytes behind what had been taken when the destination was full.
fn cut_under_way(case: &str, engine: Option<Backend>) -> Duration {
    let mut lane = Lane::new(Kind::File, Kind::Tcp, 12 << 20).nonblocking();
    let others = make::reopen(&lane.src, OFlag::O_RDWR).expect("a second description");
    let (src, dst) = lane.ends();
    let mut transfer = by(engine).start(src, dst, u64::MAX).expect(case);
    let (mut received, mut cut) = (0, false);
    loop {
        match transfer.advance() {
            Ok(Status::Moved(_)) => {}
            Ok(Status::Blocked(side)) => {
                if !std::mem::replace(&mut cut, true) {
                    let taken = transfer.delivered() + transfer.in_flight();
                    nix::unistd::ftruncate(&others, taken as i64 + 700).expect("ftruncate(2)");
                }
                received += lane.take_unchecked(4 << 20).len() as u64;
                assert!(
                    lane.is_ready(side, 10_000),
                    "{case}: stalled for the {side}"
                );
            }
            Ok(Status::Finished(_)) => break,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::SourceTruncated, "{case}: {error}");
                break;
            }
        }
    }
    let end = Instant::now();
    assert!(cut, "{case}: it never blocked");
    while received < transfer.delivered() {
        assert!(end.elapsed() < Duration::from_secs(10), "{case}: lost");
        received += lane.take_unchecked(4 << 20).len() as u64;
    }
    end.elapsed()
}

/// The backends are named once, so that a new one is not forgotten here.
#[test]
fn every_backend_towards_tcp_is_among_them() {
    let forced: Vec<_> = engines(Kind::File, Kind::Tcp)
        .into_iter()
        .flatten()
        .collect();
    for backend in Backend::ALL {
        let between_files = matches!(backend, Backend::Reflink | Backend::CopyFileRange);
        assert_eq!(forced.contains(&backend), !between_files, "{backend}");
    }
}

/// The head of a message is sent with "more follows". Where that does not follow (the file is shorter
/// than its range; the sending is dropped, or put aside), it does not wait for it either.
#[test]
fn the_head_of_a_message_that_is_broken_off_is_not_held_back() {
    within(20, |_| {
        let file = make::memfd();
        // Small ones go along with the head, large ones come by a driver.
        for len in [100_u64, 40_000, 3 << 20] {
            for drops in [false, true] {
                let took = in_time_by(|| head_alone(&file, len, drops));
                took.unwrap_or_else(|late| panic!("{len} bytes, dropped: {drops}: {late}"));
            }
        }
    });
}

/// How long after a message is broken off behind its head that arrives, the file holding less than the
/// message has of it.
fn head_alone(file: &std::fs::File, len: u64, drops: bool) -> Duration {
    const HEAD: &[u8] = &[b'h'; 300];
    let (near, far) = make::tcp();
    nix::sys::socket::setsockopt(
        &far,
        nix::sys::socket::sockopt::ReceiveTimeout,
        &nix::sys::time::TimeVal::new(10, 0),
    )
    .expect("SO_RCVTIMEO");
    // A small file that is short is found out before its head goes; a second part comes after it.
    let message = Message::new().bytes(HEAD).file(file, 0..0);
    let message = message.bytes(HEAD).file(file, 0..len);
    nix::unistd::ftruncate(file, if drops { len as i64 } else { 0 }).expect("ftruncate(2)");
    let mut sending = message.start(&near).expect("two ends");
    let start = Instant::now();
    let mut sent = 0;
    loop {
        match sending.advance() {
            Ok(_) if drops => break,
            Ok(Status::Moved(_)) => {}
            Ok(status) => panic!("{status:?}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::SourceTruncated, "{error}");
                break;
            }
        }
    }
    sent += sending.delivered();
    drop(sending);
    let mut got = vec![0; usize::try_from(sent).expect("few")];
    let mut at = 0;
    while at < got.len() {
        match nix::unistd::read(&far, &mut got[at..]) {
            Ok(n @ 1..) => at += n,
            other => panic!("the receiver at {at} of {sent}: {other:?}"),
        }
    }
    start.elapsed()
}
