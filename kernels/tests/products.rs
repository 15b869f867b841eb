//! Every format and instruction set against sums in double precision, and bit for bit against single tokens.

use offramp_kernels::{Cpu, Numbers, Shape, Weights, dense, row_values};

const ALL: [Weights; 13] = [
    Weights::Q4_0,
    Weights::Q4_1,
    Weights::Q5_0,
    Weights::Q5_1,
    Weights::Q8_0,
    Weights::Q2_K,
    Weights::Q3_K,
    Weights::Q4_K,
    Weights::Q5_K,
    Weights::Q6_K,
    Weights::IQ4_NL,
    Weights::IQ4_XS,
    Weights::MXFP4,
];

/// Numbers that look random, the same in each run.
struct Random(u64);
impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }
    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 31) as f32 * 2.0 - 1.0
    }
}

/// Bytes of a matrix.
struct Raw;
impl Raw {
    /// A matrix of random bytes whose scales are numbers of moderate size.
    fn random(weights: Weights, shape: &Shape, n_out: usize, random: &mut Random) -> Vec<u8> {
        let mut raw: Vec<u8> = (0..n_out * shape.raw_row()).map(|_| random.next() as u8).collect();
        let block = shape.raw_row() / shape.n_blocks();
        for chunk in raw.chunks_exact_mut(block) {
            let places: &[usize] = match weights {
                Weights::Q4_0 | Weights::Q5_0 | Weights::Q8_0 | Weights::IQ4_NL | Weights::IQ4_XS => &[0],
                Weights::Q4_1 | Weights::Q5_1 | Weights::Q4_K | Weights::Q5_K => &[0, 2],
                Weights::Q2_K => &[80, 82],
                Weights::Q3_K => &[108],
                Weights::Q6_K => &[208],
                Weights::MXFP4 => {
                    chunk[0] = 110 + (random.next() % 20) as u8;
                    &[]
                }
            };
            for &at in places {
                // Between 2^-7 and 1, of either sign.
                let bits = (8 + random.next() % 7) << 10 | random.next() & 0x83ff;
                chunk[at..at + 2].copy_from_slice(&(bits as u16).to_le_bytes());
            }
        }
        raw
    }
}

fn products(shape: &Shape, packed: &[u8], quantized: &[Vec<u8>], n_out: usize, split: usize) -> Vec<Vec<f32>> {
    let mut out = vec![vec![f32::NAN; n_out]; quantized.len()];
    let tokens: Vec<_> = quantized.iter().map(|y| y.as_ptr()).collect();
    let outs: Vec<_> = out.iter_mut().map(|out| out.as_mut_ptr()).collect();
    let split = split.min(shape.n_tiles());
    // SAFETY: all lengths are the shape's, and the two calls compute different rows.
    unsafe {
        shape.product(packed.as_ptr(), 0..split, &tokens, &outs);
        shape.product(packed.as_ptr(), split..shape.n_tiles(), &tokens, &outs);
    }
    out
}

#[test]
fn products_are_those_of_double_precision_and_the_same_for_every_width() {
    let mut random = Random(1);
    for cpu in Cpu::all() {
        for weights in ALL {
            for (n_in, n_out) in [(256, 16), (512, 37), (768, 100)] {
                let shape = Shape::new(cpu, weights, n_in, n_out).unwrap();
                let raw = Raw::random(weights, &shape, n_out, &mut random);
                let mut packed = vec![0xaa; shape.packed()];
                shape.pack(&raw, 0..shape.n_tiles(), &mut packed);
                let x: Vec<Vec<f32>> = (0..19).map(|_| (0..n_in).map(|_| random.float() * 3.0).collect()).collect();
                let quantized: Vec<Vec<u8>> = x
                    .iter()
                    .map(|x| {
                        let mut out = vec![0; shape.activations()];
                        shape.quantize(x, &mut out);
                        out
                    })
                    .collect();
                let singles: Vec<Vec<f32>> = quantized
                    .iter()
                    .map(|y| products(&shape, &packed, std::slice::from_ref(y), n_out, 1).remove(0))
                    .collect();
                for n in [2, 3, 4, 5, 6, 7, 8, 9, 19] {
                    let wide = products(&shape, &packed, &quantized[..n], n_out, n);
                    for (wide, single) in wide.iter().zip(&singles) {
                        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                        assert_eq!(bits(wide), bits(single), "{cpu:?} {weights:?} {n_in} x {n_out}, {n} tokens");
                    }
                }
                for (row, raw) in raw.chunks_exact(shape.raw_row()).enumerate() {
                    let w = row_values(weights, raw);
                    for (token, x) in x.iter().enumerate() {
                        let largest = x.iter().fold(0f32, |a, b| a.max(b.abs()));
                        // Rounding an activation costs at most half a step of its block, each.
                        let bound: f64 = w.iter().map(|w| w.abs()).sum::<f64>() * f64::from(largest) / 254.0 * 1.01;
                        let exact: f64 = w.iter().zip(x).map(|(w, &x)| w * f64::from(x)).sum();
                        let found = f64::from(singles[token][row]);
                        assert!((found - exact).abs() <= bound, "{cpu:?} {weights:?} row {row}: {found}, {exact}");
                    }
                }
            }
        }
    }
}

