//! A transfer over each kind of end that tokio has.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::time::timeout;
use zcio::tokio::{Lent, Readiness, drive, drive_sending, start, transfer};
use zcio::{Backend, End, ErrorKind, Side, TransferOptions};

use crate::common::{Data, make};
use crate::forms::{multi, single, tcp, unix, watched};
use crate::lane::{Kind, Lane};
use crate::rig::within;

/// Several times any pipe or buffer.
const TOTAL: u64 = 3 << 20;

#[derive(Clone, Copy, Debug)]
enum Give {
    Tcp,
    TcpHalf,
    TcpPart,
    Unix,
    UnixHalf,
    UnixPart,
    Pipe,
    WatchedPipe,
    WatchedTcp,
    StdFile,
    TokioFile,
}

#[derive(Clone, Copy, Debug)]
enum To {
    Tcp,
    TcpHalf,
    TcpPart,
    Unix,
    UnixHalf,
    UnixPart,
    Pipe,
    WatchedPipe,
    WatchedUnix,
    StdFile,
    TokioFile,
}

impl Give {
    const ALL: [Give; 11] = {
        use Give::*;
        [
            Tcp,
            TcpHalf,
            TcpPart,
            Unix,
            UnixHalf,
            UnixPart,
            Pipe,
            WatchedPipe,
            WatchedTcp,
            StdFile,
            TokioFile,
        ]
    };

    fn kind(self) -> Kind {
        match self {
            Give::Tcp | Give::TcpHalf | Give::TcpPart | Give::WatchedTcp => Kind::Tcp,
            Give::Unix | Give::UnixHalf | Give::UnixPart => Kind::Unix,
            Give::Pipe | Give::WatchedPipe => Kind::Pipe,
            Give::StdFile | Give::TokioFile => Kind::File,
        }
    }
}

impl To {
    const ALL: [To; 11] = {
        use To::*;
        [
            Tcp,
            TcpHalf,
            TcpPart,
            Unix,
            UnixHalf,
            UnixPart,
            Pipe,
            WatchedPipe,
            WatchedUnix,
            StdFile,
            TokioFile,
        ]
    };

    fn kind(self) -> Kind {
        match self {
            To::Tcp | To::TcpHalf | To::TcpPart => Kind::Tcp,
            To::Unix | To::UnixHalf | To::UnixPart | To::WatchedUnix => Kind::Unix,
            To::Pipe | To::WatchedPipe => Kind::Pipe,
            To::StdFile | To::TokioFile => Kind::File,
        }
    }
}

/// Wraps a descriptor as `$from`, lends it as `$src`, and does `$body`.
macro_rules! with_source {
    ($from:expr, $fd:expr, $src:ident, $body:expr) => {
        match $from {
            Give::Tcp => {
                let $src = &tcp($fd);
                $body
            }
            Give::TcpHalf => {
                let (half, _rest) = tcp($fd).into_split();
                let $src = &half;
                $body
            }
            Give::TcpPart => {
                let mut stream = tcp($fd);
                let (part, _rest) = stream.split();
                let $src = &part;
                $body
            }
            Give::Unix => {
                let $src = &unix($fd);
                $body
            }
            Give::UnixHalf => {
                let (half, _rest) = unix($fd).into_split();
                let $src = &half;
                $body
            }
            Give::UnixPart => {
                let mut stream = unix($fd);
                let (part, _rest) = stream.split();
                let $src = &part;
                $body
            }
            Give::Pipe => {
                let $src = &pipe::Receiver::from_owned_fd($fd).expect("a pipe's end");
                $body
            }
            Give::WatchedPipe | Give::WatchedTcp => {
                let $src = &watched($fd);
                $body
            }
            Give::StdFile => {
                let $src = &File::from($fd);
                $body
            }
            Give::TokioFile => {
                let $src = &tokio::fs::File::from_std(File::from($fd));
                $body
            }
        }
    };
}

