//! The oracle itself: it passes what is right, and catches each thing that it is there to catch.

mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use common::{
    Before, Claim, Data, Destination, DestinationKind, Source, SourceKind, make, watch, within,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

const DATA: Data = Data::new(0x0a1e);
const LEN: u64 = 200_000;

/// A transfer by hand: reads `len` bytes, spoils them by `spoil`, writes them.
fn moved(src: &Source, dst: &Destination, len: u64, spoil: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = vec![0; len as usize];
    let mut got = 0;
    while got < bytes.len() {
        got += nix::unistd::read(src, &mut bytes[got..]).unwrap();
    }
    spoil(&mut bytes);
    let mut file = File::from(dst.fd.try_clone().unwrap());
    file.write_all(&bytes).unwrap();
}

/// The verdict on a transfer of 100,000 bytes that `act` has done, and of which `claim` is said.
fn verdict(
    from: SourceKind,
    to: DestinationKind,
    claim: &Claim,
    act: impl FnOnce(&Source, &Destination),
) -> Result<(), String> {
    let (src, dst) = (from.make(DATA, LEN).unwrap(), to.make().unwrap());
    let before = Before::new(&src, &dst);
    act(&src, &dst);
    before.verdict(src, dst, (None, None), 0, claim)
}

const PAIRS: [(SourceKind, DestinationKind); 5] = [
    (SourceKind::DiskFile, DestinationKind::Memfd),
    (SourceKind::Memfd, DestinationKind::Pipe),
    (SourceKind::Pipe, DestinationKind::Tcp),
    (SourceKind::Tcp, DestinationKind::DiskFile),
    (SourceKind::Unix, DestinationKind::Unix),
];
const PART: u64 = 100_000;

#[test]
fn passes_what_is_right() {
    within(10, |_| {
        for (from, to) in PAIRS {
            let all = Claim::complete(PART);
            let result = verdict(from, to, &all, |src, dst| moved(src, dst, PART, |_| ()));
            assert_eq!(result, Ok(()), "{from:?} to {to:?}");
            // Some of it handed back.
            let claim = Claim {
                delivered: 90_000,
                handed_back: DATA.bytes(90_000, 10_000),
            };
            let result = verdict(from, to, &claim, |src, dst| {
                moved(src, dst, PART, |bytes| bytes.truncate(90_000));
            });
            assert_eq!(result, Ok(()), "{from:?} to {to:?}");
        }
    });
}

#[test]
fn catches_wrong_counts() {
    within(10, |_| {
        for (from, to) in PAIRS {
            let act = |src: &Source, dst: &Destination| moved(src, dst, PART, |_| ());
            for wrong in [0, PART - 1, PART + 1] {
                let result = verdict(from, to, &Claim::complete(wrong), act);
                assert!(result.is_err(), "{from:?} to {to:?}: {wrong} of {PART}");
            }
            // Taken, not delivered, and not handed back.
            let result = verdict(from, to, &Claim::complete(90_000), |src, dst| {
                moved(src, dst, PART, |bytes| bytes.truncate(90_000));
            });
            assert!(result.is_err(), "{from:?} to {to:?}: 10,000 bytes lost");
            // Handed back although they were delivered.
            let claim = Claim {
                delivered: PART,
                handed_back: DATA.bytes(PART, 10),
            };
            let result = verdict(from, to, &claim, act);
            assert!(result.is_err(), "{from:?} to {to:?}: 10 bytes made up");
        }
    });
}

#[test]
fn catches_wrong_bytes() {
    within(10, |_| {
        let spoils: [fn(&mut Vec<u8>); 4] = [
            |bytes| bytes[70_000] ^= 1,
            |bytes| bytes[99_999] ^= 0x80,
            // One lost, one doubled.
            |bytes| {
                bytes.remove(65_536);
                bytes.push(bytes[99_998]);
            },
            |bytes| bytes[..2 * 4096].rotate_left(4096),
        ];
        for (from, to) in PAIRS {
            for spoil in spoils {
                let claim = Claim::complete(PART);
                let result = verdict(from, to, &claim, |s, d| moved(s, d, PART, spoil));
                assert!(result.is_err(), "{from:?} to {to:?}");
            }
            let claim = Claim {
                delivered: 90_000,
                handed_back: DATA.bytes(90_001, 10_000),
            };
            let result = verdict(from, to, &claim, |src, dst| {
                moved(src, dst, PART, |bytes| bytes.truncate(90_000));
            });
            assert!(
                result.is_err(),
                "{from:?} to {to:?}: the wrong ones handed back"
            );
        }
    });
}

#[test]
fn catches_what_is_left_behind() {
    within(10, |_| {
        type Act = fn(&Source, &Destination);
        let nonblocking: Act = |src, _| make::set_nonblocking(src, true);
        let append: Act = |_, dst| make::set_flags(dst, OFlag::O_RDWR | OFlag::O_APPEND);
        let larger: Act = |_, dst| {
            fcntl(dst, FcntlArg::F_SETPIPE_SZ(1 << 18)).unwrap();
        };
        let leak: Act = |src, _| {
            std::mem::forget(src.fd.try_clone().unwrap());
        };
        let mapped: Act = |_, dst| {
            let file = File::from(dst.fd.try_clone().unwrap());
            let map = memmap2::MmapOptions::new().map_raw_read_only(&file);
            std::mem::forget(map.unwrap());
        };
        let closed: Act = |_, _| drop(make::pipe());
        let src_position: Act = |src, _| make::seek(src, PART + 1);
        let dst_position: Act = |_, dst| make::seek(dst, PART - 1);
        let overwritten: Act = |src, _| {
            let view = make::reopen(src.as_fd(), OFlag::O_WRONLY).unwrap();
            File::from(view).write_all_at(b"x", LEN - 1).unwrap();
        };
        let cut: Act = |src, _| {
            let view = make::reopen(src.as_fd(), OFlag::O_WRONLY).unwrap();
            File::from(view).set_len(LEN - 1).unwrap();
        };
        use DestinationKind as D;
        for (what, to, act, is_right) in [
            ("nothing", D::Memfd, closed, true),
            ("a flag", D::Memfd, nonblocking, false),
            ("a flag", D::Memfd, append, false),
            ("a pipe's size", D::Pipe, larger, false),
            ("a descriptor", D::Memfd, leak, false),
            ("a mapping", D::Memfd, mapped, false),
            ("the source's position", D::Memfd, src_position, false),
            ("the destination's position", D::Memfd, dst_position, false),
            ("a byte of the source", D::Memfd, overwritten, false),
            ("the source's size", D::Memfd, cut, false),
        ] {
            let claim = Claim::complete(PART);
            let result = verdict(SourceKind::DiskFile, to, &claim, |src, dst| {
                moved(src, dst, PART, |_| ());
                act(src, dst);
            });
            assert_eq!(result.is_ok(), is_right, "{what}: {result:?}");
        }
    });
}

#[test]
fn the_watchdog_bites() {
    let hang = watch::watched(1, |pulse| {
        let (reader, _writer) = make::pipe();
        pulse.at("the place where it hangs");
        // Nobody ever writes.
        let _ = nix::unistd::read(&reader, &mut [0]);
    });
    let seconds = watch::patience();
    let text = format!("no end after {seconds} s at the place where it hangs");
    assert_eq!(hang, Err(text));
}
