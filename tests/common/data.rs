//! Bytes that follow from seed and position.

use std::sync::OnceLock;

/// The largest prime below 2^20: no boundary of the kernel or the crate is a multiple of it, so
/// that a piece put at the wrong place does not look right.
const PERIOD: usize = 1_048_573;

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(PERIOD + 8);
        while bytes.len() < PERIOD {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
        }
        bytes.truncate(PERIOD);
        bytes
    })
}

/// An endless sequence of bytes without zeros in a row; every position is known by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    seed: u64,
}

impl Data {
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The longest piece of the table that holds the bytes from `at` on, `len` at most.
    fn piece(self, at: u64, len: usize) -> &'static [u8] {
        let period = PERIOD as u64;
        let (turn, within) = (at / period, at % period);
        let shift = (self.seed.wrapping_mul(0x9e37_79b9) + turn * 7919) % period;
        let start = ((within + shift) % period) as usize;
        // Neither beyond the table nor into the next turn, which is shifted otherwise.
        let len = len.min(PERIOD - start).min((period - within) as usize);
        &table()[start..start + len]
    }

    /// Fills `buf` with the bytes from position `at` on.
    pub fn fill(self, at: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let piece = self.piece(at + done as u64, buf.len() - done);
            buf[done..done + piece.len()].copy_from_slice(piece);
            done += piece.len();
        }
    }

    /// The `len` bytes from position `at` on.
    pub fn bytes(self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.fill(at, &mut buf);
        buf
    }

    /// Whether `got` is what stands from position `at` on; else the first position that is not.
    pub fn check(self, at: u64, got: &[u8]) -> Result<(), u64> {
        let mut done = 0;
        while done < got.len() {
            let piece = self.piece(at + done as u64, got.len() - done);
            let other = &got[done..done + piece.len()];
            if other != piece {
                let wrong = other.iter().zip(piece).take_while(|(a, b)| a == b).count();
                return Err(at + (done + wrong) as u64);
            }
            done += piece.len();
        }
        Ok(())
    }
}
