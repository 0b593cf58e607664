//! The control for a checker of memory: a use after free, as a backend would make it that kept the
//! address of a buffer and not the buffer. AddressSanitizer or memcheck must stop here, or it proves
//! nothing where it is silent.
#![allow(unsafe_code)]

use std::hint::black_box;

use zcio::TransferOptions;

use crate::common::{DestinationKind, make};

#[test]
#[ignore = "planted: a checker of memory alone fails it (tests/asan)"]
fn a_use_after_free() {
    let buffer = vec![7_u8; 100_000];
    let source = make::memfd();
    nix::unistd::write(&source, &buffer).expect("room");
    let address = black_box(buffer.as_ptr());
    drop(buffer);
    let to = DestinationKind::Memfd.make().expect("a memfd");
    let report = TransferOptions::new()
        .src_offset(0)
        .transfer(&source, &to, u64::MAX);
    assert_eq!(report.expect("it serves").bytes, 100_000);
    let address = address.wrapping_add(50_000);
    // SAFETY: none. The buffer is freed, which is what has to be found.
    let byte = unsafe { address.read_volatile() };
    println!("the freed buffer holds {byte}, and nobody has objected");
}
