//! Relays under schedules drawn from a seed: both peers send, listen, stall, end and reset as it
//! falls out. No byte is lost, and no descriptor is left.
//!
//! `ZCIO_SEED` sets the first seed, `ZCIO_SCHEDULES` how many there are.
#![allow(dead_code, unreachable_pub)]

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use zcio::relay::{HalfClose, RelayOptions, RelayReport, RelayStatus};

use crate::common::make;
use crate::pipes::{Single, open};
use crate::rig::{Ends, Form, Lost, Net, Outcome, Peer, Rig, Sums, judge};

/// splitmix64
pub struct Random(u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }

    /// A length, of any magnitude up to 1 MiB.
    fn length(&mut self) -> u64 {
        let magnitude = self.below(21);
        1 + self.below(1 << magnitude)
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    text.parse().unwrap_or(default)
}

/// The two peers and their whims.
struct Actors {
    random: Random,
    /// `None` once it has reset.
    peers: [Option<Peer>; 2],
    gone: [Option<Sums>; 2],
    ended: [bool; 2],
    /// Whether anybody ends or resets before the schedule is over.
    steady: bool,
}

fn drawn(seed: u64) -> (Random, (Net, Net), RelayOptions) {
    let mut random = Random(seed);
    let net = |random: &mut Random| {
        if random.one_in(3) {
            Net::Unix
        } else {
            Net::Tcp
        }
    };
    let nets = (net(&mut random), net(&mut random));
    let mut options = RelayOptions::new();
    if random.one_in(4) {
        options.half_close(HalfClose::CloseBoth);
    }
    (random, nets, options)
}

impl Actors {
    fn new(mut random: Random, a: Peer, b: Peer) -> Self {
        for peer in [&a, &b] {
            make::set_nonblocking(&peer.ear.fd, true);
        }
        let steady = random.one_in(2);
        Self {
            random,
            peers: [Some(a), Some(b)],
            gone: [None, None],
            ended: [false; 2],
            steady,
        }
    }

    /// One of the peers does something.
    fn act(&mut self) {
        let which = self.random.below(2) as usize;
        let Some(peer) = &mut self.peers[which] else {
            return;
        };
        let (len, random) = (self.random.length(), &mut self.random);
        match random.below(100) {
            0..45 if !self.ended[which] => {
                let segment = match random.below(4) {
                    0 => 1 + (len / 300) as usize,
                    1 => 1448,
                    2 => 20_000,
                    _ => 128 << 10,
                };
                // Where the connection is gone, the relay says so.
                let _ = peer.mouth.send_in(len, segment);
            }
            45..96 => drop(peer.ear.receive(len)),
            96..98 if !self.steady && !self.ended[which] => self.end(which),
            98 if !self.steady => {
                let peer = self.peers[which].take().expect("looked at above");
                self.gone[which] = Some(peer.reset());
            }
            _ => {}
        }
    }

    fn end(&mut self, which: usize) {
        if let Some(peer) = &self.peers[which] {
            // It may be reset already.
            let _ = shutdown(peer.ear.fd.as_raw_fd(), Shutdown::Write);
            self.ended[which] = true;
        }
    }

    /// Both listen to all that comes, and say nothing more.
    fn come_to_an_end(&mut self) {
        for which in 0..2 {
            if !self.ended[which] {
                self.end(which);
            }
            if let Some(peer) = &mut self.peers[which] {
                let _ = peer.ear.receive(u64::MAX);
            }
        }
    }

