//! Sequences that can be drawn again: the seed is printed, and `ZCIO_MODEL_SEED` takes it.

use std::hash::{BuildHasher, Hasher, RandomState};

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many sequences: `ZCIO_MODEL_CASES`, or as many as usual.
pub(crate) fn cases(usual: u32) -> u32 {
    from_environment("ZCIO_MODEL_CASES").map_or(usual, |cases| cases as u32)
}

/// The seed of this run.
pub(crate) fn seed() -> u64 {
    from_environment("ZCIO_MODEL_SEED")
        .unwrap_or_else(|| RandomState::new().build_hasher().finish())
}

/// Draws `cases` sequences from a seed, and shrinks one that fails.
pub(crate) fn runner(seed: u64, cases: u32) -> TestRunner {
    println!("ZCIO_MODEL_SEED={seed}, {cases} sequences");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_time: 20_000,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}
