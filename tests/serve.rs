//! The example `serve`, spoken to over sockets: what HTTP says, byte for byte, with either engine;
//! and what a client that wishes it ill can do.

#[path = "serve/answers.rs"]
mod answers;
mod common;
#[path = "serve/ends.rs"]
mod ends;
#[path = "serve/hostile.rs"]
mod hostile;
#[path = "serve/pages.rs"]
mod pages;
#[path = "serve/rig.rs"]
mod rig;
