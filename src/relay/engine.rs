//! The mechanism of one direction of a relay: splice(2) for quantity, read/write for dribs, and for
//! all on pairs where the probe would prefer that.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::BytesMut;

use crate::backend::{Backend, Endpoint, Fault, ReadWrite, Splice, Step, Unfit, ZeroCopyTransfer};
use crate::probe;
use crate::sys::PipePool;
use crate::sys::errno::{self, Call};

/// A read that brings at least this much says that there is more where it came from.
const PLENTY: usize = 64 << 10;

/// Below this average a splice costs more than the copy that it saves: a slot is used for each
/// segment, and a call for each few slots.
const DRIBS: usize = 16 << 10;

/// Fills over which the average is taken.
const WINDOW: usize = 8;

/// Fills by read/write before splice is tried again where it did not serve.
const PATIENCE: usize = 64;

/// Two backends, of which one is at work. It changes only while nothing is in flight.
#[derive(Debug)]
pub(super) struct Engine {
    plain: ReadWrite,
    splice: Splice,
    spliced: bool,
    /// Which one is to be, once nothing is in flight.
    wanted: bool,
    /// Fills and bytes since the average was last taken.
    fills: usize,
    bytes: usize,
    /// Splice has just been left because it brought dribs.
    dribbled: bool,
    /// Fills to go before splice is tried again.
    patience: usize,
}

impl Engine {
    /// `paced`: it may have to wait at any time though both sockets are ready.
    pub(super) fn new(pool: Arc<PipePool>, paced: bool) -> Self {
        let (plain, mut splice) = (ReadWrite::new(), Splice::pooled(pool));
        if !paced {
            splice.foresee();
        }
        Self {
            plain,
            splice,
            spliced: false,
            wanted: false,
            fills: 0,
            bytes: 0,
            dribbled: false,
            patience: 0,
        }
    }

    fn at_work(&mut self) -> &mut dyn ZeroCopyTransfer {
        if self.spliced {
            &mut self.splice
        } else {
            &mut self.plain
        }
    }

    fn switch(&mut self, spliced: bool) {
        (self.spliced, self.wanted) = (spliced, spliced);
        (self.fills, self.bytes) = (0, 0);
    }

    /// Takes note of what one fill brought; `suits` is whether splice is better for quantity.
    fn filled(&mut self, bytes: usize, suits: impl FnOnce() -> bool) {
        if !self.spliced {
            self.patience = self.patience.saturating_sub(1);
            if std::mem::take(&mut self.dribbled) && bytes >= PLENTY {
                // There was more all the time: the pipe had run out of slots.
                self.patience = PATIENCE;
            }
            self.wanted = bytes >= PLENTY && self.patience == 0 && suits();
            return;
        }
        self.fills += 1;
        self.bytes += bytes;
        if self.fills == WINDOW {
            self.wanted = self.bytes / self.fills >= DRIBS;
            self.dribbled = !self.wanted;
            (self.fills, self.bytes) = (0, 0);
        }
    }

    /// Steps by splice. What it cannot do goes on by read/write, with what it holds.
    fn splice(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        match self.splice.step(src, dst, limit) {
            Ok(Step::Unfit(_)) => {
                self.switch(false);
                self.patience = PATIENCE;
            }
            Err(fault) if errno::is_unfit(Call::Splice, &fault.error) => {
                let mut held = BytesMut::new();
                let reclaimed = self.splice.reclaim(&mut held);
                if !held.is_empty() {
                    self.plain = ReadWrite::with_held(&held.freeze());
                }
                self.switch(false);
                self.patience = PATIENCE;
                reclaimed.map_err(|error| Fault { side: None, error })?;
            }
            other => return other,
        }
        self.plain.step(src, dst, limit)
    }
}

impl ZeroCopyTransfer for Engine {
    fn backend(&self) -> Backend {
        if self.spliced {
            Backend::Splice
        } else {
            Backend::ReadWrite
        }
    }

    fn assess(&self, src: &Endpoint<'_>, dst: &Endpoint<'_>) -> Result<(), Unfit> {
        self.plain.assess(src, dst)
    }

    fn step(
        &mut self,
        src: &mut Endpoint<'_>,
        dst: &mut Endpoint<'_>,
        limit: NonZeroUsize,
    ) -> Result<Step, Fault> {
        let before = self.in_flight();
        if before == 0 && self.wanted != self.spliced {
            self.switch(self.wanted);
        }
        let step = if self.spliced {
            self.splice(src, dst, limit)?
        } else {
            self.plain.step(src, dst, limit)?
        };
        let moved = if let Step::Moved(n) = step {
            n.get()
        } else {
            0
        };
        let taken = (self.in_flight() + moved).saturating_sub(before);
        if taken > 0 {
            self.filled(taken, || probe::prefers_splice(src.facts(), dst.facts()));
        }
        Ok(step)
    }

    fn in_flight(&self) -> usize {
        if self.spliced {
            self.splice.in_flight()
        } else {
            self.plain.in_flight()
        }
    }

    fn reclaim(&mut self, into: &mut BytesMut) -> io::Result<()> {
        self.at_work().reclaim(into)
    }
}
