//! The screen: every token scored through two small factors, the best of them rescored with the model's own rows.
//!
//! `scores = output^T (basis^T x)` over the whole vocabulary, then the logits of the `shortlist` best are computed from
//! the raw rows of the output matrix, in its own quantization and in the layout that llama.cpp multiplies it in, so
//! that they are the full matrix's own, bit for bit. A screen may be of some tokens alone: exits after blocks are for easy
//! tokens, which are frequent ones.

mod rescoring;

use std::sync::Arc;

use super::Heads;
use super::confidence::{self, Classifier};
use super::ggml::{Cpu, Graph, Layout, Tensor, Tensors, failed};
use super::output::OutputMatrix;
use super::select::Selection;
use crate::error::{Error, Result};
use crate::gguf::TensorType;
use crate::gguf::exits::{self, Metric};
use crate::llama::Token;
use crate::llama::threads::ThreadPool;
use rescoring::{ROWS, Rescoring};

/// Of the shortlist, what is rescored first; at most so many candidates.
const FEW: (usize, usize) = (8, 256);
/// A slack among few candidates is trusted from this many times their worst misjudgement on. The largest of 256 normal
/// errors is about 2.8 deviations; twice that leaves less than one in 10,000 to the 2,000 next tokens together.
const SAFETY: f32 = 2.0;

/// What all sessions of a model share of a screen.
#[derive(Debug)]
pub(crate) struct ScreenWeights {
    basis: (Tensors, Tensor),
    factor: (Tensors, Tensor),
    output: OutputMatrix,
    /// How llama.cpp lays the output matrix out.
    layout: Layout,
    /// The tokens that are scored, ascending; `None` for all.
    tokens: Option<Vec<u32>>,
    /// How sure the tokens that are scored are at the final norm, where [`Metric::Classifier`] is the metric.
    classifier: Option<Classifier>,
    shortlist: usize,
}

impl ScreenWeights {
    /// Shapes as [`exits::Screen`] tells; they have been checked against the model's.
    ///
    /// # Errors
    /// [`Error::Heads`] for types that the CPU backend does not multiply, or without memory.
    pub(super) fn new(screen: &exits::Screen<'_>, output: OutputMatrix, shortlist: u32) -> Result<Self> {
        let factor = weight(&screen.output, screen.basis.info.dims4()[1] as usize, output.n_vocab)?;
        Self::with(screen, output, factor, (None, None), (shortlist as usize).min(output.n_vocab))
    }

