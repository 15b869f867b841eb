//! Training: all exits at once, on the same tokens, because the rows of the output matrix and the labels are shared.
//!
//! AdamW on the divergence of [`super::loss`], a short rise of the step size and then a cosine to nothing; each exit keeps the
//! weights that did best on held-out sequences. With a fixed seed and no time limit the same weights come out on one
//! machine. It refuses training that diverges.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use candle_core::{Device, Tensor};
use offramp::gguf::Error;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::adamw::AdamW;
use super::data::{Exit, Pool, Stream};
use super::loss::{self, RowValues, Rows, Targets};
use super::network::{Form, Inputs, Network, Trained};
use crate::collect::label::Label;
use crate::collect::store::{Reader, sequences};
use crate::screen::output_matrix::OutputMatrix;

/// The held-out tokens that training is watched by, at most.
const WATCHED: u64 = 1536;
/// How often training is looked at, besides its beginning.
const LOOKS: usize = 5;
/// The steps over which the step size rises.
const RISE: usize = 20;
/// The steps after which the time of the others is foretold.
const TIMED: usize = 4;

/// The width that step sizes are given for.
pub const WIDTH: usize = 576;

/// How to train.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The shape of all heads.
    pub form: Form,
    /// How often each token is used.
    pub epochs: f64,
    /// The tokens of a step.
    pub batch: usize,
    /// The largest step size for inputs of [`WIDTH`] values; wider ones take smaller steps, since each weight's step
    /// adds to an output.
    pub rate: f64,
    /// The pull towards the closed form.
    pub decay: f64,
    /// The rows of the output matrix in every batch, besides those of its own labels.
    pub n_rows: usize,
    /// The seed.
    pub seed: u64,
    /// When to be done: training is shortened to that.
    pub until: Option<Instant>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            form: Form { rank: None, mlp: false },
            epochs: 4.0,
            batch: 256,
            rate: 1e-3,
            decay: 0.02,
            n_rows: 4096,
            seed: 0,
            until: None,
        }
    }
}

/// How training stood after some tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// Tokens used so far, those used twice counted twice.
    pub n_tokens: u64,
    /// For each exit, the mean divergence on held-out tokens, in nats.
    pub divergence: Vec<f64>,
    /// For each exit, the share of held-out tokens on which its best token is the full model's.
    pub agreement: Vec<f64>,
}

/// Trained heads, and how they came about.
#[derive(Debug)]
pub struct Fitted {
    /// One for each exit.
    pub heads: Vec<Trained>,
    /// How training went.
    pub looks: Vec<Look>,
    /// The time of all steps.
    pub elapsed: Duration,
}

/// The device that is trained on: a GPU where this program was built for one, otherwise the processor.
///
/// # Errors
///
/// A GPU that cannot be used.
pub fn device() -> candle_core::Result<Device> {
    if cfg!(feature = "cuda") {
        Device::cuda_if_available(0)
    } else if cfg!(feature = "metal") {
        Device::new_metal(0)
    } else {
        Ok(Device::Cpu)
    }
}

