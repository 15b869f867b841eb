//! One sequence in the making: the model writes its prompt, then answers it.
//!
//! A slot says which token its sequence decodes next, and takes what the model says after it. Everything random comes
//! from its own generator, so that a sequence is the same whatever the other slots do.

use offramp::gate::Sequences;
use offramp::{Model, Token};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::label::{Label, Sampling, sample};
use super::prompts::{Beginning, Source};
use super::row::Row;
use super::store::{Manifest, Rows};

/// What each sequence is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipe<'a> {
    pub(super) model: &'a Model,
    pub(super) source: &'a Source,
    /// What to keep of each token.
    pub(super) manifest: &'a Manifest,
    /// The most tokens of an answer; 0 makes prompts alone.
    pub(super) answer: usize,
    pub(super) seed: u64,
}

/// A sequence that is complete.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finished {
    /// Its number.
    pub(super) index: u64,
    /// Its prompt; `None` where that turned out empty or too long.
    pub(super) prompt: Option<Vec<Token>>,
    /// Whether the answer is greedy.
    pub(super) is_greedy: bool,
    /// The tokens of the user's turn, where the model wrote it, and of the answer.
    pub(super) rows: Rows,
}

#[derive(Debug)]
enum Stage {
    /// The user's turn, which ends after `max` tokens at the latest.
    Writing { written: Vec<Token>, max: usize },
    /// `next` is the last token of the prompt.
    Prompted,
    /// `next` is a token of the answer.
    Answering,
}

/// A sequence in the making, at one place of a batch.
#[derive(Debug)]
pub(super) struct Slot {
    /// The sequence of the context.
    place: usize,
    /// What the context holds of it.
    text: Vec<Token>,
    /// The token to decode.
    next: Token,
    stage: Stage,
    rng: ChaCha8Rng,
    finished: Finished,
}

/// What became of a slot.
#[allow(clippy::large_enum_variant)] // It is taken apart where it is made, and lies nowhere.
pub(super) enum Turn {
    Running(Slot),
    Over(Finished),
}

impl Slot {
    /// Starts sequence `index` at a place of the context; what that still holds must be a part of the opening.
    pub(super) fn start(
        recipe: Recipe<'_>,
        index: u64,
        place: usize,
        sequences: &mut Sequences,
    ) -> anyhow::Result<Turn> {
        let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed);
        rng.set_stream(index);
        let beginning = recipe.source.begin(recipe.model, index, &mut rng)?;
        // Greedy and sampled answers by turns: exits must be right about both.
        let is_greedy = index.is_multiple_of(2);
        let finished = Finished { index, prompt: None, is_greedy, rows: Rows::new(recipe.manifest) };
        let (text, next) = kept(recipe.source);
        let mut slot = Slot { place, text, next, stage: Stage::Prompted, rng, finished };
        match beginning {
            Beginning::Empty => Ok(Turn::Over(slot.finished)),
            Beginning::Ready(prompt) => slot.prompted(recipe, prompt, sequences),
            Beginning::Write(max) => {
                if sequences.position(place) != slot.text.len() {
                    sequences.truncate(place, 0);
                    sequences.extend(place, &slot.text)?;
                }
                slot.stage = Stage::Writing { written: Vec::new(), max };
                Ok(Turn::Running(slot))
            }
        }
    }

    /// Where in the batch it is.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// The token to decode.
    pub(super) fn next(&self) -> Token {
        self.next
    }

    /// Takes what the model said after [`Slot::next`]: its logits, and the values that the manifest's series hold of it.
    pub(super) fn advance<'v>(
        mut self,
        recipe: Recipe<'_>,
        logits: &[f32],
        values: impl Iterator<Item = &'v [f32]>,
    ) -> anyhow::Result<Advance> {
        self.text.push(self.next);
        let row = Row::new(logits);
        let vocab = recipe.model.vocab();
        // What the model wrote, not what the template put around it.
        let is_kept = match &self.stage {
            Stage::Writing { written, .. } => recipe.answer > 0 && !written.is_empty(),
            Stage::Prompted => false,
            Stage::Answering => true,
        };
        if is_kept {
            self.finished.rows.push(&Label::of_row(self.next, &row), values)?;
        }
        if let Stage::Writing { written, max } = &mut self.stage {
            let token = sample(&row, Sampling::PROMPT, &mut self.rng);
            let is_over = vocab.is_eog(token) || vocab.is_control(token);
            if !is_over {
                written.push(token);
                self.next = token;
            }
            if !is_over && written.len() < *max {
                return Ok(Advance::Turn(Turn::Running(self)));
            }
            let written = std::mem::take(written);
            self.finished.rows.end_turn();
            return Ok(match recipe.source.finish(recipe.model, &written)? {
                Some(prompt) => Advance::Prompt(self, prompt),
                None => Advance::Turn(Turn::Over(self.finished)),
            });
        }
        self.stage = Stage::Answering;
        let sampling = if self.finished.is_greedy { Sampling::Greedy } else { Sampling::ANSWER };
        self.next = sample(&row, sampling, &mut self.rng);
        let is_full = self.finished.rows.n_answer() >= recipe.answer as u64;
        Ok(Advance::Turn(if is_full || vocab.is_eog(self.next) {
            Turn::Over(self.finished)
        } else {
            Turn::Running(self)
        }))
    }

    /// Brings the prompt into the context, all but its last token, which is decoded with the other slots'. What the
    /// context holds of it already, because the model wrote it, is kept.
    pub(super) fn prompted(
        mut self,
        recipe: Recipe<'_>,
        prompt: Vec<Token>,
        sequences: &mut Sequences,
    ) -> anyhow::Result<Turn> {
        let Some((last, before)) = prompt.split_last() else { return Ok(Turn::Over(self.finished)) };
        if prompt.len() + recipe.answer > sequences.n_ctx() {
            return Ok(Turn::Over(self.finished));
        }
        if recipe.answer > 0 {
            let common = self.text.iter().zip(before).take_while(|(old, new)| old == new).count();
            let kept =
                if sequences.truncate(self.place, common) { sequences.position(self.place).min(common) } else { 0 };
            sequences.extend(self.place, &before[kept..])?;
            self.text = before.to_vec();
            self.next = *last;
            self.stage = Stage::Prompted;
        }
        self.finished.prompt = Some(prompt);
        Ok(if recipe.answer > 0 { Turn::Running(self) } else { Turn::Over(self.finished) })
    }
}

/// What [`Slot::advance`] leads to.
pub(super) enum Advance {
    Turn(Turn),
    /// The prompt is written: [`Slot::prompted`] is next.
    Prompt(Slot, Vec<Token>),
}

/// The part of the opening that a place keeps between sequences, and the token after it.
pub(super) fn kept(source: &Source) -> (Vec<Token>, Token) {
    let (last, before) = source.opening().split_last().map_or((Token(0), &[][..]), |(last, before)| (*last, before));
    (before.to_vec(), last)
}