    /// Waits a moment for anything to come for either.
    fn wait(&self) {
        let fds = self.peers.iter().flatten();
        let mut fds: Vec<_> = fds
            .map(|peer| PollFd::new(peer.ear.fd.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut fds, PollTimeout::from(2_u16)).expect("poll(2)");
    }

    /// After the relay's end: what was delivered is taken, and everything is held together.
    fn judge(mut self, case: &str, report: &RelayReport, ends: &Ends) -> u64 {
        for end in [&ends.a, &ends.b] {
            let _ = shutdown(end.as_raw_fd(), Shutdown::Write);
        }
        let delivered = [report.b_to_a.bytes, report.a_to_b.bytes];
        let until = Instant::now() + Duration::from_secs(10);
        for (peer, delivered) in self.peers.iter_mut().zip(delivered) {
            let Some(peer) = peer else { continue };
            // A connection that was broken may fail here, having lost what was under way.
            while peer.ear.received < delivered && peer.ear.receive(u64::MAX).is_ok() {
                assert!(
                    Instant::now() < until,
                    "{case}: delivered, and does not arrive"
                );
                std::thread::yield_now();
            }
        }
        let sums = |which: usize| match &self.peers[which] {
            Some(peer) => peer.sums(),
            None => self.gone[which].expect("it has reset"),
        };
        let lost = Lost {
            a: self.peers[0].is_none(),
            b: self.peers[1].is_none(),
        };
        judge(case, report, (&sums(0), &sums(1)), ends, lost);
        delivered[0] + delivered[1]
    }
}

fn text(seed: u64, nets: (Net, Net), options: &RelayOptions) -> String {
    format!("ZCIO_SEED={seed} {nets:?} {options:?}")
}

/// One schedule without threads: the same each time, as far as the kernel is.
fn alone(seed: u64) -> u64 {
    let (random, nets, options) = drawn(seed);
    let case = text(seed, nets, &options);
    let Single {
        a,
        b,
        mut relay,
        ends,
    } = Single::new(nets, &options);
    let mut actors = Actors::new(random, a, b);
    let acts = 20 + actors.random.below(400);
    let mut outcome = None;
    for _ in 0..acts {
        actors.act();
        // Stalled, for as long as it falls out.
        for _ in 0..actors.random.below(6) {
            outcome = advance(&mut relay);
            if outcome.is_some() {
                break;
            }
        }
        if outcome.is_some() {
            break;
        }
    }
    let until = Instant::now() + Duration::from_secs(20);
    while outcome.is_none() {
        actors.come_to_an_end();
        let before = relay.in_flight();
        outcome = advance(&mut relay);
        if outcome.is_none() && relay.in_flight() == before {
            actors.wait();
        }
        assert!(Instant::now() < until, "{case}: no end");
    }
    let report = match outcome.expect("looked at above") {
        Ok(()) => relay.into_report(),
        Err(error) => {
            let gone = actors.peers.iter().any(Option::is_none);
            assert!(gone, "{case}: nobody has reset: {error}");
            error.report().clone()
        }
    };
    actors.judge(&case, &report, &ends)
}

type Owned = zcio::relay::Relay<std::os::fd::OwnedFd, std::os::fd::OwnedFd>;

fn advance(relay: &mut Owned) -> Option<Result<(), zcio::relay::RelayError>> {
    match relay.advance() {
        Ok(RelayStatus::Finished) => Some(Ok(())),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    }
}

/// One schedule with the relay on a thread of its own.
fn beside(form: &Form, seed: u64) -> u64 {
    let (random, nets, options) = drawn(seed);
    let case = format!("{}, {}", form.name, text(seed, nets, &options));
    let Rig {
        a, b, ends, relay, ..
    } = Rig::start(form, &options, nets);
    let mut actors = Actors::new(random, a, b);
    for _ in 0..20 + actors.random.below(400) {
        actors.act();
        if actors.random.one_in(4) {
            std::thread::yield_now();
        }
    }
    let until = Instant::now() + Duration::from_secs(20);
    while !relay.is_over() {
        actors.come_to_an_end();
        actors.wait();
        assert!(Instant::now() < until, "{case}: no end");
    }
    let outcome: Outcome = relay.join();
    let report = match outcome {
        Ok(report) => report,
        Err(error) => {
            let gone = actors.peers.iter().any(Option::is_none);
            assert!(gone, "{case}: nobody has reset: {error}");
            error.report().clone()
        }
    };
    actors.judge(&case, &report, &ends)
}

/// Plays `count` schedules from the first seed on, and looks at the descriptors after each.
fn play(what: &str, count: u64, schedule: impl Fn(u64) -> u64) {
    let first = setting("ZCIO_SEED", 1);
    let before = open();
    let mut bytes = 0;
    for seed in first..first + count {
        bytes += schedule(seed);
        assert_eq!(open(), before, "{what}: left open by ZCIO_SEED={seed}");
    }
    let last = first + count - 1;
    println!(
        "{what}: seeds {first} to {last}, {bytes} bytes delivered, 0 lost, 0 descriptors left"
    );
}

pub fn singly() {
    play("state machine", setting("ZCIO_SCHEDULES", 1000), alone);
}

pub fn in_form(form: &Form) {
    let count = setting("ZCIO_SCHEDULES", 100);
    play(form.name, count, |seed| beside(form, seed));
}