/// Trains a head for each of `exits` on `fit`. `progress` is told the steps done and those in all; `false` stops.
///
/// # Errors
///
/// No tokens, a step that gives no number, what disk and device say, [`Error::Interrupted`].
pub fn fit(
    reader: &Reader,
    matrix: &OutputMatrix<'_>,
    exits: &[Exit],
    fit: &[Range<u64>],
    held_out: &[Range<u64>],
    settings: &Settings,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> anyhow::Result<Fitted> {
    let device = device()?;
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    rng.set_stream(1);
    let table = Table::new(reader, matrix, fit, held_out, &device)?;
    let mut rows = Rows::new(table.n_rows(), &table.commonest(settings.n_rows));
    let networks: Vec<Network> = exits
        .iter()
        .map(|exit| Network::new(settings.form, &exit.start, &exit.deviations, &exit.whitening, &device, &mut rng))
        .collect::<anyhow::Result<_>>()?;
    let variables = networks.iter().flat_map(Network::variables).collect();
    let mut optimizer = AdamW::new(variables, settings.decay)?;

    let width = exits.iter().map(|exit| exit.norm.len()).fold(WIDTH, usize::max);
    let rate = settings.rate * WIDTH as f64 / width as f64;
    let softcap = matrix.softcap();
    let watched = watched(reader, matrix, exits, held_out)?;
    let mut best: Vec<(f64, Vec<Tensor>)> = Vec::new();
    let mut looks = Vec::new();
    let mut n_steps = ((settings.epochs * sequences::count(fit) as f64 / settings.batch as f64).ceil() as usize).max(1);
    let mut stream = Stream::new(reader, matrix, exits, fit, rng)?;
    let start = Instant::now();
    let (mut step, mut n_tokens) = (0, 0);
    let mut last = RowValues::Host(Vec::new());
    // The first step reads a pool of tokens and warms up: it is not typical.
    let mut timed = Duration::ZERO;
    loop {
        if step == TIMED + 1 {
            n_steps = shortened(n_steps, timed / TIMED as u32, settings.until);
        }
        if step == 0 || step >= n_steps || step.is_multiple_of(n_steps.div_ceil(LOOKS)) {
            let look = look(&networks, &watched, &table, &mut rows, softcap, settings.batch, n_tokens, &device)?;
            keep_best(&networks, &look, &mut best)?;
            looks.push(look);
        }
        if step >= n_steps {
            break;
        }
        if !progress(step as u64, n_steps as u64) {
            return Err(Error::Interrupted.into());
        }
        let began = Instant::now();
        let (pool, chosen) = stream.batch(settings.batch)?;
        n_tokens += chosen.len() as u64;
        let batch = Batch::new(pool, &chosen, &table, &mut rows, last, settings.form.mlp, &device)?;
        let outputs = batch.outputs(&networks)?;
        let scored = loss::score(&outputs.detach(), &batch.rows, &batch.targets, softcap, true)?;
        let gradient = scored.gradient.context("a step without a gradient")?;
        // Its derivative by the head's weights is that of the mean divergence.
        let surrogate = ((&outputs * gradient)?.sum_all()? / chosen.len() as f64)?;
        optimizer.step(&surrogate.backward()?, rate * schedule(step, n_steps))?;
        last = batch.rows;
        if step > 0 {
            timed += began.elapsed();
        }
        step += 1;
    }
    progress(n_steps as u64, n_steps as u64);
    for (network, (_, snapshot)) in networks.iter().zip(&best) {
        network.restore(snapshot)?;
    }
    let heads = networks.iter().zip(exits).map(|(network, exit)| network.trained(&exit.whitening));
    Ok(Fitted { heads: heads.collect::<anyhow::Result<_>>()?, looks, elapsed: start.elapsed() })
}

/// The share of the largest step size at `step`.
fn schedule(step: usize, n_steps: usize) -> f64 {
    let rise = RISE.min(n_steps / 4).max(1);
    if step < rise {
        return (step + 1) as f64 / rise as f64;
    }
    let done = (step - rise) as f64 / (n_steps - rise).max(1) as f64;
    0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}

/// As many steps as there is time for; looks and reading take about a quarter of the time of the steps.
fn shortened(n_steps: usize, of_step: Duration, until: Option<Instant>) -> usize {
    let Some(until) = until else { return n_steps };
    let left = until.saturating_duration_since(Instant::now()).as_secs_f64();
    let possible = left / (1.25 * of_step.as_secs_f64().max(1e-6));
    n_steps.min(TIMED + 1 + possible as usize)
}

/// The rows of the output matrix that any label names, where they are multiplied.
struct Table {
    rows: RowValues,
    n_embd: usize,
    /// The row of each token of the vocabulary; `u32::MAX` for the others.
    places: Vec<u32>,
    /// What the full model gave to each row's token, in all labels that are trained on.
    mass: Vec<f64>,
}

impl Table {
    fn new(
        reader: &Reader,
        matrix: &OutputMatrix<'_>,
        fit: &[Range<u64>],
        held_out: &[Range<u64>],
        device: &Device,
    ) -> anyhow::Result<Table> {
        let mut of_vocabulary = vec![None; matrix.n_vocab()];
        for (sequences, weight) in [(fit, 1.0), (held_out, 0.0)] {
            for tokens in sequences {
                for (id, probability) in reader.labels(tokens.clone())?.iter().flat_map(|l| l.top) {
                    let mass = of_vocabulary.get_mut(id as usize).context("a label beyond the output matrix")?;
                    *mass.get_or_insert(0.0) += weight * f64::from(probability);
                }
            }
        }
        let mut places = vec![u32::MAX; matrix.n_vocab()];
        let (mut mass, mut values) = (Vec::new(), Vec::new());
        for (id, of_token) in of_vocabulary.iter().enumerate() {
            if let Some(of_token) = of_token {
                places[id] = mass.len() as u32;
                mass.push(*of_token);
                values.extend(matrix.row(id)?);
            }
        }
        ensure!(!mass.is_empty(), "no tokens to train on");
        let n_embd = matrix.n_embd();
        let rows = match device {
            Device::Cpu => RowValues::Host(values),
            _ => RowValues::Device(Tensor::from_vec(values, (mass.len(), n_embd), device)?),
        };
        Ok(Table { rows, n_embd, places, mass })
    }

    fn n_rows(&self) -> usize {
        self.mass.len()
    }

    /// The rows of the `n` tokens that the full model gives most to.
    fn commonest(&self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.mass.len() as u32).collect();
        order.sort_by(|a, b| self.mass[*b as usize].total_cmp(&self.mass[*a as usize]).then(a.cmp(b)));
        order.truncate(n);
        order
    }

    /// The values of `rows`, in the memory of `last`: what this gave for the batch before, whose first rows are the same, or nothing.
    fn gathered(&self, rows: &Rows, last: RowValues) -> candle_core::Result<RowValues> {
        let ids = rows.ids();
        match (&self.rows, last) {
            (RowValues::Host(values), RowValues::Host(mut gathered)) => {
                gathered.truncate(rows.n_fixed() * self.n_embd);
                for id in &ids[gathered.len() / self.n_embd.max(1)..] {
                    gathered.extend_from_slice(&values[*id as usize * self.n_embd..][..self.n_embd]);
                }
                Ok(RowValues::Host(gathered))
            }
            (RowValues::Device(values), _) => {
                let ids = Tensor::from_slice(ids, ids.len(), values.device())?;
                Ok(RowValues::Device(values.index_select(&ids, 0)?))
            }
            (RowValues::Host(_), RowValues::Device(_)) => candle_core::bail!("rows of another device"),
        }
    }

    /// A label whose tokens are rows of this table.
    fn translated(&self, label: &Label) -> Label {
        let mut label = label.clone();
        for (id, _) in &mut label.top {
            *id = self.places.get(*id as usize).copied().unwrap_or(0);
        }
        label
    }
}

