//! What a sequence is made of, and how it is drawn.

use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use zcio::Backend;

/// One of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    A,
    B,
}

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Transfer(Move),
    /// Through a pipe: into it by one backend, out of it by another.
    Relay {
        from: Which,
        len: u64,
        into: Option<Backend>,
        out: Option<Backend>,
    },
    Write(Which, u64, usize, u8),
    Truncate(Which, u64),
    Punch(Which, u64, u64),
    Store(Which, u64, usize, u8),
    Seek(Which, u64),
}

#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) from: Which,
    pub(crate) to: Which,
    pub(crate) backend: Option<Backend>,
    pub(crate) src_offset: Option<u64>,
    pub(crate) dst_offset: Option<u64>,
    pub(crate) len: u64,
    pub(crate) chunk: Option<usize>,
    pub(crate) stop_after: Option<u8>,
}

/// Offsets around the borders of blocks, pages, pipes and buffers, and some in between.
fn offset() -> impl Strategy<Value = u64> {
    let borders = select(vec![0, 512, 4096, 8192, 65_536, 131_072, 262_144_u64]);
    prop_oneof![
        20 => (borders, -2_i64..=2).prop_map(|(at, by)| at.saturating_add_signed(by)),
        10 => 0_u64..300_000,
        // Far enough for blocks to be allocated ahead, and sparse.
        1 => 1_000_000_u64..1_500_000,
    ]
}

fn len() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => offset(),
        1 => Just(u64::MAX),
        1 => Just(0),
    ]
}

fn which() -> impl Strategy<Value = Which> {
    select(vec![Which::A, Which::B])
}

fn backend() -> impl Strategy<Value = Option<Backend>> {
    option::weighted(0.8, select(Backend::ALL.to_vec()))
}

fn a_move() -> impl Strategy<Value = Move> {
    let chunk = option::weighted(0.3, select(vec![30_011_usize, 131_072]));
    let stop = option::weighted(0.2, 1_u8..4);
    let offsets = (option::of(offset()), option::of(offset()));
    (which(), which(), backend(), offsets, len(), chunk, stop).prop_map(
        |(from, to, backend, (src_offset, dst_offset), len, chunk, stop_after)| Move {
            from,
            to,
            backend,
            src_offset,
            dst_offset,
            len,
            chunk,
            stop_after,
        },
    )
}

pub(crate) fn operation() -> impl Strategy<Value = Operation> {
    let ways = select(vec![
        None,
        Some(Backend::Splice),
        Some(Backend::ReadWrite),
        Some(Backend::Direct),
    ]);
    let relay = (which(), 0_u64..50_000, backend(), ways);
    prop_oneof![
        6 => a_move().prop_map(Operation::Transfer),
        1 => relay.prop_map(|(from, len, into, out)| Operation::Relay { from, len, into, out }),
        3 => (which(), offset(), 1_usize..40_000, 1_u8..)
            .prop_map(|(file, at, len, byte)| Operation::Write(file, at, len, byte)),
        1 => (which(), offset()).prop_map(|(file, size)| Operation::Truncate(file, size)),
        1 => (which(), offset(), 1_u64..100_000)
            .prop_map(|(file, at, len)| Operation::Punch(file, at, len)),
        1 => (which(), offset(), 1_usize..40_000, 1_u8..)
            .prop_map(|(file, at, len, byte)| Operation::Store(file, at, len, byte)),
        2 => (which(), offset()).prop_map(|(file, at)| Operation::Seek(file, at)),
    ]
}