macro_rules! with_destination {
    ($to:expr, $fd:expr, $dst:ident, $body:expr) => {
        match $to {
            To::Tcp => {
                let $dst = &tcp($fd);
                $body
            }
            To::TcpHalf => {
                let (_rest, half) = tcp($fd).into_split();
                let $dst = &half;
                $body
            }
            To::TcpPart => {
                let mut stream = tcp($fd);
                let (_rest, part) = stream.split();
                let $dst = &part;
                $body
            }
            To::Unix => {
                let $dst = &unix($fd);
                $body
            }
            To::UnixHalf => {
                let (_rest, half) = unix($fd).into_split();
                let $dst = &half;
                $body
            }
            To::UnixPart => {
                let mut stream = unix($fd);
                let (_rest, part) = stream.split();
                let $dst = &part;
                $body
            }
            To::Pipe => {
                let $dst = &pipe::Sender::from_owned_fd($fd).expect("a pipe's end");
                $body
            }
            To::WatchedPipe | To::WatchedUnix => {
                let $dst = &watched($fd);
                $body
            }
            To::StdFile => {
                let $dst = &File::from($fd);
                $body
            }
            To::TokioFile => {
                let $dst = &tokio::fs::File::from_std(File::from($fd));
                $body
            }
        }
    };
}

async fn moves(case: &str, from: Give, to: To, lane: &Lane) {
    let (src, dst) = lane.ends();
    with_source!(
        from,
        src,
        src,
        with_destination!(to, dst, dst, dropped_and_driven(case, src, dst).await)
    );
}

/// Drives to the end, dropping the future again and again.
async fn dropped_and_driven<S: Readiness, D: Readiness>(case: &str, src: &S, dst: &D) {
    let mut transfer = start(&TransferOptions::new(), src, dst, u64::MAX).expect(case);
    let mut dropped = 0_u64;
    let report = loop {
        // Not only while it waits: sometimes at its first await.
        let patience = Duration::from_micros(dropped % 4 * 300);
        match timeout(patience, drive(&mut transfer)).await {
            Ok(report) => break report.unwrap_or_else(|e| panic!("{case}: {e}")),
            Err(_) => dropped += 1,
        }
    };
    println!("{case}: by {}, dropped {dropped} times", report.backend);
    assert_eq!(
        (report.bytes, report.end),
        (TOTAL, End::SourceEnded),
        "{case}"
    );
}

/// Writes what the source is to hold, on a thread of its own.
fn feeding(lane: &mut Lane) -> Option<JoinHandle<()>> {
    let (feed, data) = (lane.feed.take()?, lane.data);
    lane.fed = TOTAL;
    make::set_nonblocking(&feed, false);
    Some(thread::spawn(move || feed_all(&feed, data)))
}

fn feed_all(feed: &OwnedFd, data: Data) {
    feed_up_to(feed, data, 0, TOTAL);
}

fn feed_up_to(feed: &OwnedFd, data: Data, mut at: u64, end: u64) {
    while at < end {
        let len = (end - at).min(77_000) as usize;
        at += nix::unistd::write(feed, &data.bytes(at, len)).expect("a reader") as u64;
    }
}

/// Reads what arrives, on a thread of its own.
fn draining(lane: &mut Lane) -> Option<JoinHandle<u64>> {
    let (sink, data) = (lane.sink.take()?, lane.data);
    make::set_nonblocking(&sink, false);
    Some(thread::spawn(move || {
        let (mut at, mut buf) = (0, vec![0; 50_000]);
        loop {
            let n = nix::unistd::read(&sink, &mut buf).expect("a writer");
            assert_eq!(data.check(at, &buf[..n]), Ok(()), "arrived");
            at += n as u64;
            if n == 0 {
                return at;
            }
        }
    }))
}

#[test]
fn between_all_kinds_of_ends() {
    within(120, || {
        for (from, to) in Give::ALL
            .iter()
            .flat_map(|from| To::ALL.map(|to| (*from, to)))
        {
            let case = format!("{from:?} to {to:?}");
            let (runtime, lane) = (single(), Lane::new(from.kind(), to.kind(), TOTAL));
            let mut lane = match from.kind() == Kind::File && to.kind() == Kind::File {
                true => lane,
                false => lane.nonblocking(),
            };
            let (feeding, draining) = (feeding(&mut lane), draining(&mut lane));
            runtime.block_on(moves(&case, from, to, &lane));
            if let Some(feeding) = feeding {
                feeding.join().expect("fed");
            }
            let Some(draining) = draining else {
                lane.settle(&case, TOTAL, &[]);
                continue;
            };
            drop((lane, runtime));
            assert_eq!(draining.join().expect("drained"), TOTAL, "{case}");
        }
    });
}

