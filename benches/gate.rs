//! What the runtime and the gate cost beside plain llama.cpp, in one process, on one machine.
//!
//! `cargo bench --bench gate -- [MODEL.gguf] [--rounds N]` (default: the default model, 12 rounds). Everything is timed
//! in turn within each round, so that a machine whose speed drifts changes all of it alike; the medians and the ratios
//! to plain llama.cpp of the same round are what to quote. Nothing here judges.

#[path = "../tests/common/mod.rs"]
mod common;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use common::plain::Plain;
use offramp::gate::{Gate, Tap};
use offramp::{GenerateParams, Logits, Model, ModelParams, Sampler, SamplerParams, Session, SessionParams, Token};

/// Tokens that one timed run decodes.
const N: usize = 32;
const N_CTX: u32 = 1024;

fn main() {
    let (path, rounds) = arguments();
    let model = Model::load(&path, &ModelParams::default()).expect("the model loads");
    let text = "The history of the bicycle begins in the nineteenth century, when several inventors in Europe built \
                machines with two wheels, a frame and a saddle. "
        .repeat(2);
    let prompt = model.vocab().tokenize(&text, true, false).expect("tokenizes");
    let support = model.gate_support().expect("the self-test runs");
    println!("model {}\n{}\n{support}\n", path.display(), model.info().description);

    let mut plain = Plain::load(&path, N_CTX);
    let mut session = Session::new(&model, &params(false)).expect("a session");
    let mut gated = Session::new(&model, &params(true)).expect("a gated session");
    let reply = plain.greedy(&prompt, N);
    assert_eq!(reply.len(), N, "the model ended its reply early: choose another prompt");

    let n_layer = model.info().n_layer;
    let depths = [n_layer / 4, n_layer / 2, n_layer * 3 / 4].map(|n| n.saturating_sub(1));
    let mut rows: Vec<Row> = Vec::new();
    for round in 0..=rounds {
        let mut times: Vec<(String, f64)> = Vec::new();
        times.push(("plain llama.cpp loop".into(), plain_loop(&mut plain, &prompt, &reply)));
        times.push(("session, no gate".into(), session_loop(&mut session, &prompt)));
        let gate = gated.gate();
        times.push(("gate installed, no taps".into(), full(gate, &prompt, &reply)));
        if support.can_resume() {
            for layer in depths {
                times.push((
                    format!("stop after {} of {n_layer} blocks", layer + 1),
                    stop(gate, &prompt, &reply, layer),
                ));
            }
        }
        times.push(("stop at result_norm".into(), stop_at_norm(gate, &prompt, &reply)));
        for n_logits in [0, 1, 2, 4] {
            let time = verify(gate, &prompt, &reply, n_logits);
            times.push((format!("verify 4, logits for {n_logits}, a batch"), time));
        }
        if support.can_resume() {
            let layer = depths[1];
            for width in [1, 2, 4, 8] {
                let time = resume(gate, &prompt, &reply, layer, width);
                times.push((format!("resume {width} after {} blocks, a batch", layer + 1), time));
            }
        }
        // The first round warms caches and builds graphs.
        if round > 0 {
            record(&mut rows, &times);
        }
    }
    report(&rows);
}

struct Row {
    name: String,
    ms: Vec<f64>,
    ratio: Vec<f64>,
}

fn record(rows: &mut Vec<Row>, times: &[(String, f64)]) {
    let base = times[0].1;
    for (name, ms) in times {
        let index = rows.iter().position(|row| row.name == *name).unwrap_or_else(|| {
            rows.push(Row { name: name.clone(), ms: Vec::new(), ratio: Vec::new() });
            rows.len() - 1
        });
        rows[index].ms.push(*ms);
        rows[index].ratio.push(base / ms);
    }
}

