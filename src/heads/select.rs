//! The best `k` of many scores, in one pass over them and a little more.
//!
//! A bound first: of groups of scores, the `k`-th largest maximum is at most the `k`-th largest score, since each of
//! the `k` groups above it holds a score that reaches it. Few other scores reach it, so that collecting those that do
//! and selecting among them is all that is left. Ids come out ascending, and of equal scores the lowest ids stay. NaN
//! is never selected.

/// Scores that are compared at once.
const LANES: usize = 16;
/// Bins of a histogram are told apart by sign, exponent and 5 bits of the fraction.
const BIN_BITS: u32 = 14;

/// Buffers that are kept between selections.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    maxima: Vec<f32>,
    bins: Vec<u32>,
    found: Vec<(u32, f32)>,
    values: Vec<f32>,
}

impl Selection {
    /// Selects the best `k` of `scores`: id and score, by ascending id. Fewer than `k` if there are fewer numbers.
    pub(crate) fn best(&mut self, scores: &[f32], k: usize) -> &[(u32, f32)] {
        self.found.clear();
        if k == 0 {
            return &self.found;
        }
        let bound = self.bound(scores, k);
        collect_from(scores, bound, &mut self.found);
        if self.found.len() > k {
            let least = nth_largest(&mut self.values, self.found.iter().map(|&(_, score)| score), k);
            let above = self.found.iter().filter(|&&(_, score)| score > least).count();
            let mut ties = k - above;
            self.found.retain(|&(_, score)| {
                let keep = score > least || (score == least && ties > 0);
                ties -= usize::from(keep && score == least);
                keep
            });
        }
        &self.found
    }

    /// A score that at least `k` of `scores` reach, if so many are numbers.
    fn bound(&mut self, scores: &[f32], k: usize) -> f32 {
        // Groups of up to 32, as long as there are enough of them for a bound that few scores reach.
        let rows = (scores.len() / (4 * k)).clamp(1, 32);
        self.maxima.clear();
        // A tile holds `LANES` groups, one a column, so that the maxima are taken of many groups at once.
        let mut tiles = scores.chunks_exact(rows * LANES);
        for tile in &mut tiles {
            let mut best = [f32::NEG_INFINITY; LANES];
            for row in tile.as_chunks::<LANES>().0 {
                for (best, &score) in best.iter_mut().zip(row) {
                    *best = if score > *best { score } else { *best };
                }
            }
            self.maxima.extend_from_slice(&best);
        }
        let rest = tiles.remainder().iter().map(|&score| if score.is_nan() { f32::NEG_INFINITY } else { score });
        self.maxima.extend(rest);
        if self.maxima.len() < k {
            return f32::NEG_INFINITY;
        }
        self.near_nth_largest(k)
    }

    /// A number that at least `k` of the maxima reach and few more: the lower end of the bin that the `k`-th lies in.
    fn near_nth_largest(&mut self, k: usize) -> f32 {
        self.bins.clear();
        self.bins.resize(1 << BIN_BITS, 0);
        for &value in &self.maxima {
            self.bins[(ordered(value) >> (32 - BIN_BITS)) as usize] += 1;
        }
        let mut left = k;
        for (bin, &n) in self.bins.iter().enumerate().rev() {
            if n as usize >= left {
                return from_ordered((bin as u32) << (32 - BIN_BITS));
            }
            left -= n as usize;
        }
        f32::NEG_INFINITY
    }
}

/// Bits of a number as an integer of the same order; the sign's bit first.
fn ordered(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The inverse of [`ordered`]; below negative infinity there is no number, which then stands for them.
fn from_ordered(bits: u32) -> f32 {
    let value = f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits });
    if value.is_nan() { f32::NEG_INFINITY } else { value }
}

/// Adds the scores of at least `bound`, with their ids.
fn collect_from(scores: &[f32], bound: f32, found: &mut Vec<(u32, f32)>) {
    let (rows, rest) = scores.as_chunks::<LANES>();
    let mut id = 0u32;
    for row in rows {
        let mut any = false;
        for &score in row {
            any |= score >= bound;
        }
        if any {
            found.extend((id..).zip(row.iter().copied()).filter(|&(_, score)| score >= bound));
        }
        id += LANES as u32;
    }
    found.extend((id..).zip(rest.iter().copied()).filter(|&(_, score)| score >= bound));
}

/// The `k`-th largest of at least `k` numbers, `k` at least 1.
fn nth_largest(buffer: &mut Vec<f32>, values: impl Iterator<Item = f32>, k: usize) -> f32 {
    buffer.clear();
    buffer.extend(values);
    *buffer.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_sorting(scores: &[f32], k: usize) -> Vec<(u32, f32)> {
        let mut all: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).filter(|(_, s)| !s.is_nan()).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(k);
        all.sort_by_key(|&(id, _)| id);
        all
    }

    #[test]
    fn nan_is_never_selected() {
        let mut selection = Selection::default();
        assert!(selection.best(&[f32::NAN; 100], 8).is_empty());
        let mut scores = vec![f32::NAN; 1000];
        scores[700] = 1.0;
        scores[3] = -2.0;
        assert_eq!(selection.best(&scores, 8), [(3, -2.0), (700, 1.0)]);
    }

    proptest! {
        #[test]
        fn it_is_what_sorting_gives(
            scores in prop::collection::vec(prop_oneof![8 => (-40i8..40).prop_map(f32::from), 1 => Just(f32::NAN)], 0..3000),
            k in 0usize..400,
        ) {
            let mut selection = Selection::default();
            for _ in 0..2 {
                prop_assert_eq!(selection.best(&scores, k), by_sorting(&scores, k));
            }
        }
    }
}
