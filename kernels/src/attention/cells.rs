//! Which cells the tokens of a unit see, in order: hidden ones are dropped here, before anything is computed.

use std::ops::Range;

use super::ops::{Ops, Span};
use super::simd::half;
use super::{HIDDEN, ROWS, SPREAD, Tensor, WIDTH};

/// The cells that some tokens see, kept while units of the same tokens follow each other.
pub(super) struct Seen<'a> {
    mask: &'a Option<Tensor<'a>>,
    ops: &'static Ops,
    /// Every cell that any of the tokens sees, in order; then what is left of older lists.
    pub cells: &'a mut [u32],
    /// Where each token's cells lie in the list.
    pub spans: [Span; ROWS],
    /// Whether a visible value of the mask is not 0.
    pub biased: bool,
    marks: &'a mut [u8],
    /// Sequence and head of the mask, first token and number of tokens of the list.
    listed: Option<(usize, usize, usize, usize)>,
}

impl<'a> Seen<'a> {
    /// No list yet; `cells` and `marks` have one place for each cell of K and V.
    pub fn new(mask: &'a Option<Tensor<'a>>, ops: &'static Ops, cells: &'a mut [u32], marks: &'a mut [u8]) -> Seen<'a> {
        Seen { mask, ops, cells, spans: [Span::default(); ROWS], biased: false, marks, listed: None }
    }

    /// Lists the cells that tokens see; false where a token's do not lie beside each other, or too far from another's.
    pub fn list(&mut self, seq: usize, head: usize, tokens: Range<usize>) -> bool {
        let n_kv = self.cells.len();
        let Some(mask) = self.mask else {
            if self.listed.is_none() {
                self.cells.iter_mut().zip(0..).for_each(|(cell, i)| *cell = i);
                self.spans = [Span { lo: 0, hi: n_kv }; ROWS];
                self.listed = Some((0, 0, 0, 0));
            }
            return true;
        };
        let (head, seq) = (head % mask.ne[2], seq % mask.ne[3]);
        let key = (seq, head, tokens.start, tokens.len());
        if self.listed == Some(key) {
            return true;
        }
        self.listed = None;
        let row = |token: usize| &mask.rows(token, head, seq).bytes[..2 * n_kv];
        self.marks.fill(0);
        self.biased = false;
        let mut counts = [0; ROWS];
        for (count, token) in counts.iter_mut().zip(tokens.clone()) {
            // SAFETY: the plan has the steps of a set that the processor has.
            let (seen, biased) = unsafe { (self.ops.mark)(row(token), self.marks) };
            *count = seen;
            self.biased |= biased;
        }
        let n_cells = compact(self.marks, self.cells);
        let cells = &self.cells[..n_cells];
        let (mut least, mut most) = (usize::MAX, 0);
        for (i, token) in tokens.enumerate() {
            self.spans[i] = Span::default();
            if counts[i] == 0 {
                continue;
            }
            let shown = row(token).as_chunks::<2>().0;
            let first = shown.iter().position(|x| *x != HIDDEN.to_le_bytes()).unwrap_or(0);
            let last = shown.iter().rposition(|x| *x != HIDDEN.to_le_bytes()).unwrap_or(0);
            let rank = |cell: usize| cells.partition_point(|x| (*x as usize) < cell);
            self.spans[i] = Span { lo: rank(first), hi: rank(last) + 1 };
            if self.spans[i].hi - self.spans[i].lo != counts[i] {
                return false;
            }
            (least, most) = (least.min(self.spans[i].lo), most.max(self.spans[i].lo));
        }
        if most > least.saturating_add(SPREAD) {
            return false;
        }
        self.listed = Some(key);
        true
    }

    /// Copies the mask's values of each token's cells `here`, to places from `base` on in its row of WIDTH.
    pub fn values(&self, seq: usize, head: usize, tokens: Range<usize>, here: &[Span], base: usize, out: &mut [f32]) {
        let Some(mask) = self.mask else { return };
        for ((token, span), out) in tokens.zip(here).zip(out.chunks_exact_mut(WIDTH)) {
            let row = mask.rows(token, head % mask.ne[2], seq % mask.ne[3]).bytes.as_chunks::<2>().0;
            for at in span.lo..span.hi {
                out[at - base] = half(u16::from_le_bytes(row[self.cells[at] as usize]));
            }
        }
    }
}

/// Writes the places of the marks that are set; says how many.
fn compact(marks: &[u8], cells: &mut [u32]) -> usize {
    let (mut n, mut at) = (0, 0);
    for marks in marks.chunks(8) {
        match marks {
            [0, 0, 0, 0, 0, 0, 0, 0] => {}
            [1, 1, 1, 1, 1, 1, 1, 1] => {
                cells[n..n + 8].iter_mut().zip(at..).for_each(|(cell, i)| *cell = i);
                n += 8;
            }
            _ => {
                for (i, mark) in (at..).zip(marks) {
                    cells[n] = i;
                    n += usize::from(*mark);
                    if n == cells.len() {
                        break;
                    }
                }
            }
        }
        at += marks.len() as u32;
    }
    n
}
