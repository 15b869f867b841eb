//! The bytes of llama.cpp's sequence state: read once from a context of the model to learn their layout, then checked
//! in every state that comes from outside.
//!
//! Written after `llama_kv_cache::state_write` and `state_read` of the pinned llama.cpp. Reading, llama.cpp checks the
//! number of cells, layers, types and row sizes, and answers 0 for what does not fit. It does not check the positions:
//! a cell at a negative one counts as empty and used at once, and one beyond the text breaks every later decode. Nor
//! does it check that the bytes end where the state does. Caches that keep more in a cell than its position (M-RoPE,
//! per-layer embeddings) store token ids that index a matrix unchecked; their layout is not this one, and is refused.

/// The layout of all caches of one context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    caches: Vec<Cache>,
}

/// One cache: models with a sliding window have two, the full one first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cache {
    /// V is stored value by value instead of cell by cell: without flash attention.
    v_trans: bool,
    n_rot: [u32; 2],
    k: Vec<Row>,
    /// As many as `k`, or none (MLA).
    v: Vec<Row>,
}

/// What one layer stores for a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    /// ggml's type id.
    ty: u32,
    /// Bytes of a row, or of a single value of a transposed V.
    unit: u64,
    /// Units of a cell: 1, or the values of a transposed V.
    n_units: u64,
}

const MAGIC: u32 = 0xaf14_3cd8;
/// llama.cpp's LLAMA_MAX_LAYERS.
const MAX_LAYERS: u32 = 512;
/// More than any model keeps for one cell and layer.
const MAX_ROW: u64 = 1 << 24;

impl Layout {
    /// Learns the layout from the state of a context that holds one token. `None` if it is not a plain one.
    pub(super) fn of(sample: &[u8]) -> Option<Self> {
        // Caches without V do not say so: their layout only fits if it is read as what it is.
        [true, false].into_iter().find_map(|has_v| {
            let mut bytes = Bytes(sample);
            bytes.start()?;
            let mut caches = Vec::new();
            while !bytes.0.is_empty() {
                caches.push(Cache::of(&mut bytes, has_v)?);
            }
            (!caches.is_empty() && caches.len() <= 2).then_some(Self { caches })
        })
    }

    /// The most bytes that a state of `n` cells takes.
    pub(super) fn max_bytes(&self, n: usize) -> u64 {
        let cache = |cache: &Cache| {
            let rows = cache.k.iter().chain(&cache.v);
            let per_cell: u64 = rows.clone().map(|row| row.unit * row.n_units).sum::<u64>() + 12;
            // Each row is preceded by its type and at most 8 bytes of sizes.
            24 + rows.count() as u64 * 12 + per_cell.saturating_mul(n as u64)
        };
        self.caches.iter().map(cache).fold(8, u64::saturating_add)
    }

    /// Checks a state of the positions below `n`, of which a cache with a sliding window may lack the first.
    pub(super) fn check(&self, state: &[u8], n: usize, n_swa: usize) -> Result<(), String> {
        let mut bytes = Bytes(state);
        bytes.start().ok_or("its state begins with something else")?;
        for (i, cache) in self.caches.iter().enumerate() {
            let slides = n_swa > 0 && i + 1 == self.caches.len();
            cache.check(&mut bytes, n, slides).map_err(|found| format!("{found} in cache {i}"))?;
        }
        if !bytes.0.is_empty() {
            return Err(format!("{} bytes too many", bytes.0.len()));
        }
        Ok(())
    }
}

impl Cache {
    fn of(bytes: &mut Bytes<'_>, has_v: bool) -> Option<Self> {
        let (n_stream, n_cells) = (bytes.u32()?, bytes.u32()?);
        let (position, n_seq, seq) = (bytes.u32()?, bytes.u32()?, bytes.u32()?);
        let (v_trans, n_layer) = (bytes.u32()?, bytes.u32()?);
        let n_rot = [bytes.u32()?, bytes.u32()?];
        if [n_stream, n_cells, position, n_seq, seq] != [1, 1, 0, 1, 0] || v_trans > 1 || n_layer > MAX_LAYERS {
            return None;
        }
        let v_trans = v_trans == 1;
        let k = (0..n_layer).map(|_| Row::of(bytes, false)).collect::<Option<_>>()?;
        let n_v = if has_v { n_layer } else { 0 };
        let v = (0..n_v).map(|_| Row::of(bytes, v_trans)).collect::<Option<_>>()?;
        Some(Self { v_trans, n_rot, k, v })
    }

    fn check(&self, bytes: &mut Bytes<'_>, n: usize, slides: bool) -> Result<(), &'static str> {
        const SHORT: &str = "it ends too early";
        let (n_stream, n_cells) = (bytes.u32().ok_or(SHORT)?, bytes.u32().ok_or(SHORT)? as usize);
        if n_stream != 1 {
            return Err("another number of streams");
        }
        if n_cells == 0 || n_cells > n || (n_cells < n && !slides) {
            return Err("a wrong number of cells");
        }
        // The cells may be in any order, but hold each of the last positions once.
        let mut seen = vec![false; n_cells];
        for _ in 0..n_cells {
            let position = bytes.u32().ok_or(SHORT)? as usize;
            let (n_seq, seq) = (bytes.u32().ok_or(SHORT)?, bytes.u32().ok_or(SHORT)?);
            match position.checked_sub(n - n_cells).and_then(|at| seen.get_mut(at)) {
                Some(seen) if !*seen && n_seq == 1 && seq == 0 => *seen = true,
                _ => return Err("a cell that is not the text's"),
            }
        }
        let numbers = [u32::from(self.v_trans), self.k.len() as u32, self.n_rot[0], self.n_rot[1]];
        for expected in numbers {
            if bytes.u32().ok_or(SHORT)? != expected {
                return Err("another kind of cache");
            }
        }
        for (row, transposed) in
            self.k.iter().map(|row| (row, false)).chain(self.v.iter().map(|row| (row, self.v_trans)))
        {
            if Row::head(bytes, transposed).ok_or(SHORT)? != *row {
                return Err("a layer of another shape");
            }
            bytes.skip(row.unit * row.n_units * n_cells as u64).ok_or(SHORT)?;
        }
        Ok(())
    }
}

impl Row {
    /// A row with the data of one cell.
    fn of(bytes: &mut Bytes<'_>, transposed: bool) -> Option<Self> {
        let row = Self::head(bytes, transposed)?;
        let size = row.unit.checked_mul(row.n_units).filter(|&size| (1..=MAX_ROW).contains(&size))?;
        bytes.skip(size)?;
        Some(row)
    }

    fn head(bytes: &mut Bytes<'_>, transposed: bool) -> Option<Self> {
        let ty = bytes.u32()?;
        let low = u64::from(bytes.u32()?);
        let high = u64::from(bytes.u32()?);
        Some(if transposed {
            Self { ty, unit: low, n_units: high }
        } else {
            Self { ty, unit: low | high << 32, n_units: 1 }
        })
    }
}

/// The bytes that are left to read.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    /// The magic number and the sequence that the state was taken from, 0 here.
    fn start(&mut self) -> Option<()> {
        (self.u32()? == MAGIC && self.u32()? == 0).then_some(())
    }

    fn u32(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*number))
    }

    fn skip(&mut self, n: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(n).ok()?..)?;
        Some(())
    }
}
