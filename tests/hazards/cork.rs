//! The last bytes towards TCP arrive at once (B40): a last piece sent with "more follows" waits for
//! 200 ms. The one bound on time in these tests, and a wide one.

use std::num::NonZeroUsize;
use std::time::Duration;

use zcio::Backend;

use crate::arrival::in_time;
use crate::common::within;
use crate::lane::{Kind, by, case, engines};

#[test]
fn the_last_piece_is_not_held_back() {
    within(20, |pulse| {
        let mut worst = Duration::ZERO;
        for from in [Kind::File, Kind::Tcp, Kind::Pipe] {
            for engine in engines(from, Kind::Tcp) {
                for len in [1, 5000, 100_000, (1 << 20) + 1] {
                    for chunk in [None, NonZeroUsize::new(65_000)] {
                        let case = case(from, Kind::Tcp, engine);
                        let case = format!("{case}, {len} bytes by {chunk:?}");
                        pulse.at(&case);
                        let mut options = by(engine);
                        if let Some(chunk) = chunk {
                            options.chunk_size(chunk);
                        }
                        let took = in_time(&case, from, len, |src, dst| {
                            let report = options.transfer(src, dst, len);
                            let report = report.unwrap_or_else(|e| panic!("{case}: {e}"));
                            assert_eq!(report.bytes, len, "{case}");
                        });
                        worst = worst.max(took.unwrap_or_else(|late| panic!("{case}: {late}")));
                    }
                }
            }
        }
        println!("the slowest arrival of the accepted ones: {worst:?}");
    });
}

/// The backends are named once, so that a new one is not forgotten here.
#[test]
fn every_backend_towards_tcp_is_among_them() {
    let forced: Vec<_> = engines(Kind::File, Kind::Tcp)
        .into_iter()
        .flatten()
        .collect();
    for backend in Backend::ALL {
        let between_files = matches!(backend, Backend::Reflink | Backend::CopyFileRange);
        assert_eq!(forced.contains(&backend), !between_files, "{backend}");
    }
}