/// Tokens as tensors.
struct Batch {
    inputs: Vec<Inputs>,
    rows: RowValues,
    targets: Targets,
}

impl Batch {
    fn new(
        pool: &Pool,
        chosen: &[usize],
        table: &Table,
        rows: &mut Rows,
        last: RowValues,
        has_mlp: bool,
        device: &Device,
    ) -> anyhow::Result<Batch> {
        let n = chosen.len();
        let labels: Vec<Label> = chosen.iter().map(|i| table.translated(&pool.labels[*i])).collect();
        rows.set_batch(&labels);
        let gathered = |rows: &Vec<f32>| -> anyhow::Result<Tensor> {
            let n_embd = rows.len() / pool.len().max(1);
            let values = chosen.iter().flat_map(|i| &rows[i * n_embd..(i + 1) * n_embd]).copied().collect();
            Ok(Tensor::from_vec::<_, f32>(values, (n, n_embd), device)?)
        };
        let mut inputs = Vec::new();
        for (white, plain) in pool.white.iter().zip(&pool.inputs) {
            let plain = if has_mlp { Some(gathered(plain)?) } else { None };
            inputs.push(Inputs { white: gathered(white)?, plain });
        }
        Ok(Batch { inputs, rows: table.gathered(rows, last)?, targets: rows.targets(&labels) })
    }

    /// The outputs of all exits, one after another.
    fn outputs(&self, networks: &[Network]) -> anyhow::Result<Tensor> {
        let outputs: Vec<Tensor> = networks
            .iter()
            .zip(&self.inputs)
            .map(|(network, inputs)| network.forward(inputs))
            .collect::<anyhow::Result<_>>()?;
        Ok(Tensor::cat(&outputs, 0)?)
    }
}

/// The held-out tokens that training is watched by.
fn watched(
    reader: &Reader,
    matrix: &OutputMatrix<'_>,
    exits: &[Exit],
    held_out: &[Range<u64>],
) -> anyhow::Result<Pool> {
    let pool = Pool::read(reader, matrix, exits, &sequences::first(held_out, WATCHED))?;
    ensure!(!pool.is_empty(), "no tokens were held out: collect more");
    Ok(pool)
}

#[allow(clippy::too_many_arguments)] // What an epoch has at hand; a struct of it would be made and taken apart once.
fn look(
    networks: &[Network],
    watched: &Pool,
    table: &Table,
    rows: &mut Rows,
    softcap: Option<f32>,
    batch: usize,
    n_tokens: u64,
    device: &Device,
) -> anyhow::Result<Look> {
    let n_exits = networks.len();
    let (mut divergence, mut agreement) = (vec![0.0; n_exits], vec![0.0; n_exits]);
    let all: Vec<usize> = (0..watched.len()).collect();
    let has_mlp = networks.iter().any(Network::has_mlp);
    let mut last = RowValues::Host(Vec::new());
    for chosen in all.chunks(batch.max(1)) {
        let batch = Batch::new(watched, chosen, table, rows, last, has_mlp, device)?;
        let scored = loss::score(&batch.outputs(networks)?.detach(), &batch.rows, &batch.targets, softcap, false)?;
        for (means, values) in [(&mut divergence, &scored.divergence), (&mut agreement, &scored.agreed)] {
            for (mean, values) in means.iter_mut().zip(values.chunks_exact(chosen.len())) {
                *mean += values.iter().map(|value| f64::from(*value)).sum::<f64>() / watched.len() as f64;
            }
        }
        last = batch.rows;
    }
    Ok(Look { n_tokens, divergence, agreement })
}

fn keep_best(networks: &[Network], look: &Look, best: &mut Vec<(f64, Vec<Tensor>)>) -> anyhow::Result<()> {
    for (i, (network, divergence)) in networks.iter().zip(&look.divergence).enumerate() {
        ensure!(divergence.is_finite(), "training diverged: the loss of exit {i} is no number");
        match best.get_mut(i) {
            Some(best) if *divergence < best.0 => *best = (*divergence, network.snapshot()?),
            Some(_) => {}
            None => best.push((*divergence, network.snapshot()?)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
