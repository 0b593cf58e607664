//! Messages: what is built is what arrives, byte for byte, over every kind of stream, whatever the
//! kernel answers; and nothing is sent twice, held back, or freed while the kernel still reads it.
//!
//! This binary has its own `sendmsg`, `sendfile` and so on in front of the C library's: see
//! [`hooks`].
// Definitions in front of the C library's cannot be made without it.
#![allow(unsafe_code)]

#[cfg(feature = "tokio")]
#[path = "message/awaiting.rs"]
mod awaiting;
#[path = "message/build.rs"]
mod build;
#[path = "message/calls.rs"]
mod calls;
#[path = "hazards/child.rs"]
mod child;
mod common;
#[path = "message/faults.rs"]
mod faults;
#[path = "message/hooks.rs"]
mod hooks;
#[path = "common/interpose.rs"]
mod interpose;
#[path = "message/lane.rs"]
mod lane;
#[path = "message/map.rs"]
mod map;
#[path = "message/refused.rs"]
mod refused;
#[path = "message/whole.rs"]
mod whole;
#[path = "message/zerocopy.rs"]
mod zerocopy;
