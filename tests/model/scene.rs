//! What a second writer does between the steps of a transfer, and how that is drawn.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use zcio::Backend;

/// Two files, a transfer between them, and what comes to pass meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    /// Pieces of the source in order: whether it is data, and how long.
    pub(crate) source: Vec<(bool, u64)>,
    /// Bytes that the destination holds before.
    pub(crate) old: u64,
    /// Where each side begins, and whether that is said by an explicit offset.
    pub(crate) from: (u64, bool),
    pub(crate) to: (u64, bool),
    pub(crate) backend: Option<Backend>,
    pub(crate) chunk: Option<usize>,
    pub(crate) len: u64,
    pub(crate) acts: Vec<Act>,
    /// Whether it then goes on to its end, or is dropped.
    pub(crate) to_end: bool,
}

/// One thing that happens. Places are in bytes, and lengths that reach beyond what there is are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Advance,
    /// `O_APPEND` to the destination.
    Append(usize),
    /// Into what was delivered, so many bytes before its end.
    Delivered(u64, usize),
    /// Into the destination, so many bytes behind what was delivered.
    Ahead(u64, usize),
    /// Punched out of the destination, from any place on.
    Punch(u64, u64),
    /// Reserved by `FALLOC_FL_KEEP_SIZE`, so many bytes beyond the destination's end.
    Reserve(u64, u64),
    /// The source grows: a hole, and data.
    Grow(u64, usize),
    /// Of the source, as far behind what was taken: filled, punched, cut off.
    Fill(u64, usize),
    Empty(u64, u64),
    Cut(u64),
}

/// Around the borders of blocks, pages, pipes and buffers, and in between.
fn place() -> impl Strategy<Value = u64> {
    let borders = select(vec![0_u64, 4096, 8192, 65_536, 131_072, 262_144]);
    prop_oneof![
        4 => borders.clone(),
        2 => (borders, -2_i64..=2).prop_map(|(at, by)| at.saturating_add_signed(by)),
        2 => 0_u64..400_000,
    ]
}

fn piece() -> impl Strategy<Value = (bool, u64)> {
    let len = prop_oneof![
        6 => (1_u64..40).prop_map(|blocks| blocks * 4096),
        2 => 1_u64..200_000,
        // More than a pipe and the buffer hold.
        1 => (300_u64..400).prop_map(|blocks| blocks * 4096),
    ];
    (any::<bool>(), len)
}

fn act() -> impl Strategy<Value = Act> {
    let some = 1_usize..40_000;
    prop_oneof![
        12 => Just(Act::Advance),
        2 => some.clone().prop_map(Act::Append),
        4 => (place(), some.clone()).prop_map(|(back, len)| Act::Delivered(back, len)),
        1 => (place(), some.clone()).prop_map(|(on, len)| Act::Ahead(on, len)),
        2 => (place(), 1_u64..100_000).prop_map(|(at, len)| Act::Punch(at, len)),
        2 => (place(), 4_u64..=8).prop_map(|(on, mib)| Act::Reserve(on, mib << 20)),
        3 => (place(), some.clone()).prop_map(|(gap, len)| Act::Grow(gap, len)),
        1 => (place(), some).prop_map(|(on, len)| Act::Fill(on, len)),
        1 => (place(), 1_u64..100_000).prop_map(|(on, len)| Act::Empty(on, len)),
        1 => place().prop_map(Act::Cut),
    ]
}

pub(crate) fn scene() -> impl Strategy<Value = Scene> {
    let backend = option::weighted(0.7, select(Backend::ALL.to_vec()));
    let chunk = option::weighted(0.6, select(vec![30_011_usize, 65_536, 131_072]));
    let len = prop_oneof![3 => Just(u64::MAX), 1 => place()];
    let side = || (prop_oneof![2 => Just(0), 1 => place()], any::<bool>());
    let ends = (side(), side());
    let files = (vec(piece(), 1..=9), prop_oneof![2 => Just(0), 1 => place()]);
    let way = (backend, chunk, len);
    (files, ends, way, vec(act(), 1..=40), any::<bool>()).prop_map(
        |((source, old), (from, to), (backend, chunk, len), acts, to_end)| Scene {
            source,
            old,
            from,
            to,
            backend,
            chunk,
            len,
            acts,
            to_end,
        },
    )
}
