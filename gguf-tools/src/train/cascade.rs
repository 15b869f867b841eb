//! What a cascade of exits would do with tokens whose outcomes are known: its time, and its errors.
//!
//! A token passes the exits from the lowest to the highest. Where an exit's gate lets it, the head is evaluated; if its
//! confidence reaches the threshold, its token is emitted. What reaches the end is screened, and what the screen is not
//! sure of takes the whole output matrix. One threshold serves all exits, because confidences are probabilities of
//! agreement; the screen has one of its own, because it errs a hundred times less often.
//!
//! Pure arithmetic on times and outcomes. It counts what each exit says of a token on its own: that an exited token's
//! keys and values are predicted, and change what follows, only a free-running decode can tell.

/// What the parts of a token cost, in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// One block.
    pub layer: f64,
    /// The output matrix.
    pub output: f64,
    /// The screen with its candidates, at the final norm.
    pub screen: f64,
    /// The same at an exit, of the tokens that exits choose among.
    pub check: f64,
    /// The map of each exit, without the check that follows it.
    pub heads: Vec<f64>,
    /// Keys and values of one skipped block: predicted, or computed later with others.
    pub skipped: f64,
}

/// What is known of one token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// By each exit, lowest first.
    pub exits: Vec<AtExit>,
    /// At full depth, among the tokens that exits choose among: the confidence, and whether the best is the full model's
    /// choice; never sure where those are all.
    pub vocab: (f32, bool),
    /// By the screen at full depth: its confidence, and whether the full model's choice is among its candidates.
    pub screen: (f32, bool),
}

/// What is known of a token at one exit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AtExit {
    /// The probability of agreement that the head claims.
    pub confidence: f32,
    /// What the gate gives.
    pub gate: f32,
    /// Whether the head's token is the full model's.
    pub is_right: bool,
}

/// How a cascade decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The confidence that a token must reach to be emitted by an exit.
    pub threshold: f32,
    /// The confidence that it must reach at full depth among the tokens that exits choose among.
    pub vocab: f32,
    /// The confidence that it must reach to be emitted by the screen.
    pub screen: f32,
    /// For each exit, what its gate must give; infinite where the exit is not used.
    pub gates: Vec<f32>,
}

/// Where a token ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// At this exit, counted from the lowest.
    Exit(usize),
    /// At full depth, among the tokens that exits choose among.
    Vocab,
    /// At the screen.
    Screen,
    /// At the output matrix.
    Output,
}

/// What became of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fate {
    /// Where it ended.
    pub end: End,
    /// Whether another token was emitted than the full model's.
    pub is_wrong: bool,
    /// What it cost, in milliseconds.
    pub time: f64,
}

/// What became of many tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Summary {
    /// The mean time of a token, in milliseconds.
    pub time: f64,
    /// The share of wrong tokens.
    pub error: f64,
    /// The share of tokens that each exit emitted.
    pub exits: Vec<f64>,
    /// The share that was emitted at full depth among the tokens that exits choose among.
    pub vocab: f64,
    /// The share that the screen emitted.
    pub screen: f64,
}

/// Exits of a model, with their costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Cascade {
    /// The layers of the exits, ascending: an exit after block `N` has run `N + 1` blocks.
    pub layers: Vec<u32>,
    /// The blocks of the model.
    pub n_layer: u32,
    /// What its parts cost.
    pub costs: Costs,
}

