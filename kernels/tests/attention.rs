//! Attention against a plain f64 one, and the promise that its bits depend on the visible cells alone.

use offramp_kernels::attention::*;

/// Numbers in a fixed, even order (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    /// About normal, from four even ones.
    fn value(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).sum::<f32>() * 0.87
    }
}

/// The nearest half of a value in the range of halves.
fn to_half(x: f32) -> u16 {
    let sign = ((x.to_bits() >> 16) & 0x8000) as u16;
    if x.is_infinite() {
        return sign | 0x7c00;
    }
    // The product brings a half's bits to the place of an f32's upper ones; adding 0xfff rounds them, ties up.
    let bits = (x.abs() * f32::from_bits((127 - 112) << 23)).to_bits();
    sign | ((bits + 0xfff + ((bits >> 13) & 1)) >> 13) as u16
}

/// The bytes of one row.
fn encode(ty: Type, row: &[f32]) -> Vec<u8> {
    match ty {
        Type::F32 => row.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Type::F16 => row.iter().flat_map(|x| to_half(*x).to_le_bytes()).collect(),
        Type::Bf16 => row.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect(),
        Type::Q8_0 => row
            .chunks(32)
            .flat_map(|block| {
                let scale = to_half(block.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0);
                let unit = half(scale).max(1e-20);
                let values = block.iter().map(move |x| (x / unit).round().clamp(-127.0, 127.0) as i8 as u8);
                scale.to_le_bytes().into_iter().chain(values)
            })
            .collect(),
    }
}

/// A row of K and V of every head, and the mask's value where a token sees it.
#[derive(Clone)]
struct Cell {
    k: Vec<Vec<u8>>,
    v: Vec<Vec<u8>>,
}

/// The fixed part of a case.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dk: usize,
    dv: usize,
    head: usize,
    head_kv: usize,
    k: Type,
    v: Type,
    max_bias: f32,
    softcap: f32,
    sinks: bool,
}

impl Shape {
    fn random(r: &mut Random) -> Shape {
        let (k, v) = (
            r.pick(&[Type::F16, Type::F16, Type::Q8_0, Type::F32, Type::Bf16]),
            r.pick(&[Type::F16, Type::Q8_0, Type::F32, Type::Bf16]),
        );
        let size = |r: &mut Random, ty| match ty {
            Type::Q8_0 => r.pick(&[32, 64, 96, 128, 256]),
            _ => r.pick(&[64, 64, 80, 96, 128, 256, 1, 7, 36, 72]),
        };
        let head_kv = 1 + r.below(3);
        Shape {
            dk: size(r, k),
            dv: size(r, v),
            head: head_kv * r.pick(&[1, 2, 3, 4, 7, 8, 20]),
            head_kv,
            k,
            v,
            max_bias: r.pick(&[0.0, 0.0, 8.0]),
            softcap: r.pick(&[0.0, 0.0, 30.0]),
            sinks: r.below(3) == 0,
        }
    }
    fn cell(&self, r: &mut Random) -> Cell {
        let mut rows = |ty, d| -> Vec<Vec<u8>> {
            (0..self.head_kv).map(|_| encode(ty, &(0..d).map(|_| r.value()).collect::<Vec<_>>())).collect()
        };
        Cell { k: rows(self.k, self.dk), v: rows(self.v, self.dv) }
    }
    fn query(&self, r: &mut Random) -> Vec<f32> {
        (0..self.head * self.dk).map(|_| 2.0 * r.value()).collect()
    }
    fn sinks(&self) -> Option<Vec<f32>> {
        self.sinks.then(|| (0..self.head).map(|i| i as f32 * 0.7 - 1.0).collect())
    }
}

/// A batch over one cache: each token's heads of Q, and the bits of its mask's row.
struct Batch {
    shape: Shape,
    cells: Vec<Cell>,
    tokens: Vec<(Vec<f32>, Vec<u16>)>,
    masked: bool,
}

const HIDDEN: u16 = 0xfc00;

