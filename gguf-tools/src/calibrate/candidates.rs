//! The thresholds that a confirmation walks: fixed by what a file already says, before any prompt is decoded.
//!
//! A file's levels hold thresholds for several agreements, found on other prompts; from the strictest to the laxest they
//! are the sequence. Levels that are off, or equal to another, add nothing. Where two neighbours lie far apart, thresholds
//! that leave half of the laxer one's room for error come between them; where the prompts can certify more than the
//! strictest level that is there, such thresholds come before it, each with half of the next one's room. It refuses files
//! whose exits were never given a threshold.

use anyhow::{bail, ensure};
use offramp::gguf::exits::{ConfidenceMap, ExitMeta, KvPolicy};

/// How many times the room for error of its stricter neighbour a candidate has where another is put between them.
const FAR: f32 = 3.0;
/// Of the room of the highest agreement that can be certified, how little a threshold must leave to be of no use to it.
/// Decodes that run freely err several times as often as the strictest thresholds were made for.
const SPARE: f32 = 0.1;

/// The thresholds of all exits of a file, used together.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The agreement that they were found for.
    pub agreement: f32,
    /// The confidence that each layer's exit must reach; infinite where it never exits.
    pub exits: Vec<f32>,
    /// What each layer's gate must say before its head is evaluated; empty for a file without gates.
    pub gates: Vec<f32>,
    /// The confidence that the tokens that exits choose among must reach at full depth; infinite without them.
    pub vocab: f32,
    /// The confidence that the screen must reach at full depth.
    pub screen: f32,
}

impl Candidate {
    /// No exit at all.
    pub fn off(meta: &ExitMeta) -> Candidate {
        let never = vec![f32::INFINITY; meta.layers.len()];
        let gates = if meta.gate_thresholds.is_empty() { Vec::new() } else { never.clone() };
        Candidate { agreement: 1.0, exits: never, gates, vocab: f32::INFINITY, screen: f32::INFINITY }
    }

    /// The thresholds of one level of a file.
    pub fn of_level(meta: &ExitMeta, level: usize) -> Candidate {
        let row = |table: &[Vec<f32>]| table.get(level).cloned().unwrap_or_default();
        Candidate {
            agreement: meta.agreements.get(level).copied().unwrap_or(1.0),
            exits: row(&meta.thresholds),
            gates: row(&meta.gate_thresholds),
            vocab: meta.vocab.as_ref().and_then(|vocab| vocab.thresholds.get(level).copied()).unwrap_or(f32::INFINITY),
            screen: meta.screen.thresholds.get(level).copied().unwrap_or(f32::INFINITY),
        }
    }

    fn is_like(&self, other: &Candidate) -> bool {
        (&self.exits, &self.gates, self.vocab, self.screen) == (&other.exits, &other.gates, other.vocab, other.screen)
    }

    /// Whether a token can be so sure that it leaves.
    fn exits_somewhere(&self, meta: &ExitMeta) -> bool {
        let reaches = |threshold: &f32, map: &ConfidenceMap| map.agreement.last().is_some_and(|most| most >= threshold);
        let exits = self.exits.iter().zip(&meta.confidence);
        let vocab = meta.vocab.as_ref().map(|vocab| (&self.vocab, &vocab.confidence));
        exits
            .chain([(&self.screen, &meta.screen.confidence)])
            .chain(vocab)
            .any(|(threshold, map)| reaches(threshold, map))
    }

    /// Whether it leaves clearly less room for error than `agreement`; rounding aside.
    fn is_made_for_more_than(&self, agreement: f32) -> bool {
        1.0 - self.agreement < 0.99 * (1.0 - agreement)
    }

