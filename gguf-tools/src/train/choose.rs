//! Which layers get exits, and how their gates are set: by the measured costs and the outcomes of tokens that nothing
//! was trained on.
//!
//! Every set of up to [`MAX_EXITS`] candidate layers is simulated at every level of agreement: the laxest threshold whose
//! errors stay within the level with all gates open, then each gate at the setting that is fastest. A set's worth is the product of its
//! gains over all levels; the best set is taken, and its thresholds and gates are searched together ([`refined`]): a closed
//! gate leaves room for a laxer threshold, and a strict threshold for a wider gate. An exit that does not pay at some
//! level is switched off there.

use rayon::prelude::*;

use super::cascade::{Cascade, Rule, Summary, Token};

/// The most exits of a cascade: each costs memory, and the gain of a further one is small.
pub const MAX_EXITS: usize = 4;
/// The thresholds that are tried at every level, strictest first: what is allowed to be missing from certainty.
pub const STEPS: usize = 41;
/// The share of a level's errors that each check at full depth may make by itself while sets are compared: the screen saves the
/// output matrix of every token, exits save blocks of some.
const SCREEN_SHARE: f64 = 0.1;
/// Shares of them that are tried for the check among frequent tokens when rules are searched thoroughly: what it costs in errors
/// buys the screen of many tokens.
const VOCAB_SHARES: [f64; 5] = [0.0, SCREEN_SHARE, 0.2, 0.35, 0.5];
/// Shares of them that are tried for the screen: at strict levels a tenth of the errors may be too few for it to let most tokens go, and
/// then it spares more than exits do.
const SCREEN_SHARES: [f64; 4] = [SCREEN_SHARE, 0.25, 0.5, 0.8];
/// Rounds of setting each gate in turn.
const ROUNDS: usize = 2;
/// Of the thresholds, one in so many is tried with gates of its own.
const STRIDE: usize = 2;
/// The settings of a gate that are tried, as shares of tokens that it lets pass.
const PASSED: [f64; 9] = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.9];

/// The sequence of thresholds, fixed for every model and text: from 0.9999 to 0.0 in steps of a quarter.
pub fn thresholds() -> Vec<f32> {
    let missing = (0..STEPS - 1).map(|i| 1e-4 * 10f64.powf(i as f64 * 0.1));
    missing.map(|missing| (1.0 - missing.min(1.0)) as f32).chain([0.0]).collect()
}

/// A set of exits at one level of agreement.
#[derive(Debug, Clone, PartialEq)]
pub struct AtLevel {
    /// The share of tokens that must equal the full model's.
    pub agreement: f32,
    /// How it decides; `None` where no threshold keeps the level even on the tokens it was chosen by.
    pub rule: Option<Rule>,
    /// What that does.
    pub summary: Summary,
    /// How many times as many tokens as without exits and screen.
    pub gain: f64,
}

/// A set of exits.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The positions of its exits among the candidates.
    pub exits: Vec<usize>,
    /// Level by level.
    pub levels: Vec<AtLevel>,
}

impl Choice {
    /// The geometric mean of its gains.
    pub fn worth(&self) -> f64 {
        let sum: f64 = self.levels.iter().map(|level| level.gain.ln()).sum();
        (sum / self.levels.len().max(1) as f64).exp()
    }
}

/// Simulates every set of the candidates of `cascade` (also none) on `tokens`, best first; of equals the smaller.
pub fn sets(cascade: &Cascade, tokens: &[Token], agreements: &[f32]) -> Vec<Choice> {
    let n = cascade.layers.len().min(usize::BITS as usize - 1);
    let masks: Vec<usize> = (0..1usize << n).filter(|mask| mask.count_ones() as usize <= MAX_EXITS).collect();
    let simulate = |mask: usize| {
        let exits: Vec<usize> = (0..n).filter(|i| mask >> i & 1 == 1).collect();
        set(cascade, tokens, &exits, agreements)
    };
    let mut choices: Vec<Choice> = masks.into_par_iter().map(simulate).collect();
    choices.sort_by(|a, b| {
        b.worth().total_cmp(&a.worth()).then(a.exits.len().cmp(&b.exits.len())).then(a.exits.cmp(&b.exits))
    });
    choices
}

