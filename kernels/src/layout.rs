//! Where the parts of a packed block and of quantized activations lie.
//!
//! A tile is `ROWS` weight rows; its blocks follow each other along the columns. A packed block holds, for all of its
//! rows beside each other: scales, minima, integer scales, integer minima, then the codes of each 32 columns as `BITS`
//! vectors of `4 * ROWS` bytes. Refuses nothing.

use std::marker::PhantomData;

use super::format::Format;
use super::isa::Isa;

/// The places of a format's parts for an instruction set, in bytes.
pub(super) struct At<I, F>(PhantomData<(I, F)>);

impl<I: Isa, F: Format> At<I, F> {
    /// A vector of codes.
    pub(super) const VECTOR: usize = 4 * I::ROWS;
    /// The blocks' minima; their scales come first.
    pub(super) const MINIMA: usize = 2 * I::ROWS;
    /// Integer scales, `[ROWS, GROUPS]`.
    pub(super) const GROUP_SCALES: usize = Self::MINIMA + if F::MIN { 2 * I::ROWS } else { 0 };
    /// Integer minima, `[2, ROWS, GROUPS / 2]`.
    pub(super) const GROUP_MINIMA: usize = Self::GROUP_SCALES + if F::COLUMNS > 32 { F::GROUPS * I::ROWS } else { 0 };
    /// Vectors of codes, `[VECTOR, BITS, COLUMNS / 32]`.
    pub(super) const CODES: usize =
        Self::GROUP_MINIMA + if F::COLUMNS > 32 && F::MIN { F::GROUPS * I::ROWS } else { 0 };
    /// A whole block.
    pub(super) const BLOCK: usize = Self::CODES + F::COLUMNS / 32 * F::BITS * Self::VECTOR;

    /// What a stored code exceeds the value by that products take.
    pub(super) const OFFSET: i32 = if I::SIGNED && F::WIDE { 0 } else { F::OFFSET };

    /// Values of the codes as products take them; zeros where a code is its value.
    pub(super) const TABLE: [u8; 16] = {
        let mut table = [0; 16];
        if let Some(values) = F::TABLE {
            let mut i = 0;
            while i < 16 {
                table[i] = if I::SIGNED { values[i] ^ 0x80 } else { values[i] };
                i += 1;
            }
        }
        table
    };

    /// Bytes of `COLUMNS` quantized activations: scale, sums, values.
    pub(super) const ACTIVATIONS: usize = Self::VALUES + F::COLUMNS;
    /// The sums: one of 32 activations, or one of each group.
    pub(super) const SUMS: usize = 4;
    /// The values, one byte each.
    pub(super) const VALUES: usize = if F::COLUMNS > 32 { 4 + 4 * 16 } else { 8 };
}
