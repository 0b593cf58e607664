//! Whole messages, with no fault: over every kind of stream, blocking and not, all at once and in
//! steps, from files of every kind.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use nix::fcntl::OFlag;
use zcio::{Backend, End, Message, Side, Status};

use crate::common::watch::apart;
use crate::common::{make, skipped, within};
use crate::lane::{self, Kind, Lane, assert_same, boundaries, content, mixed, mixed_file};

#[test]
fn a_blocking_destination_gets_every_byte() {
    within(60, |pulse| {
        let file = mixed_file();
        let message = mixed(&file);
        let all = content(&message);
        let pairs: [(&str, OwnedFd, OwnedFd); 3] = {
            let (tcp, unix, pipe) = (make::tcp(), make::unix(), make::pipe());
            [
                ("TCP", tcp.0.into(), tcp.1.into()),
                ("UNIX", unix.0.into(), unix.1.into()),
                ("pipe", pipe.1, pipe.0),
            ]
        };
        for (name, dst, from) in pairs {
            pulse.at(name);
            let reader = apart(from, |mut from| {
                let mut got = Vec::new();
                from.read_to_end(&mut got).map(|_| got)
            });
            let before = make::flags(&dst);
            let report = message.send(&dst).unwrap();
            assert_eq!((report.bytes, report.end), (message.len(), End::Complete));
            let shares: u64 = report.shares().iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(shares, report.bytes, "{name}");
            assert_eq!(make::flags(&dst), before, "{name}: flags");
            drop(dst);
            assert_same(name, &reader.join().unwrap().unwrap(), &all);
        }
    });
}

#[test]
fn a_nonblocking_destination_is_waited_for() {
    within(60, |pulse| {
        let file = mixed_file();
        let message = mixed(&file);
        let all = content(&message);
        for kind in Kind::ALL {
            pulse.at(format!("{kind:?}"));
            let mut lane = Lane::new(kind);
            let (result, stage) = lane.run(|_| {}, |dst| message.send(dst));
            let report = result.unwrap();
            assert_eq!(report.bytes, message.len(), "{kind:?}");
            lane.assert_landed(kind, &all);
            eprintln!(
                "{kind:?}: {} calls, {:?}",
                stage.calls.len(),
                report.shares()
            );
        }
    });
}

#[test]
fn it_stands_where_it_says_after_every_step() {
    within(60, |pulse| {
        let file = mixed_file();
        let message = mixed(&file);
        let (all, ends) = (content(&message), boundaries(&message));
        for kind in Kind::ALL {
            pulse.at(format!("{kind:?}"));
            let mut lane = Lane::new(kind);
            let mut sending = message.start(lane.dst.try_clone().unwrap()).unwrap();
            assert_eq!((sending.position(), sending.delivered()), ((0, 0), 0));
            let mut blocked = 0;
            loop {
                let before = sending.delivered();
                let status = sending.advance().unwrap();
                let delivered = sending.delivered();
                let moved = match status {
                    Status::Moved(bytes) => bytes.get() as u64,
                    Status::Blocked(side) => {
                        assert_eq!(side, Side::Destination, "{kind:?}");
                        blocked += 1;
                        lane.taker.pump();
                        0
                    }
                    Status::Finished(end) => {
                        assert_eq!(end, End::Complete);
                        break;
                    }
                };
                assert_eq!(delivered - before, moved, "{kind:?}");
                assert_eq!(delivered + sending.remaining(), message.len(), "{kind:?}");
                let (part, offset) = sending.position();
                assert_eq!(
                    ends[part] + offset,
                    delivered,
                    "{kind:?} at {part}, {offset}"
                );
                assert_eq!(sending.report().bytes, delivered);
            }
            assert_eq!(sending.position(), (message.parts().len(), 0));
            // A file never blocks; the others hold less than the message.
            let streams = !matches!(kind, Kind::File | Kind::Append);
            assert!((blocked > 0) == streams, "{kind:?} blocked {blocked} times");
            lane.assert_landed(kind, &all);
        }
    });
}

#[test]
fn one_sending_serves_a_connection() {
    let file = lane::file(5, 100_000);
    let mut lane = Lane::new(Kind::Unix);
    let first = Message::new().bytes("first").file(&file, 0..70_000);
    let second = Message::new().file(&file, 1..40_001).bytes("second");
    let mut expected = content(&first);
    let mut sending = first.start(lane.dst.try_clone().unwrap()).unwrap();
    // More is given before the first is sent, after it, and while another is under way.
    sending.extend(&second);
    expected.extend(content(&second));
    while sending.delivered() < 75_000 {
        if let Status::Blocked(_) = sending.advance().unwrap() {
            lane.taker.pump();
        }
    }
    sending.extend(&first);
    expected.extend(content(&first));
    let finish = |sending: &mut zcio::message::Sending<'_, _>, lane: &mut Lane| {
        while !matches!(sending.advance().unwrap(), Status::Finished(_)) {
            lane.taker.pump();
        }
    };
    finish(&mut sending, &mut lane);
    assert_eq!(sending.position(), (6, 0));
    for _ in 0..100 {
        sending.extend(&second);
        expected.extend(content(&second));
        finish(&mut sending, &mut lane);
    }
    let report = sending.report();
    assert_eq!(report.bytes, expected.len() as u64);
    assert!(report.shares().len() <= 2, "{:?}", report.shares());
    lane.assert_landed("103 messages", &expected);
}

