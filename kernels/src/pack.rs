//! Packs rows of a file into tiles. Refuses nothing; `Shape` has checked the lengths.

use super::format::Format;
use super::isa::Isa;
use super::layout::At;

/// The most rows that a tile has on any instruction set.
const MAX_ROWS: usize = 16;

/// Packs one tile. `row` gives the bytes of each of the tile's rows, `None` past the last one; those become zeros.
#[inline(always)]
pub(super) fn tile<'a, I: Isa, F: Format>(row: impl Fn(usize) -> Option<&'a [u8]>, n_blocks: usize, out: &mut [u8]) {
    let rows: [Option<&[u8]>; MAX_ROWS] = std::array::from_fn(|i| if i < I::ROWS { row(i) } else { None });
    let mut codes = [[0u8; 256]; MAX_ROWS];
    for (b, out) in out.chunks_exact_mut(At::<I, F>::BLOCK).take(n_blocks).enumerate() {
        out[..At::<I, F>::CODES].fill(0);
        for (i, row) in rows[..I::ROWS].iter().enumerate() {
            let Some(row) = row else {
                codes[i].fill(0);
                continue;
            };
            let block = &row[b * F::BYTES..(b + 1) * F::BYTES];
            F::codes(block, &mut codes[i]);
            let (scale, minimum) = F::scales(block);
            out[2 * i..2 * i + 2].copy_from_slice(&scale.to_le_bytes());
            if F::MIN {
                let at = At::<I, F>::MINIMA + 2 * i;
                out[at..at + 2].copy_from_slice(&minimum.to_le_bytes());
            }
            if F::COLUMNS > 32 {
                let (mut scales, mut minima) = ([0; 16], [0; 16]);
                F::group_scales(block, &mut scales, &mut minima);
                for j in 0..F::GROUPS {
                    out[At::<I, F>::GROUP_SCALES + j * I::ROWS + i] = scales[j] as u8;
                    if F::MIN {
                        out[At::<I, F>::GROUP_MINIMA + (j / 2 * I::ROWS + i) * 2 + j % 2] = minima[j];
                    }
                }
            }
        }
        let parts = out[At::<I, F>::CODES..].chunks_exact_mut(F::BITS * At::<I, F>::VECTOR);
        for (c, out) in parts.enumerate() {
            let mut groups = [[0u32; MAX_ROWS]; 8];
            for (i, codes) in codes[..I::ROWS].iter().enumerate() {
                for (g, group) in groups.iter_mut().enumerate() {
                    let at = 32 * c + 4 * g;
                    group[i] = u32::from_le_bytes([codes[at], codes[at + 1], codes[at + 2], codes[at + 3]]);
                }
            }
            let planes = planes::<I, F>(&groups);
            for (plane, out) in planes.iter().zip(out.chunks_exact_mut(At::<I, F>::VECTOR)) {
                for (word, out) in plane.iter().zip(out.chunks_exact_mut(4)) {
                    out.copy_from_slice(&word.to_le_bytes());
                }
            }
        }
    }
}

/// The vectors of 32 columns, from eight groups of four columns. `product::unpack` is the inverse.
#[inline(always)]
fn planes<I: Isa, F: Format>(groups: &[[u32; MAX_ROWS]; 8]) -> [[u32; MAX_ROWS]; 8] {
    let mut out = [[0; MAX_ROWS]; 8];
    for (g, group) in groups.iter().enumerate() {
        for (i, &codes) in group.iter().enumerate() {
            match F::BITS {
                8 => out[g][i] = if I::SIGNED { codes ^ 0x8080_8080 } else { codes },
                4..=6 => {
                    out[g / 2][i] |= (codes & 0x0f0f_0f0f) << (4 * (g % 2));
                    match F::BITS {
                        5 => out[4][i] |= (codes >> 4 & 0x0101_0101) << g,
                        6 => out[4 + g / 4][i] |= (codes >> 4 & 0x0303_0303) << (2 * (g % 4)),
                        _ => {}
                    }
                }
                _ => {
                    out[g / 4][i] |= (codes & 0x0303_0303) << (2 * (g % 4));
                    if F::BITS == 3 {
                        out[2][i] |= (codes >> 2 & 0x0101_0101) << g;
                    }
                }
            }
        }
    }
    out
}
