//! Where the pipes come from, and what happens where none is to be had. Each test runs in a process
//! of its own, since the pipes of all relays are counted together.

#![allow(unreachable_pub)]

use std::fs;
use std::os::fd::OwnedFd;

use zcio::Backend;
use zcio::relay::{Flow, Relay, RelayEnd, RelayOptions, RelayReport, RelayStatus, pipes};

use crate::child::alone;
use crate::common::make;
use crate::rig::{BLOCKING, Ends, Lost, Net, Peer, Rig, judge, pair};

/// Several times a pipe and a buffer.
const MUCH: u64 = 5 << 20;

/// Pipes that may be kept while nothing moves, and lent at most.
const KEPT: usize = 8;
const LENT: usize = 64;

/// A relay without threads: the test plays all parts.
#[derive(Debug)]
pub struct Single {
    pub a: Peer,
    pub b: Peer,
    pub relay: Relay<OwnedFd, OwnedFd>,
    pub ends: Ends,
}

impl Single {
    pub fn new(nets: (Net, Net), options: &RelayOptions) -> Self {
        let (a, a_peer) = pair(nets.0);
        let (b, b_peer) = pair(nets.1);
        for fd in [&a, &b, &a_peer, &b_peer] {
            make::set_nonblocking(fd, true);
        }
        let again = |fd: &OwnedFd| fd.try_clone().expect("dup(2)");
        let ends = Ends {
            a: again(&a),
            b: again(&b),
        };
        Self {
            a: Peer::new(nets.0, a_peer, 1, 2),
            b: Peer::new(nets.1, b_peer, 2, 1),
            relay: options.start(a, b).expect("two sockets"),
            ends,
        }
    }

    /// Advances until nothing moves. Whether it has ended.
    pub fn settle(&mut self) -> bool {
        loop {
            match self.relay.advance().expect("two connections") {
                RelayStatus::Moved => {}
                RelayStatus::Finished => return true,
                RelayStatus::Blocked { .. } => return false,
            }
        }
    }

    /// Sends from the first peer until neither the relay nor the kernel takes more.
    fn stuff(&mut self) {
        let mut futile = 0;
        while futile < 3 {
            let sent = self.a.mouth.send(MUCH).expect("a connection");
            self.settle();
            futile = if sent == 0 { futile + 1 } else { 0 };
        }
    }

    /// Lets `len` bytes more through, from the first peer to the second, in segments.
    fn pass(&mut self, len: u64, segment: usize) {
        let end = self.a.mouth.sent + len;
        while self.b.ear.received < end {
            let left = end - self.a.mouth.sent;
            self.a.mouth.send_in(left, segment).expect("a connection");
            self.settle();
            self.b.ear.receive(u64::MAX).expect("a connection");
        }
    }

    /// Takes what is under way, ends both sides and judges.
    fn finish(mut self, case: &str) -> RelayReport {
        self.a.mouth.end();
        self.b.mouth.end();
        while !self.settle() {
            self.a.ear.receive(u64::MAX).expect("a connection");
            self.b.ear.receive(u64::MAX).expect("a connection");
        }
        let report = self.relay.into_report();
        assert_eq!(report.end, RelayEnd::Closed, "{case}");
        self.a.ear.expect(report.b_to_a.bytes - self.a.ear.received);
        self.b.ear.expect(report.a_to_b.bytes - self.b.ear.received);
        let sums = (&self.a.sums(), &self.b.sums());
        judge(case, &report, sums, &self.ends, Lost::default());
        report
    }
}

fn share(flow: &Flow, backend: Backend) -> u64 {
    let found = flow.shares().iter().find(|(other, _)| *other == backend);
    found.map_or(0, |(_, bytes)| *bytes)
}

/// What the open descriptors lead to, but for the list of them.
pub fn open() -> Vec<String> {
    let list = fs::read_dir("/proc/self/fd").expect("procfs");
    let links = list.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let mut links: Vec<_> = links.map(|link| link.display().to_string()).collect();
    links.retain(|link| !link.ends_with("/fd"));
    links.sort();
    links
}

