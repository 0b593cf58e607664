//! How many calls a message takes, and which of them say that more follows.

use std::io::Read;
use std::time::{Duration, Instant};

use zcio::Message;

use crate::common::{make, within};
use crate::hooks::{Call, Site};
use crate::lane::{Kind, LARGE, Lane, SMALL, file};

const MORE: i32 = libc::MSG_MORE | libc::MSG_NOSIGNAL;
const LAST: i32 = libc::MSG_NOSIGNAL;

#[test]
fn a_small_file_goes_along_in_one_gather() {
    let source = file(1, 1 << 20);
    for kind in Kind::ALL {
        for len in [1, SMALL, 16 << 10] {
            let message = Message::new()
                .bytes("header")
                .bytes("more")
                .file(&source, 9..9 + len);
            for message in [message.clone(), message.bytes("trailer")] {
                let mut lane = Lane::new(kind);
                let (result, stage) = lane.run(|_| {}, |dst| message.send(dst));
                assert_eq!(result.unwrap().bytes, message.len());
                let moving: Vec<&Call> = stage
                    .calls
                    .iter()
                    .filter(|c| c.site != Site::Look)
                    .collect();
                let sites: Vec<Site> = moving.iter().map(|call| call.site).collect();
                assert_eq!(sites, [Site::Pread, Site::Gather], "{kind:?} {len}");
                let flags = if kind.is_socket() { LAST } else { 0 };
                assert_eq!(moving[1].flags, flags, "{kind:?} {len}");
            }
        }
    }
}

#[test]
fn more_is_said_before_a_large_file_and_never_last() {
    let source = file(1, 1 << 20);
    let header = Message::new().bytes("header").bytes("of two");
    let cases: [(Message<'_>, &[i32]); 6] = [
        (header.clone(), &[LAST]),
        (header.clone().file(&source, 0..LARGE), &[MORE]),
        (
            header.clone().file(&source, 0..LARGE).bytes("trailer"),
            &[MORE, LAST],
        ),
        (
            Message::new().file(&source, 0..LARGE).bytes("a").bytes("b"),
            &[LAST],
        ),
        (Message::new().file(&source, 0..LARGE), &[]),
        // A small file between large ones, and one at the end.
        (
            header
                .file(&source, 0..LARGE)
                .bytes("boundary")
                .file(&source, 0..SMALL)
                .bytes("boundary")
                .file(&source, 0..LARGE)
                .file(&source, 0..SMALL),
            &[MORE, MORE, LAST],
        ),
    ];
    for kind in [Kind::Tcp, Kind::Unix] {
        for (message, flags) in &cases {
            let mut lane = Lane::new(kind);
            let (result, stage) = lane.run(|_| {}, |dst| message.send(dst));
            result.unwrap();
            // What found no room has gone again, with the same flags.
            let mut made = stage.flags();
            made.dedup();
            let mut expected = flags.to_vec();
            expected.dedup();
            assert_eq!(made, expected, "{kind:?} {message:?}");
            // The last byte of all: never with more to follow.
            let last = stage.calls.iter().rev().find(|call| call.result.is_ok());
            assert_eq!(
                last.unwrap().flags & libc::MSG_MORE,
                0,
                "{kind:?} {message:?}"
            );
        }
    }
}

#[test]
fn nothing_is_looked_at_twice() {
    let source = file(1, 1 << 20);
    let mut message = Message::new();
    for i in 0..5 {
        message = message.bytes("boundary").file(&source, i..i + LARGE);
    }
    let mut lane = Lane::new(Kind::Tcp);
    let dst = lane.dst.try_clone().unwrap();
    let (sending, looks) = lane.run(
        |_| {},
        |_| {
            let mut sending = message.start(dst).unwrap();
            sending.finish().unwrap();
            sending
        },
    );
    // F_GETFL on each.
    assert_eq!(looks.seen(Site::Look), 2);
    let mut sending = sending;
    let (_, stage) = lane.run(
        |_| {},
        |_| {
            sending.extend(&Message::new().bytes("header").file(&source, 0..SMALL));
            sending.finish().unwrap();
        },
    );
    assert_eq!(stage.calls.len(), 2, "{:?}", stage.calls);
    // A file is looked at again in the next message: its number may be another's by then.
    let (_, stage) = lane.run(
        |_| {},
        |_| {
            sending.extend(&message);
            sending.finish().unwrap();
        },
    );
    assert_eq!(stage.seen(Site::Look), 1);
}

/// Less than the 200 ms of a cork, more than a busy machine makes of a few microseconds.
const BOUND: Duration = Duration::from_millis(150);

#[test]
fn the_last_part_is_not_held_back() {
    within(60, |pulse| {
        let source = file(1, 1 << 20);
        let header = Message::new().bytes("header");
        let messages = [
            header.clone(),
            header.clone().file(&source, 0..SMALL),
            header.clone().file(&source, 0..LARGE),
            header
                .clone()
                .file(&source, 0..LARGE + 1)
                .file(&source, 0..1),
            header.clone().file(&source, 0..LARGE).bytes("trailer"),
            header.file(&source, (1 << 20) - 70_001..1 << 20),
        ];
        let mut worst = Duration::ZERO;
        for message in &messages {
            pulse.at(format!("{message:?}"));
            // The best of five: a delay that is meant comes every time.
            let best = (0..5).map(|_| arrival(message)).min().unwrap();
            assert!(best < BOUND, "{message:?}: {best:?}");
            worst = worst.max(best);
        }
        eprintln!("the slowest arrival: {worst:?}");
    });
}

/// How long it takes from the call to the last byte's arrival, the connection staying open.
fn arrival(message: &Message<'_>) -> Duration {
    let (dst, mut from) = make::tcp();
    let len = message.len() as usize;
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; len];
        from.read_exact(&mut got).unwrap();
        Instant::now()
    });
    let start = Instant::now();
    message.send(&dst).unwrap();
    let arrived = reader.join().unwrap();
    drop(dst);
    arrived - start
}
