//! What attention costs: tokens x cells, each instruction set, types of K and V, against reading K and V once.
//!
//! `cargo bench --workspace --bench attention -- [--heads Q,KV] [--dim D] [--threads N] [--isa NAME]`. A line begins with
//! what a plain read of as many bytes reaches; then, for each number of tokens, microseconds of one op, GB/s of K and V
//! counted once, and GMAC/s. Nothing here judges.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use offramp_kernels::attention::{Isa, Plan, Problem, Shared, Tensor, Type, Worker};

fn main() {
    let mut heads = (14, 2);
    let (mut dim, mut threads, mut isas) = (64, 2, Isa::available());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        let number = |s: &str| s.parse::<usize>().expect("a number");
        match arg.as_str() {
            "--heads" => {
                let value = value();
                let (q, kv) = value.split_once(',').expect("--heads Q,KV");
                heads = (number(q), number(kv));
            }
            "--dim" => dim = number(&value()),
            "--threads" => threads = number(&value()),
            "--isa" => {
                let name = value();
                isas.retain(|isa| format!("{isa:?}").eq_ignore_ascii_case(&name));
            }
            "--bench" => {}
            other => panic!("{other} is not known"),
        }
    }
    println!("{} heads, {} of K and V, {dim} values, {threads} threads", heads.0, heads.1);
    for isa in isas {
        for ty in [Type::F16, Type::Q8_0] {
            println!("\n{isa:?} {ty:?}     us, GB/s, GMAC/s");
            for n_kv in [128, 512, 2048, 8192] {
                let row = dim / ty.block() * ty.block_bytes();
                let bytes = 2 * n_kv * heads.1 * row;
                print!("{n_kv:5} cells, read {:5.1} GB/s:", read(bytes, threads));
                for n_tokens in [1, 4, 8, 64, 512] {
                    if n_tokens > n_kv || n_tokens == 512 && isa == Isa::Plain {
                        continue;
                    }
                    let seconds = time(isa, ty, heads, dim, n_tokens, n_kv, threads);
                    // Causal: the last token sees all cells, the first all but those of the tokens behind it.
                    let seen = n_tokens * n_kv - n_tokens * (n_tokens - 1) / 2;
                    let macs = 2 * seen * heads.0 * dim;
                    print!(
                        "  {n_tokens}: {:.0} {:.1} {:.0}",
                        seconds * 1e6,
                        bytes as f64 / seconds / 1e9,
                        macs as f64 / seconds / 1e9
                    );
                }
                println!();
            }
        }
    }
}

/// The best of several runs, in seconds, over a causal batch at the end of the context.
fn time(isa: Isa, ty: Type, heads: (usize, usize), dim: usize, n: usize, n_kv: usize, threads: usize) -> f64 {
    let row = dim / ty.block() * ty.block_bytes();
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    // Halves between 1/4 and 2, of either sign; scales and bytes of a block are such halves too.
    let mut rows: Vec<u8> =
        (0..n_kv * heads.1 * row / 2).flat_map(|_| ((random() as u16 & 0x83ff) | 0x3400).to_le_bytes()).collect();
    if ty == Type::Q8_0 {
        rows.chunks_exact_mut(34).for_each(|block| block[..2].copy_from_slice(&0x2000u16.to_le_bytes()));
    }
    let values = rows.clone();
    let q: Vec<u8> = (0..n * heads.0 * dim).flat_map(|_| (random() as f32 / 65536.0 - 0.5).to_le_bytes()).collect();
    let mask: Vec<u8> = (0..n)
        .flat_map(|t| (0..n_kv).flat_map(move |c| if c + n > n_kv + t { 0xfc00u16 } else { 0 }.to_le_bytes()))
        .collect();
    let of_cells = |data| Tensor {
        data,
        ty,
        ne: [dim, n_kv, heads.1, 1],
        nb: [ty.block_bytes(), row * heads.1, row, row * heads.1 * n_kv],
    };
    let problem = Problem {
        q: Tensor { data: &q, ty: Type::F32, ne: [dim, n, heads.0, 1], nb: [4, 4 * dim * heads.0, 4 * dim, q.len()] },
        k: of_cells(&rows),
        v: of_cells(&values),
        mask: Some(Tensor {
            data: &mask,
            ty: Type::F16,
            ne: [n_kv, n, 1, 1],
            nb: [2, 2 * n_kv, mask.len(), mask.len()],
        }),
        sinks: None,
        scale: 1.0 / (dim as f32).sqrt(),
        max_bias: 0.0,
        logit_softcap: 0.0,
    };
    let plan = Plan::new(problem, isa, threads).expect("a sound problem");
    let mut out = vec![0.0f32; plan.outputs()];
    let mut partials = vec![0.0f32; plan.partials()];
    // SAFETY: threads share units by their number, and wait for each other before the merges.
    let (out, partials) =
        unsafe { (Shared::new(out.as_mut_ptr(), out.len()), Shared::new(partials.as_mut_ptr(), partials.len())) };
    let rounds = (200_000_000 / (n * n_kv * heads.0 * dim)).clamp(3, 2000);
    let barrier = Barrier::new(threads);
    let best = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let (plan, out, partials, barrier) = (&plan, &out, &partials, &barrier);
                scope.spawn(move || {
                    let mut scratch = vec![0u8; plan.scratch_bytes()];
                    let mut best = f64::INFINITY;
                    for _ in 0..rounds {
                        barrier.wait();
                        let start = Instant::now();
                        let mut worker = Worker::new(plan, &mut scratch);
                        let share = |n: usize| n * thread / threads..n * (thread + 1) / threads;
                        for unit in share(plan.units()) {
                            worker.run(unit, out, partials);
                        }
                        if plan.merges() > 0 {
                            barrier.wait();
                            for row in share(plan.merges()) {
                                worker.merge(row, out, partials);
                            }
                        }
                        best = best.min(start.elapsed().as_secs_f64());
                    }
                    best
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().expect("a worker")).fold(0.0, f64::max)
    });
    black_box(best)
}

/// GB/s of a plain sum over as many bytes, the best of several runs of all threads.
fn read(bytes: usize, threads: usize) -> f64 {
    let data: Vec<u64> = (0..bytes as u64 / 8).collect();
    let barrier = Barrier::new(threads);
    let slowest = std::thread::scope(|scope| {
        let workers: Vec<_> = data
            .chunks(data.len().div_ceil(threads))
            .map(|part| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut best = f64::INFINITY;
                    for _ in 0..50 {
                        barrier.wait();
                        let start = Instant::now();
                        black_box(black_box(part).iter().fold(0u64, |a, x| a.wrapping_add(*x)));
                        best = best.min(start.elapsed().as_secs_f64());
                    }
                    best
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().expect("a reader")).fold(0.0, f64::max)
    });
    bytes as f64 / slowest / 1e9
}
