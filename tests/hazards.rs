//! Real hazards, made without root: a source that changes under way, signals, limits, O_DIRECT,
//! threads that close and cancel, pages that alias, a cork that waits.

#[path = "hazards/arrival.rs"]
mod arrival;
#[path = "hazards/cache.rs"]
mod cache;
#[path = "hazards/changes.rs"]
mod changes;
#[path = "hazards/child.rs"]
mod child;
mod common;
#[path = "hazards/cork.rs"]
mod cork;
#[path = "hazards/direct.rs"]
mod direct;
#[path = "streams/lane.rs"]
mod lane;
#[path = "hazards/limits.rs"]
mod limits;
#[path = "hazards/rlimit.rs"]
mod rlimit;
#[path = "hazards/signals.rs"]
mod signals;
#[path = "hazards/snapshot.rs"]
mod snapshot;
#[path = "hazards/tended.rs"]
mod tended;
#[path = "hazards/threads.rs"]
mod threads;