impl Cascade {
    /// What becomes of `token`.
    pub fn fate(&self, token: &Token, rule: &Rule) -> Fate {
        let costs = &self.costs;
        let mut checks = 0.0;
        for (i, (at, layer)) in token.exits.iter().zip(&self.layers).enumerate() {
            if at.gate < rule.gates.get(i).copied().unwrap_or(f32::INFINITY) {
                continue;
            }
            checks += costs.heads.get(i).copied().unwrap_or(0.0) + costs.check;
            if at.confidence >= rule.threshold {
                let n_run = f64::from(*layer) + 1.0;
                let time = n_run * costs.layer + checks + (f64::from(self.n_layer) - n_run) * costs.skipped;
                return Fate { end: End::Exit(i), is_wrong: !at.is_right, time };
            }
        }
        if rule.vocab.is_finite() {
            checks += costs.check;
            let (confidence, is_right) = token.vocab;
            if confidence >= rule.vocab {
                let time = f64::from(self.n_layer) * costs.layer + checks;
                return Fate { end: End::Vocab, is_wrong: !is_right, time };
            }
        }
        let (confidence, is_found) = token.screen;
        // A screen that never lets a token go is not evaluated.
        let screen = if rule.screen.is_finite() { costs.screen } else { 0.0 };
        let time = f64::from(self.n_layer) * costs.layer + checks + screen;
        if confidence >= rule.screen {
            Fate { end: End::Screen, is_wrong: !is_found, time }
        } else {
            Fate { end: End::Output, is_wrong: false, time: time + costs.output }
        }
    }

    /// What becomes of all `tokens`.
    pub fn summary<'a>(&self, tokens: impl IntoIterator<Item = &'a Token>, rule: &Rule) -> Summary {
        let mut summary = Summary { exits: vec![0.0; self.layers.len()], ..Summary::default() };
        let mut n = 0.0f64;
        for token in tokens {
            let fate = self.fate(token, rule);
            n += 1.0;
            summary.time += fate.time;
            summary.error += f64::from(u8::from(fate.is_wrong));
            match fate.end {
                End::Exit(i) => summary.exits[i] += 1.0,
                End::Vocab => summary.vocab += 1.0,
                End::Screen => summary.screen += 1.0,
                End::Output => {}
            }
        }
        let n = n.max(1.0);
        let rest = [&mut summary.time, &mut summary.error, &mut summary.vocab, &mut summary.screen];
        let shares = summary.exits.iter_mut().chain(rest);
        shares.for_each(|value| *value /= n);
        summary
    }

    /// The mean time of a token, in milliseconds, where an oracle knows which head is right and asks no other: each token
    /// leaves at the first exit that has the full model's choice, and only the blocks that it runs cost anything. A token
    /// that no exit has right takes the screen where that finds the choice, and the output matrix otherwise.
    pub fn oracle<'a>(&self, tokens: impl IntoIterator<Item = &'a Token>) -> f64 {
        let (mut sum, mut n) = (0.0, 0.0f64);
        for token in tokens {
            let exit = token.exits.iter().zip(&self.layers).find(|(at, _)| at.is_right);
            let n_run = exit.map_or(f64::from(self.n_layer), |(_, layer)| f64::from(*layer) + 1.0);
            let is_known = exit.is_some() || token.screen.1;
            sum += n_run * self.costs.layer + if is_known { 0.0 } else { self.costs.output };
            n += 1.0;
        }
        sum / n.max(1.0)
    }

    /// The time of a token without exits and screen.
    pub fn plain(&self) -> f64 {
        f64::from(self.n_layer) * self.costs.layer + self.costs.output
    }

    /// The cascade of some of the exits, by their positions, ascending.
    pub fn of(&self, chosen: &[usize]) -> Cascade {
        Cascade {
            layers: chosen.iter().filter_map(|i| self.layers.get(*i).copied()).collect(),
            n_layer: self.n_layer,
            costs: Costs {
                heads: chosen.iter().filter_map(|i| self.costs.heads.get(*i).copied()).collect(),
                ..self.costs.clone()
            },
        }
    }
}