#[test]
fn one_message_goes_to_many() {
    let file = mixed_file();
    let message = mixed(&file);
    let all = content(&message);
    let mut lanes: Vec<Lane> = (0..8).map(|i| Lane::new(Kind::ALL[i % 3])).collect();
    let fds: Vec<OwnedFd> = lanes.iter().map(|l| l.dst.try_clone().unwrap()).collect();
    let mut sendings: Vec<_> = fds.iter().map(|fd| message.start(fd).unwrap()).collect();
    let mut open = sendings.len();
    while open > 0 {
        open = 0;
        for (sending, lane) in sendings.iter_mut().zip(&mut lanes) {
            lane.taker.pump();
            open += usize::from(!matches!(sending.advance().unwrap(), Status::Finished(_)));
        }
    }
    for lane in &mut lanes {
        lane.assert_landed("one of eight", &all);
    }
}

#[test]
fn more_pieces_than_one_gather_takes() {
    let mut message = Message::new();
    for i in 0..1000_u32 {
        message = message.bytes(i.to_le_bytes().to_vec());
    }
    // And more bytes than one takes.
    let large = Bytes::from(crate::common::Data::new(3).bytes(0, 5 << 20));
    message = message.bytes(large);
    let all = content(&message);
    for kind in Kind::ALL {
        let mut lane = Lane::new(kind);
        let (result, _) = lane.run(|_| {}, |dst| message.send(dst));
        assert_eq!(result.unwrap().bytes, message.len());
        lane.assert_landed(kind, &all);
    }
}

#[test]
fn files_of_every_kind() {
    within(60, |pulse| {
        let mut files: Vec<(&str, File, u64)> = Vec::new();
        let fill =
            |file: &File| file.write_all_at(&crate::common::Data::new(2).bytes(0, 1 << 20), 0);
        let disk = make::disk_file();
        fill(&disk).unwrap();
        match make::reopen(&disk, OFlag::O_RDONLY | OFlag::O_DIRECT) {
            Ok(direct) => files.push(("O_DIRECT", direct.into(), 1 << 20)),
            Err(e) => skipped("a message from O_DIRECT", e),
        }
        files.push(("a file on disk", disk, 1 << 20));
        let memfd = make::memfd();
        fill(&memfd).unwrap();
        files.push(("a memfd", memfd, 1 << 20));
        let sealed = make::sealed_memfd(&vec![9; 1 << 20]);
        files.push(("a sealed memfd", sealed, 1 << 20));
        let sparse = make::disk_file();
        sparse.set_len(1 << 20).unwrap();
        files.push(("a sparse file", sparse, 1 << 20));
        let version = std::fs::read("/proc/version").unwrap().len() as u64;
        let proc = File::open("/proc/version").unwrap();
        files.push(("a generated file", proc, version));
        for kind in Kind::ALL {
            for (name, file, len) in &files {
                for range in [0..*len, 1..*len, 0..len / 3, len / 2..len / 2 + 100] {
                    if range.start >= range.end || range.end > *len {
                        continue;
                    }
                    let what = format!("{range:?} of {name} to {kind:?}");
                    pulse.at(&what);
                    let message = Message::new()
                        .bytes("<")
                        .file(file, range.clone())
                        .bytes(">");
                    let mut lane = Lane::new(kind);
                    let (result, _) = lane.run(|_| {}, |dst| message.send(dst));
                    assert_eq!(result.expect(&what).bytes, message.len(), "{what}");
                    let mut expected = vec![0; (range.end - range.start) as usize];
                    let plain = make::reopen(file, OFlag::O_RDONLY).unwrap();
                    File::from(plain)
                        .read_exact_at(&mut expected, range.start)
                        .unwrap();
                    lane.assert_landed(&what, &[b"<", &expected[..], b">"].concat());
                }
            }
        }
    });
}

#[test]
fn the_files_own_positions_stand_still() {
    use std::io::Seek;
    let mut file = mixed_file();
    file.seek(std::io::SeekFrom::Start(123)).unwrap();
    for kind in Kind::ALL {
        let mut lane = Lane::new(kind);
        let message = mixed(&file);
        lane.run(|_| {}, |dst| message.send(dst)).0.unwrap();
        drop(message);
        assert_eq!(file.stream_position().unwrap(), 123, "{kind:?}");
    }
}

#[test]
fn a_file_that_grows_is_sent_by_its_range() {
    let mut file = lane::file(1, 10);
    let message_file = file.try_clone().unwrap();
    let message = Message::new().bytes("head").file(&message_file, 0..200_000);
    file.write_all(&vec![5; 300_000]).unwrap();
    let mut lane = Lane::new(Kind::Tcp);
    lane.run(|_| {}, |dst| message.send(dst)).0.unwrap();
    lane.assert_landed("grown", &content(&message));
}

#[test]
fn the_backend_is_the_drivers_choice() {
    let file = lane::file(1, 4 << 20);
    let message = Message::new().bytes("head").file(&file, 0..4 << 20);
    let mut lane = Lane::new(Kind::Tcp);
    let report = lane.run(|_| {}, |dst| message.send(dst)).0.unwrap();
    assert_eq!(report.backend, Backend::Sendfile);
    let expected = [(Backend::ReadWrite, 4), (Backend::Sendfile, 4 << 20)];
    assert_eq!(report.shares(), expected);
    assert!(report.syscalls() > 0);
}