    /// With half as much room for error, but not stricter than `other`, if that leaves far less.
    fn between(&self, other: &Candidate) -> Option<Candidate> {
        let is_far = 1.0 - self.agreement > FAR * (1.0 - other.agreement);
        let half = self.stricter();
        let least = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a.min(*b)).collect();
        is_far.then(|| Candidate {
            agreement: half.agreement,
            exits: least(&half.exits, &other.exits),
            gates: least(&half.gates, &other.gates),
            vocab: half.vocab.min(other.vocab),
            screen: half.screen.min(other.screen),
        })
    }

    /// With half as much room for error.
    fn stricter(&self) -> Candidate {
        // An infinite threshold stays one.
        let half = |share: f32| if share.is_finite() { 1.0 - (1.0 - share) / 2.0 } else { share };
        Candidate {
            agreement: half(self.agreement),
            exits: self.exits.iter().copied().map(half).collect(),
            gates: self.gates.clone(),
            vocab: half(self.vocab),
            screen: half(self.screen),
        }
    }
}

/// The sequence of a file, strictest first, where `highest` is the highest agreement that the prompts can certify: from the
/// first thresholds on that leave a tenth of its room for error, since stricter ones would be passed and help no level.
///
/// # Errors
///
/// A file in which nothing ever exits.
pub fn of_file(meta: &ExitMeta, highest: f32) -> anyhow::Result<Vec<Candidate>> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for candidate in (0..meta.agreements.len()).rev().map(|level| Candidate::of_level(meta, level)) {
        if candidate.exits_somewhere(meta) && !candidates.iter().any(|other| other.is_like(&candidate)) {
            candidates.push(candidate);
        }
    }
    let between: Vec<_> = candidates.windows(2).map(|pair| pair[1].between(&pair[0])).collect();
    for (index, between) in between.into_iter().enumerate().rev() {
        if let Some(between) = between.filter(|new| !candidates.iter().any(|other| other.is_like(new))) {
            candidates.insert(index + 1, between);
        }
    }
    while let Some(strictest) = candidates.first().filter(|strictest| !strictest.is_made_for_more_than(highest)) {
        let stricter = strictest.stricter();
        if stricter.is_like(strictest) || !stricter.exits_somewhere(meta) {
            break;
        }
        candidates.insert(0, stricter);
    }
    if candidates.is_empty() {
        bail!("no level of the file lets a token exit, so that there is nothing to certify: make its heads anew");
    }
    let spare = 1.0 - SPARE * (1.0 - highest);
    let first = candidates.iter().rposition(|candidate| candidate.is_made_for_more_than(spare)).unwrap_or(0);
    Ok(candidates.split_off(first))
}

/// The keys of a file whose levels are `candidates`, for decodes at each of them: the agreement of one candidate is
/// [`agreement`].
///
/// # Errors
///
/// No candidate, or more than a file has levels.
pub fn as_levels(meta: &ExitMeta, candidates: &[Candidate], kv_policy: KvPolicy) -> anyhow::Result<ExitMeta> {
    let n = candidates.len();
    ensure!((1..=1000).contains(&n), "{n} candidates of thresholds: give between 1 and 1000");
    // Levels ascend, and with them strictness.
    let lax_first = || candidates.iter().rev();
    let mut meta = meta.clone();
    meta.agreements = (0..n).rev().map(|index| agreement(index, n)).collect();
    if !meta.layers.is_empty() {
        meta.thresholds = lax_first().map(|candidate| candidate.exits.clone()).collect();
    }
    if !meta.gate_thresholds.is_empty() {
        meta.gate_thresholds = lax_first().map(|candidate| candidate.gates.clone()).collect();
    }
    if meta.screen.rank > 0 {
        meta.screen.thresholds = lax_first().map(|candidate| candidate.screen).collect();
    }
    if let Some(vocab) = &mut meta.vocab {
        vocab.thresholds = lax_first().map(|candidate| candidate.vocab).collect();
    }
    // Without a calibration a runtime lets nothing exit; the figures of this one are never read.
    let mut calibration = meta.calibration.take().unwrap_or_else(super::confirm::no_calibration);
    calibration.kv_policy = kv_policy;
    (calibration.risk, calibration.risk_bound, calibration.exit_rate) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    meta.calibration = Some(calibration);
    Ok(meta)
}

