//! Where the graphs of one context compute K and V, and how they store them.
//!
//! A [`KvLayout`] is learnt from one decode of one token through all layers. It names, for each layer, the node that
//! holds K before its rotation: that node must be asked for before the rotation runs, which may overwrite it, and the
//! graph shows what it was for only at the store further down. Every later decode checks at the store that the node was
//! the right one. It refuses layers without K and V of their own, and stores that are not understood, each with its
//! reason.

use std::collections::HashMap;

use super::Seen;
use crate::error::{Error, Result};
use crate::llama::Token;
use crate::llama::batch::Logits;
use crate::llama::context::Context;
use crate::llama::eval::{EvalHook, Node, NodeError, NodeId, Verdict};
use crate::llama::kv::{FoundStore, Part, Rotation, Store};
use crate::llama::recipe::{Recipe, Source};

/// Values of K and of V that one layer stores of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Of K: heads of K times their length.
    pub n_embd_k_gqa: usize,
    /// Of V.
    pub n_embd_v_gqa: usize,
}

/// Where K and V of each layer are, in the graphs of one context.
#[derive(Debug, Clone)]
pub struct KvLayout {
    layers: Vec<Result<LayerKv, String>>,
    /// The layers whose K is rotated, in the order in which graphs hold what they rotate.
    rotated: Vec<(u32, Rotation)>,
}

/// K and V of one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerKv {
    pub(crate) k: Store,
    pub(crate) v: Store,
    /// Which of the model's caches they lie in, in the order in which a graph stores to the caches.
    pub(crate) cache: usize,
    /// How they are computed from the hidden state before the layer.
    pub(crate) own: Result<OwnKv, String>,
}

/// How a layer computes K (before its rotation) and V.
#[derive(Debug, Clone)]
pub(crate) struct OwnKv {
    pub(crate) recipe: Recipe,
    pub(crate) k: Source,
    pub(crate) v: Source,
}

impl KvLayout {
    /// Number of blocks.
    pub fn n_layer(&self) -> u32 {
        self.layers.len() as u32
    }

    /// How many values layer `il` stores of a token.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] for a layer that does not exist, [`Error::Unsupported`] with the reason for one whose K
    /// and V are not recognised.
    pub fn shape(&self, il: u32) -> Result<KvShape> {
        let LayerKv { k, v, .. } = self.layer(il)?;
        Ok(KvShape { n_embd_k_gqa: k.width, n_embd_v_gqa: v.width })
    }

    pub(crate) fn layer(&self, il: u32) -> Result<&LayerKv> {
        match self.layers.get(il as usize) {
            Some(Ok(layer)) => Ok(layer),
            Some(Err(reason)) => Err(Error::Unsupported {
                what: "reading or writing K and V of single layers",
                found: format!("layer {il} has {reason}"),
                fix: "run with --kv catch-up, and collect with --kv-maps off",
            }),
            None => Err(Error::InvalidValue {
                name: "layer",
                found: il.to_string(),
                expected: "below the number of blocks",
            }),
        }
    }
}

/// Learns the layout of an empty context, which is left with one token in it.
///
/// # Errors
/// As llama.cpp's decode.
pub(super) fn learn_layout(context: &mut Context, n_layer: u32) -> Result<KvLayout> {
    let mut learner = Learner::default();
    context.decode_hooked(&[Token(0)], 0, Logits::Last, &mut learner)?;
    Ok(learner.layout(n_layer))
}

/// Notes every store of one graph.
#[derive(Default)]
struct Learner {
    order: HashMap<NodeId, usize>,
    stores: Vec<FoundStore>,
    recipes: HashMap<u32, LearntRecipe>,
}

/// How a layer computes what it stores, as far as the graph has shown it.
#[derive(Default)]
struct LearntRecipe {
    recipe: Recipe,
    /// Where its steps lead to.
    parts: HashMap<Part, Result<Source, String>>,
}

impl EvalHook for Learner {
    fn ask(&mut self, node: &mut Node<'_>) -> bool {
        self.order.insert(node.id(), self.order.len());
        let Some(found) = node.kv_store() else { return false };
        if let Ok(store) = &found.store {
            let LearntRecipe { recipe, parts } = self.recipes.entry(found.layer).or_default();
            parts.insert(found.part, recipe.add(node, store.rotation.as_ref(), found.layer));
        }
        self.stores.push(found);
        false
    }
    fn data(&mut self, _: &mut Node<'_>) -> Verdict {
        Verdict::Continue
    }
}

impl Learner {
    /// How a layer computes its K and V.
    fn own(&self, layer: u32) -> Result<OwnKv, String> {
        let LearntRecipe { recipe, parts } = self.recipes.get(&layer).ok_or("no K and V of its own")?;
        let source = |part| parts.get(&part).cloned().unwrap_or_else(|| Err(format!("no {part:?} of its own")));
        let (k, v) = (source(Part::K)?, source(Part::V)?);
        let mut recipe = recipe.clone();
        recipe.finish();
        Ok(OwnKv { recipe, k, v })
    }