impl Token {
    /// What some of the exits say, by their positions, ascending.
    pub fn of(&self, chosen: &[usize]) -> Token {
        Token { exits: chosen.iter().filter_map(|i| self.exits.get(*i).copied()).collect(), ..*self }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn cascade() -> Cascade {
        let costs = Costs { layer: 1.0, output: 8.0, screen: 2.0, check: 2.0, heads: vec![0.5, 0.5], skipped: 0.1 };
        Cascade { layers: vec![3, 7], n_layer: 12, costs }
    }

    fn token(first: (f32, f32), second: (f32, f32), screen: f32) -> Token {
        let at = |(confidence, gate): (f32, f32)| AtExit { confidence, gate, is_right: confidence > 0.5 };
        Token { exits: vec![at(first), at(second)], vocab: (0.0, false), screen: (screen, true) }
    }

    #[test]
    fn a_token_pays_for_the_blocks_it_runs_and_the_checks_on_its_way() {
        let cascade = cascade();
        let rule = Rule { threshold: 0.9, vocab: f32::INFINITY, screen: 0.9, gates: vec![0.5, 0.5] };
        let fate = |token: Token| cascade.fate(&token, &rule);
        assert_eq!(
            fate(token((0.95, 0.6), (0.0, 0.0), 1.0)),
            Fate { end: End::Exit(0), is_wrong: false, time: 4.0 + 2.5 + 8.0 * 0.1 }
        );
        assert_eq!(fate(token((0.2, 0.6), (0.95, 0.9), 1.0)).time, 8.0 + 5.0 + 4.0 * 0.1);
        // A closed gate spares the check, even of a head that would be sure.
        assert_eq!(fate(token((0.95, 0.4), (0.95, 0.4), 1.0)), Fate { end: End::Screen, is_wrong: false, time: 14.0 });
        assert_eq!(fate(token((0.2, 0.6), (0.2, 0.4), 0.5)), Fate { end: End::Output, is_wrong: false, time: 24.5 });
        let by_none = token((0.1, 1.0), (0.1, 1.0), 0.0);
        // What is sure among frequent tokens spares the screen; what is not pays for both.
        let among = Rule { vocab: 0.8, gates: vec![f32::INFINITY; 2], ..rule.clone() };
        let of_vocab = |confidence| Token { vocab: (confidence, true), ..by_none.clone() };
        assert_eq!(cascade.fate(&of_vocab(0.9), &among), Fate { end: End::Vocab, is_wrong: false, time: 14.0 });
        assert_eq!(cascade.fate(&of_vocab(0.1), &among).time, 12.0 + 2.0 + 2.0 + 8.0);
        assert_eq!(cascade.plain(), 20.0);
        // An oracle takes the upper exit, which alone is right, and pays for its blocks; without one, the screen is free.
        let by_upper = token((0.4, 0.9), (0.6, 0.0), 0.0);
        assert_eq!((cascade.oracle([&by_upper]), cascade.oracle([&by_none])), (8.0, 12.0));
        assert_eq!(cascade.oracle([&Token { screen: (1.0, false), ..by_none }]), 20.0);
    }

    #[test]
    fn a_summary_counts_shares_and_errors() {
        let cascade = cascade();
        let mut wrong = token((0.95, 1.0), (0.0, 0.0), 1.0);
        wrong.exits[0].is_right = false;
        let tokens = [wrong, token((0.1, 1.0), (0.99, 1.0), 1.0), token((0.1, 0.0), (0.1, 0.0), 1.0)];
        let summary = cascade
            .summary(&tokens, &Rule { threshold: 0.9, vocab: f32::INFINITY, screen: 0.9, gates: vec![0.5, 0.5] });
        let third = 1.0 / 3.0;
        assert_eq!((summary.exits, summary.screen, summary.error), (vec![third, third], third, third));
        let one = cascade.of(&[1]);
        assert_eq!((one.layers.as_slice(), tokens[1].of(&[1]).exits.len()), ([7].as_slice(), 1));
        let off = one.summary(
            &[tokens[1].of(&[1])],
            &Rule { threshold: 0.9, vocab: f32::INFINITY, screen: 0.9, gates: vec![f32::INFINITY] },
        );
        assert_eq!((off.exits, off.screen), (vec![0.0], 1.0));
    }
}
