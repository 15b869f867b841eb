//! The best `k` of many scores, in one pass over them and a little more.
//!
//! A bound first: of groups of scores, the `k`-th largest maximum is at most the `k`-th largest score, since each of
//! the `k` groups above it holds a score that reaches it. Few other scores reach it, so that collecting those that do
//! and selecting among them is all that is left. Ids come out ascending, and of equal scores the lowest ids stay. NaN
//! is never selected.

/// Scores that are compared at once.
const LANES: usize = 16;

/// Buffers that are kept between selections.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    maxima: Vec<f32>,
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
        for tile in scores.chunks(rows * LANES) {
            let mut best = [f32::NEG_INFINITY; LANES];
            for row in tile.chunks(LANES) {
                for (best, &score) in best.iter_mut().zip(row) {
                    *best = if score > *best { score } else { *best };
                }
            }
            self.maxima.extend_from_slice(&best[..LANES.min(tile.len())]);
        }
        if self.maxima.len() < k {
            return f32::NEG_INFINITY;
        }
        nth_largest(&mut self.values, self.maxima.iter().copied(), k)
    }
}

/// Adds the scores of at least `bound`, with their ids.
fn collect_from(scores: &[f32], bound: f32, found: &mut Vec<(u32, f32)>) {
    let mut id = 0u32;
    for row in scores.chunks(LANES) {
        let mut any = false;
        for &score in row {
            any |= score >= bound;
        }
        if any {
            found.extend((id..).zip(row.iter().copied()).filter(|&(_, score)| score >= bound));
        }
        id += row.len() as u32;
    }
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
