//! One source to many destinations: each gets every byte, or an error that accounts for the rest.
// The tests' toolchain is newer than the one that the library asks for.
#![allow(clippy::incompatible_msrv)]

mod common;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use common::{Data, drive, make};
use zcio::fan_out::{FanOutOptions, FanOutStatus, Lag, fan_out};
use zcio::{End, Side};

/// Several times a pipe of 1 MiB, and no multiple of anything.
const LEN: usize = 5 * (1 << 20) + 4321;

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    Data::new(seed).bytes(0, len)
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        all
    })
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

fn content(mut file: File) -> Vec<u8> {
    let mut all = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut all).unwrap();
    all
}

/// Sources that give `content` and then end.
fn sources(content: &[u8]) -> Vec<(&'static str, OwnedFd)> {
    let feed = |mut to: Box<dyn Write + Send>, content: Vec<u8>| {
        thread::spawn(move || to.write_all(&content));
    };
    let (reader, writer) = io::pipe().unwrap();
    feed(Box::new(writer), content.to_vec());
    let (near, far) = tcp();
    feed(Box::new(near), content.to_vec());
    let (left, right) = UnixStream::pair().unwrap();
    feed(Box::new(left), content.to_vec());
    vec![
        ("file", file(content).into()),
        ("pipe", reader.into()),
        ("tcp", far.into()),
        ("unix", right.into()),
    ]
}

#[test]
fn every_destination_gets_every_byte() {
    for len in [0, 1, 4096, 65_537, LEN] {
        let sent = bytes(len as u64, len);
        for (name, src) in sources(&sent) {
            let (tcp_near, tcp_far) = tcp();
            let (unix_near, unix_far) = UnixStream::pair().unwrap();
            let (pipe_far, pipe_near) = io::pipe().unwrap();
            let plain = tempfile::tempfile().unwrap();
            let named = tempfile::NamedTempFile::new().unwrap();
            let appending = File::options().append(true).open(named.path()).unwrap();
            let readers = [drain(tcp_far), drain(unix_far), drain(pipe_far)];
            let dsts: Vec<OwnedFd> = vec![
                tcp_near.into(),
                unix_near.into(),
                pipe_near.into(),
                plain.try_clone().unwrap().into(),
                appending.into(),
            ];

            let report = fan_out(&src, dsts, u64::MAX).unwrap();

            assert_eq!(
                (report.taken, report.end),
                (len as u64, End::SourceEnded),
                "{name}"
            );
            for (place, branch) in report.branches.iter().enumerate() {
                assert!(
                    branch.error.is_none(),
                    "{name} to {place}: {:?}",
                    branch.error
                );
                assert_eq!(branch.bytes, len as u64, "{name} to {place}");
            }
            for (place, reader) in readers.into_iter().enumerate() {
                assert!(
                    reader.join().unwrap() == sent,
                    "{name} to {place}, {len} bytes"
                );
            }
            assert!(content(plain) == sent, "{name} to a file, {len} bytes");
            assert!(
                std::fs::read(named.path()).unwrap() == sent,
                "{name} to an appending file"
            );
        }
    }
}

/// Urgent data (B41) in the middle, as a part of the stream and beside it: every destination gets what
/// follows, while the peer stays and where it ends.
#[test]
fn urgent_data_cut_nothing_off() {
    for (inline, stays) in [(false, false), (false, true), (true, false), (true, true)] {
        let case = format!("inline {inline}, the peer stays {stays}");
        let sent = bytes(41, 200_000);
        let (mut near, src) = tcp();
        if inline {
            make::set_urgent_inline(&src);
        }
        near.write_all(&sent[..100_000]).unwrap();
        make::send_urgent(&near, sent[100_000]).unwrap();
        near.write_all(&sent[100_000 + usize::from(inline)..])
            .unwrap();
        let (unix_near, mut unix_far) = UnixStream::pair().unwrap();
        let (pipe_far, pipe_near) = io::pipe().unwrap();
        let pipe = drain(pipe_far);
        let unix = thread::spawn(move || {
            let mut all = vec![0; 200_000];
            unix_far.read_exact(&mut all).unwrap();
            // All has come by now, though nobody has ended.
            drop(near);
            unix_far.read_to_end(&mut all).unwrap();
            all
        });
        let dsts: [OwnedFd; 2] = [unix_near.into(), pipe_near.into()];
        let report = if stays {
            fan_out(&src, dsts, u64::MAX)
        } else {
            fan_out(&src, dsts, 200_000)
        };
        let report = report.unwrap_or_else(|e| panic!("{case}: {e}"));
        let end = if stays {
            End::SourceEnded
        } else {
            End::Complete
        };
        assert_eq!((report.taken, report.end), (200_000, end), "{case}");
        assert!(unix.join().unwrap() == sent, "{case}");
        assert!(pipe.join().unwrap() == sent, "{case}");
    }
}

