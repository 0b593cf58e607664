//! A lane whose other ends threads feed and empty, each piece when a gate lets it.
#![allow(dead_code, unreachable_pub)]

use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use crate::common::make;
use crate::lane::Lane;

/// Bytes that pass at each opening of the gate.
const PIECE: usize = 128 << 10;

/// A lane's other ends in the hands of two threads.
#[derive(Debug)]
pub struct Tended {
    pub lane: Lane,
    feeder: Option<JoinHandle<()>>,
    drainer: Option<JoinHandle<Vec<u8>>>,
}

impl Tended {
    /// Feeds `total` bytes and then ends the source; drains until the destination ends. `gate` is
    /// waited for before each piece.
    pub fn new(mut lane: Lane, total: u64, gate: impl Fn() + Clone + Send + 'static) -> Self {
        let data = lane.data;
        let feeder = lane.feed.take().map(|feed| {
            lane.fed = total;
            let gate = gate.clone();
            make::set_nonblocking(&feed, false);
            std::thread::spawn(move || {
                let mut at = 0;
                while at < total {
                    gate();
                    let len = usize::try_from(total - at).map_or(PIECE, |left| left.min(PIECE));
                    if !write_all(&feed, &data.bytes(at, len)) {
                        return;
                    }
                    at += len as u64;
                }
            })
        });
        let drainer = lane.sink.take().map(|sink| {
            make::set_nonblocking(&sink, false);
            std::thread::spawn(move || {
                let (mut all, mut buf) = (Vec::new(), vec![0; PIECE]);
                loop {
                    gate();
                    match nix::unistd::read(&sink, &mut buf) {
                        Ok(0) => return all,
                        Ok(n) => all.extend_from_slice(&buf[..n]),
                        Err(nix::errno::Errno::EINTR) => {}
                        Err(e) => panic!("draining: {e}"),
                    }
                }
            })
        });
        Self {
            lane,
            feeder,
            drainer,
        }
    }

    /// The end: closes the destination and checks the account, as [`Lane::settle`].
    pub fn settle(mut self, case: &str, delivered: u64, handed_back: &[u8]) {
        match self.drainer.take() {
            None => self.lane.settle(case, delivered, handed_back),
            Some(drainer) => {
                let Lane {
                    src,
                    dst,
                    data,
                    fed,
                    ..
                } = self.lane;
                drop(dst);
                let arrived = drainer.join().expect("the drainer");
                assert_eq!(data.check(0, &arrived), Ok(()), "{case}: what arrived");
                assert_eq!(
                    arrived.len() as u64,
                    delivered,
                    "{case}: arrived, delivered"
                );
                let taken = delivered + handed_back.len() as u64;
                let ends = (src, None);
                crate::lane::source_holds(case, ends, data, fed, (delivered, handed_back, taken));
            }
        }
        if let Some(feeder) = self.feeder {
            feeder.join().expect("the feeder");
        }
    }
}

/// `false` where the reader is gone.
fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    true
}
