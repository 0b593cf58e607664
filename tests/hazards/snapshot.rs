//! [`Consistency::Snapshot`](zcio::Consistency::Snapshot): what was delivered stays what it was when
//! the source is written before the receiver reads.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use zcio::backend::Unfit;
use zcio::{Backend, Consistency, ErrorKind, TransferOptions};

use crate::common::{Data, make, skipped, within};
use crate::lane::{Kind, Lane, STREAMS, contents};

/// What every stream takes without a reader, and more than a few pages.
const LITTLE: usize = 40_000;
const NEW: Data = Data::new(0x5a5a);

fn snapshot() -> TransferOptions {
    let mut options = TransferOptions::new();
    options.consistency(Consistency::Snapshot);
    options
}

/// Delivers, writes the source all over, then reads what was delivered.
fn read_after_a_write(options: &TransferOptions, to: Kind) -> Result<(Vec<u8>, Data), zcio::Error> {
    let mut lane = Lane::new(Kind::File, to, LITTLE as u64);
    let report = options.transfer(&lane.src, &lane.dst, u64::MAX)?;
    assert_eq!(report.bytes, LITTLE as u64);
    let others = File::from(make::reopen(&lane.src, nix::fcntl::OFlag::O_RDWR).expect("again"));
    others.write_all_at(&NEW.bytes(0, LITTLE), 0).expect("room");
    let data = lane.data;
    let arrived = match to {
        Kind::File => contents(&lane.dst),
        _ => {
            let mut arrived = Vec::new();
            while arrived.len() < LITTLE {
                arrived.extend(lane.take_unchecked(LITTLE));
            }
            arrived
        }
    };
    Ok((arrived, data))
}

#[test]
fn what_was_delivered_stays_as_it_was() {
    within(20, |pulse| {
        for to in [Kind::File, Kind::Pipe, Kind::Tcp, Kind::Unix] {
            let probed = {
                let lane = Lane::new(Kind::File, to, LITTLE as u64);
                snapshot().probe(&lane.src, &lane.dst).expect("a probe")
            };
            let mut allowed: Vec<Option<Backend>> = probed.candidates().map(Some).collect();
            // Not by itself, but where it is asked for.
            allowed.extend([None, Some(Backend::Direct)]);
            assert!(allowed.len() >= 4, "{to:?}: {allowed:?}");
            for engine in allowed {
                let case = format!("to {to:?} by {engine:?}");
                pulse.at(&case);
                let mut options = snapshot();
                if let Some(backend) = engine {
                    options.backend(backend);
                }
                let (arrived, data) = read_after_a_write(&options, to).expect(&case);
                assert_eq!(data.check(0, &arrived), Ok(()), "{case}");
                assert_eq!(arrived.len(), LITTLE, "{case}");
            }
            for backend in [Backend::Sendfile, Backend::Splice] {
                let case = format!("to {to:?} by {backend}");
                let verdict = probed.verdict(backend);
                if to == Kind::File {
                    assert_eq!(verdict, Ok(()), "{case}");
                    continue;
                }
                assert_eq!(verdict, Err(Unfit::Aliases), "{case}");
                let error = read_after_a_write(snapshot().backend(backend), to).expect_err(&case);
                assert_eq!(error.kind(), ErrorKind::Unfit, "{case}");
                assert_eq!(error.delivered(), 0, "{case}");
            }
        }
    });
}

/// The control: without the policy the write shows through, or the test above proves nothing. A
/// kernel may copy, so what it does is said and not asserted.
#[test]
fn without_it_a_write_shows_through() {
    within(20, |_| {
        let mut shared = 0;
        for to in STREAMS {
            for backend in [Backend::Sendfile, Backend::Splice] {
                let mut options = TransferOptions::new();
                options.backend(backend);
                let (arrived, data) = read_after_a_write(&options, to).expect("it fits");
                let is_shared = data.check(0, &arrived).is_err();
                println!(
                    "{backend} to {to:?}: {}",
                    if is_shared { "shared" } else { "copied" }
                );
                shared += u32::from(is_shared);
            }
        }
        if shared == 0 {
            skipped(
                "the control of the snapshots",
                "this kernel shares no pages at all",
            );
        }
    });
}

/// A file that can no longer change needs no copy.
#[test]
fn a_sealed_file_keeps_every_backend() {
    within(20, |_| {
        let bytes = Data::new(2).bytes(0, LITTLE);
        for backend in [
            Backend::Sendfile,
            Backend::Splice,
            Backend::Mmap,
            Backend::ReadWrite,
        ] {
            let file = make::sealed_memfd(&bytes);
            let (mut peer, dst) = make::unix();
            let report = snapshot().backend(backend).transfer(&file, &dst, u64::MAX);
            assert_eq!(report.expect("it fits").bytes, LITTLE as u64, "{backend}");
            drop(dst);
            let mut arrived = Vec::new();
            peer.read_to_end(&mut arrived).expect("readable");
            assert!(arrived == bytes, "{backend}");
        }
    });
}