/// It never waits on a source that is empty, nor is it asked again and again where it is not.
#[test]
fn urgent_data_step_by_step() {
    let sent = bytes(42, 200_000);
    let (mut near, src) = tcp();
    src.set_nonblocking(true).unwrap();
    let dst = tempfile::tempfile().unwrap();
    let mut fan = FanOutOptions::new().start(&src, [&dst], u64::MAX).unwrap();
    let empty = FanOutStatus::Blocked {
        source: true,
        destinations: Vec::new(),
    };
    assert_eq!(fan.advance().unwrap(), empty);
    near.write_all(&sent[..100_000]).unwrap();
    make::send_urgent(&near, 0).unwrap();
    near.write_all(&sent[100_000..]).unwrap();
    let mut steps = 0;
    while fan.delivered(0) < Some(200_000) {
        steps += 1;
        assert!(steps < 1000, "{:?} after {steps} steps", fan.delivered(0));
        if fan.advance().unwrap() == empty {
            drive::wait(src.as_fd(), nix::poll::PollFlags::POLLIN);
        }
    }
    for _ in 0..3 {
        assert_eq!(fan.advance().unwrap(), empty);
    }
    drop(near);
    drive::wait(src.as_fd(), nix::poll::PollFlags::POLLIN);
    let end = FanOutStatus::Finished(End::SourceEnded);
    while fan.advance().unwrap() != end {}
    assert!(content(dst) == sent);
}

#[test]
fn a_length_is_kept_to_and_the_rest_stays_in_the_source() {
    let sent = bytes(1, LEN);
    let mut src = file(&sent);
    let (one, two) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let report = fan_out(&src, [&one, &two], 1_500_000).unwrap();
    assert_eq!((report.taken, report.end), (1_500_000, End::Complete));
    assert_eq!(src.stream_position().unwrap(), 1_500_000);
    assert!(content(one) == sent[..1_500_000]);
    assert!(content(two) == sent[..1_500_000]);
}

#[test]
fn one_that_fails_is_named_and_the_others_go_on() {
    let sent = bytes(2, LEN);
    for (name, src) in sources(&sent) {
        let (good, good_far) = UnixStream::pair().unwrap();
        let (bad, mut bad_far) = UnixStream::pair().unwrap();
        let good_reader = drain(good_far);
        let bad_reader = thread::spawn(move || {
            let mut some = vec![0; 1_000_000];
            bad_far.read_exact(&mut some).unwrap();
            some
        });

        let report = fan_out(&src, [&bad, &good], u64::MAX).unwrap();
        drop((good, bad));

        assert_eq!(report.taken, LEN as u64, "{name}");
        assert!(good_reader.join().unwrap() == sent, "{name}");
        assert_eq!(report.branches[1].bytes, LEN as u64);
        let branch = &report.branches[0];
        let error = branch.error.as_ref().expect("its reader went away");
        assert_eq!(error.side(), Some(Side::Destination), "{name}");
        assert_eq!(error.delivered(), branch.bytes, "{name}");
        assert!(branch.bytes >= 1_000_000, "{name}");
        assert!(bad_reader.join().unwrap() == sent[..1_000_000], "{name}");
        // What it did not get follows what it got.
        let at = branch.bytes as usize;
        let undelivered = error.undelivered();
        assert!(
            undelivered[..] == sent[at..at + undelivered.len()],
            "{name}"
        );
    }
}

/// Advances until the destination at `place` is all that is waited for.
fn advance_until_stuck<S: AsFd, D: AsFd>(
    fan: &mut zcio::fan_out::FanOut<S, D>,
    pump: &mut dyn FnMut(),
) -> Vec<usize> {
    loop {
        match fan.advance().unwrap() {
            FanOutStatus::Moved => {}
            FanOutStatus::Blocked {
                source: false,
                destinations,
            } => {
                if destinations == [0] {
                    return destinations;
                }
                pump();
            }
            FanOutStatus::Blocked { source: true, .. } => pump(),
            FanOutStatus::Finished(_) => return Vec::new(),
        }
    }
}

