//! K and V of skipped layers, written into the cache: by an exit's learned maps, or by the skipped layers' own weights.
//!
//! All maps of an exit are one matrix, K of every layer above it and then V of every layer, so that a token costs one
//! product. K is rotated with the parameters of the model's own graph at the token's position, and both are stored into
//! the context's own cache, at the token's own cells, in the cache's own type. *Propagation* computes what the skipped
//! layers would have computed had the hidden state passed them unchanged: by the nodes of the model's graph, with its
//! weights where they lie. It refuses models whose K and V are not understood (see [`crate::gate::KvLayout`]), maps that
//! do not fit, and caches and weights on a GPU.

mod selftest;

use std::sync::Arc;

pub(crate) use selftest::self_test;

use super::ggml::{Cpu, Graph, Layout, Tensor, Tensors};
use crate::error::{Error, Result};
use crate::gate::{Gate, KvLayout, KvSource, LayerKv};
use crate::gguf::TensorType;
use crate::gguf::exits;
use crate::llama::context::Context;
use crate::llama::eval::ContextId;
use crate::llama::kv::Rope;
use crate::llama::recipe::Source;

/// The epsilon of the norm before the maps; that of the exit heads.
const NORM_EPS: f32 = 1e-6;
/// Tensors that storing K and V of one layer takes at most.
const TENSORS_A_LAYER: usize = 16;

/// The maps of one exit, shared by all sessions of a model.
#[derive(Debug)]
pub(crate) struct KvWeights {
    layer: u32,
    n_embd: usize,
    /// `[n_embd]`, F32.
    norm: Vec<u8>,
    /// `[n_embd, n_out]`: K of each skipped layer in ascending order, then V of each.
    matrix: (Tensors, Tensor),
    /// `[n_out]`, F32.
    bias: Vec<u8>,
    /// Values of K and of V of each skipped layer.
    widths: Vec<(usize, usize)>,
}

impl KvWeights {
    /// The maps of `head`; `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Heads`] for maps of several types, types that the CPU backend does not multiply, or without memory.
    pub(crate) fn new(head: &exits::Head<'_>) -> Result<Option<Self>> {
        let Some(first) = head.kv.first() else { return Ok(None) };
        let ty = first.k.weight.info.ty();
        let linears = || head.kv.iter().map(|map| map.k).chain(head.kv.iter().map(|map| map.v));
        if let Some(other) = linears().map(|linear| linear.weight.info).find(|info| info.ty() != ty) {
            return Err(Error::Heads {
                found: format!("K/V maps of the types {ty} and {} ({})", other.ty(), other.name()),
            });
        }
        let width = |linear: &exits::Linear<'_>| linear.weight.info.dims4()[1] as usize;
        let n_embd = first.k.weight.info.dims4()[0] as usize;
        let n_out = linears().map(|linear| width(&linear)).sum();
        let mut tensors = Tensors::new()?;
        let matrix = tensors.matrix(ty, n_embd, n_out)?;
        tensors.allocate(Layout::of_weight(ty, n_embd, n_out)?)?;
        let rows: Vec<u8> = linears().flat_map(|linear| linear.weight.data).copied().collect();
        tensors.set(matrix, &rows);
        let mut bias = Vec::with_capacity(n_out * 4);
        for linear in linears() {
            match linear.bias {
                Some(view) => bias.extend_from_slice(view.data),
                None => bias.resize(bias.len() + width(&linear) * 4, 0),
            }
        }
        let widths = head.kv.iter().map(|map| (width(&map.k), width(&map.v))).collect();
        let norm = head.norm.data.to_vec();
        Ok(Some(Self { layer: head.layer, n_embd, norm, matrix: (tensors, matrix), bias, widths }))
    }
}

/// Writes K and V of the layers above one exit, on the threads of one session.
#[derive(Debug)]
pub(crate) struct KvWriter {
    layer: u32,
    owner: ContextId,
    cpu: Cpu,
    work: Tensors,
    graph: Graph,
    input: Input,
    position: Tensor,
    cells: Vec<Cells>,
    n_caches: usize,
    /// Held for the matrix in it.
    _weights: Option<Arc<KvWeights>>,
}

/// What a token's K and V are computed from.
#[derive(Debug)]
enum Input {
    /// The hidden state after the exit's layer, `[n_embd]`.
    Hidden(Tensor),
    /// K before rotation of each skipped layer and V of each, given by [`KvWriter::set_given`].
    Given(Tensor),
}

/// The rows that one cache's stores go to.
#[derive(Debug)]
struct Cells {
    cache: usize,
    rows: Tensor,
    /// Number of cells of a transposed cache, whose rows are single values.
    transposed: Option<usize>,
    width: usize,
}