impl Batch {
    /// Computes the batch: units in an order of `seed`'s, as `n_threads` would divide them.
    fn run(&self, isa: Isa, n_threads: usize, seed: u64) -> Vec<f32> {
        let (s, n_kv) = (&self.shape, self.cells.len());
        let (k_row, v_row) = (s.k.row_bytes(s.dk), s.v.row_bytes(s.dv));
        // K as llama.cpp lays it, heads beside each other; V head after head, to have another stride.
        let k: Vec<u8> = self.cells.iter().flat_map(|c| c.k.concat()).collect();
        let v: Vec<u8> = (0..s.head_kv).flat_map(|h| self.cells.iter().flat_map(move |c| c.v[h].clone())).collect();
        let q: Vec<u8> = self.tokens.iter().flat_map(|t| t.0.iter().flat_map(|x| x.to_le_bytes())).collect();
        let mask: Vec<u8> = self.tokens.iter().flat_map(|t| t.1.iter().flat_map(|x| x.to_le_bytes())).collect();
        let sinks = s.sinks();
        let n = self.tokens.len();
        let problem = Problem {
            q: Tensor {
                data: &q,
                ty: Type::F32,
                ne: [s.dk, n, s.head, 1],
                nb: [4, 4 * s.dk * s.head, 4 * s.dk, q.len()],
            },
            k: Tensor {
                data: &k,
                ty: s.k,
                ne: [s.dk, n_kv, s.head_kv, 1],
                nb: [s.k.block_bytes(), k_row * s.head_kv, k_row, k.len()],
            },
            v: Tensor {
                data: &v,
                ty: s.v,
                ne: [s.dv, n_kv, s.head_kv, 1],
                nb: [s.v.block_bytes(), v_row, v_row * n_kv, v.len()],
            },
            mask: self.masked.then_some(Tensor {
                data: &mask,
                ty: Type::F16,
                ne: [n_kv, n, 1, 1],
                nb: [2, 2 * n_kv, mask.len(), mask.len()],
            }),
            sinks: sinks.as_deref(),
            scale: 1.0 / (s.dk as f32).sqrt(),
            max_bias: s.max_bias,
            logit_softcap: s.softcap,
        };
        run(problem, isa, n_threads, seed)
    }

    /// What token `t` must give, in f64.
    fn expected(&self, t: usize) -> Vec<f64> {
        let s = &self.shape;
        let (query, mask) = &self.tokens[t];
        let mut out = Vec::new();
        for h in 0..s.head {
            let whole = 1 << s.head.ilog2();
            let slope = match () {
                _ if s.max_bias == 0.0 => 1.0,
                _ if h < whole => 2f64.powf(-f64::from(s.max_bias) / whole as f64).powi(h as i32 + 1),
                _ => 2f64.powf(-f64::from(s.max_bias) / 2.0 / whole as f64).powi(2 * (h - whole) as i32 + 1),
            };
            let kv = h / (s.head / s.head_kv);
            let mut scores: Vec<(f64, Option<&Cell>)> = Vec::new();
            for (cell, bits) in self.cells.iter().zip(mask).filter(|(_, bits)| !self.masked || **bits != HIDDEN) {
                let dot: f64 =
                    (0..s.dk).map(|i| f64::from(query[h * s.dk + i]) * f64::from(s.k.value(&cell.k[kv], i))).sum();
                let mut x = dot / (s.dk as f64).sqrt();
                if s.softcap != 0.0 {
                    x = f64::from(s.softcap) * (x / f64::from(s.softcap)).tanh();
                }
                let bias = if self.masked { f64::from(half(*bits)) } else { 0.0 };
                scores.push((x + slope * bias, Some(cell)));
            }
            if let Some(sinks) = s.sinks() {
                scores.push((f64::from(sinks[h]), None));
            }
            let most = scores.iter().fold(f64::NEG_INFINITY, |a, s| a.max(s.0));
            let sum: f64 = scores.iter().map(|s| (s.0 - most).exp()).sum();
            for i in 0..s.dv {
                let value = |c: &Option<&Cell>| c.map_or(0.0, |c| f64::from(s.v.value(&c.v[kv], i)));
                let total: f64 = scores.iter().map(|(x, c)| (x - most).exp() * value(c)).sum();
                out.push(if scores.is_empty() { 0.0 } else { total / sum });
            }
        }
        out
    }
}