#[test]
fn pipes_are_lent_while_bytes_are_in_flight_and_go_with_the_last_relay() {
    let name = "pipes::pipes_are_lent_while_bytes_are_in_flight_and_go_with_the_last_relay";
    alone(name, || {
        let before = open();
        let nets = (Net::Tcp, Net::Unix);
        let mut relays: Vec<_> = (0..20)
            .map(|_| Single::new(nets, &RelayOptions::new()))
            .collect();
        assert_eq!(pipes(), 0, "nothing has moved yet");
        for relay in &mut relays {
            relay.pass(MUCH, 128 << 10);
            assert_eq!(relay.relay.in_flight(), 0);
        }
        assert_eq!(pipes(), 1, "one after the other, they all used the same");
        for relay in &mut relays {
            relay.stuff();
        }
        assert_eq!(pipes(), 20, "each has its own, full of bytes");
        for relay in &mut relays {
            let end = relay.a.mouth.sent;
            while relay.b.ear.received < end {
                relay.b.ear.receive(u64::MAX).expect("a connection");
                relay.settle();
            }
        }
        assert_eq!(pipes(), KEPT, "kept, while nothing moves");
        for (number, relay) in relays.drain(..).enumerate() {
            let report = relay.finish(&format!("relay {number}"));
            assert!(
                share(&report.a_to_b, Backend::Splice) > 0,
                "{:?}",
                report.a_to_b
            );
        }
        assert_eq!(pipes(), 0, "the last relay has taken them along");
        assert_eq!(open(), before, "descriptors");

        // Dropped in the middle, with bytes in their pipes.
        let mut relays: Vec<_> = (0..3)
            .map(|_| Single::new(nets, &RelayOptions::new()))
            .collect();
        relays.iter_mut().for_each(Single::stuff);
        assert_eq!(pipes(), 3);
        drop(relays);
        assert_eq!(pipes(), 0);
        assert_eq!(open(), before, "descriptors");
    });
}

#[test]
fn relays_that_wait_in_blocking_calls_hold_no_pipe() {
    let name = "pipes::relays_that_wait_in_blocking_calls_hold_no_pipe";
    alone(name, || {
        let nets = (Net::Tcp, Net::Tcp);
        let start = || Rig::start(&BLOCKING, &RelayOptions::new(), nets);
        let mut rigs: Vec<Rig> = (0..20).map(|_| start()).collect();
        for rig in &mut rigs {
            let (a, b) = (&mut rig.a, &mut rig.b);
            std::thread::scope(|scope| {
                scope.spawn(|| a.mouth.send(MUCH).expect("sent"));
                scope.spawn(|| b.mouth.send(MUCH).expect("sent"));
                scope.spawn(|| a.ear.expect(MUCH));
                b.ear.expect(MUCH);
            });
        }
        // All 40 threads wait for their sources now, or will in a moment; those who hold a pipe are
        // about to give it back.
        while pipes() > KEPT {
            std::thread::yield_now();
        }
        for rig in rigs {
            rig.a.mouth.end();
            rig.b.mouth.end();
            let report = rig.relay.join().expect("two connections");
            assert!(
                share(&report.a_to_b, Backend::Splice) > 0,
                "{:?}",
                report.a_to_b
            );
        }
        while pipes() > 0 {
            std::thread::yield_now();
        }
    });
}

#[test]
fn where_the_pool_has_lent_all_its_pipes_the_others_go_on_by_read_and_write() {
    let name = "pipes::where_the_pool_has_lent_all_its_pipes_the_others_go_on_by_read_and_write";
    alone(name, || {
        let nets = (Net::Unix, Net::Unix);
        let mut relays: Vec<_> = (0..LENT + 20)
            .map(|_| Single::new(nets, &RelayOptions::new()))
            .collect();
        relays.iter_mut().for_each(Single::stuff);
        assert_eq!(pipes(), LENT);
        // Those without one are no worse off.
        let mut plain = 0;
        for (number, mut relay) in relays.into_iter().enumerate() {
            relay.pass(MUCH, 128 << 10);
            let report = relay.finish(&format!("relay {number}"));
            plain += u64::from(share(&report.a_to_b, Backend::ReadWrite) > MUCH);
        }
        println!("{plain} relays went on by read and write");
        assert!(plain > 0);
        assert_eq!(pipes(), 0);
    });
}