fn report(rows: &[Row]) {
    println!("{:34} {:>9} {:>9} {:>7} {:>15}", "", "ms median", "ms min", "speed", "speed 10-90 %");
    for row in rows {
        println!(
            "{:34} {:9.3} {:9.3} {:7.3} {:>7.3}-{:.3}",
            row.name,
            quantile(&row.ms, 0.5),
            quantile(&row.ms, 0.0),
            quantile(&row.ratio, 0.5),
            quantile(&row.ratio, 0.1),
            quantile(&row.ratio, 0.9)
        );
    }
    println!("\nms: a token, or a batch where named. speed: plain llama.cpp's time of the same round over this one.");
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

fn params(gate: bool) -> SessionParams {
    let mut params = SessionParams::default();
    params.n_ctx = N_CTX;
    params.gate = gate;
    params
}

/// Milliseconds a token of greedy decoding by hand.
fn plain_loop(plain: &mut Plain, prompt: &[Token], reply: &[Token]) -> f64 {
    plain.clear();
    plain.next(prompt);
    let start = Instant::now();
    for &token in reply {
        plain.next(&[token]);
    }
    start.elapsed().as_secs_f64() * 1e3 / reply.len() as f64
}

/// Milliseconds a token of [`Session::generate`], sampling and text included.
fn session_loop(session: &mut Session, prompt: &[Token]) -> f64 {
    session.clear();
    session.set_prompt(prompt, &mut |_| {}).expect("the prompt decodes");
    let mut greedy = SamplerParams::default();
    greedy.temperature = 0.0;
    let mut sampler = Sampler::new(session.model(), &greedy).expect("a sampler");
    let mut params = GenerateParams::default();
    // The first token needs no decode: its logits are the prompt's.
    params.max_tokens = N + 1;
    params.ignore_eos = true;
    let start = Instant::now();
    let made = session.generate(&mut sampler, &params, &mut |_| ControlFlow::Continue(())).expect("it generates");
    start.elapsed().as_secs_f64() * 1e3 / (made.tokens.len() - 1) as f64
}

fn restart(gate: &mut Gate, prompt: &[Token]) {
    gate.clear();
    gate.decode(prompt, Logits::Last).expect("the prompt decodes");
}

fn full(gate: &mut Gate, prompt: &[Token], reply: &[Token]) -> f64 {
    restart(gate, prompt);
    let start = Instant::now();
    for &token in reply {
        gate.decode(&[token], Logits::Last).expect("decodes");
        std::hint::black_box(gate.logits(0));
    }
    start.elapsed().as_secs_f64() * 1e3 / reply.len() as f64
}

fn stop(gate: &mut Gate, prompt: &[Token], reply: &[Token], layer: u32) -> f64 {
    restart(gate, prompt);
    let start = Instant::now();
    for &token in reply {
        gate.decode_tapped(&[token], &[Tap::Layer(layer)], &mut |_, _| ControlFlow::Break(())).expect("decodes");
    }
    start.elapsed().as_secs_f64() * 1e3 / reply.len() as f64
}

fn stop_at_norm(gate: &mut Gate, prompt: &[Token], reply: &[Token]) -> f64 {
    restart(gate, prompt);
    let start = Instant::now();
    for &token in reply {
        gate.decode_tapped(&[token], &[Tap::ResultNorm], &mut |_, _| ControlFlow::Break(())).expect("decodes");
    }
    start.elapsed().as_secs_f64() * 1e3 / reply.len() as f64
}

/// Milliseconds of a batch of four of which so many get logits.
fn verify(gate: &mut Gate, prompt: &[Token], reply: &[Token], n_logits: usize) -> f64 {
    restart(gate, prompt);
    let mut times = Vec::new();
    for chunk in reply.chunks_exact(4) {
        let start = Instant::now();
        gate.verify(chunk, &mut |_| Ok(n_logits)).expect("decodes");
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    quantile(&times, 0.5)
}

/// Milliseconds of one catch-up of `width` tokens; their first layers are not timed.
fn resume(gate: &mut Gate, prompt: &[Token], reply: &[Token], layer: u32, width: usize) -> f64 {
    restart(gate, prompt);
    let mut times = Vec::new();
    for chunk in reply.chunks_exact(width) {
        for &token in chunk {
            gate.decode_tapped(&[token], &[Tap::Layer(layer)], &mut |_, _| ControlFlow::Break(())).expect("decodes");
        }
        let start = Instant::now();
        gate.catch_up(&[], &mut |_, _| ControlFlow::Continue(())).expect("catches up");
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    quantile(&times, 0.5)
}

fn arguments() -> (PathBuf, usize) {
    let (mut path, mut rounds) = (None, 12);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Cargo passes this to every bench.
            "--bench" => {}
            "--rounds" => rounds = arguments.next().and_then(|n| n.parse().ok()).expect("--rounds N"),
            _ => path = Some(PathBuf::from(argument)),
        }
    }
    (path.unwrap_or_else(common::default_model_path), rounds)
}
