//! What one attention op is given: tensors as bytes with shapes and strides, checked once.
//!
//! It refuses what the kernels cannot do, naming it; the caller then leaves the op to llama.cpp's own code.

use super::ops::Rows;
use super::{Isa, MOST_VALUES, Type};

/// A tensor in ggml's order: `ne` elements and `nb` bytes from one to the next, of each of four dimensions.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// The bytes from the tensor's first element on; at least as far as its last one.
    pub data: &'a [u8],
    /// The type of its elements.
    pub ty: Type,
    /// Elements in each dimension.
    pub ne: [usize; 4],
    /// Bytes from one element to the next in each dimension; `nb[0]` is of a block, for block types.
    pub nb: [usize; 4],
}

/// Why the kernels leave an op alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A tensor's shape does not fit the others'.
    #[error("{what} is {found:?}, expected {expected}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its elements in each dimension.
        found: [usize; 4],
        /// What would fit.
        expected: String,
    },
    /// A row's elements do not lie beside each other.
    #[error("{what} has {found} bytes from one element to the next, expected {expected}")]
    Stride {
        /// Which tensor.
        what: &'static str,
        /// Its `nb[0]`.
        found: usize,
        /// The size of an element or block.
        expected: usize,
    },
    /// A tensor ends behind its bytes.
    #[error("{what} ends at byte {end}, and there are {found}")]
    Bytes {
        /// Which tensor.
        what: &'static str,
        /// Where its last element ends; `usize::MAX` where that overflows.
        end: usize,
        /// The bytes that were passed.
        found: usize,
    },
    /// A tensor has a type that it must not have.
    #[error("{what} has type {found:?}, expected {expected:?}")]
    Type {
        /// Which tensor.
        what: &'static str,
        /// Its type.
        found: Type,
        /// The type that it must have.
        expected: Type,
    },
    /// This processor lacks the instruction set.
    #[error("this processor has no {0:?}")]
    Isa(Isa),
}

/// One op `GGML_OP_FLASH_ATTN_EXT`, with ggml's names and meanings.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// Queries, F32 `[dk, n_tokens, n_head, n_seq]`.
    pub q: Tensor<'a>,
    /// Keys `[dk, n_kv, n_head_kv, n_seq_kv]`.
    pub k: Tensor<'a>,
    /// Values `[dv, n_kv, n_head_kv, n_seq_kv]`, not transposed.
    pub v: Tensor<'a>,
    /// F16 `[>= n_kv, >= n_tokens, ne2, ne3]`, -inf where a token does not see a cell; without one it sees all.
    pub mask: Option<Tensor<'a>>,
    /// A logit of each head that takes weight and has no value.
    pub sinks: Option<&'a [f32]>,
    /// Factor of the products.
    pub scale: f32,
    /// ALiBi's largest bias, 0 for none.
    pub max_bias: f32,
    /// Scores become `softcap * tanh(score / softcap)`; 0 for none.
    pub logit_softcap: f32,
}

impl Tensor<'_> {
    /// Checks that rows are whole and that the last one ends within the bytes.
    fn check(&self, what: &'static str) -> Result<(), Refused> {
        let expected = self.ty.block_bytes();
        if self.nb[0] != expected {
            return Err(Refused::Stride { what, found: self.nb[0], expected });
        }
        if self.ne.contains(&0) || !self.ne[0].is_multiple_of(self.ty.block()) || self.ne[0] > i32::MAX as usize {
            let expected = format!("no empty dimension, whole blocks of {}, a first below 2^31", self.ty.block());
            return Err(Refused::Shape { what, found: self.ne, expected });
        }
        let end = (1..4)
            .try_fold(self.ty.row_bytes(self.ne[0]), |end, i| {
                end.checked_add((self.ne[i] - 1).checked_mul(self.nb[i])?)
            })
            .unwrap_or(usize::MAX);
        if end > self.data.len() {
            return Err(Refused::Bytes { what, end, found: self.data.len() });
        }
        Ok(())
    }

    /// The rows from one on, `nb[1]` apart.
    pub(super) fn rows(&self, i1: usize, i2: usize, i3: usize) -> Rows<'_> {
        let bytes = &self.data[i1 * self.nb[1] + i2 * self.nb[2] + i3 * self.nb[3]..];
        Rows { ty: self.ty, bytes, stride: self.nb[1], d: self.ne[0] }
    }
}

impl Problem<'_> {
    pub(super) fn check(&self) -> Result<(), Refused> {
        let (q, k, v) = (&self.q, &self.k, &self.v);
        q.check("q")?;
        k.check("k")?;
        v.check("v")?;
        if q.ty != Type::F32 {
            return Err(Refused::Type { what: "q", found: q.ty, expected: Type::F32 });
        }
        if k.ne[0] > MOST_VALUES || v.ne[0] > MOST_VALUES {
            let (what, found) = if k.ne[0] > MOST_VALUES { ("k", k.ne) } else { ("v", v.ne) };
            return Err(Refused::Shape { what, found, expected: format!("rows of at most {MOST_VALUES}") });
        }
        if k.ne[0] != q.ne[0] || q.ne[2] % k.ne[2] != 0 || q.ne[3] % k.ne[3] != 0 || k.ne[1] > u32::MAX as usize {
            let expected = format!("[{}, cells, a divisor of {}, a divisor of {}]", q.ne[0], q.ne[2], q.ne[3]);
            return Err(Refused::Shape { what: "k", found: k.ne, expected });
        }
        if v.ne[1..] != k.ne[1..] {
            let expected = format!("[values, {}, {}, {}], as k", k.ne[1], k.ne[2], k.ne[3]);
            return Err(Refused::Shape { what: "v", found: v.ne, expected });
        }
        if let Some(mask) = &self.mask {
            mask.check("mask")?;
            if mask.ty != Type::F16 {
                return Err(Refused::Type { what: "mask", found: mask.ty, expected: Type::F16 });
            }
            if mask.ne[0] < k.ne[1] || mask.ne[1] < q.ne[1] {
                let expected = format!("at least [{}, {}]", k.ne[1], q.ne[1]);
                return Err(Refused::Shape { what: "mask", found: mask.ne, expected });
            }
        }
        if let Some(sinks) = self.sinks.filter(|s| s.len() != q.ne[2]) {
            let expected = format!("one for each of {} heads", q.ne[2]);
            return Err(Refused::Shape { what: "sinks", found: [sinks.len(), 1, 1, 1], expected });
        }
        Ok(())
    }

    /// The factor of the mask's values for a head: 1 without ALiBi.
    pub(super) fn slope(&self, head: usize) -> f32 {
        if self.max_bias <= 0.0 {
            return 1.0;
        }
        let whole = 1usize << self.q.ne[2].ilog2();
        let base = |bias: f32| (-bias / whole as f32).exp2();
        let (base, power) = match head < whole {
            true => (base(self.max_bias), head + 1),
            false => (base(self.max_bias / 2.0), 2 * (head - whole) + 1),
        };
        base.powf(power as f32)
    }
}