/// Runs all units in a shuffled order on a few workers, then the merges.
fn run(problem: Problem, isa: Isa, n_threads: usize, seed: u64) -> Vec<f32> {
    let plan = Plan::new(problem, isa, n_threads).expect("a sound problem");
    let mut out = vec![f32::NAN; plan.outputs()];
    let mut partials = vec![f32::NAN; plan.partials()];
    // SAFETY: one thread runs every unit and merge once, merges last.
    let (out_shared, partials) =
        unsafe { (Shared::new(out.as_mut_ptr(), out.len()), Shared::new(partials.as_mut_ptr(), partials.len())) };
    let mut scratch: Vec<Vec<u8>> = (0..3).map(|i| vec![0xff; plan.scratch_bytes() + i]).collect();
    let mut workers: Vec<Worker> = scratch.iter_mut().map(|s| Worker::new(&plan, s)).collect();
    let mut r = Random(seed);
    let mut units: Vec<usize> = (0..plan.units()).collect();
    for i in (1..units.len()).rev().filter(|_| seed != 0) {
        units.swap(i, r.below(i + 1));
    }
    for unit in units {
        workers[r.below(3)].run(unit, &out_shared, &partials);
    }
    for row in 0..plan.merges() {
        workers[r.below(3)].merge(row, &out_shared, &partials);
    }
    drop(workers);
    out
}

/// Mask rows of `n` tokens over `n_kv` cells, of several kinds.
fn masks(r: &mut Random, n: usize, n_kv: usize, biased: bool) -> Vec<Vec<u16>> {
    let kind = r.below(5);
    let window = 1 + r.below(n_kv);
    (0..n)
        .map(|t| {
            let end = n_kv.saturating_sub(n - t - 1);
            (0..n_kv)
                .map(|cell| {
                    let shown = match kind {
                        0 => cell < end,
                        1 => cell < end && cell + window >= end,
                        2 => cell % 3 == t % 3,
                        3 => r.below(4) > 0,
                        _ => t % 4 != 1 && cell < end && cell % 5 != 2,
                    };
                    match shown {
                        false => HIDDEN,
                        true if biased => to_half(-((cell as f32 - t as f32).abs())),
                        true => 0,
                    }
                })
                .collect()
        })
        .collect()
}

#[test]
fn halves_are_exact() {
    for bits in 0..=u16::MAX {
        let x = half(bits);
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
        let expected = match exponent {
            0 => fraction / 1024.0 * 2f64.powi(-14),
            31 if fraction == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
        };
        assert!(x.is_nan() && expected.is_nan() || f64::from(x.abs()) == expected, "{bits:#x}");
        assert_eq!(x.is_sign_negative(), bits >= 0x8000);
        assert!(x.is_nan() || to_half(x) == bits, "{bits:#x}");
        // Every set reads halves alike.
        for isa in Isa::available() {
            let row: Vec<u8> = std::iter::repeat_n(bits.to_le_bytes(), 16).flatten().collect();
            let out = isa.expand(Type::F16, &row, 16).unwrap();
            assert!(out.iter().all(|y| y.to_bits() == x.to_bits() || x.is_nan() && y.is_nan()), "{isa:?} {bits:#x}");
        }
    }
}

