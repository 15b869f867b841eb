//! Several levels along one sequence of thresholds, from the same losses.
//!
//! Each level walks as [`sequence`](super::sequence) says: from strict to lax, up to its first failure, with an error of
//! delta of its own. Decoding is what costs, so that a threshold's losses are shared by the levels, a walk that no level
//! needs any further ends, and a threshold's prompts end as soon as each level either has passed or cannot pass any more,
//! whatever the prompts to come say. The betting bound may be looked at after every prompt; giving up is failing, which can
//! only make a level stricter.

use super::bounds::{self, Losses, OutOfRange};
use super::sequence::Certified;

/// The levels of one walk.
#[derive(Debug, Clone)]
pub struct Walk {
    delta: f64,
    n_prompts: usize,
    levels: Vec<LevelWalk>,
}

#[derive(Debug, Clone)]
struct LevelWalk {
    /// The share of disagreement that is allowed.
    level: f64,
    is_walking: bool,
    certified: Option<Certified>,
}

impl Walk {
    /// For `levels` of disagreement, each to be certified on `n_prompts` with an error of at most `delta`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] for a level or a delta that is no share.
    pub fn new(levels: &[f64], delta: f64, n_prompts: usize) -> Result<Walk, OutOfRange> {
        let is_share = |share: f64| share > 0.0 && share < 1.0;
        if !is_share(delta) {
            return Err(OutOfRange { name: "delta", found: delta });
        }
        if let Some(&found) = levels.iter().find(|level| !is_share(**level)) {
            return Err(OutOfRange { name: "the level of disagreement", found });
        }
        let best = Losses::new(vec![0.0; n_prompts])?;
        let levels = levels.iter().map(|&level| LevelWalk {
            level,
            is_walking: bounds::betting_p_value(&best, level, delta) <= delta,
            certified: None,
        });
        Ok(Walk { delta, n_prompts, levels: levels.collect() })
    }

    /// Whether any level goes on.
    pub fn is_walking(&self) -> bool {
        self.levels.iter().any(|level| level.is_walking)
    }

    /// Whether a level needs another prompt at the present threshold, where `losses` are those of the first prompts: it
    /// has not passed, and would if all others turned out without loss.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] for a loss that is no share.
    pub fn needs_more(&self, losses: &[f64]) -> Result<bool, OutOfRange> {
        let mut best = losses.to_vec();
        best.resize(self.n_prompts.max(losses.len()), 0.0);
        let (so_far, best) = (Losses::of_planned(losses.to_vec(), self.n_prompts)?, Losses::new(best)?);
        let is_open = |level: &LevelWalk| !self.passes(&so_far, level.level) && self.passes(&best, level.level);
        Ok(losses.len() < self.n_prompts && self.levels.iter().any(|level| level.is_walking && is_open(level)))
    }

    /// Concludes threshold `index`: levels that its losses certify walk on, the others stay where they are.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] for a loss that is no share.
    pub fn conclude(&mut self, index: usize, losses: Vec<f64>) -> Result<(), OutOfRange> {
        let losses = Losses::of_planned(losses, self.n_prompts)?;
        let delta = self.delta;
        for level in self.levels.iter_mut().filter(|level| level.is_walking) {
            let p_value = bounds::betting_p_value(&losses, level.level, delta);
            level.is_walking = p_value <= delta;
            if level.is_walking {
                level.certified = Some(Certified {
                    index,
                    n_prompts: losses.len(),
                    risk: losses.mean(),
                    bound: bounds::betting_upper_bound(&losses, delta),
                    reference_bound: bounds::hoeffding_bentkus_upper_bound(&losses, delta),
                    p_value,
                });
            }
        }
        Ok(())
    }

    /// What was certified for each level, in their order.
    pub fn certified(&self) -> impl Iterator<Item = Option<&Certified>> {
        self.levels.iter().map(|level| level.certified.as_ref())
    }

    fn passes(&self, losses: &Losses, level: f64) -> bool {
        bounds::betting_p_value(losses, level, self.delta) <= self.delta
    }
}

