//! How deep tokens went: counts by exit, and the mean number of blocks. The same numbers in the chat, the bench, the
//! evaluation, the server's answers and its metrics, and the C ABI.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::session::ExitPoint;

/// How many tokens left the model where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Depths {
    /// Tokens that ran through the whole model.
    pub full: usize,
    /// Tokens that left at the final norm, by the screened output matrix.
    pub screen: usize,
    /// Tokens that left after a block, by block.
    pub layers: BTreeMap<u32, usize>,
}

impl Depths {
    /// Counts tokens by where each left the model, as [`Generation::exits`](crate::Generation::exits) has it.
    pub fn of(exits: &[Option<ExitPoint>]) -> Self {
        let mut depths = Self::default();
        for exit in exits {
            match exit {
                Some(ExitPoint::Layer(il)) => *depths.layers.entry(*il).or_default() += 1,
                Some(ExitPoint::Screen) => depths.screen += 1,
                None => depths.full += 1,
            }
        }
        depths
    }

    /// Counts those of `other` as well.
    pub fn add(&mut self, other: &Self) {
        self.full += other.full;
        self.screen += other.screen;
        for (il, n) in &other.layers {
            *self.layers.entry(*il).or_default() += n;
        }
    }

    /// Tokens in all.
    pub fn n_tokens(&self) -> usize {
        self.full + self.screen + self.layers.values().sum::<usize>()
    }

    /// Blocks that ran in all, of a model of `n_layer`. A screened token ran through all of them.
    pub fn n_blocks(&self, n_layer: u32) -> u64 {
        let whole = (self.full + self.screen) as u64 * u64::from(n_layer);
        whole + self.layers.iter().map(|(il, n)| u64::from(il + 1) * *n as u64).sum::<u64>()
    }

    /// Mean number of blocks a token ran through; `None` without tokens.
    pub fn mean(&self, n_layer: u32) -> Option<f64> {
        let n = self.n_tokens();
        (n > 0).then(|| self.n_blocks(n_layer) as f64 / n as f64)
    }

    /// Name and count of each exit that was taken, from the shallowest to the whole model.
    pub fn rows(&self) -> Vec<(String, usize)> {
        let layers = self.layers.iter().map(|(il, n)| (il.to_string(), *n));
        let rest = [("screen".to_owned(), self.screen), ("full".to_owned(), self.full)];
        layers.chain(rest).filter(|(_, n)| *n > 0).collect()
    }
}

/// As an object: `{"12": 5, "screen": 3, "full": 40}`.
impl Serialize for Depths {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.rows())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screened_token_counts_as_deep_and_an_early_one_does_not() {
        let depths = Depths::of(&[None, Some(ExitPoint::Screen), Some(ExitPoint::Layer(9)), Some(ExitPoint::Layer(9))]);
        assert_eq!((depths.n_tokens(), depths.n_blocks(30)), (4, 30 + 30 + 10 + 10));
        assert_eq!(depths.mean(30), Some(20.0));
        assert_eq!(serde_json::to_string(&depths).unwrap(), r#"{"9":2,"screen":1,"full":1}"#);
    }

    #[test]
    fn without_tokens_there_is_no_mean() {
        assert_eq!(Depths::of(&[]).mean(30), None);
    }
}
