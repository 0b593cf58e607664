//! Transfers between streams, fed and emptied by the tests themselves: which side blocks, who
//! closes, what is stopped, extended or taken back, and where a full disk leaves the bytes.

#[path = "hazards/child.rs"]
mod child;
mod common;
#[path = "streams/error_queue.rs"]
mod error_queue;
#[path = "streams/full.rs"]
mod full;
#[path = "streams/lane.rs"]
mod lane;
#[path = "streams/peeked.rs"]
mod peeked;
#[path = "streams/peers.rs"]
mod peers;
#[path = "streams/resume.rs"]
mod resume;
#[path = "streams/scripted.rs"]
mod scripted;
#[path = "streams/segments.rs"]
mod segments;
#[path = "streams/sigpipe.rs"]
mod sigpipe;
#[path = "streams/slow.rs"]
mod slow;
#[path = "streams/urgent.rs"]
mod urgent;
