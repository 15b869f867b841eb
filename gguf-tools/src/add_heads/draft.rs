//! Trains the head that drafts the token after the next, as exits are trained: on the final state before, and the token that came of
//! it, to the full model's distribution.
//!
//! It refuses texts of a single token, which have nothing before them.

use std::ops::Range;

use anyhow::bail;
use offramp::gguf::exits::{ConfidenceMap, Metric};

use super::split::Split;
use super::{Progress, heads};
use crate::collect::store::{Reader, sequences};
use crate::screen::evaluate::Evaluator;
use crate::screen::output_matrix::OutputMatrix;
use crate::train::data::{Exit, Source};
use crate::train::draft::DraftHead;
use crate::train::evaluate::{self, Outcome};
use crate::train::fit::{self, Look, Settings};
use crate::train::network::{Form, TrainedMap};
use crate::train::stored::Stored;

/// The chances of being right that drafts are counted at.
const CHANCES: [f32; 6] = [0.3, 0.5, 0.6, 0.7, 0.8, 0.9];

/// A head, and how it came about.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The head.
    pub head: DraftHead,
    /// How it turned out.
    pub quality: Quality,
    /// How training went.
    pub looks: Vec<Look>,
}

/// How it turned out, on the sequences that judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Quality {
    /// The share of the next final state's variance that the closed form explains.
    pub r2: f64,
    /// The share of tokens on which it names the full model's.
    pub agreement: f64,
    /// What is drafted where it gives at least such a chance of being right.
    pub drafts: Vec<Drafts>,
}

/// Drafts of at least one chance of being right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drafts {
    /// The chance.
    pub least: f32,
    /// The share of all tokens that are drafted.
    pub share: f64,
    /// The share of these that are right.
    pub right: f64,
}

/// Trains it, with candidates of `evaluator`, of which `count` are rescored. `progress` is told what is done, how much of it, of how
/// much; `false` stops.
///
/// # Errors
///
/// Sequences of single tokens, what training says, [`offramp::gguf::Error::Interrupted`].
pub fn train(
    matrix: &OutputMatrix<'_>,
    (evaluator, count): (&Evaluator<'_>, usize),
    reader: &Reader,
    split: &Split,
    settings: &Settings,
    progress: &mut Progress<'_>,
) -> anyhow::Result<Trained> {
    let [fit, held_out, choose, judge] =
        [&split.fit, &split.held_out, &split.choose, &split.judge].map(|part| followers(part));
    let total = sequences::count(&fit) + sequences::count(&held_out);
    let exit =
        Exit::measure(reader, matrix, Source::Before, &fit, &held_out, &mut |done| progress("measuring", done, total))?;
    let settings = Settings { form: Form { rank: None, mlp: false }, ..settings.clone() };
    let exits = std::slice::from_ref(&exit);
    let fitted = fit::fit(reader, matrix, exits, &fit, &held_out, &settings, &mut |done, total| {
        progress("training", done, total)
    })?;
    let trained = fitted.heads.into_iter().next();
    let Some((TrainedMap::Affine(map), bias)) = trained.map(|trained| (trained.map, trained.bias)) else {
        bail!("training gave no affine map");
    };
    let map = Stored::new(exit.norm.len(), &map)?;
    let mut head = DraftHead { norm: exit.norm.clone(), map, bias, confidence: ConfidenceMap::default() };
    let mut judged = |sequences: &[Range<u64>]| -> anyhow::Result<Vec<Outcome>> {
        let total = sequences::count(sequences);
        let mut states = |tokens: Range<u64>| Ok(head.apply(&exit.inputs(reader, matrix, tokens)?));
        let mut progress = |done| progress("judging", done, total);
        Ok(evaluate::run_states(&mut states, (evaluator, count), None, reader, sequences, &mut progress)?.concat())
    };
    let (choosing, judging) = (judged(&choose)?, judged(&judge)?);
    head.confidence = heads::confidence(&choosing, Metric::TopProbability);
    let quality = Quality {
        r2: exit.r2,
        agreement: evaluate::agreement(&judging),
        drafts: CHANCES.map(|least| Drafts::of(&judging, &head.confidence, least)).to_vec(),
    };
    Ok(Trained { head, quality, looks: fitted.looks })
}

/// The tokens that follow another one of the same text.
fn followers(sequences: &[Range<u64>]) -> Vec<Range<u64>> {
    let rest = sequences.iter().map(|tokens| tokens.start + 1..tokens.end);
    rest.filter(|tokens| !tokens.is_empty()).collect()
}

impl Drafts {
    fn of(outcomes: &[Outcome], confidence: &ConfidenceMap, least: f32) -> Drafts {
        let top = evaluate::position(Metric::TopProbability);
        let likely = outcomes.iter().filter(|outcome| confidence.agreement_at(outcome.metrics[top]) >= least);
        let (mut n, mut right) = (0.0, 0.0);
        for outcome in likely {
            n += 1.0;
            right += f64::from(u8::from(outcome.is_right));
        }
        Drafts { least, share: n / outcomes.len().max(1) as f64, right: right / f64::max(n, 1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_of_a_text_follows_nothing() {
        assert_eq!(followers(&[0..3, 3..4, 4..4, 9..12]), [1..3, 10..12]);
    }

    #[test]
    fn drafts_are_counted_by_what_they_promise() {
        let confidence = ConfidenceMap { metric: vec![0.0, 1.0], agreement: vec![0.0, 1.0] };
        let outcome = |sure: f32, is_right| Outcome { metrics: [sure; evaluate::METRICS.len()], is_right, gate: 1.0 };
        let outcomes = [outcome(0.9, true), outcome(0.8, false), outcome(0.6, true), outcome(0.1, false)];
        let drafts = Drafts::of(&outcomes, &confidence, 0.5);
        assert!((drafts.share - 0.75).abs() < 1e-9 && (drafts.right - 2.0 / 3.0).abs() < 1e-9, "{drafts:?}");
        assert_eq!(Drafts::of(&outcomes, &confidence, 0.95), Drafts { least: 0.95, share: 0.0, right: 0.0 });
    }
}