/// Urgent data (B41): the future neither ends in front of them nor spins, and goes on behind.
#[test]
fn urgent_data_end_nothing() {
    within(60, || {
        let from = [Give::Tcp, Give::TcpHalf, Give::WatchedTcp];
        let ways = from.iter().flat_map(|from| To::ALL.map(|to| (*from, to)));
        for ((from, to), inline) in ways.flat_map(|way| [(way, false), (way, true)]) {
            let case = format!("{from:?} to {to:?}, inline {inline}");
            let mut lane = Lane::new(from.kind(), to.kind(), TOTAL).nonblocking();
            if inline {
                make::set_urgent_inline(&lane.src);
            }
            let (feed, data) = (lane.feed.take().expect("a stream"), lane.data);
            lane.fed = TOTAL;
            let feeding = thread::spawn(move || {
                make::set_nonblocking(&feed, false);
                let mut at = 0;
                // Of those beside the stream, one that overtakes another puts it into the stream.
                let places = [100_000, 1_000_000, 2_000_001];
                for urgent in &places[usize::from(!inline) * 2..] {
                    feed_up_to(&feed, data, at, *urgent);
                    make::send_urgent(&feed, data.bytes(*urgent, 1)[0]).expect("a reader");
                    at = *urgent + u64::from(inline);
                }
                feed_up_to(&feed, data, at, TOTAL);
                // Silent, and still there.
                thread::sleep(Duration::from_millis(20));
            });
            let draining = draining(&mut lane);
            let runtime = single();
            let (src, dst) = lane.ends();
            let report = runtime.block_on(async {
                with_source!(
                    from,
                    src,
                    src,
                    with_destination!(to, dst, dst, transfer(src, dst, u64::MAX).await)
                )
            });
            let report = report.unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(
                (report.bytes, report.end),
                (TOTAL, End::SourceEnded),
                "{case}"
            );
            // One who asks again and again makes a million in that time.
            assert!(report.syscalls() < 20_000, "{case}: {}", report.syscalls());
            feeding.join().expect("fed");
            match draining {
                None => lane.settle(&case, TOTAL, &[]),
                Some(draining) => {
                    drop((lane, runtime));
                    assert_eq!(draining.join().expect("drained"), TOTAL, "{case}");
                }
            }
        }
    });
}

/// The futures can be spawned on a runtime that moves them between threads.
#[test]
fn spawned_on_several_threads() {
    within(60, || {
        let runtime = multi();
        let lanes = (0..8).map(|number| {
            let from = [Kind::Tcp, Kind::File][number % 2];
            let mut lane = Lane::new(from, Kind::Unix, TOTAL).nonblocking();
            let ends = lane.ends();
            let (feeding, draining) = (feeding(&mut lane), draining(&mut lane));
            drop(lane);
            let task = runtime.spawn(async move {
                let (src, dst) = ends;
                let dst = unix(dst);
                match from {
                    Kind::File => zcio::tokio::transfer(&File::from(src), &dst, u64::MAX).await,
                    _ => zcio::tokio::transfer(&tcp(src), &dst, u64::MAX).await,
                }
            });
            (feeding, draining, task)
        });
        for (feeding, draining, task) in lanes.collect::<Vec<_>>() {
            let report = runtime.block_on(task).expect("no panic").expect("two ends");
            assert_eq!(report.bytes, TOTAL);
            if let Some(feeding) = feeding {
                feeding.join().expect("fed");
            }
            assert_eq!(draining.expect("a stream").join().expect("drained"), TOTAL);
        }
    });
}

