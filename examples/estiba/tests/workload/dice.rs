//! Randomness that comes again with its seed.

use std::time::{SystemTime, UNIX_EPOCH};

/// A small generator (xorshift).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

/// The seed of a trial: `ESTIBA_SEED`, or another one each time.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("ESTIBA_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    given.unwrap_or(now % 1_000_000_007).max(1)
}

impl Dice {
    /// The generator of one of several that share a seed.
    pub(crate) fn new(seed: u64, which: u64) -> Self {
        let mut dice = Self((seed ^ (which + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1));
        for _ in 0..8 {
            dice.below(2);
        }
        dice
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub(crate) fn one_of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}