#[test]
fn where_no_descriptor_is_left_for_a_pipe_it_goes_on_by_read_and_write() {
    let name = "pipes::where_no_descriptor_is_left_for_a_pipe_it_goes_on_by_read_and_write";
    alone(name, || {
        let mut relay = Single::new((Net::Tcp, Net::Tcp), &RelayOptions::new());
        // Those that are open stay open; a new one would need a number below this.
        let many = set_limit(3);
        relay.pass(MUCH, 128 << 10);
        assert_eq!(pipes(), 0);
        set_limit(many);
        // With descriptors to be had again, so are pipes: after some patience.
        relay.pass(64 * MUCH, 128 << 10);
        assert_eq!(pipes(), 1);
        let report = relay.finish("no descriptor left");
        assert!(
            share(&report.a_to_b, Backend::ReadWrite) >= MUCH,
            "{:?}",
            report.a_to_b
        );
        assert!(
            share(&report.a_to_b, Backend::Splice) >= MUCH,
            "{:?}",
            report.a_to_b
        );
    });
}

/// Limits how many descriptors there may be; the limit before.
fn set_limit(most: u64) -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: there is room for one `rlimit`.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(got, 0);
    let before = std::mem::replace(&mut limit.rlim_cur, most);
    // SAFETY: one `rlimit` is read.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(set, 0);
    before
}

/// Many tiny segments use a pipe's slots up long before its bytes: read and write take over, until
/// the bytes come in quantity again.
#[test]
fn traffic_poor_in_bytes_per_slot_goes_by_read_and_write_and_comes_back() {
    let name = "pipes::traffic_poor_in_bytes_per_slot_goes_by_read_and_write_and_comes_back";
    alone(name, || {
        // A UNIX socket keeps each piece in pages of its own; TCP on loopback packs them.
        let run = |dribs: u64, after: u64| {
            let mut relay = Single::new((Net::Unix, Net::Unix), &RelayOptions::new());
            relay.pass(MUCH, 128 << 10);
            relay.pass(dribs, 64);
            relay.pass(after, 128 << 10);
            let flow = relay.finish("dribs").a_to_b;
            println!(
                "{dribs} in dribs, {after} after: {:?}, {} calls",
                flow.shares(),
                flow.syscalls
            );
            (
                share(&flow, Backend::Splice),
                share(&flow, Backend::ReadWrite),
            )
        };
        let (spliced, _) = run(0, 0);
        assert!(spliced >= MUCH / 2, "quantity goes by splice");
        let (spliced, plain) = run(MUCH, 0);
        assert!(plain >= MUCH, "dribs go by read and write");
        let (again, _) = run(MUCH, 8 * MUCH);
        assert!(again >= spliced + 4 * MUCH, "and it comes back");
    });
}

/// What a UNIX socket holds lies in pieces that TCP takes one by one: the copy costs half.
#[test]
fn a_relay_takes_what_the_probe_prefers_for_quantity() {
    let name = "pipes::a_relay_takes_what_the_probe_prefers_for_quantity";
    alone(name, || {
        for (nets, spliced) in [
            ((Net::Unix, Net::Tcp), false),
            ((Net::Tcp, Net::Unix), true),
            ((Net::Unix, Net::Unix), true),
            ((Net::Tcp, Net::Tcp), true),
        ] {
            let mut relay = Single::new(nets, &RelayOptions::new());
            relay.pass(8 * MUCH, 128 << 10);
            let flow = relay.finish("quantity").a_to_b;
            assert_eq!(
                share(&flow, Backend::Splice) > 4 * MUCH,
                spliced,
                "{nets:?}: {:?}",
                flow.shares()
            );
            assert_eq!(
                share(&flow, Backend::Splice) + share(&flow, Backend::ReadWrite),
                flow.bytes
            );
        }
    });
}
