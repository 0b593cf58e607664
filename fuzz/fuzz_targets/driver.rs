//! The driver under a backend whose every answer is the input's: whatever comes, bytes taken =
//! delivered + in flight or handed back, the limit covers what is in flight, and nothing panics.
//!
//! `cargo +nightly fuzz run driver -- -max_total_time=60`
#![no_main]

use std::fs::File;
use std::io::{self, Read, Seek};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, BytesMut};
use libfuzzer_sys::fuzz_target;
use zcio::backend::{Endpoint, Fault, Side, Step, Unfit, ZeroCopyTransfer};
use zcio::{Backend, End, Error, Status, Transfer};

/// The script: one byte after another, until they run out.
#[derive(Debug)]
struct Script {
    bytes: Vec<u8>,
    at: usize,
}

impl Script {
    fn next(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        byte
    }
}

/// What the backend has really done.
#[derive(Debug, Default)]
struct Truth {
    taken: u64,
    delivered: u64,
}

/// A backend that keeps its contract and answers by the script.
#[derive(Debug)]
struct Scripted {
    script: Arc<Mutex<Script>>,
    truth: Arc<Mutex<Truth>>,
    held: Vec<u8>,
    reclaim_fails: bool,
}

impl ZeroCopyTransfer for Scripted {
    fn backend(&self) -> Backend {
        Backend::ReadWrite
    }