    fn layout(self, n_layer: u32) -> KvLayout {
        let mut caches: Vec<NodeId> = Vec::new();
        for store in self.stores.iter().filter(|found| found.part == Part::K).flat_map(|found| &found.store) {
            if !caches.contains(&store.indices) {
                caches.push(store.indices);
            }
        }
        let store = |layer, part| -> Result<&Store, String> {
            let mut found = self.stores.iter().filter(|found| found.layer == layer && found.part == part);
            match (found.next(), found.next()) {
                (Some(found), None) => found.store.as_ref().map_err(Clone::clone),
                (None, _) => Err(format!("no {part:?} of its own")),
                (Some(_), Some(_)) => Err(format!("more than one store of {part:?}")),
            }
        };
        let layer = |layer| -> Result<LayerKv, String> {
            let (k, v) = (store(layer, Part::K)?.clone(), store(layer, Part::V)?.clone());
            let cache = caches.iter().position(|&indices| indices == k.indices);
            Ok(LayerKv { cache: cache.ok_or("K without cells")?, k, v, own: self.own(layer) })
        };
        let layers: Vec<_> = (0..n_layer).map(layer).collect();
        let mut rotated: Vec<(u32, Rotation)> =
            (0..).zip(&layers).filter_map(|(layer, kv)| Some((layer, kv.as_ref().ok()?.k.rotation.clone()?))).collect();
        rotated.sort_by_key(|(_, rotation)| self.order.get(&rotation.input).copied());
        KvLayout { layers, rotated }
    }
}

/// Shows K and V of some layers of one graph.
pub(super) struct KvWatch<'a> {
    layout: &'a KvLayout,
    /// Those of the layers whose K is rotated, in the order of the graph.
    rotated: Vec<&'a (u32, Rotation)>,
    next_rotated: usize,
    /// What was read as K before its rotation.
    read: HashMap<u32, NodeId>,
    /// Values of the graph that are still to come.
    missing: Vec<Seen>,
    /// What the node that was asked for last holds, and whether it stores it.
    asked: Option<(Seen, Holder)>,
}

#[derive(Clone, Copy)]
enum Holder {
    Itself,
    ItsSource,
}

impl<'a> KvWatch<'a> {
    pub(super) fn new(layout: &'a KvLayout, layers: &[u32]) -> Self {
        Self {
            layout,
            rotated: layout.rotated.iter().filter(|(layer, _)| layers.contains(layer)).collect(),
            next_rotated: 0,
            read: HashMap::new(),
            missing: layers.iter().flat_map(|&layer| [Seen::K(layer), Seen::V(layer)]).collect(),
            asked: None,
        }
    }

    /// A layer whose K or V the graph did not show.
    pub(super) fn missing(&self) -> Option<u32> {
        self.missing.iter().find_map(|seen| match *seen {
            Seen::K(layer) | Seen::V(layer) => Some(layer),
            Seen::Hidden(_) => None,
        })
    }

    /// True if the node's data is wanted.
    ///
    /// # Errors
    /// The layer whose store shows that something else than its K was read.
    pub(super) fn ask(&mut self, node: &Node<'_>) -> Result<bool, u32> {
        if let Some((layer, rotation)) = self.rotated.get(self.next_rotated)
            && node.is_like_input_of(rotation)
        {
            self.next_rotated += 1;
            self.read.insert(*layer, node.id());
            self.asked = Some((Seen::K(*layer), Holder::Itself));
            return Ok(true);
        }
        let Some(FoundStore { part, layer, store }) = node.kv_store() else { return Ok(false) };
        let (seen, width) = match (part, self.layout.layer(layer)) {
            (Part::K, Ok(kv)) => (Seen::K(layer), kv.k.width),
            (Part::V, Ok(kv)) => (Seen::V(layer), kv.v.width),
            _ => return Ok(false),
        };
        let read = self.read.get(&layer).copied().filter(|_| part == Part::K);
        if !self.missing.contains(&seen) && read.is_none() {
            return Ok(false);
        }
        let store = store.map_err(|_| layer)?;
        if store.width != width || store.rotation.as_ref().map(|rotation| rotation.input) != read {
            return Err(layer);
        }
        if read.is_some() {
            return Ok(false);
        }
        self.asked = Some((seen, Holder::ItsSource));
        Ok(true)
    }

    /// Reads what the node that was asked for holds into `to`; `None` if it was not asked for here.
    ///
    /// # Errors
    /// If it cannot be read as f32.
    pub(super) fn read(&mut self, node: &Node<'_>, to: &mut Vec<f32>) -> Result<Option<Seen>, NodeError> {
        let Some((seen, holder)) = self.asked.take() else { return Ok(None) };
        match holder {
            Holder::Itself => node.read_strided_f32(to)?,
            Holder::ItsSource => node.read_stored_f32(to)?,
        }
        self.missing.retain(|&missing| missing != seen);
        Ok(Some(seen))
    }
}

#[cfg(test)]
mod tests;
