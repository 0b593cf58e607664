//! How to fan out.

use std::os::fd::AsFd;

use super::lane::{Lane, check};
use super::{Fan, FanOut};
use crate::backend::{Kind, Side};
use crate::error::Result;
use crate::pace::Stalls;

/// What a slow destination may be behind, by default.
const BACKLOG: usize = 16 << 20;

/// What is done with a destination that is further behind than its backlog may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Lag {
    /// The others wait for it.
    #[default]
    Wait,
    /// It is given up, with an error of [`TimedOut`](std::io::ErrorKind::TimedOut) that hands back what it did
    /// not get.
    GiveUp,
}

/// How to fan out.
#[derive(Clone, Debug)]
pub struct FanOutOptions {
    pub(super) backlog: usize,
    pub(super) lag: Lag,
}

impl Default for FanOutOptions {
    fn default() -> Self {
        Self {
            backlog: BACKLOG,
            lag: Lag::Wait,
        }
    }
}

impl FanOutOptions {
    /// The defaults: a backlog of 16 MiB for each destination, and then the others wait.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes may be kept in memory for a slow destination. What sits in its pipe, 1 MiB
    /// at most, comes on top.
    pub fn backlog(&mut self, bytes: usize) -> &mut Self {
        self.backlog = bytes;
        self
    }

    /// What is done with one that is further behind.
    pub fn lag(&mut self, lag: Lag) -> &mut Self {
        self.lag = lag;
        self
    }

    /// Starts a fan-out that moves when it is told to.
    ///
    /// # Errors
    /// Where a descriptor cannot serve, or a destination is the source's own file or disk; of several
    /// destinations, the first such.
    pub fn start<S: AsFd, D: AsFd>(
        &self,
        src: S,
        dsts: impl IntoIterator<Item = D>,
        len: u64,
    ) -> Result<FanOut<S, D>> {
        let source = src.as_fd();
        let facts = check(source, Side::Source)?;
        let mut lanes = Vec::new();
        for dst in dsts {
            lanes.push(Lane::new(dst, source, &facts)?);
        }
        let plain = !facts.kind().is_cached() && !facts.kind().is_stream()
            || facts.kind() == Kind::CharDevice
            || facts.is_direct();
        let (options, trunk) = (self.clone(), None);
        let fan = Fan {
            facts,
            lanes,
            options,
            trunk,
            plain,
            len,
            taken: 0,
            ended: false,
            stalls: Stalls::default(),
        };
        Ok(FanOut { src, fan })
    }
}