#[test]
fn exp_keeps_its_bound() {
    for isa in Isa::available() {
        let exp = |x: f32| isa.exp(x).unwrap();
        let mut worst = 0f64;
        for i in 0..1_000_000 {
            let x = -87.3 * i as f32 / 1e6;
            worst = worst.max((f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs());
        }
        assert!(worst < 1.5e-7, "{isa:?}: {worst:e}");
        assert_eq!((exp(0.0), exp(-87.4), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0), "{isa:?}");
        assert!(exp(f32::NAN).is_nan(), "{isa:?}");
    }
}

#[test]
fn outputs_are_those_of_f64() {
    let mut r = Random(28);
    let mut worst = 0f64;
    for case in 0..120 {
        let shape = Shape::random(&mut r);
        let n_kv = match case % 10 {
            0 => 4096 + r.below(300),
            1 => 512 + r.below(600),
            _ => 1 + r.below(300),
        };
        let n = 1 + r.below(if n_kv > 512 { 4 } else { 40 });
        let masked = r.below(6) > 0;
        let cells: Vec<Cell> = (0..n_kv).map(|_| shape.cell(&mut r)).collect();
        let rows = masks(&mut r, n, n_kv, shape.max_bias > 0.0);
        let tokens = rows.into_iter().map(|m| (shape.query(&mut r), m)).collect();
        let batch = Batch { shape, cells, tokens, masked };
        let expected: Vec<f64> = (0..n).flat_map(|t| batch.expected(t)).collect();
        for isa in Isa::available() {
            let out = batch.run(isa, 1 + r.below(8), 1);
            for (i, (x, y)) in out.iter().zip(&expected).enumerate() {
                let error = (f64::from(*x) - y).abs();
                worst = worst.max(error);
                // Values are about 1, scores up to some 30: an f32 score is then 1e-6 to 4e-6 off.
                assert!(error < 1e-5, "{isa:?} case {case} {shape:?} {n} x {n_kv} at {i}: {x} {y}");
            }
        }
    }
    println!("largest error {worst:e}");
}

/// The promise itself. A token's query and visible cells are put into other batches, among other cells, and divided
/// otherwise; its bits stay.
#[test]
fn bits_depend_on_the_visible_cells_alone() {
    let mut r = Random(2828);
    for case in 0..60 {
        let shape = Shape::random(&mut r);
        let n_seen = match case % 12 {
            0 => 4096 + r.below(200),
            1 => 500 + r.below(700),
            _ => r.below(400),
        };
        let seen: Vec<(Cell, u16)> = (0..n_seen)
            .map(|i| (shape.cell(&mut r), if shape.max_bias > 0.0 { to_half(-(i as f32)) } else { 0 }))
            .collect();
        let query = shape.query(&mut r);
        // Alone: nothing but the token and its cells.
        let mut cells: Vec<Cell> = seen.iter().map(|c| c.0.clone()).collect();
        let mut mask: Vec<u16> = seen.iter().map(|c| c.1).collect();
        if n_seen == 0 {
            cells.push(shape.cell(&mut r));
            mask.push(HIDDEN);
        }
        let alone = Batch { shape, cells, tokens: vec![(query.clone(), mask)], masked: true };
        let expected: Vec<Vec<u32>> = Isa::available()
            .into_iter()
            .map(|isa| alone.run(isa, 1, 0).iter().map(|x| x.to_bits()).collect())
            .collect();
        for variant in 0..4 {
            // Other cells lie before, between and behind the seen ones; what they hold may be anything.
            let share = r.pick(&[0, 1, 2, 10]);
            let mut cells = Vec::new();
            let mut mask = Vec::new();
            let hidden = |r: &mut Random, cells: &mut Vec<Cell>, mask: &mut Vec<u16>| {
                let mut cell = shape.cell(r);
                if r.below(2) == 0 {
                    cell.k.iter_mut().chain(&mut cell.v).for_each(|row| row.fill(0xff));
                }
                cells.push(cell);
                mask.push(HIDDEN);
            };
            for (cell, bits) in &seen {
                while share > 0 && r.below(share + 1) == 0 {
                    hidden(&mut r, &mut cells, &mut mask);
                }
                cells.push(cell.clone());
                mask.push(*bits);
            }
            let behind = r.pick(&[1, 7, 64, 300]);
            for _ in 0..behind {
                hidden(&mut r, &mut cells, &mut mask);
            }
            // Other tokens: some see what this one sees, a part of it, or other cells.
            let n = 1 + r.below(if n_seen > 512 { 6 } else { 70 });
            let place = r.below(n);
            let kind = r.below(3);
            let tokens = (0..n)
                .map(|t| match (t == place, kind) {
                    (true, _) => (query.clone(), mask.clone()),
                    (_, 0) => {
                        // As in a prompt: the cells of this token, less those at the end or more at the start.
                        let cut = mask.len().saturating_sub(place.abs_diff(t) + behind);
                        let row = mask.iter().enumerate().map(|(i, m)| if i < cut { *m } else { HIDDEN }).collect();
                        (shape.query(&mut r), row)
                    }
                    (_, 1) => {
                        let from = t.min(mask.len());
                        let row = mask.iter().enumerate().map(|(i, m)| if i >= from { *m } else { HIDDEN }).collect();
                        (shape.query(&mut r), row)
                    }
                    _ => (
                        shape.query(&mut r),
                        mask.iter().map(|m| if r.below(2) == 0 { *m } else { m ^ HIDDEN }).collect(),
                    ),
                })
                .collect();
            let batch = Batch { shape, cells, tokens, masked: true };
            for (isa, expected) in Isa::available().into_iter().zip(&expected) {
                let n_threads = r.pick(&[1, 2, 3, 8, 64]);
                let out = batch.run(isa, n_threads, r.next());
                let row = shape.head * shape.dv;
                let bits: Vec<u32> = out[place * row..(place + 1) * row].iter().map(|x| x.to_bits()).collect();
                assert!(
                    bits == *expected,
                    "{isa:?} case {case} variant {variant} {shape:?}: {n_seen} cells of {}, token {place} of {n}, {n_threads} threads",
                    batch.cells.len()
                );
            }
        }
    }
}

#[test]
fn a_missing_mask_shows_all() {
    let mut r = Random(3);
    for _ in 0..10 {
        let shape = Shape { max_bias: 0.0, ..Shape::random(&mut r) };
        let cells: Vec<Cell> = (0..1 + r.below(500)).map(|_| shape.cell(&mut r)).collect();
        let tokens = (0..5).map(|_| (shape.query(&mut r), vec![0; cells.len()])).collect();
        let mut batch = Batch { shape, cells, tokens, masked: true };
        let with = batch.run(Isa::here(), 2, 1);
        batch.masked = false;
        assert_eq!(with, batch.run(Isa::here(), 3, 2), "{shape:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let data = vec![0u8; 4096];
    let rows = |ty: Type, ne: [usize; 4]| {
        let row = ty.row_bytes(ne[0]);
        Tensor { data: &data, ty, ne, nb: [ty.block_bytes(), row, row * ne[1], row * ne[1] * ne[2]] }
    };
    let good = Problem {
        q: rows(Type::F32, [32, 2, 4, 1]),
        k: rows(Type::F16, [32, 8, 2, 1]),
        v: rows(Type::Q8_0, [64, 8, 2, 1]),
        mask: Some(rows(Type::F16, [8, 2, 1, 1])),
        sinks: None,
        scale: 1.0,
        max_bias: 0.0,
        logit_softcap: 0.0,
    };
    let refused = |p: Problem| Plan::new(p, Isa::Plain, 1).err();
    assert_eq!(refused(good), None);
    let shape = |what, p| assert!(matches!(refused(p), Some(Refused::Shape { what: w, .. }) if w == what), "{what}");
    shape("k", Problem { k: rows(Type::F16, [16, 8, 2, 1]), ..good });
    shape("k", Problem { k: rows(Type::F16, [32, 8, 3, 1]), ..good });
    shape("v", Problem { v: rows(Type::F16, [32, 8, 1, 1]), ..good });
    shape("v", Problem { v: Tensor { ne: [48, 8, 2, 1], ..good.v }, ..good });
    shape("k", Problem { k: Tensor { ne: [32, 0, 2, 1], ..good.k }, ..good });
    shape("mask", Problem { mask: Some(rows(Type::F16, [7, 2, 1, 1])), ..good });
    shape("mask", Problem { mask: Some(rows(Type::F16, [8, 1, 1, 1])), ..good });
    shape("sinks", Problem { sinks: Some(&[1.0]), ..good });
    let bytes = Problem { k: Tensor { data: &data[..100], ..good.k }, ..good };
    assert_eq!(refused(bytes), Some(Refused::Bytes { what: "k", end: 1024, found: 100 }));
    let far = Problem { k: Tensor { nb: [2, usize::MAX, 64, 64], ..good.k }, ..good };
    assert!(matches!(refused(far), Some(Refused::Bytes { what: "k", end: usize::MAX, .. })));
    let stride = Problem { k: Tensor { nb: [4, 64, 512, 1024], ..good.k }, ..good };
    assert_eq!(refused(stride), Some(Refused::Stride { what: "k", found: 4, expected: 2 }));
    let ty = Problem { q: rows(Type::F16, [32, 2, 4, 1]), ..good };
    assert_eq!(refused(ty), Some(Refused::Type { what: "q", found: Type::F16, expected: Type::F32 }));
}

/// One head of one sequence.
fn one(t: Tensor, head: usize, seq: usize) -> Tensor {
    Tensor { ne: [t.ne[0], t.ne[1], 1, 1], data: &t.data[head * t.nb[2] + seq * t.nb[3]..], ..t }
}

/// Every sequence and head of one op against an op of that sequence and head alone.
#[test]
fn sequences_and_masks_of_heads_are_their_own() {
    let mut r = Random(4);
    let (dk, dv, n, n_kv, head, head_kv) = (24, 40, 9, 333, 6, 3);
    for (seqs, seqs_kv, mask_heads, mask_seqs) in [(2, 2, 1, 2), (4, 2, 6, 1), (3, 1, 3, 3), (2, 2, 1, 1)] {
        let mut floats = |n: usize| -> Vec<u8> { (0..n).flat_map(|_| r.value().to_le_bytes()).collect() };
        let (q, k, v) = (
            floats(dk * n * head * seqs),
            floats(dk * n_kv * head_kv * seqs_kv),
            floats(dv * n_kv * head_kv * seqs_kv),
        );
        let mask: Vec<u8> = (0..n_kv * n * mask_heads * mask_seqs)
            .flat_map(|_| r.pick(&[0, HIDDEN, to_half(-1.5)]).to_le_bytes())
            .collect();
        let tensor = |data, ty: Type, ne: [usize; 4]| {
            let row = ty.row_bytes(ne[0]);
            Tensor { data, ty, ne, nb: [ty.block_bytes(), row, row * ne[1], row * ne[1] * ne[2]] }
        };
        let whole = Problem {
            q: tensor(&q, Type::F32, [dk, n, head, seqs]),
            k: tensor(&k, Type::F32, [dk, n_kv, head_kv, seqs_kv]),
            v: tensor(&v, Type::F32, [dv, n_kv, head_kv, seqs_kv]),
            mask: Some(tensor(&mask, Type::F16, [n_kv, n, mask_heads, mask_seqs])),
            sinks: None,
            scale: 0.3,
            max_bias: 0.0,
            logit_softcap: 0.0,
        };
        for isa in Isa::available() {
            let out = run(whole, isa, 3, 7);
            for (seq, h) in (0..seqs).flat_map(|seq| (0..head).map(move |h| (seq, h))) {
                let (h_kv, s_kv) = (h / (head / head_kv), seq / (seqs / seqs_kv));
                let alone = Problem {
                    q: one(whole.q, h, seq),
                    k: one(whole.k, h_kv, s_kv),
                    v: one(whole.v, h_kv, s_kv),
                    mask: whole.mask.map(|m| one(m, h % mask_heads, seq % mask_seqs)),
                    ..whole
                };
                let expected = run(alone, isa, 1, 0);
                for t in 0..n {
                    let at = ((seq * n + t) * head + h) * dv;
                    assert_eq!(
                        out[at..at + dv],
                        expected[t * dv..(t + 1) * dv],
                        "{isa:?} sequence {seq} head {h} token {t}"
                    );
                }
            }
        }
    }
}