/// Simulates one set.
pub fn set(cascade: &Cascade, tokens: &[Token], exits: &[usize], agreements: &[f32]) -> Choice {
    let cascade = cascade.of(exits);
    let tokens: Vec<Token> = tokens.iter().map(|token| token.of(exits)).collect();
    let settings = settings(&tokens, exits.len());
    let levels = agreements.iter().map(|agreement| Search::new(&cascade, &tokens, &settings, *agreement).quick());
    Choice { exits: exits.to_vec(), levels: levels.collect() }
}

/// Searches thresholds and gates of one set together, level by level. Never worse than what `choice` has.
pub fn refined(cascade: &Cascade, tokens: &[Token], choice: &Choice) -> Choice {
    let cascade = cascade.of(&choice.exits);
    let tokens: Vec<Token> = tokens.iter().map(|token| token.of(&choice.exits)).collect();
    let settings = settings(&tokens, choice.exits.len());
    let better = |level: &AtLevel| {
        let of_shares = |vocab: f64, screen: f64| {
            Search::new(&cascade, &tokens, &settings, level.agreement).with_shares(vocab, screen).thorough()
        };
        let found =
            VOCAB_SHARES.into_iter().flat_map(|vocab| SCREEN_SHARES.into_iter().map(move |screen| (vocab, screen)));
        let found = found.map(|(vocab, screen)| of_shares(vocab, screen));
        found.fold(level.clone(), |best, found| if found.gain > best.gain { found } else { best })
    };
    Choice { exits: choice.exits.clone(), levels: choice.levels.par_iter().map(better).collect() }
}

/// For each exit, the settings of its gate that are worth trying: open, some in between, off.
fn settings(tokens: &[Token], n_exits: usize) -> Vec<Vec<f32>> {
    let of_exit = |i: usize| {
        let mut outputs: Vec<f32> = tokens.iter().filter_map(|token| token.exits.get(i)).map(|at| at.gate).collect();
        outputs.sort_by(|a, b| b.total_cmp(a));
        let at = |share: f64| outputs.get((share * outputs.len() as f64) as usize).copied();
        let mut settings: Vec<f32> =
            [f32::INFINITY].into_iter().chain(PASSED.into_iter().filter_map(at)).chain([0.0]).collect();
        settings.dedup();
        settings
    };
    (0..n_exits).map(of_exit).collect()
}

/// The fastest rule of one set at one level.
struct Search<'a> {
    cascade: &'a Cascade,
    tokens: &'a [Token],
    settings: &'a [Vec<f32>],
    agreement: f32,
    /// The share of tokens that may differ.
    allowed: f64,
    vocab: f32,
    screen: f32,
    best: Option<(Rule, Summary)>,
}

impl<'a> Search<'a> {
    fn new(cascade: &'a Cascade, tokens: &'a [Token], settings: &'a [Vec<f32>], agreement: f32) -> Search<'a> {
        // In single precision 1 - 0.99 is more than 0.01.
        let allowed = 1.0 - (f64::from(agreement) * 1e6).round() / 1e6;
        let vocab = threshold_of_share(tokens, SCREEN_SHARE * allowed, |token| token.vocab);
        let screen = threshold_of_share(tokens, SCREEN_SHARE * allowed, |token| token.screen);
        Search { cascade, tokens, settings, agreement, allowed, vocab, screen, best: None }
    }

    /// With these shares of the errors for the check among frequent tokens, which lets nothing go at 0, and for the screen.
    fn with_shares(self, vocab: f64, screen: f64) -> Search<'a> {
        let vocab = match vocab {
            0.0 => f32::INFINITY,
            share => threshold_of_share(self.tokens, share * self.allowed, |token| token.vocab),
        };
        let screen = threshold_of_share(self.tokens, screen * self.allowed, |token| token.screen);
        Search { vocab, screen, ..self }
    }