/// An empty source, then a destination that is full: the future waits, is dropped, and what was in
/// flight is handed back or goes on.
#[test]
fn dropped_in_the_middle_it_goes_on_or_hands_back() {
    within(60, || {
        for (engine, take_back) in [
            (Backend::Splice, false),
            (Backend::Splice, true),
            (Backend::ReadWrite, false),
            (Backend::ReadWrite, true),
        ] {
            let case = format!("{engine}, taken back {take_back}");
            single().block_on(async {
                let mut lane = Lane::new(Kind::Unix, Kind::Tcp, 0).nonblocking();
                let (src, dst) = lane.ends();
                let (src, dst) = (unix(src), tcp(dst));
                let mut options = TransferOptions::new();
                let mut transfer =
                    start(options.backend(engine), &src, &dst, u64::MAX).expect(&case);
                let soon = Duration::from_millis(20);
                assert!(
                    timeout(soon, drive(&mut transfer)).await.is_err(),
                    "{case}: empty"
                );
                assert_eq!(
                    (transfer.delivered(), transfer.in_flight()),
                    (0, 0),
                    "{case}"
                );
                // Everything fills up.
                loop {
                    let before = transfer.delivered();
                    lane.feed(50_000, 100, TOTAL);
                    assert!(
                        timeout(soon, drive(&mut transfer)).await.is_err(),
                        "{case}: full"
                    );
                    if transfer.delivered() == before {
                        break;
                    }
                }
                assert!(transfer.in_flight() > 0, "{case}");
                let (delivered, held) = (transfer.delivered(), transfer.in_flight());
                if take_back {
                    let bytes = transfer.reclaim().expect(&case);
                    assert_eq!(bytes.len() as u64, held, "{case}");
                    assert_eq!(transfer.in_flight(), 0, "{case}");
                    drop(transfer);
                    drop((src, dst));
                    lane.settle(&case, delivered, &bytes);
                    return;
                }
                while transfer.delivered() < TOTAL {
                    lane.feed(50_000, 100, TOTAL);
                    lane.take(100_000);
                    let _ = timeout(soon, drive(&mut transfer)).await;
                }
                lane.end();
                let report = drive(&mut transfer).await.expect(&case);
                assert_eq!(
                    (report.bytes, report.end),
                    (TOTAL, End::SourceEnded),
                    "{case}"
                );
                drop(transfer);
                drop((src, dst));
                lane.settle(&case, TOTAL, &[]);
            });
        }
    });
}

/// The destination's peer goes away: the error names the side, with the exact count.
#[test]
fn a_destination_that_goes_away_is_named() {
    within(60, || {
        for (from, to) in [
            (Give::StdFile, To::Unix),
            (Give::StdFile, To::Tcp),
            (Give::Tcp, To::Pipe),
            (Give::Unix, To::WatchedUnix),
        ] {
            let case = format!("{from:?} to {to:?}");
            let mut lane = Lane::new(from.kind(), to.kind(), TOTAL).nonblocking();
            single().block_on(async {
                let (src, dst) = lane.ends();
                with_source!(
                    from,
                    src,
                    src,
                    with_destination!(to, dst, dst, {
                        let mut transfer =
                            start(&TransferOptions::new(), src, dst, u64::MAX).expect(&case);
                        lane.feed(50_000, 20, TOTAL);
                        let soon = Duration::from_millis(20);
                        assert!(timeout(soon, drive(&mut transfer)).await.is_err(), "{case}");
                        lane.sink = None;
                        lane.feed(50_000, 1, TOTAL);
                        let error = drive(&mut transfer).await.expect_err(&case);
                        assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
                        assert_eq!(error.delivered(), transfer.delivered(), "{case}: {error}");
                        println!("{case}: {error}");
                        drop(transfer);
                        (error.delivered(), error.into_undelivered())
                    })
                )
            });
        }
    });
}

