//! What one thread does: it runs units and merges their parts.

use std::ops::Range;

use super::cells::Seen;
use super::ops::{Laid, Ops, Softening, Span};
use super::{CHUNK, Plan, ROWS, Tensor, WIDTH};

/// Cells of K or V that are expanded to f32 at a time.
const BLOCK: usize = 64;

/// Memory that threads write to in common, each its own places.
pub struct Shared {
    start: *mut f32,
    len: usize,
}

// SAFETY: `Shared::new` demands that no place is written by two threads at once.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Wraps `len` initialized f32.
    ///
    /// # Safety
    /// The memory must be valid, and used by nothing else, for as long as a worker uses this. No unit and no merge may
    /// run twice at a time, and merges must start after all units have ended.
    pub unsafe fn new(start: *mut f32, len: usize) -> Shared {
        Shared { start, len }
    }

    /// # Safety
    /// No other slice of the same place may exist.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at <= self.len && len <= self.len - at, "{len} f32 at {at} of {}", self.len);
        // SAFETY: within what `new` was given; that it is the only slice is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

/// 32-bit words of scratch that a plan's worker needs.
pub(super) fn words(plan: &Plan) -> usize {
    let n_kv = plan.problem.k.ne[1];
    let rows = 16 * plan.dk + ROWS * (plan.dk + 2 * plan.dv + WIDTH) + ROWS * WIDTH + BLOCK * plan.dk.max(plan.dv);
    rows + n_kv + n_kv.div_ceil(4)
}

/// One thread's hands: scratch, and the list of cells of the tokens it saw last.
pub struct Worker<'a> {
    plan: &'a Plan<'a>,
    ops: &'static Ops,
    /// Of each row: Q, then scores and later weights, the chunk's sums, all chunks' sums.
    q: &'a mut [f32],
    scores: &'a mut [f32],
    sums: &'a mut [f32],
    totals: &'a mut [f32],
    /// Of each token: the mask's values.
    mask: &'a mut [f32],
    /// Expanded rows of K or V.
    block: &'a mut [f32],
    seen: Seen<'a>,
}

