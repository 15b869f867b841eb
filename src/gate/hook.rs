//! What the gate does at each node of one graph.
//!
//! Five jobs: show the hidden states at the taps, and K and V where they are asked for; when resuming, switch off everything that is
//! computed from the token embeddings up to the block that is resumed after, and put the saved hidden states in its place; read which
//! cache cells the tokens were given, since resuming is right only on the cells that the lower layers wrote before; and
//! spare the output matrix the tokens whose logits nobody wants.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::ControlFlow;

use super::kv::{KvLayout, KvWatch};
use super::{Seen, Tap};
use crate::llama::eval::{EvalHook, Node, NodeError, NodeId, Verdict};

/// Name of the graph input that holds the token ids (`llm_graph_context::build_inp_embd`).
const INP_TOKENS: &[u8] = b"inp_tokens";
/// Name of the cells that a graph stores K to; a model with a sliding window has one such tensor a cache
/// (`llama_kv_cache::build_input_k_idxs`). V goes to the same cells.
const K_CELLS: &[u8] = b"attn_inp_k_idxs";

/// Why a gated decode could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HookError {
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A node above the resumed block reads something that was switched off.
    #[error("{node} reads the token embeddings past {from}")]
    Leak { node: String, from: Tap },
    /// The slot finder gave the tokens other cells than before.
    #[error("the cache cells of the pending tokens moved")]
    CellsMoved,
    /// The graph ended before a tap came by.
    #[error("the graph has no {0}")]
    Missing(Tap),
    /// K or V of a layer were not where the layout says.
    #[error("K and V of layer {0} are not where they were when the layout was learnt")]
    KvMoved(u32),
}

/// What to compute of the rest of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    All,
    /// After the final norm: the logits of this many tokens, the first that would get some. The others get none if the graph
    /// allows it.
    Rows(usize),
    Nothing,
}

impl From<ControlFlow<()>> for Rest {
    fn from(flow: ControlFlow<()>) -> Self {
        if flow.is_break() { Self::Nothing } else { Self::All }
    }
}

/// Is shown what a decode computes, and says how to go on; what it says of K and V is not asked.
pub(super) type Sink<'a> = dyn FnMut(Seen, &[f32]) -> Rest + 'a;

/// The nodes after the final norm that compute their first rows alone.
struct Narrowed {
    n: usize,
    /// The final norm, which all rows are there of, and those that followed it so far.
    nodes: Vec<NodeId>,
}

/// Where a decode resumes.
pub(super) struct Resume<'a> {
    /// The block whose output is put in.
    pub(super) layer: u32,
    /// That output, `[n_embd, n_tokens]`.
    pub(super) hidden: &'a [f32],
    /// Per cache, in the order the graph stores to them, the cells that the tokens hold.
    pub(super) cells: &'a [Vec<i64>],
}

pub(super) struct Hook<'a, 's> {
    taps: Vec<(Tap, Vec<u8>)>,
    next_tap: usize,
    resume: Option<(Resume<'a>, Vec<u8>)>,
    /// Nodes that were switched off, or that depend on one.
    tainted: HashSet<NodeId, BuildHasherDefault<IdHasher>>,
    injected: bool,
    caches: Caches,
    kv: Option<KvWatch<'a>>,
    narrowed: Option<Narrowed>,
    sink: &'a mut Sink<'s>,
    values: Vec<f32>,
    /// The tap at which the observer stopped.
    pub(super) stopped: Option<Tap>,
    pub(super) error: Option<HookError>,
}

/// The cells that each K/V cache gave to the tokens, in the order the graph stores to the caches.
#[derive(Default)]
struct Caches {
    seen: Vec<NodeId>,
    cells: Vec<Vec<i64>>,
}

impl<'a, 's> Hook<'a, 's> {
    /// `taps` in the order of the graph, all of them above the block to resume after.
    pub(super) fn new(taps: &[Tap], resume: Option<Resume<'a>>, sink: &'a mut Sink<'s>) -> Self {
        Self {
            taps: taps.iter().map(|&tap| (tap, node_name(tap))).collect(),
            next_tap: 0,
            resume: resume.map(|resume| {
                let name = node_name(Tap::Layer(resume.layer));
                (resume, name)
            }),
            tainted: HashSet::default(),
            injected: false,
            caches: Caches::default(),
            kv: None,
            narrowed: None,
            sink,
            values: Vec::new(),
            stopped: None,
            error: None,
        }
    }

    /// Shows K and V of `layers` as well, in ascending order, where `layout` says they are. Not for decodes that resume:
    /// below the block they resume after nothing is computed.
    pub(super) fn with_kv(mut self, layout: &'a KvLayout, layers: &[u32]) -> Self {
        self.kv = Some(KvWatch::new(layout, layers));
        self
    }

    /// The cells that each cache gave to the tokens.
    pub(super) fn into_cells(self) -> Vec<Vec<i64>> {
        self.caches.cells
    }

    /// How many of the outputs have logits, if not all have.
    pub(super) fn n_outputs(&self) -> Option<usize> {
        self.narrowed.as_ref().filter(|narrowed| narrowed.nodes.len() > 1).map(|narrowed| narrowed.n)
    }