#[test]
fn a_slow_one_is_named_and_the_others_go_on_up_to_its_backlog() {
    let sent = bytes(3, LEN);
    let src = file(&sent);
    let (slow, mut slow_far) = UnixStream::pair().unwrap();
    let (fast, mut fast_far) = UnixStream::pair().unwrap();
    slow.set_nonblocking(true).unwrap();
    fast.set_nonblocking(true).unwrap();
    fast_far.set_nonblocking(true).unwrap();
    let dsts: [BorrowedFd<'_>; 2] = [slow.as_fd(), fast.as_fd()];
    let mut fan = FanOutOptions::new()
        .backlog(2 << 20)
        .start(&src, dsts, u64::MAX)
        .unwrap();
    let mut got = Vec::new();
    let mut buf = vec![0; 1 << 20];
    let stuck = advance_until_stuck(&mut fan, &mut || {
        while let Ok(n @ 1..) = fast_far.read(&mut buf) {
            got.extend_from_slice(&buf[..n]);
        }
    });
    assert_eq!(stuck, [0]);
    let ahead = fan.delivered(1).unwrap() - fan.delivered(0).unwrap();
    assert!(ahead >= 2 << 20, "the fast one is only {ahead} bytes ahead");

    // Once the slow one is read, both get all.
    let slow_reader = thread::spawn(move || {
        let mut all = Vec::new();
        slow_far.read_to_end(&mut all).unwrap();
        all
    });
    loop {
        match fan.advance().unwrap() {
            FanOutStatus::Finished(end) => break assert_eq!(end, End::SourceEnded),
            FanOutStatus::Moved => {}
            FanOutStatus::Blocked { .. } => {
                while let Ok(n @ 1..) = fast_far.read(&mut buf) {
                    got.extend_from_slice(&buf[..n]);
                }
                thread::yield_now();
            }
        }
    }
    let report = fan.into_report();
    assert!(report.branches.iter().all(|branch| branch.error.is_none()));
    slow.shutdown(Shutdown::Write).unwrap();
    while let Ok(n @ 1..) = fast_far.read(&mut buf) {
        got.extend_from_slice(&buf[..n]);
    }
    assert!(got == sent);
    assert!(slow_reader.join().unwrap() == sent);
}

#[test]
fn one_that_lags_too_far_can_be_given_up() {
    let sent = bytes(4, LEN);
    let src = file(&sent);
    let (slow, _slow_far) = UnixStream::pair().unwrap();
    slow.set_nonblocking(true).unwrap();
    let good = tempfile::tempfile().unwrap();
    let dsts: [BorrowedFd<'_>; 2] = [slow.as_fd(), good.as_fd()];
    let mut fan = FanOutOptions::new()
        .backlog(1 << 20)
        .lag(Lag::GiveUp)
        .start(&src, dsts, u64::MAX)
        .unwrap();
    while !matches!(fan.advance().unwrap(), FanOutStatus::Finished(_)) {}
    let report = fan.into_report();
    let error = report.branches[0].error.as_ref().unwrap();
    assert_eq!(error.io_error().unwrap().kind(), io::ErrorKind::TimedOut);
    let at = report.branches[0].bytes as usize;
    assert!(error.undelivered()[..] == sent[at..at + error.undelivered().len()]);
    assert_eq!(report.branches[1].bytes, LEN as u64);
    assert!(content(good) == sent);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_moves() {
    let src = file(b"stays");
    let directory = File::open("/").unwrap();
    let error = fan_out(&src, [&directory], u64::MAX).unwrap_err();
    assert_eq!(error.error().side(), Some(Side::Destination));
    assert_eq!((&src).stream_position().unwrap(), 0);
    let report = fan_out(&src, Vec::<File>::new(), u64::MAX).unwrap();
    assert_eq!((report.taken, report.end), (0, End::Stopped));
    // What is written would be read again, for ever.
    let own = File::options()
        .append(true)
        .open(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&src)
        ))
        .unwrap();
    let error = fan_out(&src, [&own], u64::MAX).unwrap_err();
    assert_eq!(error.error().side(), Some(Side::Destination));
    assert_eq!(content(src), b"stays");
}

/// A pipe that holds all that it can, and is not waited for.
fn full_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    common::make::set_nonblocking(writer.as_fd(), true);
    while writer.write(&[9; 4096]).is_ok() {}
    (reader, writer)
}