    /// Of these tokens alone, which ascend and are in the vocabulary.
    ///
    /// # Errors
    /// As [`ScreenWeights::new`], and for a classifier that is none.
    pub(super) fn among(
        screen: &exits::Screen<'_>,
        output: OutputMatrix,
        shortlist: u32,
        (tokens, classifier): (&[u32], Option<exits::Classifier<'_>>),
    ) -> Result<Self> {
        let row_bytes = screen.output.data.len() / output.n_vocab.max(1);
        let rows = tokens.iter().filter_map(|&id| screen.output.data.get(id as usize * row_bytes..)?.get(..row_bytes));
        let rows: Vec<u8> = rows.flatten().copied().collect();
        let rank = screen.basis.info.dims4()[1] as usize;
        let factor = matrix(screen.output.info.ty(), &rows, rank, tokens.len())?;
        let classifier = classifier.as_ref().map(Classifier::new).transpose()?;
        let shortlist = (shortlist as usize).min(tokens.len());
        Self::with(screen, output, factor, (Some(tokens.to_vec()), classifier), shortlist)
    }

    fn with(
        screen: &exits::Screen<'_>,
        output: OutputMatrix,
        factor: (Tensors, Tensor),
        (tokens, classifier): (Option<Vec<u32>>, Option<Classifier>),
        shortlist: usize,
    ) -> Result<Self> {
        let layout = Layout::of_weight(output.ty, output.n_embd, output.n_vocab)?;
        let basis = weight(&screen.basis, output.n_embd, screen.basis.info.dims4()[1] as usize)?;
        Ok(Self { basis, factor, output, layout, tokens, classifier, shortlist })
    }
}

/// A matrix `[n_in, n_out]` in the layout that multiplies it fastest.
pub(super) fn weight(view: &exits::View<'_>, n_in: usize, n_out: usize) -> Result<(Tensors, Tensor)> {
    matrix(view.info.ty(), view.data, n_in, n_out)
}

fn matrix(ty: TensorType, data: &[u8], n_in: usize, n_out: usize) -> Result<(Tensors, Tensor)> {
    let mut tensors = Tensors::new()?;
    let tensor = tensors.matrix(ty, n_in, n_out)?;
    tensors.allocate(Layout::of_weight(ty, n_in, n_out)?)?;
    tensors.set(tensor, data);
    Ok((tensors, tensor))
}

/// A screen on the threads of one session.
#[derive(Debug)]
pub(crate) struct Screen {
    cpu: Cpu,
    work: Tensors,
    input: Tensor,
    scores: Tensor,
    score: Graph,
    selection: Selection,
    /// For the first candidates; `None` where the shortlist is not much longer.
    few: Option<Rescoring>,
    all: Rescoring,
    /// The ids of the candidates among some tokens, with their scores.
    chosen: Vec<(u32, f32)>,
    candidates: Vec<(Token, f32)>,
    /// By how much the screen misjudged the worst of the candidates that were rescored last, upwards.
    misjudged: f32,
    /// An estimate from above of what the shortlist's other candidates would add to the sum of the softmax, in which the
    /// best candidate weighs 1. 0 after the whole shortlist was rescored.
    unseen: f32,
    weights: Arc<ScreenWeights>,
    heads: Arc<Heads>,
}

/// How many of the shortlist's candidates an answer rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Candidates {
    /// As few as settle the question: for greedy choices, which need no more than the best.
    Enough,
    /// All of the shortlist: whatever a sampler could pick is among them.
    All,
}

/// The best of `candidates`, which are by ascending id: of equals the lowest, and none that is no number.
pub(crate) fn best(candidates: &[(Token, f32)]) -> Option<(Token, f32)> {
    let first_best = |best: Option<(Token, f32)>, &(id, logit): &(Token, f32)| match best {
        Some((_, value)) if logit <= value => best,
        _ if logit.is_nan() => best,
        _ => Some((id, logit)),
    };
    candidates.iter().fold(None, first_best)
}

impl Screen {
    /// # Errors
    /// [`Error::Heads`], [`Error::Unsupported`].
    pub(crate) fn new(heads: &Arc<Heads>, n_threads: usize, pool: Option<Arc<ThreadPool>>) -> Result<Self> {
        Self::with(heads, heads.screen()?, n_threads, pool)
    }

    /// The screen of the tokens that exits choose among; `None` where those are all.
    ///
    /// # Errors
    /// As [`Screen::new`].
    pub(crate) fn of_exits(
        heads: &Arc<Heads>,
        n_threads: usize,
        pool: Option<Arc<ThreadPool>>,
    ) -> Result<Option<Self>> {
        heads.exit_screen()?.map(|weights| Self::with(heads, weights, n_threads, pool)).transpose()
    }