impl KvWriter {
    /// Writes what the maps of an exit predict.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason where K and V of this model or context cannot be written; as
    /// [`Gate::kv_layout`].
    pub(crate) fn maps(weights: &Arc<KvWeights>, gate: &mut Gate) -> Result<Self> {
        let layers = Skipped::above(weights.layer, gate)?;
        let widths: Vec<_> = layers.kv.iter().map(|(_, kv)| (kv.k.width, kv.v.width)).collect();
        if widths != weights.widths || weights.n_embd != gate.n_embd() {
            return Err(unsupported(format!("K/V maps of the widths {:?} for {widths:?}", weights.widths)));
        }
        let mut builder = Builder::new(layers.kv.len(), 0)?;
        let n_out = widths.iter().map(|(k, v)| k + v).sum();
        let hidden = builder.work.matrix(TensorType::F32, weights.n_embd, 1)?;
        let norm = builder.work.matrix(TensorType::F32, weights.n_embd, 1)?;
        let bias = builder.work.matrix(TensorType::F32, n_out, 1)?;
        let normed = builder.work.norm(hidden, norm, NORM_EPS);
        let all = builder.work.affine(weights.matrix.1, normed, bias);
        builder.store_all(&layers.kv, all)?;
        let mut writer = builder.finish(weights.layer, Input::Hidden(hidden), Some(Arc::clone(weights)), gate)?;
        writer.work.set(norm, &weights.norm);
        writer.work.set(bias, &weights.bias);
        Ok(writer)
    }

    /// Writes what the skipped layers' own weights make of the hidden state after `layer`.
    ///
    /// # Errors
    /// As [`KvWriter::maps`], and [`Error::Unsupported`] for layers that compute K and V from more than their input.
    pub(crate) fn propagate(layer: u32, gate: &mut Gate) -> Result<Self> {
        let layers = Skipped::above(layer, gate)?;
        let mut own = Vec::with_capacity(layers.kv.len());
        for (il, kv) in &layers.kv {
            own.push(kv.own.as_ref().map_err(|reason| unsupported(format!("layer {il} reads {reason}")))?);
        }
        let n_steps = own.iter().map(|own| own.recipe.steps.len()).sum();
        let mut builder = Builder::new(layers.kv.len(), n_steps)?;
        let hidden = builder.work.matrix(TensorType::F32, gate.n_embd(), 1)?;
        for (layer, own) in layers.kv.iter().zip(own) {
            // SAFETY: the gate's context holds the model, and `write` runs the graph only when it is given that context.
            let made = unsafe { builder.work.replay(&own.recipe.steps, hidden)? };
            let made = |source| match source {
                Source::Step(i) => Ok(made[i]),
                Source::Hidden | Source::Weight(_) => Err(unsupported("K or V that nothing computes".to_owned())),
            };
            builder.store_k(std::slice::from_ref(layer), made(own.k)?, 0)?;
            builder.store_v(layer, made(own.v)?, 0)?;
        }
        builder.finish(layer, Input::Hidden(hidden), None, gate)
    }

    /// Writes what [`KvWriter::set_given`] was given last.
    ///
    /// # Errors
    /// As [`KvWriter::maps`].
    pub(super) fn given(layer: u32, gate: &mut Gate) -> Result<Self> {
        let layers = Skipped::above(layer, gate)?;
        let mut builder = Builder::new(layers.kv.len(), 0)?;
        let n_out = layers.kv.iter().map(|(_, kv)| kv.k.width + kv.v.width).sum();
        let all = builder.work.matrix(TensorType::F32, n_out, 1)?;
        builder.store_all(&layers.kv, all)?;
        builder.finish(layer, Input::Given(all), None, gate)
    }

    /// K before rotation of each skipped layer in ascending order, then V of each. Of no use to other writers.
    ///
    /// # Errors
    /// [`Error::Heads`] for another number of values.
    pub(super) fn set_given(&mut self, values: &[f32]) -> Result<()> {
        let Input::Given(all) = self.input else { return Ok(()) };
        fill(&mut self.work, all, values)
    }
}

impl KvSource for KvWriter {
    fn layer(&self) -> u32 {
        self.layer
    }

    fn n_caches(&self) -> usize {
        self.n_caches
    }

    fn write(&mut self, context: &mut Context, hidden: &[f32], position: usize, cells: &[i64]) -> Result<()> {
        // The graph reads and writes tensors of its own context: with that one in hand, they live.
        if context.id() != self.owner {
            return Err(Error::Heads { found: "K and V for another session's cache".to_owned() });
        }
        if let Input::Hidden(tensor) = self.input {
            fill(&mut self.work, tensor, hidden)?;
        }
        let position = i32::try_from(position)
            .map_err(|_| Error::Heads { found: format!("position {position}, which is no 32-bit number") })?;
        self.work.bytes_mut(self.position).copy_from_slice(&position.to_ne_bytes());
        for Cells { cache, rows, transposed, width } in &self.cells {
            let cell = cells.get(*cache).copied().ok_or_else(|| unsupported("a cache without a cell".to_owned()))?;
            let stride = transposed.unwrap_or(0) as i64;
            let values = self.work.bytes_mut(*rows).chunks_exact_mut(8);
            debug_assert_eq!(values.len(), if transposed.is_some() { *width } else { 1 });
            for (i, to) in (0i64..).zip(values) {
                to.copy_from_slice(&(i * stride + cell).to_ne_bytes());
            }
        }
        self.cpu.compute(&mut self.work, &mut self.graph)
    }
}