/// By which agreement a session finds candidate `index` of `n` in the file that [`as_levels`] describes.
pub fn agreement(index: usize, n: usize) -> f32 {
    (n - index) as f32 / (n + 1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::confirm::tests::meta;

    #[test]
    fn the_sequence_goes_from_strict_to_lax_and_leaves_out_what_adds_nothing() {
        let mut meta = meta();
        meta.agreements = vec![0.9, 0.95, 0.98, 0.99];
        meta.thresholds = vec![vec![0.7], vec![0.8], vec![0.8], vec![f32::INFINITY]];
        meta.gate_thresholds = vec![vec![0.1]; 4];
        meta.screen.thresholds = vec![0.5, 0.6, 0.6, f32::INFINITY];
        let rounded = |share: f32| (share * 1e4).round() / 1e4;
        let thresholds = |highest: f32| -> Vec<(f32, f32)> {
            let candidates = of_file(&meta, highest).unwrap();
            candidates.iter().map(|candidate| (rounded(candidate.exits[0]), rounded(candidate.screen))).collect()
        };
        assert_eq!(thresholds(0.9), [(0.8, 0.6), (0.7, 0.5)]);
        assert_eq!(thresholds(-1.0), [(0.7, 0.5)], "0.98 leaves less than a tenth of the room");
        // The strictest level that is there was made for 0.98: twice as strict is 0.99.
        assert_eq!(thresholds(0.98), [(0.9, 0.8), (0.8, 0.6), (0.7, 0.5)]);
        assert_eq!(thresholds(0.99)[0], (0.95, 0.9));
        // Nothing is ever surer than its map's last point.
        meta.confidence[0].agreement = vec![0.0, 0.85];
        meta.screen.confidence.agreement = vec![0.0, 0.55];
        let found: Vec<f32> = of_file(&meta, 0.99).unwrap().iter().map(|candidate| candidate.exits[0]).collect();
        assert_eq!(found, [0.8, 0.7]);
        meta.thresholds = vec![vec![f32::INFINITY]; 4];
        meta.screen.thresholds = vec![f32::INFINITY; 4];
        assert!(of_file(&meta, 0.9).unwrap_err().to_string().contains("nothing to certify"));
    }

    #[test]
    fn neighbours_that_lie_far_apart_get_one_between_them() {
        let mut meta = meta();
        meta.agreements = vec![0.95, 0.98, 0.999];
        meta.thresholds = vec![vec![0.8], vec![0.9], vec![0.96]];
        meta.gate_thresholds = vec![vec![0.1], vec![0.2], vec![f32::INFINITY]];
        meta.screen.thresholds = vec![0.5, 0.6, 0.7];
        let found = of_file(&meta, 0.99).unwrap();
        let of = |candidate: &Candidate| (candidate.exits[0], candidate.gates[0], candidate.screen);
        let found: Vec<_> = found.iter().map(of).collect();
        // 0.999 leaves a twentieth of the room of 0.98; 0.95 leaves no more than three times that of 0.98.
        assert_eq!(found, [(0.96, f32::INFINITY, 0.7), (0.95, 0.2, 0.7), (0.9, 0.2, 0.6), (0.8, 0.1, 0.5)]);
        // Where 0.5 is the most that can be certified, what leaves less than a twentieth is of no use.
        assert_eq!(of_file(&meta, 0.5).unwrap().iter().map(of).collect::<Vec<_>>(), found[2..]);
    }

    #[test]
    fn a_session_finds_each_candidate_by_its_agreement() {
        let meta = meta();
        let candidate = |agreement, threshold: f32| Candidate {
            agreement,
            exits: vec![threshold],
            gates: vec![0.3],
            vocab: f32::INFINITY,
            screen: threshold,
        };
        let candidates = [candidate(0.99, 0.9), candidate(0.95, 0.7), candidate(0.9, 0.5)];
        let levels = as_levels(&meta, &candidates, KvPolicy::Predict).unwrap();
        for (index, candidate) in candidates.iter().enumerate() {
            let level = levels.level(agreement(index, 3)).unwrap();
            assert!(Candidate::of_level(&levels, level).is_like(candidate));
        }
        assert_eq!(levels.calibration.unwrap().kv_policy, KvPolicy::Predict);
    }
}