#[cfg(test)]
mod tests {
    use super::super::sequence::certify;
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const LEVELS: [f64; 4] = [0.1, 0.05, 0.02, 0.001];

    /// Losses `[threshold][prompt]` of a head whose risk grows by a third a threshold.
    fn table(rng: &mut ChaCha8Rng, n: usize) -> Vec<Vec<f64>> {
        let risk = (0..14).map(|i| 0.003 * 1.33f64.powi(i));
        risk.map(|risk| (0..n).map(|_| (0..32).filter(|_| rng.random::<f64>() < risk).count() as f64 / 32.0).collect())
            .collect()
    }

    /// Walks as a confirmation does; gives the thresholds of each level, and how many losses were looked at.
    fn walk(table: &[Vec<f64>], delta: f64) -> (Vec<Option<usize>>, usize) {
        let n = table[0].len();
        let mut walk = Walk::new(&LEVELS, delta, n).unwrap();
        let mut seen = 0;
        for (index, row) in table.iter().enumerate() {
            if !walk.is_walking() {
                break;
            }
            let mut losses = Vec::new();
            while walk.needs_more(&losses).unwrap() {
                losses.push(row[losses.len()]);
                seen += 1;
            }
            walk.conclude(index, losses).unwrap();
        }
        (walk.certified().map(|certified| certified.map(|certified| certified.index)).collect(), seen)
    }

    #[test]
    fn a_shared_walk_gives_what_each_level_gets_alone() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        for _ in 0..30 {
            let table = table(&mut rng, 300);
            let (found, seen) = walk(&table, 0.05);
            for (level, found) in LEVELS.into_iter().zip(found) {
                let alone = certify(table.len(), |i| table[i].clone(), level, 0.05).unwrap();
                assert_eq!(found, alone.map(|certified| certified.index), "level {level}");
            }
            assert!(seen < table.len() * 300, "{seen} losses were looked at");
        }
    }

    #[test]
    fn levels_that_so_few_prompts_cannot_certify_do_not_walk() {
        let mut walk = Walk::new(&[0.001], 0.05, 300).unwrap();
        assert!(!walk.is_walking() && !walk.needs_more(&[]).unwrap());
        walk.conclude(0, vec![0.0; 300]).unwrap();
        assert_eq!(walk.certified().collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn prompts_end_where_each_level_has_passed_or_cannot_pass_any_more() {
        let mut walk = Walk::new(&[0.1, 0.02], 0.05, 300).unwrap();
        // Without loss 0.1 has passed long before 0.02 has.
        let n = |walk: &Walk| (1..).find(|n| !walk.needs_more(&vec![0.0; *n]).unwrap()).unwrap();
        assert!((bounds::least_prompts(0.02, 0.05)..200).contains(&n(&walk)));
        let n = n(&walk);
        walk.conclude(0, vec![0.0; n]).unwrap();
        assert!(walk.certified().all(|certified| certified.is_some_and(|certified| certified.n_prompts == n)));
        // With a loss of 0.05, 0.02 is lost soon, and 0.1 still passes.
        let losses = |n: usize| vec![0.05; n];
        let end = (1..).find(|n| !walk.needs_more(&losses(*n)).unwrap()).unwrap();
        walk.conclude(1, losses(end)).unwrap();
        let found: Vec<usize> = walk.certified().map(|certified| certified.unwrap().index).collect();
        assert!(end < 300 && found == [1, 0] && walk.is_walking(), "{end} {found:?}");
    }

    #[test]
    fn a_threshold_that_was_given_up_certifies_nothing() {
        let mut walk = Walk::new(&[0.1], 0.05, 100).unwrap();
        walk.conclude(0, vec![0.0; 20]).unwrap();
        assert!(!walk.is_walking() && walk.certified().all(|certified| certified.is_none()));
        assert!(Walk::new(&[0.0], 0.05, 1).is_err() && Walk::new(&[0.1], 1.0, 1).is_err());
        assert!(Walk::new(&[0.1], 0.05, 1).unwrap().conclude(0, vec![2.0]).is_err());
    }
}
