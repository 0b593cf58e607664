//! What safe code may do without harm to memory or to another process: fork, answer differently each
//! time it is asked for a descriptor, count wrongly, give what no mechanism can be set up on.

#[path = "safety/asks.rs"]
mod asks;
#[path = "hazards/child.rs"]
mod child;
#[path = "safety/claims.rs"]
mod claims;
mod common;
#[path = "safety/endless.rs"]
mod endless;
#[path = "seccomp/filter.rs"]
#[allow(dead_code, unsafe_code)]
mod filter;
#[path = "safety/fork.rs"]
mod fork;
#[path = "safety/ring.rs"]
mod ring;
#[path = "hazards/rlimit.rs"]
mod rlimit;
#[path = "safety/setup.rs"]
mod setup;