#[test]
fn plain_numbers_are_multiplied_alike_for_every_number_of_tokens() {
    let mut random = Random(2);
    for cpu in Cpu::all() {
        for numbers in [Numbers::F32, Numbers::F16, Numbers::BF16] {
            for (n_in, n_rows) in [(1, 3), (16, 5), (37, 4), (576, 9)] {
                let values: Vec<f32> = (0..n_in * n_rows).map(|_| random.float()).collect();
                // Numbers that all three types hold exactly.
                let values: Vec<f32> = values.iter().map(|x| (x * 64.0).round() / 64.0).collect();
                let bytes: Vec<u8> = values
                    .iter()
                    .flat_map(|&x| match numbers {
                        Numbers::F32 => x.to_le_bytes().to_vec(),
                        Numbers::F16 => f16_bits(x).to_le_bytes().to_vec(),
                        Numbers::BF16 => ((x.to_bits() >> 16) as u16).to_le_bytes().to_vec(),
                    })
                    .collect();
                let x: Vec<Vec<f32>> = (0..6).map(|_| (0..n_in).map(|_| random.float()).collect()).collect();
                let run = |x: &[Vec<f32>]| {
                    let mut out = vec![vec![f32::NAN; n_rows]; x.len()];
                    let tokens: Vec<_> = x.iter().map(|x| x.as_ptr()).collect();
                    let outs: Vec<_> = out.iter_mut().map(|out| out.as_mut_ptr()).collect();
                    let rows = (bytes.as_ptr(), n_in * numbers.size(), n_rows);
                    // SAFETY: rows, tokens and outputs have these lengths.
                    unsafe { dense(cpu, numbers, rows, n_in, &tokens, &outs) };
                    out
                };
                let singles: Vec<_> = x.iter().map(|x| run(std::slice::from_ref(x)).remove(0)).collect();
                for n in 2..=6 {
                    assert_eq!(run(&x[..n]), singles[..n], "{cpu:?} {numbers:?} {n_in}, {n} tokens");
                }
                for (x, found) in x.iter().zip(&singles) {
                    for (row, found) in values.chunks_exact(n_in).zip(found) {
                        let exact: f64 = row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                        let size: f64 = row.iter().zip(x).map(|(&w, &x)| f64::from(w * x).abs()).sum();
                        assert!((f64::from(*found) - exact).abs() <= 1e-5 * size.max(1e-3), "{cpu:?} {numbers:?}");
                    }
                }
            }
        }
    }
}

/// The bits of a number that half precision holds exactly, of at most 1.
fn f16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    if x == 0.0 {
        return 0;
    }
    (bits >> 16 & 0x8000) as u16 | ((((bits >> 23 & 0xff) + 15 - 127) << 10) as u16 | (bits >> 13 & 0x3ff) as u16)
}

#[test]
fn what_is_not_finite_is_seen_in_the_product() {
    for cpu in Cpu::all() {
        for weights in ALL {
            let shape = Shape::new(cpu, weights, 512, 16).unwrap();
            let raw = Raw::random(weights, &shape, 16, &mut Random(3));
            let mut packed = vec![0; shape.packed()];
            shape.pack(&raw, 0..shape.n_tiles(), &mut packed);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![0.5; 512];
                x[77] = bad;
                let mut y = vec![0; shape.activations()];
                shape.quantize(&x, &mut y);
                let out = products(&shape, &packed, &[y], 16, 0).remove(0);
                assert!(out.iter().all(|value| value.is_nan()), "{cpu:?} {weights:?} {bad}");
            }
            for tiny in [0.0, -0.0, f32::MIN_POSITIVE, 1e-45, 1e-37] {
                let mut y = vec![0; shape.activations()];
                shape.quantize(&[tiny; 512], &mut y);
                let out = products(&shape, &packed, &[y], 16, 0).remove(0);
                assert!(out.iter().all(|value| value.abs() < 1e-30), "{cpu:?} {weights:?} {tiny}");
            }
        }
    }
}