impl<'a> Worker<'a> {
    /// A worker on [`Plan::scratch_bytes`] of scratch.
    ///
    /// # Panics
    /// Where the scratch is smaller.
    pub fn new(plan: &'a Plan<'a>, scratch: &'a mut [u8]) -> Worker<'a> {
        // SAFETY: every pattern of bits is a u32, an f32 and a u8.
        let (_, words, _) = unsafe { scratch.align_to_mut::<u32>() };
        let n_kv = plan.problem.k.ne[1];
        let (cells, words) = words.split_at_mut(n_kv);
        let (marks, words) = words.split_at_mut(n_kv.div_ceil(4));
        // SAFETY: as above.
        let marks = unsafe { &mut marks.align_to_mut::<u8>().1[..n_kv] };
        // SAFETY: as above.
        let mut floats = unsafe { words.align_to_mut::<f32>().1 };
        let mut take = |n: usize| floats.split_off_mut(..n).expect("scratch of Plan::scratch_bytes");
        Worker {
            q: take((ROWS + 16) * plan.dk),
            scores: take(ROWS * WIDTH),
            sums: take(ROWS * plan.dv),
            totals: take(ROWS * plan.dv),
            mask: take(ROWS * WIDTH),
            block: take(BLOCK * plan.dk.max(plan.dv)),
            plan,
            ops: plan.ops,
            seen: Seen::new(&plan.problem.mask, plan.ops, cells, marks),
        }
    }

    /// Runs one unit: writes its rows of `out`, or where the plan has merges, its places in `partials`.
    ///
    /// # Panics
    /// Where there is no such unit, or `out` or `partials` are smaller than the plan says.
    pub fn run(&mut self, unit: usize, out: &Shared, partials: &Shared) {
        let plan = self.plan;
        assert!(unit < plan.units(), "unit {unit} of {}", plan.units());
        let groups = plan.problem.k.ne[2] * plan.blocks;
        let (part, group) = (unit % plan.parts, unit / plan.parts % groups);
        let (tile, seq) = (unit / plan.parts / groups % plan.tiles, unit / plan.parts / groups / plan.tiles);
        let per_kv = plan.problem.q.ne[2] / plan.problem.k.ne[2];
        let kv_head = group / plan.blocks;
        let first = group % plan.blocks * plan.heads;
        let heads = kv_head * per_kv + first..kv_head * per_kv + (first + plan.heads).min(per_kv);
        let tokens = tile * plan.tokens..(tile * plan.tokens + plan.tokens).min(plan.problem.q.ne[1]);
        let chunks = part * plan.part..(part * plan.part + plan.part).min(plan.chunks);
        if self.seen.list(seq, heads.start, tokens.clone()) {
            self.rows(seq, tokens, heads, chunks, out, partials);
        } else {
            // The tokens see cells that lie among each other, as those of several sequences: one after another.
            for token in tokens {
                self.seen.list(seq, heads.start, token..token + 1);
                self.rows(seq, token..token + 1, heads.clone(), chunks.clone(), out, partials);
            }
        }
    }

    /// Merges the parts of one row into its output.
    ///
    /// # Panics
    /// As [`Worker::run`].
    pub fn merge(&mut self, row: usize, out: &Shared, partials: &Shared) {
        let plan = self.plan;
        assert!(row < plan.merges(), "merge {row} of {}", plan.merges());
        let mut total = Total::default();
        for chunk in 0..plan.chunks {
            // SAFETY: this row's places are written by its units alone, which have ended.
            let slot = unsafe { partials.slice((row * plan.chunks + chunk) * plan.slot(), plan.slot()) };
            if slot[1] < 0.0 {
                break;
            }
            total.fold(self.ops, &mut self.totals[..plan.dv], slot[0], slot[1], &slot[2..]);
        }
        self.finish(total, 0, row, out);
    }

    /// Computes tokens and heads whose cells are listed, over some of the chunks.
    fn rows(
        &mut self,
        seq: usize,
        tokens: Range<usize>,
        heads: Range<usize>,
        chunks: Range<usize>,
        out: &Shared,
        partials: &Shared,
    ) {
        let Plan { problem, dk, dv, .. } = *self.plan;
        let n_head = problem.q.ne[2];
        let n_rows = tokens.len() * heads.len();
        let kv_head = heads.start / (n_head / problem.k.ne[2]);
        let kv_seq = seq / (problem.q.ne[3] / problem.k.ne[3]);
        let place = |row: usize| {
            (seq * problem.q.ne[1] + tokens.start + row / heads.len()) * n_head + heads.start + row % heads.len()
        };
        for row in 0..n_rows {
            let (token, head) = (tokens.start + row / heads.len(), heads.start + row % heads.len());
            let q = problem.q.rows(token, head, seq);
            // SAFETY: the plan has the steps of a set that the processor has.
            unsafe { (self.ops.expand)(&q, &[0], &mut self.q[row * dk..], dk, Laid::Rows) };
        }
        let softcap = problem.logit_softcap;
        let scale = if softcap == 0.0 { problem.scale } else { problem.scale / softcap };
        let mut slopes = [0.0; ROWS];
        for (slope, head) in slopes.iter_mut().zip(heads.clone()) {
            *slope = problem.slope(head);
        }
        let mut totals = [Total::default(); ROWS];
        for chunk in chunks {
            let mut here = [Span::default(); ROWS];
            for (span, all) in here.iter_mut().zip(&self.seen.spans[..tokens.len()]) {
                let lo = all.lo + chunk * CHUNK;
                if lo < all.hi {
                    *span = Span { lo, hi: all.hi.min(lo + CHUNK) };
                }
            }
            let seen = || here.iter().filter(|s| s.lo < s.hi);
            let base = seen().map(|s| s.lo).min().unwrap_or(0);
            let width = seen().map(|s| s.hi).max().unwrap_or(0) - base;
            let mut spans = [Span::default(); ROWS];
            for (row, span) in spans[..n_rows].iter_mut().enumerate() {
                let all = here[row / heads.len()];
                if all.lo < all.hi {
                    *span = Span { lo: all.lo - base, hi: all.hi - base };
                }
            }
            let spans = &spans[..n_rows];
            if self.seen.biased {
                self.seen.values(seq, heads.start, tokens.clone(), &here[..tokens.len()], base, self.mask);
            }
            for from in (0..width).step_by(BLOCK) {
                let n = BLOCK.min(width - from);
                self.expand(&problem.k, kv_head, kv_seq, base + from..base + from + n, dk, Laid::Blocks);
                let k = &self.block[..n.next_multiple_of(self.ops.lanes) * dk];
                // SAFETY: as above.
                unsafe { (self.ops.products)(self.q, dk, k, from, spans, self.scores) };
            }
            let mut heights = [(0.0, 0.0); ROWS];
            for (row, span) in spans.iter().enumerate().filter(|(_, span)| span.lo < span.hi) {
                let token = row / heads.len();
                let mask =
                    if self.seen.biased { &self.mask[token * WIDTH + span.lo..(token + 1) * WIDTH] } else { &[] };
                let how = Softening { scale, softcap, slope: slopes[row % heads.len()], mask };
                let scores = &mut self.scores[row * WIDTH + span.lo..(row + 1) * WIDTH];
                // SAFETY: as above.
                heights[row] = unsafe { (self.ops.weights)(scores, span.hi - span.lo, &how) };
            }
            self.sums[..n_rows * dv].fill(0.0);
            for from in (0..width).step_by(BLOCK) {
                let n = BLOCK.min(width - from);
                self.expand(&problem.v, kv_head, kv_seq, base + from..base + from + n, dv, Laid::Rows);
                let v = &self.block[..n * dv];
                // SAFETY: as above.
                unsafe { (self.ops.values)(self.scores, spans, v, from, dv, self.sums) };
            }
            for (row, span) in spans.iter().enumerate() {
                let (most, sum) = heights[row];
                let sums = &self.sums[row * dv..(row + 1) * dv];
                if self.plan.parts > 1 {
                    let at = (place(row) * self.plan.chunks + chunk) * self.plan.slot();
                    // SAFETY: no other unit has this row and chunk.
                    let slot = unsafe { partials.slice(at, self.plan.slot()) };
                    slot[0] = most;
                    slot[1] = if span.lo < span.hi { sum } else { -1.0 };
                    slot[2..].copy_from_slice(sums);
                } else if span.lo < span.hi {
                    totals[row].fold(self.ops, &mut self.totals[row * dv..(row + 1) * dv], most, sum, sums);
                }
            }
        }
        if self.plan.parts == 1 {
            for (row, total) in totals[..n_rows].iter().enumerate() {
                self.finish(*total, row, place(row), out);
            }
        }
    }

    /// Expands the rows of listed cells.
    fn expand(&mut self, tensor: &Tensor, head: usize, seq: usize, cells: Range<usize>, padded: usize, laid: Laid) {
        // SAFETY: the plan has the steps of a set that the processor has.
        unsafe { (self.ops.expand)(&tensor.rows(0, head, seq), &self.seen.cells[cells], self.block, padded, laid) };
    }

    /// Applies the sink, divides by the sum of the weights and writes a row of the output.
    fn finish(&mut self, mut total: Total, row: usize, place: usize, out: &Shared) {
        let (dv, d) = (self.plan.dv, self.plan.problem.v.ne[0]);
        let sums = &mut self.totals[row * dv..(row + 1) * dv];
        // SAFETY: no other unit or merge has this row.
        let out = unsafe { out.slice(place * d, d) };
        if total.empty {
            out.fill(0.0);
            return;
        }
        if let Some(sinks) = self.plan.problem.sinks {
            let sink = sinks[place % self.plan.problem.q.ne[2]];
            let most = total.most.max(sink);
            // SAFETY: the plan has the steps of a set that the processor has.
            let (old, new) = unsafe { ((self.ops.exp)(total.most - most), (self.ops.exp)(sink - most)) };
            total.sum = total.sum * old + new;
            // SAFETY: as above.
            unsafe { (self.ops.scale)(sums, old) };
        }
        // SAFETY: as above.
        unsafe { (self.ops.scale)(sums, 1.0 / total.sum) };
        out.copy_from_slice(&sums[..d]);
    }
}

/// The chunks that a row has folded so far.
#[derive(Clone, Copy)]
struct Total {
    empty: bool,
    most: f32,
    sum: f32,
}

impl Default for Total {
    fn default() -> Total {
        Total { empty: true, most: f32::NEG_INFINITY, sum: 0.0 }
    }
}

impl Total {
    /// Folds the next chunk in.
    fn fold(&mut self, ops: &Ops, totals: &mut [f32], most: f32, sum: f32, sums: &[f32]) {
        if self.empty {
            totals.copy_from_slice(sums);
            *self = Total { empty: false, most, sum };
            return;
        }
        let greater = self.most.max(most);
        // SAFETY: the plan has the steps of a set that the processor has.
        let (old, new) = unsafe { ((ops.exp)(self.most - greater), (ops.exp)(most - greater)) };
        self.sum = self.sum * old + sum * new;
        self.most = greater;
        // SAFETY: as above.
        unsafe { (ops.blend)(totals, old, sums, new) };
    }
}
