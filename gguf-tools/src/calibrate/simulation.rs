//! The promise, tested as a statistic: on simulated heads whose risk is known, certified levels are violated no more
//! often than delta allows, and the naive rule is shown not to keep them.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::bounds::{self, Losses};
use super::sequence::certify;

const DELTA: f64 = 0.05;
const DRAWS: usize = 1000;
const TOKENS: usize = 40;

/// A head that is wrong on a known share of tokens at each threshold. The share differs from prompt to prompt, so that
/// the tokens of one prompt depend on each other.
struct Head {
    /// The mean share of wrong tokens at each threshold, strictest first: the true risk.
    risk: Vec<f64>,
}

impl Head {
    fn new() -> Head {
        Head { risk: (0..80).map(|i| 0.002 * 1.05f64.powi(i)).collect() }
    }

    /// Losses `[threshold][prompt]` of `n` prompts; laxer thresholds lose on a superset of the tokens.
    fn draw(&self, rng: &mut ChaCha8Rng, n: usize) -> Vec<Vec<f64>> {
        let mut losses = vec![vec![0.0; n]; self.risk.len()];
        for prompt in 0..n {
            // A tenth of the prompts are hard and hold most of the errors; the mean factor is 1.
            let factor = if rng.random::<f64>() < 0.1 { 7.3 } else { 0.3 };
            for _ in 0..TOKENS {
                let draw: f64 = rng.random();
                for (row, risk) in losses.iter_mut().zip(&self.risk) {
                    if draw < risk * factor {
                        row[prompt] += 1.0 / TOKENS as f64;
                    }
                }
            }
        }
        losses
    }
}

/// The share of draws in which `rule` chose a threshold whose true risk is above `level`, and in which it chose one.
fn violations(level: f64, n: usize, seed: u64, rule: impl Fn(&[Vec<f64>]) -> Option<usize>) -> (f64, f64) {
    let head = Head::new();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let chosen: Vec<Option<usize>> = (0..DRAWS).map(|_| rule(&head.draw(&mut rng, n))).collect();
    let violated = chosen.iter().flatten().filter(|index| head.risk[**index] > level).count();
    let useful = chosen.iter().flatten().count();
    (violated as f64 / DRAWS as f64, useful as f64 / DRAWS as f64)
}

/// Three standard deviations of a share of `DRAWS` that is truly `DELTA`.
fn noise() -> f64 {
    3.0 * (DELTA * (1.0 - DELTA) / DRAWS as f64).sqrt()
}

#[test]
fn a_certified_level_is_kept_and_the_naive_rule_breaks_it() {
    for (level, n, seed) in [(0.02, 512, 1), (0.05, 256, 2)] {
        let certified = |losses: &[Vec<f64>]| {
            certify(losses.len(), |i| losses[i].clone(), level, DELTA).unwrap().map(|certified| certified.index)
        };
        let (violated, useful) = violations(level, n, seed, certified);
        assert!(violated <= DELTA + noise(), "level {level}: {violated} of the draws violate it");
        assert!(useful > 0.95, "level {level}: something is certified in {useful} of the draws");

        let naive =
            |losses: &[Vec<f64>]| losses.iter().rposition(|row| row.iter().sum::<f64>() / row.len() as f64 <= level);
        let certified_violated = violated;
        let (violated, _) = violations(level, n, seed, naive);
        // For docs/training.md, with --nocapture.
        println!("risk {level} of {n} prompts: violated by certified {certified_violated}, by naive {violated}");
        assert!(violated > 0.25, "level {level}: the naive rule violates it in {violated} of the draws");
    }
}

#[test]
fn p_values_are_super_uniform_under_the_null() {
    // The true risk is exactly the level, the hardest case of the hypothesis.
    let level = 0.03;
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut betting = Vec::new();
    let mut reference = Vec::new();
    let mut exact = Vec::new();
    for _ in 0..4000 {
        let shares: Vec<f64> = (0..200)
            .map(|_| if rng.random::<f64>() < 0.2 { rng.random::<f64>() * 2.0 * level / 0.2 } else { 0.0 })
            .collect();
        let shares = Losses::new(shares).unwrap();
        betting.push(bounds::betting_p_value(&shares, level, DELTA));
        reference.push(bounds::hoeffding_bentkus_p_value(&shares, level));
        let failures = (0..200).filter(|_| rng.random::<f64>() < level).count();
        exact.push(bounds::binomial_p_value(failures, 200, level));
    }
    for (name, p_values) in [("betting", betting), ("Hoeffding-Bentkus", reference), ("binomial", exact)] {
        for u in [0.01, 0.05, 0.1, 0.25, 0.5, 0.75] {
            let share = p_values.iter().filter(|p| **p <= u).count() as f64 / p_values.len() as f64;
            let noise = 3.0 * (u * (1.0 - u) / p_values.len() as f64).sqrt();
            assert!(share <= u + noise, "{name}: {share} of the p-values are at most {u}");
        }
    }
}

#[test]
fn upper_bounds_cover_the_risk_and_shrink_with_the_sample() {
    let head = Head { risk: vec![0.01] };
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut means = Vec::new();
    for n in [200, 800] {
        let mut sum = 0.0;
        let mut missed = 0;
        for _ in 0..DRAWS {
            let losses = Losses::new(head.draw(&mut rng, n).remove(0)).unwrap();
            let bound = bounds::betting_upper_bound(&losses, DELTA);
            sum += bound;
            missed += usize::from(bound < 0.01);
        }
        assert!(missed as f64 / DRAWS as f64 <= DELTA + noise(), "{missed} of {DRAWS} bounds miss the risk");
        means.push(sum / DRAWS as f64);
    }
    assert!(means[1] < 0.75 * means[0], "{means:?}");
}