/// Time is up while it waits, for either side; and the rate is kept to.
#[test]
fn rate_and_deadline() {
    use std::num::NonZeroU64;
    use std::time::Instant;
    within(60, || {
        for feeds in [0, TOTAL] {
            let mut lane = Lane::new(Kind::Unix, Kind::Tcp, 0).nonblocking();
            lane.feed(10_000, 1000, feeds);
            let (src, dst) = lane.ends();
            let deadline = Instant::now() + Duration::from_millis(200);
            let mut options = TransferOptions::new();
            options.deadline(deadline);
            let error = single().block_on(async {
                let (src, dst) = (unix(src), tcp(dst));
                let mut transfer = start(&options, &src, &dst, u64::MAX).expect("two ends");
                loop {
                    lane.feed(10_000, 1000, feeds);
                    let soon = Duration::from_millis(50);
                    if let Ok(outcome) = timeout(soon, drive(&mut transfer)).await {
                        break outcome.expect_err("nobody ends it");
                    }
                }
            });
            assert!(Instant::now() >= deadline);
            let kind = error.io_error().map(std::io::Error::kind);
            assert_eq!(kind, Some(std::io::ErrorKind::TimedOut), "{error}");
            lane.settle("deadline", error.delivered(), error.undelivered());
        }
        let mut lane = Lane::new(Kind::File, Kind::Unix, 600_000).nonblocking();
        let (src, dst) = lane.ends();
        let draining = draining(&mut lane);
        drop(lane);
        let mut options = TransferOptions::new();
        options.rate(NonZeroU64::new(1 << 20).expect("not zero"));
        let began = Instant::now();
        single().block_on(async {
            let (src, dst) = (File::from(src), unix(dst));
            let mut transfer = start(&options, &src, &dst, u64::MAX).expect("two ends");
            let report = drive(&mut transfer).await.expect("two ends");
            assert_eq!(report.bytes, 600_000);
        });
        let least = Duration::from_secs_f64((600_000.0 - 220_000.0) / f64::from(1 << 20));
        assert!(began.elapsed() >= least, "{:?}", began.elapsed());
        assert_eq!(
            draining.expect("a stream").join().expect("drained"),
            600_000
        );
    });
}

/// A transfer and a message for whatever can be awaited, spawned: their futures are `Send`.
#[test]
fn what_is_generic_can_be_spawned() {
    async fn both<D: Readiness + 'static>(file: File, dst: D) -> u64 {
        let message = zcio::Message::new().bytes("header").file(&file, 0..9);
        // What is started can be put aside and driven on, on a stream's half too.
        let mut sending = message.start(Lent::new(&dst)).expect("a stream");
        let sent = drive_sending(&mut sending).await.expect("a peer").bytes;
        sent + transfer(&file, &dst, 1000).await.expect("a peer").bytes
    }
    within(60, || {
        let file = make::disk_file();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 1000], 0).expect("room");
        let (near, far) = make::tcp();
        make::set_nonblocking(near.as_fd(), true);
        let runtime = multi();
        let task = {
            let _inside = runtime.enter();
            let (_half, half) = tcp(near.into()).into_split();
            runtime.spawn(both(file, half))
        };
        assert_eq!(runtime.block_on(task).expect("no panic"), 6 + 9 + 1000);
        drop(runtime);
        let mut got = Vec::new();
        std::io::Read::read_to_end(&mut File::from(OwnedFd::from(far)), &mut got).expect("all");
        assert_eq!(got.len(), 6 + 9 + 1000);
    });
}

/// A pipe or a socket that blocks would hold up all that the runtime has on this thread.
#[test]
fn what_would_block_the_thread_is_refused() {
    within(60, || {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        std::io::Write::write_all(&mut writer, &[7; 10]).expect("room");
        let (socket, _peer) = make::unix();
        single().block_on(async {
            let (file, pipe) = (make::disk_file(), File::from(OwnedFd::from(reader)));
            let error = transfer(&pipe, &file, 5).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert_eq!(error.side(), Some(Side::Source));
            let error = transfer(&file, &watched(socket.into()), 5)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert_eq!(error.side(), Some(Side::Destination));
            let blocking = watched(make::unix().0.into());
            let message = zcio::Message::new().bytes("text");
            let error = zcio::tokio::send(&message, &blocking).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            let (near, _far) = make::unix();
            make::set_nonblocking(near.as_fd(), true);
            let error = zcio::tokio::relay(&unix(near.into()), &blocking).await;
            let error = error.unwrap_err();
            assert_eq!(error.error().kind(), ErrorKind::InvalidInput, "{error}");
            // Nothing was taken.
            make::set_nonblocking(pipe.as_fd(), true);
            assert_eq!(
                transfer(&pipe, &file, 10).await.expect("two ends").bytes,
                10
            );
        });
    });
}
