//! Many sequences at once: one decode takes a token of each, and the place of a finished one goes to the next.
//!
//! Sequences are handed out in the order of their numbers, whatever order they finish in. How far ahead one may start is
//! bounded, and with it what waits in memory.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use offramp::gate::{Sequences, Tap};
use offramp::{SessionParams, Token};

use super::slot::{Advance, Finished, Recipe, Slot, Turn, kept};
use super::store::Series;

/// The most prompts in a row that may turn out empty before something must be wrong.
const MAX_EMPTY: u32 = 100;
/// How many places' worth of sequences may be begun beyond the first that is not finished.
const AHEAD: u64 = 3;
/// Tokens of one decode of a prompt.
const PROMPT_BATCH: u32 = 128;

/// Sequences in the making.
pub(super) struct Batch<'a> {
    recipe: Recipe<'a>,
    sequences: Sequences,
    slots: Vec<Option<Slot>>,
    taps: Vec<Tap>,
    kv_layers: Vec<u32>,
    series: Vec<(Series, usize)>,
    /// The values of one step, `[width, n_sequences]`, for each series.
    values: Vec<Vec<f32>>,
    /// Sequences whose prompts were written in this step.
    prompts: Vec<(Slot, Vec<Token>)>,
    /// Finished sequences that wait for an earlier one.
    finished: BTreeMap<u64, Finished>,
    next_index: u64,
    next_out: u64,
    n_empty: u32,
}

impl<'a> Batch<'a> {
    /// `width` sequences at a time of `n_ctx` tokens each, from number `first` on.
    ///
    /// # Errors
    ///
    /// As [`offramp::Model::sequences`].
    pub(super) fn new(
        recipe: Recipe<'a>,
        n_ctx: u32,
        width: u32,
        threads: Option<u32>,
        first: u64,
    ) -> anyhow::Result<Batch<'a>> {
        let mut params = SessionParams::default();
        params.n_ctx = n_ctx;
        params.n_threads = threads;
        params.n_batch = PROMPT_BATCH.max(width);
        params.n_ubatch = params.n_batch;
        let sequences = recipe.model.sequences(&params, width)?;
        // Prompts alone need none of what the model shows.
        let (taps, kv, series) = match recipe.answer {
            0 => (Vec::new(), &[][..], Vec::new()),
            _ => (recipe.manifest.taps(), &recipe.manifest.kv[..], recipe.manifest.series()),
        };
        Ok(Batch {
            recipe,
            sequences,
            slots: (0..width).map(|_| None).collect(),
            taps,
            kv_layers: kv.iter().map(|widths| widths.layer).collect(),
            values: vec![Vec::new(); series.len()],
            series,
            prompts: Vec::new(),
            finished: BTreeMap::new(),
            next_index: first,
            next_out: first,
            n_empty: 0,
        })
    }

    /// The next finished sequence in the order of their numbers; `None` where there are no more. `go_on` is asked before
    /// each decode.
    ///
    /// # Errors
    ///
    /// A decode that fails, a model that writes nothing.
    pub(super) fn next(&mut self, go_on: &mut dyn FnMut() -> bool) -> anyhow::Result<Next> {
        loop {
            if let Some(finished) = self.finished.remove(&self.next_out) {
                self.next_out += 1;
                self.n_empty = if finished.prompt.is_some() { 0 } else { self.n_empty + 1 };
                if self.n_empty == MAX_EMPTY {
                    bail!("the model wrote {MAX_EMPTY} empty prompts in a row: give prompts with --corpus");
                }
                return Ok(Next::Finished(finished));
            }
            if !go_on() {
                return Ok(Next::Stopped);
            }
            self.fill()?;
            if self.finished.contains_key(&self.next_out) {
                continue;
            }
            if self.slots.iter().all(Option::is_none) {
                return Ok(Next::UsedUp);
            }
            self.step()?;
        }
    }

    /// Starts sequences at the free places.
    fn fill(&mut self) -> anyhow::Result<()> {
        let limit = self.next_out + AHEAD * self.slots.len() as u64;
        for place in 0..self.slots.len() {
            while self.slots[place].is_none()
                && self.next_index < limit
                && !self.recipe.source.is_used_up(self.next_index)
            {
                let turn = Slot::start(self.recipe, self.next_index, place, &mut self.sequences)?;
                self.next_index += 1;
                self.settle(place, turn);
            }
        }
        Ok(())
    }

    /// Decodes one token of each sequence.
    fn step(&mut self) -> anyhow::Result<()> {
        let tokens: Vec<Option<Token>> = self.slots.iter().map(|slot| slot.as_ref().map(Slot::next)).collect();
        let (values, series) = (&mut self.values, &self.series);
        self.sequences.step(&tokens, &self.taps, &self.kv_layers, &mut |seen, rows| {
            if let Some(i) = series.iter().position(|(other, _)| *other == Series::of(seen)) {
                values[i].clear();
                values[i].extend_from_slice(rows);
            }
        })?;
        for ((series, width), values) in self.series.iter().zip(&self.values) {
            let needed = width * self.slots.len();
            ensure!(values.len() == needed, "{series:?} showed {} values, not {needed}", values.len());
        }
        for place in 0..self.slots.len() {
            let Some(slot) = self.slots[place].take() else { continue };
            let logits = self.sequences.logits(place).context("a token was decoded without logits")?;
            let rows = self.series.iter().zip(&self.values);
            let rows = rows.map(|((_, width), values)| &values[place * width..(place + 1) * width]);
            match slot.advance(self.recipe, logits, rows)? {
                Advance::Turn(turn) => self.settle(place, turn),
                Advance::Prompt(slot, prompt) => self.prompts.push((slot, prompt)),
            }
        }
        // Prompts are decoded after all logits were read: a decode overwrites them.
        for (slot, prompt) in std::mem::take(&mut self.prompts) {
            let place = slot.place();
            let turn = slot.prompted(self.recipe, prompt, &mut self.sequences)?;
            self.settle(place, turn);
        }
        Ok(())
    }

    fn settle(&mut self, place: usize, turn: Turn) {
        match turn {
            Turn::Running(slot) => self.slots[place] = Some(slot),
            Turn::Over(finished) => {
                // What every sequence begins with stays, where the memory can forget the rest alone.
                self.sequences.truncate(place, kept(self.recipe.source).0.len());
                self.finished.insert(finished.index, finished);
            }
        }
    }
}

/// What comes out of a batch.
pub(super) enum Next {
    Finished(Finished),
    /// There are no further prompts.
    UsedUp,
    /// The caller asked to stop.
    Stopped,
}