/// The layers above an exit, and how each stores its K and V.
struct Skipped {
    kv: Vec<(u32, LayerKv)>,
}

impl Skipped {
    fn above(layer: u32, gate: &mut Gate) -> Result<Self> {
        let layout: &KvLayout = gate.kv_layout()?;
        let mut kv = Vec::new();
        for il in layer.saturating_add(1)..layout.n_layer() {
            kv.push((il, layout.layer(il)?.clone()));
        }
        if kv.is_empty() {
            return Err(unsupported(format!("an exit after layer {layer}, above which there is none")));
        }
        Ok(Self { kv })
    }
}

/// Puts a writer's graph together.
struct Builder {
    work: Tensors,
    position: Tensor,
    cells: Vec<Cells>,
    stores: Vec<Tensor>,
}

impl Builder {
    fn new(n_layers: usize, n_steps: usize) -> Result<Self> {
        let mut work = Tensors::sized(64 + n_layers * TENSORS_A_LAYER + n_steps)?;
        let position = work.matrix(TensorType::I32, 1, 1)?;
        Ok(Self { work, position, cells: Vec::new(), stores: Vec::new() })
    }

    /// Stores K of each layer and then V of each, which lie in `all` in this order.
    fn store_all(&mut self, layers: &[(u32, LayerKv)], all: Tensor) -> Result<()> {
        let mut first = 0;
        // Neighbours that rotate alike are rotated at once.
        for run in layers.chunk_by(|(_, a), (_, b)| rope_of(a) == rope_of(b)) {
            self.store_k(run, all, first)?;
            first += run.iter().map(|(_, kv)| kv.k.width).sum::<usize>();
        }
        for layer in layers {
            self.store_v(layer, all, first)?;
            first += layer.1.v.width;
        }
        Ok(())
    }

    /// Stores K of layers that rotate alike, which lie in `values` one after another from the `first` on.
    fn store_k(&mut self, layers: &[(u32, LayerKv)], values: Tensor, first: usize) -> Result<()> {
        let n = layers.iter().map(|(_, kv)| kv.k.width).sum();
        let mut k = self.work.part(values, first, n);
        if let Some(rope) = layers.first().and_then(|(_, kv)| rope_of(kv)) {
            k = self.work.rotated(k, self.position, rope)?;
        }
        let mut first = 0;
        for (_, kv) in layers {
            let value = self.work.part(k, first, kv.k.width);
            let rows = self.rows(kv, false)?;
            // SAFETY: the gate that the layout is of is alive, and `write` runs the graph only when it is given the same
            // context again.
            let stored = unsafe { self.work.stored(value, rows, &kv.k)? };
            self.stores.push(stored);
            first += kv.k.width;
        }
        Ok(())
    }

    fn store_v(&mut self, (_, kv): &(u32, LayerKv), values: Tensor, first: usize) -> Result<()> {
        let value = self.work.part(values, first, kv.v.width);
        let rows = self.rows(kv, kv.v.transposed)?;
        // SAFETY: as in `store_k`.
        let stored = unsafe { self.work.stored(value, rows, &kv.v)? };
        self.stores.push(stored);
        Ok(())
    }

    /// The rows that the cache of a layer is stored to.
    fn rows(&mut self, kv: &LayerKv, transposed: bool) -> Result<Tensor> {
        let (transposed, width) = if transposed { (Some(kv.v.n_cells), kv.v.width) } else { (None, 1) };
        let same = |cells: &&Cells| (cells.cache, cells.transposed, cells.width) == (kv.cache, transposed, width);
        if let Some(cells) = self.cells.iter().find(same) {
            return Ok(cells.rows);
        }
        let rows = self.work.rows(width)?;
        self.cells.push(Cells { cache: kv.cache, rows, transposed, width });
        Ok(rows)
    }

    fn finish(mut self, layer: u32, input: Input, weights: Option<Arc<KvWeights>>, gate: &Gate) -> Result<KvWriter> {
        let graph = self.work.graph(&self.stores)?;
        self.work.allocate(Layout::plain()?)?;
        let (n_threads, pool) = gate.threads();
        let n_caches = self.cells.iter().map(|cells| cells.cache + 1).max().unwrap_or(0);
        Ok(KvWriter {
            layer,
            owner: gate.context_id(),
            cpu: Cpu::new(n_threads, pool)?,
            work: self.work,
            graph,
            input,
            position: self.position,
            cells: self.cells,
            n_caches,
            _weights: weights,
        })
    }
}

fn rope_of(kv: &LayerKv) -> Option<&Rope> {
    kv.k.rotation.as_ref().map(|rotation| &rotation.rope)
}

fn fill(work: &mut Tensors, tensor: Tensor, values: &[f32]) -> Result<()> {
    let bytes = work.bytes_mut(tensor);
    if bytes.len() != size_of_val(values) {
        return Err(Error::Heads { found: format!("{} values for K and V", values.len()) });
    }
    for (to, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *to = value.to_ne_bytes();
    }
    Ok(())
}

fn unsupported(found: String) -> Error {
    Error::Unsupported { what: "writing K and V of skipped layers", found, fix: "run with --kv catch-up" }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