/// The source fails, and then the destination: nothing is said to be delivered that is not.
#[test]
fn both_sides_fail() {
    let (mut peer, src) = tcp();
    let (reader, writer) = full_pipe();
    let (good, mut far) = UnixStream::pair().unwrap();
    let failing = thread::spawn(move || {
        peer.write_all(&[5; 100]).unwrap();
        far.read_exact(&mut [0; 100]).unwrap();
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        nix::sys::socket::setsockopt(&peer, nix::sys::socket::sockopt::Linger, &at_once).unwrap();
        drop(peer);
        thread::sleep(std::time::Duration::from_millis(50));
        drop(reader);
        far
    });
    let dsts = [writer.as_fd(), good.as_fd()];
    let error = fan_out(&src, dsts, u64::MAX).unwrap_err();
    drop(failing.join().unwrap());
    assert_eq!(error.error().side(), Some(Side::Source), "{error}");
    let report = error.report();
    assert_eq!((report.taken, report.end), (100, End::Stopped));
    let [full, good] = &report.branches[..] else {
        panic!("{report:?}")
    };
    let lost = full.error.as_ref().expect("nobody reads it");
    assert_eq!((full.bytes, &lost.undelivered()[..]), (0, &[5; 100][..]));
    assert!(good.bytes == 100 && good.error.is_none(), "{good:?}");
}

/// Few bytes kept for a slow destination take little more memory than that, however they came.
#[test]
fn a_backlog_bounds_memory() {
    const PIECES: usize = 4000;
    let Ok((master, slave)) = common::make::pty() else {
        return common::skipped("a backlog from a terminal", "no terminal is to be had");
    };
    let mut master = File::from(master);
    common::make::set_nonblocking(slave.as_fd(), true);
    let (_reader, slow) = full_pipe();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let dsts: [OwnedFd; 2] = [slow.into(), null.into()];
    let mut fan = FanOutOptions::new().start(&slave, dsts, u64::MAX).unwrap();
    // Untouched memory included, and what the tests beside this one have.
    let data = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(5).unwrap().parse().unwrap();
        pages * 4096
    };
    let before = data();
    for _ in 0..PIECES {
        master.write_all(b"0123456789").unwrap();
        while !matches!(fan.advance().unwrap(), FanOutStatus::Blocked { .. }) {}
    }
    let grown = data().saturating_sub(before);
    assert_eq!(fan.taken(), 10 * PIECES as u64);
    assert!(
        grown < 512 << 20,
        "{} bytes taken, {grown} held",
        fan.taken()
    );
}

/// Once the last one is given up, nothing more is taken: it would be in nobody's hands.
#[test]
fn nothing_is_taken_for_nobody() {
    let sent = bytes(5, 4 << 20);
    let (mut feeder, src) = UnixStream::pair().unwrap();
    let (slow, mut far) = UnixStream::pair().unwrap();
    for end in [&feeder, &src, &slow] {
        end.set_nonblocking(true).unwrap();
    }
    let mut fan = FanOutOptions::new()
        .backlog(0)
        .lag(Lag::GiveUp)
        .start(&src, [&slow], u64::MAX)
        .unwrap();
    let mut fed = 0;
    while !matches!(fan.advance().unwrap(), FanOutStatus::Finished(_)) {
        while let Ok(n) = feeder.write(&sent[fed..]) {
            fed += n;
        }
    }
    let report = fan.into_report();
    let branch = &report.branches[0];
    let left = branch.error.as_ref().unwrap().undelivered();
    assert_eq!(report.taken, branch.bytes + left.len() as u64);
    drop(slow);
    drop(feeder);
    let mut all = Vec::new();
    far.read_to_end(&mut all).unwrap();
    all.extend_from_slice(left);
    let mut rest = src;
    rest.set_nonblocking(false).unwrap();
    rest.read_to_end(&mut all).unwrap();
    assert!(all == sent[..fed]);
}

/// A blocking source that has nothing more to say keeps nobody from what was taken from it before.
#[test]
fn a_blocking_source_holds_nobody_up() {
    common::within(20, |_| {
        let sent = bytes(6, 1 << 20);
        let (mut feeder, src) = UnixStream::pair().unwrap();
        let (slow, mut far) = UnixStream::pair().unwrap();
        slow.set_nonblocking(true).unwrap();
        let fan = thread::spawn(move || fan_out(&src, [slow], u64::MAX).unwrap());
        feeder.write_all(&sent).unwrap();
        // The source stays open and silent until the peer has got all that it said.
        let mut got = vec![0; sent.len()];
        far.read_exact(&mut got).unwrap();
        assert!(got == sent);
        drop(feeder);
        let report = fan.join().unwrap();
        assert_eq!((report.taken, report.end), (1 << 20, End::SourceEnded));
    });
}