    /// Called after the decode: what it should have met but did not.
    pub(super) fn missing(&self) -> Option<HookError> {
        if self.error.is_some() || self.stopped.is_some() {
            return None;
        }
        match &self.resume {
            Some((resume, _)) if !self.injected => Some(HookError::Missing(Tap::Layer(resume.layer))),
            _ => {
                let missing = self.taps.get(self.next_tap).map(|(tap, _)| HookError::Missing(*tap));
                missing.or_else(|| self.kv.as_ref()?.missing().map(HookError::KvMoved))
            }
        }
    }

    /// Switches the node off if it is computed from the token embeddings. True if it is the block to resume after.
    fn mute_below(&mut self, node: &mut Node<'_>) -> Result<bool, HookError> {
        let Some((resume, name)) = &self.resume else { return Ok(false) };
        let id = node.id();
        if self.injected {
            if node.sources().any(|source| self.tainted.contains(&source)) {
                let node = String::from_utf8_lossy(node.name()).into_owned();
                return Err(HookError::Leak { node, from: Tap::Layer(resume.layer) });
            }
            return Ok(false);
        }
        let tainted = node.sources().any(|source| self.tainted.contains(&source)) || node.reads(INP_TOKENS);
        if !tainted {
            return Ok(false);
        }
        // The muted stores of the lower layers tell where their K/V lie.
        self.caches.note(node)?;
        let n = self.caches.cells.len();
        if n > 0 && resume.cells.get(n - 1) != self.caches.cells.last() {
            return Err(HookError::CellsMoved);
        }
        let last = node.name() == name.as_slice();
        self.tainted.insert(id);
        node.mute();
        Ok(last)
    }

    fn inject(&mut self, node: &mut Node<'_>) -> Result<(), HookError> {
        let Some((resume, _)) = &self.resume else { return Ok(()) };
        node.write_f32(resume.hidden)?;
        // From here on the value is sound again, and so is what is computed from it.
        self.tainted.remove(&node.id());
        self.injected = true;
        Ok(())
    }

    fn is_next_tap(&self, node: &Node<'_>) -> bool {
        self.taps.get(self.next_tap).is_some_and(|(_, name)| node.name() == name.as_slice())
    }

    fn fail(&mut self, error: HookError) {
        self.error.get_or_insert(error);
    }
}

impl EvalHook for Hook<'_, '_> {
    fn ask(&mut self, node: &mut Node<'_>) -> bool {
        if self.resume.is_some() {
            match self.mute_below(node) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    // Ask for this node, so that the graph can be abandoned at it.
                    self.fail(error);
                    return true;
                }
            }
        } else if let Err(error) = self.caches.note(node) {
            self.fail(error.into());
            return true;
        }
        if let Some(narrowed) = &mut self.narrowed
            && node.narrow(narrowed.n, &narrowed.nodes)
        {
            narrowed.nodes.push(node.id());
            return true;
        }
        let kv = self.kv.as_mut().map_or(Ok(false), |kv| kv.ask(node));
        match kv {
            Ok(wanted) => self.is_next_tap(node) || wanted,
            Err(layer) => {
                self.fail(HookError::KvMoved(layer));
                true
            }
        }
    }

    fn data(&mut self, node: &mut Node<'_>) -> Verdict {
        node.widen();
        if self.error.is_some() {
            return Verdict::Abandon;
        }
        if self.resume.is_some() && !self.injected {
            if let Err(error) = self.inject(node) {
                self.fail(error);
                return Verdict::Abandon;
            }
            return Verdict::Continue;
        }
        match self.kv.as_mut().map_or(Ok(None), |kv| kv.read(node, &mut self.values)) {
            Ok(None) => {}
            Ok(Some(seen)) => {
                let _ = (self.sink)(seen, &self.values);
            }
            Err(error) => {
                self.fail(error.into());
                return Verdict::Abandon;
            }
        }
        if !self.is_next_tap(node) {
            return Verdict::Continue;
        }
        let tap = self.taps[self.next_tap].0;
        self.next_tap += 1;
        if let Err(error) = node.read_f32(&mut self.values) {
            self.fail(error.into());
            return Verdict::Abandon;
        }
        match (self.sink)(Seen::Hidden(tap), &self.values) {
            Rest::All => {}
            Rest::Rows(n) => self.narrowed = (tap == Tap::ResultNorm).then(|| Narrowed { n, nodes: vec![node.id()] }),
            Rest::Nothing => {
                self.stopped = Some(tap);
                return Verdict::Abandon;
            }
        }
        Verdict::Continue
    }
}

impl Caches {
    /// Reads the cells if `node` is the first to store K into a cache.
    fn note(&mut self, node: &Node<'_>) -> Result<(), NodeError> {
        let Some(indices) = node.store_indices(K_CELLS).filter(|indices| !self.seen.contains(indices)) else {
            return Ok(());
        };
        self.seen.push(indices);
        self.cells.push(node.stored_cells()?);
        Ok(())
    }
}

fn node_name(tap: Tap) -> Vec<u8> {
    match tap {
        Tap::Layer(il) => format!("l_out-{il}").into_bytes(),
        Tap::ResultNorm => b"result_norm".to_vec(),
    }
}

/// Tensor addresses are spread well enough: a multiplication mixes them into the high and low bits a table uses.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_usize(byte.into()));
    }
    fn write_usize(&mut self, value: usize) {
        self.0 = (self.0 ^ value as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    }
}
