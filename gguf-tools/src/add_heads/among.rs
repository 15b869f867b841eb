//! The first check at full depth, on tokens whose labels are known: the true final state among the tokens that exits choose among.

use std::ops::Range;

use offramp::gate::Tap;

use super::split::Split;
use super::{Progress, heads};
use crate::collect::store::{Reader, sequences};
use crate::screen::evaluate::Evaluator;
use crate::train::classifier::Classifier;
use crate::train::evaluate::{self, Outcome};

/// What the check among the tokens that exits choose among says at full depth.
pub(super) struct AmongVocab {
    pub(super) classifier: Classifier,
    /// On the tokens that choose: for each sequence, for each token.
    pub(super) choosing: Vec<Vec<Outcome>>,
    /// On the tokens that judge.
    pub(super) judging: Vec<Vec<Outcome>>,
}

impl AmongVocab {
    pub(super) fn judge(
        evaluator: &Evaluator<'_>,
        count: usize,
        reader: &Reader,
        split: &Split,
        progress: &mut Progress<'_>,
    ) -> anyhow::Result<AmongVocab> {
        let outcomes = |sequences: &[Range<u64>], classifier: Option<&Classifier>, progress: &mut Progress<'_>| {
            let total = sequences::count(sequences);
            let mut progress = |done| progress("judging", done, total);
            evaluate::run_final(evaluator, classifier, count, reader, sequences, &mut progress)
        };
        let mut held_out = outcomes(&split.held_out, None, progress)?;
        let mut choosing = outcomes(&split.choose, None, progress)?;
        let mut states = |tokens| reader.hidden(Tap::ResultNorm, tokens);
        let classifier = heads::classifier(&mut states, reader, split, (&mut held_out, &mut choosing), progress)?;
        Ok(AmongVocab { judging: outcomes(&split.judge, Some(&classifier), progress)?, classifier, choosing })
    }
}