    /// The laxest threshold that keeps the level with all gates open, then the gates.
    fn quick(mut self) -> AtLevel {
        // Errors hardly ever fall as the threshold does: the laxest one that keeps the level is found by halving.
        let thresholds = thresholds();
        let open = vec![0.0; self.settings.len()];
        let keeps = |threshold: &f32| self.summary(*threshold, &open).error <= self.allowed;
        let n_kept = thresholds.partition_point(keeps);
        let start = if let Some(threshold) = n_kept.checked_sub(1).and_then(|i| thresholds.get(i)) {
            self.consider(*threshold, &open);
            (*threshold, open)
        } else {
            (0.0, vec![f32::INFINITY; self.settings.len()])
        };
        self.set_gates(start.0, start.1);
        self.found()
    }

    /// Every other threshold with gates of its own, opened from all closed as far as they pay and the level allows.
    fn thorough(mut self) -> AtLevel {
        for threshold in thresholds().into_iter().rev().step_by(STRIDE) {
            self.set_gates(threshold, vec![f32::INFINITY; self.settings.len()]);
        }
        self.found()
    }

    fn rule(&self, threshold: f32, gates: &[f32]) -> Rule {
        Rule { threshold, vocab: self.vocab, screen: self.screen, gates: gates.to_vec() }
    }

    fn summary(&self, threshold: f32, gates: &[f32]) -> Summary {
        self.cascade.summary(self.tokens, &self.rule(threshold, gates))
    }

    /// The time of a rule that keeps the level; infinite for others.
    fn consider(&mut self, threshold: f32, gates: &[f32]) -> f64 {
        let summary = self.summary(threshold, gates);
        if summary.error > self.allowed {
            return f64::INFINITY;
        }
        let time = summary.time;
        if self.best.as_ref().is_none_or(|(_, best)| time < best.time) {
            self.best = Some((self.rule(threshold, gates), summary));
        }
        time
    }

    /// Sets each gate in turn to what is fastest beside the others.
    fn set_gates(&mut self, threshold: f32, mut gates: Vec<f32>) {
        let settings = self.settings;
        for _ in 0..ROUNDS {
            for (exit, settings) in settings.iter().enumerate() {
                let mut best = (f64::INFINITY, gates[exit]);
                for setting in settings {
                    gates[exit] = *setting;
                    let time = self.consider(threshold, &gates);
                    if time < best.0 {
                        best = (time, *setting);
                    }
                }
                gates[exit] = best.1;
            }
        }
        if gates.is_empty() {
            self.consider(threshold, &gates);
        }
    }

    fn found(self) -> AtLevel {
        let plain = self.cascade.plain();
        let (rule, summary) = match self.best {
            Some((rule, summary)) => (Some(rule), summary),
            None => (None, Summary { time: plain, exits: vec![0.0; self.settings.len()], ..Summary::default() }),
        };
        let gain = plain / summary.time.max(f64::MIN_POSITIVE);
        AtLevel { agreement: self.agreement, rule, summary, gain }
    }
}

