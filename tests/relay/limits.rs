//! Rate and deadline as an event loop sees them, on a transfer and on a relay, and what is refused.

use std::io;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use zcio::relay::{RelayOptions, RelayStatus};
use zcio::{End, ErrorKind, Side, Status, TransferOptions};

use crate::common::{Data, make};
use crate::pipes::Single;
use crate::rig::{Lost, Net, judge, within};

const RATE: NonZeroU64 = NonZeroU64::new(1 << 20).unwrap();

#[test]
fn a_transfer_kept_to_a_rate_says_when_to_go_on() {
    within(60, || {
        let data = Data::new(3);
        let (reader, writer) = make::pipe();
        let mut reader = std::fs::File::from(reader);
        make::set_nonblocking(&writer, true);
        let file = make::disk_file();
        std::os::unix::fs::FileExt::write_all_at(&file, &data.bytes(0, 600_000), 0).expect("room");
        let mut options = TransferOptions::new();
        let mut transfer = options
            .rate(RATE)
            .start(&file, &writer, u64::MAX)
            .expect("a pair");
        let (began, mut paused, mut received) = (Instant::now(), 0, Vec::new());
        let end = loop {
            match transfer.advance().expect("a pair") {
                Status::Moved(_) => {}
                Status::Finished(end) => break end,
                Status::Blocked(side) => match transfer.resume_at() {
                    Some(at) => {
                        paused += 1;
                        let before = transfer.report().syscalls();
                        assert!(matches!(
                            transfer.advance(),
                            Ok(Status::Blocked(_)) | Ok(Status::Moved(_))
                        ));
                        let moved = transfer.resume_at().is_none_or(|new| new != at);
                        assert!(
                            moved || transfer.report().syscalls() == before,
                            "a pause costs nothing"
                        );
                        std::thread::sleep(at.saturating_duration_since(Instant::now()));
                    }
                    None => {
                        assert_eq!(side, Side::Destination);
                        let mut buf = [0; 65536];
                        let n = io::Read::read(&mut reader, &mut buf).expect("a pipe");
                        received.extend_from_slice(&buf[..n]);
                    }
                },
            }
        };
        let took = began.elapsed();
        assert_eq!((end, transfer.delivered()), (End::SourceEnded, 600_000));
        assert!(
            took >= Duration::from_secs_f64((600_000.0 - 220_000.0) / RATE.get() as f64),
            "{took:?}"
        );
        assert!(paused > 1, "evenly, not in one piece");
        drop(transfer);
        drop(writer);
        io::Read::read_to_end(&mut reader, &mut received).expect("a pipe");
        assert_eq!(
            (received.len(), data.check(0, &received)),
            (600_000, Ok(()))
        );
    });
}

#[test]
fn a_transfer_past_its_deadline_fails_with_the_exact_count() {
    within(60, || {
        let data = Data::new(4);
        let (src, mut feed) = make::unix();
        let (reader, writer) = make::pipe();
        let mut reader = std::fs::File::from(reader);
        io::Write::write_all(&mut feed, &data.bytes(0, 150_000)).expect("room");
        make::set_nonblocking(&src, true);
        make::set_nonblocking(&writer, true);
        let mut options = TransferOptions::new();
        let deadline = Instant::now() + Duration::from_millis(300);
        options.deadline(deadline);
        // Blocking: it waits no longer than that, for either side.
        let error = options.transfer(&src, &writer, u64::MAX).unwrap_err();
        assert!(Instant::now() >= deadline);
        let kind = error.io_error().map(io::Error::kind);
        assert_eq!(
            (error.kind(), kind),
            (ErrorKind::Io, Some(io::ErrorKind::TimedOut)),
            "{error}"
        );
        // By hand: at once, and nothing is touched.
        let mut transfer = options.start(&src, &writer, u64::MAX).expect("a pair");
        let late = transfer.advance().unwrap_err();
        assert_eq!((late.delivered(), late.undelivered().len()), (0, 0));
        drop(transfer);
        drop(writer);
        let mut received = Vec::new();
        io::Read::read_to_end(&mut reader, &mut received).expect("a pipe");
        assert_eq!(received.len() as u64, error.delivered());
        received.extend_from_slice(error.undelivered());
        let mut rest = vec![0; 200_000];
        let n = nix::unistd::read(&src, &mut rest).unwrap_or(0);
        received.extend_from_slice(&rest[..n]);
        assert_eq!(
            (received.len(), data.check(0, &received)),
            (150_000, Ok(()))
        );
    });
}

#[test]
fn a_relay_past_its_deadline_fails_with_the_exact_counts() {
    within(60, || {
        let deadline = Instant::now() + Duration::from_millis(500);
        let mut options = RelayOptions::new();
        let mut single = Single::new((Net::Tcp, Net::Unix), options.deadline(deadline));
        let error = loop {
            single.a.mouth.send(1 << 20).expect("a connection");
            single.b.mouth.send(1 << 20).expect("a connection");
            match single.relay.advance() {
                Ok(RelayStatus::Finished) => panic!("nobody has ended"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(Instant::now() >= deadline);
        let kind = error.error().io_error().map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::TimedOut), "{error}");
        let report = error.report();
        assert!(
            report.a_to_b.bytes > 0 && report.b_to_a.bytes > 0,
            "{report:?}"
        );
        single.a.ear.expect(report.b_to_a.bytes);
        single.b.ear.expect(report.a_to_b.bytes);
        let sums = (&single.a.sums(), &single.b.sums());
        judge("deadline", report, sums, &single.ends, Lost::default());
        // What was in flight is in the report, and not in the relay any more.
        assert_eq!(single.relay.in_flight(), 0);
        let again = single.relay.into_report();
        assert_eq!(again.a_to_b.undelivered, report.a_to_b.undelivered);
    });
}

#[test]
fn what_is_no_stream_socket_is_refused() {
    let (socket, _peer) = make::unix();
    let (datagram, _other) = make::unix_datagram();
    let (reader, writer) = make::pipe();
    let file = make::disk_file();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let options = RelayOptions::new();
    for (what, error) in [
        (
            "a socket that listens",
            options.start(&socket, &listener).map(drop).unwrap_err(),
        ),
        (
            "a socket that listens",
            options.start(&listener, &socket).map(drop).unwrap_err(),
        ),
        (
            "a file",
            options.start(&socket, &file).map(drop).unwrap_err(),
        ),
        (
            "a file",
            options.start(&file, &socket).map(drop).unwrap_err(),
        ),
        (
            "a pipe",
            options.start(&reader, &socket).map(drop).unwrap_err(),
        ),
        (
            "a pipe",
            options.start(&socket, &writer).map(drop).unwrap_err(),
        ),
        (
            "a datagram socket",
            options.start(&datagram, &socket).map(drop).unwrap_err(),
        ),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error}");
    }
    let error = zcio::relay(&socket, &file).unwrap_err();
    assert_eq!(error.report().a_to_b.bytes, 0);
    assert_eq!(error.error().kind(), ErrorKind::InvalidInput, "{error}");
}