    fn with(
        heads: &Arc<Heads>,
        weights: Arc<ScreenWeights>,
        n_threads: usize,
        pool: Option<Arc<ThreadPool>>,
    ) -> Result<Self> {
        let mut work = Tensors::new()?;
        let input = work.matrix(TensorType::F32, weights.output.n_embd, 1)?;
        let projected = work.mul_mat(weights.basis.1, input);
        let scores = work.mul_mat(weights.factor.1, projected);
        let score = work.graph(&[scores])?;
        let mut rescoring = |n| Rescoring::new(n, input, &mut work, &weights, heads);
        let n_few = (weights.shortlist / FEW.0).min(FEW.1);
        let few = (n_few >= ROWS).then(|| rescoring(n_few)).transpose()?;
        let all = rescoring(weights.shortlist)?;
        work.allocate(Layout::plain()?)?;
        // Candidates beyond the shortlist, up to whole groups of rows, are row 0, and nobody reads their logits.
        for ids in few.iter().chain([&all]).filter_map(|rescoring| rescoring.ids) {
            work.bytes_mut(ids).fill(0);
        }
        Ok(Self {
            cpu: Cpu::new(n_threads, pool)?,
            work,
            input,
            scores,
            score,
            selection: Selection::default(),
            few,
            all,
            chosen: Vec::new(),
            candidates: Vec::with_capacity(weights.shortlist),
            misjudged: f32::INFINITY,
            unseen: f32::INFINITY,
            weights,
            heads: Arc::clone(heads),
        })
    }