/// The laxest confidence at which one of the checks at full depth by itself is wrong about at most this share of the
/// tokens. Infinite where it lets nothing go.
fn threshold_of_share(tokens: &[Token], share: f64, check: impl Fn(&Token) -> (f32, bool)) -> f32 {
    let most = share * tokens.len() as f64;
    let misses = |threshold: f32| {
        let wrong = |token: &&Token| matches!(check(token), (confidence, false) if confidence >= threshold);
        tokens.iter().filter(wrong).count()
    };
    // Misses never grow as the threshold does.
    let thresholds = thresholds();
    let n_kept = thresholds.partition_point(|threshold| misses(*threshold) as f64 <= most);
    let laxest = n_kept.checked_sub(1).and_then(|i| thresholds.get(i).copied()).unwrap_or(f32::INFINITY);
    if tokens.iter().any(|token| check(token).0 >= laxest) { laxest } else { f32::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::super::cascade::{AtExit, Costs};
    use super::*;

    /// Tokens on a scale from hard to easy; a lower exit is sure of fewer of them.
    fn tokens(n: usize) -> Vec<Token> {
        let token = |i: usize| {
            let ease = i as f32 / n as f32;
            let at = |least: f32| {
                let is_sure = ease > least;
                let is_right = is_sure && i % 200 != 7;
                AtExit { confidence: if is_sure { 0.995 } else { 0.3 }, gate: ease, is_right }
            };
            Token { exits: vec![at(0.9), at(0.5), at(0.4)], vocab: (0.0, false), screen: (1.0, true) }
        };
        (0..n).map(token).collect()
    }

    fn cascade(screen: f64) -> Cascade {
        let costs = Costs { layer: 1.0, output: 8.0, screen, check: screen, heads: vec![0.1; 3], skipped: 0.02 };
        Cascade { layers: vec![4, 9, 17], n_layer: 20, costs }
    }

    #[test]
    fn thresholds_go_from_strict_to_lax() {
        let thresholds = thresholds();
        assert_eq!((thresholds.len(), thresholds[0], thresholds[STEPS - 1]), (STEPS, 0.9999, 0.0));
        assert!(thresholds.is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn exits_that_pay_are_taken_and_gates_spare_checks_that_fail() {
        let tokens = tokens(2000);
        let choices = sets(&cascade(2.0), &tokens, &[0.9, 0.99]);
        assert_eq!(choices.len(), 8);
        let best = &choices[0];
        assert!(best.exits.contains(&1), "{:?}", best.exits);
        let level = &best.levels[1];
        assert!(level.gain > 1.4 && level.summary.error <= 0.01, "{level:?}");
        let rule = level.rule.as_ref().unwrap();
        let used = rule.gates[best.exits.iter().position(|exit| *exit == 1).unwrap()];
        assert!((0.3..=0.6).contains(&used), "the gate opens where the head is sure: {rule:?}");
    }

    #[test]
    fn a_level_that_leaves_no_room_for_errors_switches_exits_off() {
        let choice = set(&cascade(2.0), &tokens(2000), &[0, 1], &[0.999]);
        let level = &choice.levels[0];
        assert!(level.summary.error <= 0.001 && level.rule.is_some());
        // Checks that cost more than what they spare are not made.
        let mut dear = cascade(2.0);
        dear.costs.heads = vec![40.0; 3];
        let dear = set(&dear, &tokens(2000), &[0, 1], &[0.9]);
        let rule = dear.levels[0].rule.as_ref().unwrap();
        assert!(rule.gates.iter().all(|gate| gate.is_infinite()), "{rule:?}");
    }

    #[test]
    fn thresholds_and_gates_are_searched_together() {
        // The gate sees a little less than the confidence does: alone it lets too many errors pass.
        let token = |i: usize| {
            let (ease, luck) = (i as f32 / 4000.0, (i * 7 % 10) as f32 / 10.0);
            let is_right = ease > 0.6 && luck > 0.15;
            let at = AtExit { confidence: if is_right { 0.99 } else { 0.2 }, gate: ease, is_right };
            Token { exits: vec![at], vocab: (0.0, false), screen: (1.0, true) }
        };
        let tokens: Vec<Token> = (0..4000).map(token).collect();
        let costs = Costs { layer: 1.0, output: 8.0, screen: 5.0, check: 5.0, heads: vec![0.1], skipped: 0.0 };
        let cascade = Cascade { layers: vec![9], n_layer: 20, costs };
        let quick = set(&cascade, &tokens, &[0], &[0.99]);
        let refined = refined(&cascade, &tokens, &quick);
        let level = &refined.levels[0];
        assert!(level.gain >= quick.levels[0].gain && level.summary.error <= 0.01);
        assert!(level.summary.exits[0] > 0.3 && level.rule.as_ref().unwrap().threshold > 0.2, "{level:?}");
    }
}
