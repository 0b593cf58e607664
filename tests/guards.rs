//! What a transfer costs, counted and not timed: system calls one by one, allocations, and the
//! instructions of probe and driver. Noise has no part in these, so they are exact.
//!
//! This binary has its own `read`, `splice` and so on in front of the C library's, see
//! [`interpose`], and an allocator that counts, see [`allocations`].
// Definitions in front of the C library's, and an allocator, cannot be made without it.
#![allow(unsafe_code)]

#[path = "guards/allocations.rs"]
mod allocations;
#[path = "guards/calls.rs"]
mod calls;
mod common;
#[path = "guards/instructions.rs"]
mod instructions;
#[path = "common/interpose.rs"]
mod interpose;
#[path = "guards/pair.rs"]
mod pair;
