//! Allocations of a transfer, counted by this binary's allocator in the thread that makes it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use zcio::{Backend, Message, Probe, Status};

use crate::common::{each_backend, make, within};
use crate::pair::{End, PAIRS, Pair};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has no count any more, and nobody who asks.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: everything is the system's allocator's; counting touches a plain cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's word is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = COUNT.get();
    let result = work();
    (result, COUNT.get() - before)
}

const LEN: usize = 4 << 10;

#[test]
fn the_allocator_counts() {
    assert_eq!(allocations_of(|| vec![1_u8; 100]).1, 1);
    assert_eq!(allocations_of(|| 1).1, 0);
}

#[test]
fn a_probe_allocates_nothing() {
    within(60, |_| {
        for pair in PAIRS {
            let made = Pair::new(pair, 1);
            let (probe, count) = allocations_of(|| Probe::new(&made.src, made.dst()));
            assert!(probe.is_ok());
            assert_eq!(count, 0, "{pair:?}");
            made.arrived(0);
        }
    });
}

/// The mechanism itself, unless it has no state, as copy_file_range(2); where the first gives way, the second and the note of it, which the report
/// takes along.
fn one_shot(pair: (End, End)) -> u64 {
    let made = Pair::new(pair, LEN);
    let (report, count) = allocations_of(|| zcio::transfer(&made.src, made.dst(), LEN as u64));
    let report = report.unwrap();
    let gave_way = report.refused().len() as u64;
    made.arrived(LEN);
    let noted = if gave_way > 0 { 2 } else { 0 };
    let mechanism = u64::from(report.backend != Backend::CopyFileRange);
    assert_eq!(
        count,
        mechanism + gave_way + noted,
        "{pair:?}: {:?}",
        report.refused()
    );
    count
}

#[test]
fn a_one_shot_allocates_its_mechanism_and_nothing_else() {
    within(60, |_| {
        // The buffer that the thread keeps is made by the first that needs it.
        let made = Pair::new((End::Tcp, End::Tcp), LEN);
        zcio::transfer(&made.src, made.dst(), LEN as u64).unwrap();
        made.arrived(LEN);
        for pair in PAIRS {
            let count = one_shot(pair);
            assert!(count <= 4, "{pair:?}: {count}");
        }
    });
}

#[test]
fn after_extend_nothing_is_allocated() {
    within(120, |pulse| {
        for pair in PAIRS {
            let probe = Pair::new(pair, LEN);
            let ways = each_backend(&probe.src, probe.dst());
            probe.arrived(0);
            for (name, options) in ways {
                pulse.at(format!("{pair:?} {name}"));
                let made = Pair::new(pair, 4 * LEN);
                let mut transfer = options.start(&made.src, made.dst(), LEN as u64).unwrap();
                for round in 0..4 {
                    let (status, count) = allocations_of(|| {
                        if round > 0 {
                            transfer.extend(LEN as u64);
                        }
                        transfer.advance()
                    });
                    let moved = matches!(status, Ok(Status::Moved(n)) if n.get() == LEN);
                    assert!(moved, "{pair:?} by {name}: {status:?}");
                    if round > 0 {
                        assert_eq!(count, 0, "{pair:?} by {name}, advance {round}");
                    }
                }
                drop(transfer);
                made.arrived(4 * LEN);
            }
        }
    });
}

#[test]
fn a_small_message_after_extend_allocates_its_list_of_pieces() {
    within(60, |_| {
        let (dst, _from) = make::tcp();
        let message = Message::new().bytes("header").bytes("body");
        let mut sending = message.start(&dst).unwrap();
        sending.finish().unwrap();
        for _ in 0..3 {
            let (report, count) = allocations_of(|| {
                sending.extend(&message);
                sending.finish()
            });
            report.unwrap();
            assert_eq!(count, 2);
        }
    });
}