    fn assess(&self, _: &Endpoint<'_>, _: &Endpoint<'_>) -> Result<(), Unfit> {
        Ok(())
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        let limit = limit.get();
        assert!(limit >= self.held.len(), "a limit below what is in flight");
        let mut script = self.script.lock().expect("one thread");
        let mut truth = self.truth.lock().expect("one thread");
        let Some(act) = script.next() else {
            // The end of the script: what is held goes, then the source has ended.
            let put = nix::unistd::write(dst.fd(), &self.held).expect("room");
            self.held.drain(..put);
            truth.delivered += put as u64;
            return Ok(NonZeroUsize::new(put).map_or(Step::Ended, Step::Moved));
        };
        let side = if act & 0x80 == 0 {
            Side::Source
        } else {
            Side::Destination
        };
        match act % 8 {
            0..=3 => {
                let (take, put) = (script.next().unwrap_or(0), script.next().unwrap_or(0));
                let room = limit - self.held.len();
                let mut buf = vec![0; usize::from(take).min(room)];
                let got = nix::unistd::read(src.fd(), &mut buf).expect("readable");
                self.held.extend_from_slice(&buf[..got]);
                truth.taken += got as u64;
                let put = usize::from(put).min(self.held.len());
                let put = nix::unistd::write(dst.fd(), &self.held[..put]).expect("room");
                self.held.drain(..put);
                truth.delivered += put as u64;
                Ok(NonZeroUsize::new(put).map_or(Step::Blocked(side), Step::Moved))
            }
            4 => Ok(Step::Blocked(side)),
            5 if self.held.is_empty() => Ok(Step::Ended),
            6 if self.held.is_empty() => Ok(Step::Unfit(Unfit::Other("the script says so"))),
            5 | 6 => Ok(Step::Blocked(Side::Destination)),
            _ => {
                let number = i32::from(script.next().unwrap_or(5) % 127) + 1;
                self.reclaim_fails = act & 0x40 != 0;
                Err(Fault {
                    side: (act & 0x20 != 0).then_some(side),
                    error: io::Error::from_raw_os_error(number),
                })
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }

    fn reclaim(&mut self, into: &mut BytesMut) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        if std::mem::take(&mut self.reclaim_fails) {
            into.put_slice(&held[..held.len() / 2]);
            return Err(io::ErrorKind::Other.into());
        }
        into.put_slice(&held);
        Ok(())
    }
}

/// Bytes that are each known by their place.
fn content() -> Vec<u8> {
    (0..20_000_u32).map(|i| (i % 251) as u8).collect()
}

/// A pipe takes 16 pages, and this stays below them.
const MOST: usize = 2000;

fuzz_target!(|input: &[u8]| {
    let [first, rest @ ..] = input else { return };
    if rest.len() > MOST / 10 {
        return;
    }
    run(*first, rest);
});

fn run(first: u8, rest: &[u8]) {
    let content = content();
    let seekable = first & 1 != 0;
    let mut src = tempfile::tempfile().expect("a temporary file");
    io::Write::write_all(&mut src, &content).expect("room");
    src.rewind().expect("files seek");
    let (reader, writer) = nix::unistd::pipe().expect("pipe(2)");
    let src: OwnedFd = if seekable {
        src.into()
    } else {
        nix::unistd::write(&writer, &content).expect("room in a pipe");
        reader
    };
    drop(writer);
    let dst = tempfile::tempfile().expect("a temporary file");
    let script = Arc::new(Mutex::new(Script {
        bytes: rest.to_vec(),
        at: 0,
    }));
    let truth = Arc::new(Mutex::new(Truth::default()));
    let backend = Scripted {
        script: Arc::clone(&script),
        truth: Arc::clone(&truth),
        held: Vec::new(),
        reclaim_fails: false,
    };
    let mut len = u64::from(first) * 20;
    let mut transfer = Transfer::with_backend(&src, &dst, len, Box::new(backend)).expect("it fits");
    let mut handed_back = 0;
    let mut lost = false;
    let steps = rest.len() + 50;
    for _ in 0..steps {
        let before = truth.lock().expect("one thread").taken;
        let status = transfer.advance();
        let state = truth.lock().expect("one thread");
        assert_eq!(
            transfer.delivered(),
            state.delivered,
            "delivered is what was delivered"
        );
        assert_eq!(transfer.remaining(), len.saturating_sub(state.delivered));
        assert_eq!(transfer.report().bytes, state.delivered);
        assert!(
            state.taken <= len + handed_back,
            "never more than was asked for (C1)"
        );
        match status {
            Ok(Status::Moved(_) | Status::Blocked(_)) => {}
            Ok(Status::Finished(End::SourceEnded)) => break,
            Ok(Status::Finished(end)) => {
                assert_eq!((end, state.delivered), (End::Complete, len));
                assert_eq!(before, state.taken, "no step when all is done");
                if len > 8000 {
                    break;
                }
                len += 500;
                transfer.extend(500);
            }
            Err(error) => {
                let exact = error.delivered() == state.delivered && transfer.in_flight() == 0;
                assert!(
                    exact,
                    "an error is exact and leaves nothing in flight: {error}"
                );
                lost |= account(&error, seekable, &state, &mut handed_back, &content);
                break;
            }
        }
    }
    if !lost {
        finish(transfer, seekable, &truth, handed_back);
        arrived(dst, &content, &truth);
    }
}

/// Checks an error's account; whether the script had made the backend lose bytes.
fn account(
    error: &Error,
    seekable: bool,
    truth: &Truth,
    handed_back: &mut u64,
    content: &[u8],
) -> bool {
    let back = error.undelivered();
    *handed_back += back.len() as u64;
    let at = truth.delivered as usize;
    assert_eq!(
        &back[..],
        &content[at..at + back.len()],
        "in order, and from where it stopped"
    );
    if seekable {
        assert!(back.is_empty(), "a file rewinds");
        return false;
    }
    // Only where reclaiming itself failed may some be missing, and that is an error of its own.
    let all = truth.taken == truth.delivered + back.len() as u64;
    assert!(
        all || error.io_error().is_some_and(|e| e.raw_os_error().is_none()),
        "{error}"
    );
    !all
}

/// What is in flight at the end comes back, or a file is rewound.
fn finish(
    mut transfer: Transfer<&OwnedFd, &File>,
    seekable: bool,
    truth: &Mutex<Truth>,
    handed_back: u64,
) {
    let src = *transfer.src();
    let reclaimed = transfer.reclaim();
    let truth = truth.lock().expect("one thread");
    if seekable {
        assert!(reclaimed.is_ok_and(|bytes| bytes.is_empty()));
        let position = nix::unistd::lseek64(src, 0, nix::unistd::Whence::SeekCur);
        assert_eq!(
            position,
            Ok(truth.delivered as i64),
            "rewound to what was delivered"
        );
    } else if let Ok(bytes) = reclaimed {
        let all = truth.delivered + handed_back + bytes.len() as u64;
        assert_eq!(all, truth.taken, "taken = delivered + handed back");
    }
}

fn arrived(mut dst: File, content: &[u8], truth: &Mutex<Truth>) {
    let mut bytes = Vec::new();
    dst.rewind().expect("files seek");
    dst.read_to_end(&mut bytes).expect("readable");
    let delivered = truth.lock().expect("one thread").delivered as usize;
    assert_eq!(bytes, content[..delivered], "what arrived");
}