    /// Screens the hidden state `[n_embd]` after the final norm. The slack: by how much the best candidate's exact logit
    /// exceeds the score of the last candidate, which is what a token outside of the candidates would have to be
    /// misjudged by. With [`Candidates::Enough`], a slack of `enough` among the first candidates settles it, if the screen did
    /// not misjudge these nearly as much: more candidates only make it larger. `None` for hidden states that are no numbers.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(crate) fn evaluate(&mut self, hidden: &[f32], candidates: Candidates, enough: f32) -> Result<Option<f32>> {
        self.score(hidden)?;
        if candidates == Candidates::Enough {
            let slack = self.rescore_few()?;
            if slack.is_some_and(|slack| slack >= enough && self.is_settled(slack)) {
                return Ok(slack);
            }
        }
        self.rescore_all()
    }

    /// Screens the hidden state `[n_embd]` after the final norm. True if `metric` over the candidates is `sure`, as
    /// [`Screen::is_sure`] finds it.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(crate) fn evaluate_metric(
        &mut self,
        hidden: &[f32],
        metric: Metric,
        candidates: Candidates,
        sure: &dyn Fn(f32) -> bool,
    ) -> Result<bool> {
        self.score(hidden)?;
        let weights = Arc::clone(&self.weights);
        self.is_sure(metric, weights.classifier.as_ref(), candidates, sure)
    }

    /// True if `metric` over the candidates, by the scores that were computed last, is `sure`; they are then
    /// [`Screen::candidates`]. `classifier` is what [`Metric::Classifier`] asks. With [`Candidates::Enough`], the first candidates
    /// decide where the others could not change the answer.
    ///
    /// # Errors
    /// [`Error::Heads`], also without the classifier that the metric asks.
    pub(super) fn is_sure(
        &mut self,
        metric: Metric,
        classifier: Option<&Classifier>,
        candidates: Candidates,
        sure: &dyn Fn(f32) -> bool,
    ) -> Result<bool> {
        if metric != Metric::Classifier {
            return self.is_metric_sure(metric, candidates, sure);
        }
        let classifier = classifier.ok_or_else(|| failed("exits without the classifiers of their metric"))?;
        let of_state = classifier.of_state(self.work.values(self.input));
        // The surer, the more probable the best candidate is.
        let sure = |probability| sure(classifier.log_odds(of_state, probability));
        self.is_metric_sure(Metric::TopProbability, candidates, &sure)
    }

    fn is_metric_sure(&mut self, metric: Metric, candidates: Candidates, sure: &dyn Fn(f32) -> bool) -> Result<bool> {
        let settled = self.rescore_few()?.is_some_and(|slack| self.is_settled(slack));
        let range = confidence::range(metric, &self.candidates, self.unseen).filter(|_| settled);
        if let Some((least, most)) = range {
            // Doubtful already: more candidates take further from the best one's share.
            if !sure(most) {
                return Ok(false);
            }
            if candidates == Candidates::Enough && sure(least) {
                return Ok(true);
            }
        }
        if self.rescore_all()?.is_none() {
            return Ok(false);
        }
        Ok(confidence::of(metric, &self.candidates).is_some_and(sure))
    }

    fn score(&mut self, hidden: &[f32]) -> Result<()> {
        if hidden.len() != self.weights.output.n_embd {
            return Err(Error::Heads { found: format!("a hidden state of {} values", hidden.len()) });
        }
        self.work.set_values(self.input, hidden);
        self.cpu.compute(&mut self.work, &mut self.score)
    }

    /// Computes `graph` (of `tensors`), which computes a hidden state into [`Screen::input`] and then the scores.
    ///
    /// # Errors
    /// [`Error::Heads`].
    pub(super) fn score_graph(&mut self, tensors: &mut Tensors, graph: &mut Graph) -> Result<()> {
        self.cpu.compute(tensors, graph)
    }

    /// Rescores the first candidates alone. `None` where that saves nothing, or for scores that are no numbers.
    fn rescore_few(&mut self) -> Result<Option<f32>> {
        if self.few.is_some() { self.rescore(true) } else { Ok(None) }
    }

    /// True if a slack among few candidates is large enough for the best of them to be the best of all: any other would
    /// have to be misjudged far worse than the worst of those that were rescored.
    fn is_settled(&self, slack: f32) -> bool {
        slack >= SAFETY * self.misjudged
    }

    /// Rescores the whole shortlist.
    fn rescore_all(&mut self) -> Result<Option<f32>> {
        self.rescore(false)
    }

    fn rescore(&mut self, few: bool) -> Result<Option<f32>> {
        self.candidates.clear();
        let rescoring = self.few.as_mut().filter(|_| few).unwrap_or(&mut self.all);
        let chosen = self.selection.best(self.work.values(self.scores), rescoring.n);
        if chosen.len() < rescoring.n {
            return Ok(None);
        }
        let chosen = match &self.weights.tokens {
            None => chosen,
            Some(tokens) => {
                self.chosen.clear();
                self.chosen.extend(chosen.iter().map(|&(i, score)| (tokens[i as usize], score)));
                &self.chosen
            }
        };
        let last = chosen.iter().map(|&(_, score)| score).fold(f32::INFINITY, f32::min);
        let matrix = (self.heads.output_rows()?, self.weights.output.row_bytes());
        let (best, misjudged) = rescoring.run(chosen, &mut self.cpu, &mut self.work, matrix, &mut self.candidates)?;
        self.misjudged = misjudged;
        // None of those that were left out scores above the last; each weighs at most so much beside the best.
        let n_unseen = self.weights.shortlist - rescoring.n;
        self.unseen = n_unseen as f32 * (last - best).exp();
        Ok(Some(best - last))
    }

    /// What is screened, `[n_embd]`.
    pub(super) fn input(&self) -> Tensor {
        self.input
    }

    /// The state `[n_embd]` that was screened last.
    pub(crate) fn state(&self) -> &[f32] {
        self.work.values(self.input)
    }

    /// The scores of all tokens that it chooses among, computed from [`Screen::input`].
    pub(super) fn scores(&self) -> Tensor {
        self.scores
    }

    /// The matrix whose rows give candidates their logits.
    pub(super) fn output(&self) -> OutputMatrix {
        self.weights.output
    }

    /// Length of a hidden state.
    pub(crate) fn n_embd(&self) -> usize {
        self.weights.output.n_embd
    }

    /// True if `token` is one of those that it chooses among.
    pub(crate) fn chooses(&self, token: Token) -> bool {
        let is_among = |ids: &Vec<u32>| u32::try_from(token.0).is_ok_and(|id| ids.binary_search(&id).is_ok());
        self.weights.tokens.as_ref().is_none_or(is_among)
    }

    /// The candidates of the last evaluation with their exact logits, by ascending id.
    pub(crate) fn candidates(&self) -> &[(Token, f32)] {
        &self.candidates
    }
}
