//! `offramp bench`: what early exits gain on this machine, every mode in one process and prompt after prompt in turn.
//!
//! Greedy, each prompt alone in an empty cache. The first row is plain llama.cpp, by its own kernels, which all others
//! are held against. The modes take turns at going first, so that a machine that slows down
//! slows all of them. What was emitted is scored again by the full model, at the widths where it rounds as `off` does. It
//! measures what `run` does and has no switches of its own for how to decode.

mod memory;
mod report;

use std::time::Duration;

use offramp::measure::{Reply, Rescored};
use offramp::{Exits, GenerateParams, Kernels, Kv, Model, SamplerParams, Session, Token};

use crate::args::BenchArgs;
use crate::conversation::{Conversation, Settings};
use crate::failure::Failure;
use crate::prompts::{self, Prompt};
use crate::{interrupt, output, progress};
use report::{ModeReport, Report, Totals};

/// Prompts when none are given.
const PROMPTS: [&str; 6] = [
    "Explain in three sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Translate into German: The train to Hamburg leaves at nine in the morning.",
    "A shop sells pens for 3 dollars and books for 8 dollars. What do 4 pens and 2 books cost?",
    "Summarize the plot of Romeo and Juliet in one paragraph.",
    "List five tips for growing tomatoes on a balcony.",
];

/// Tokens of the decode before the measurement, which fills caches and shows what a mode needs of memory.
const N_WARM_UP: usize = 8;

/// One way of decoding, and what was measured of it.
struct Mode {
    kernels: Kernels,
    exits: Exits,
    /// `None` where nothing is skipped for good.
    kv: Option<Kv>,
    session: Session,
    resident: u64,
    replies: Vec<Reply>,
    rescored: Rescored,
}

impl Mode {
    /// The row's name.
    fn name(&self) -> String {
        if self.kernels == Kernels::LlamaCpp { "llama.cpp".to_owned() } else { self.exits.to_string() }
    }
}

/// # Errors
/// When prompts or the model cannot be read, when a decode fails, and when the user interrupts.
pub fn bench(arguments: &BenchArgs) -> Result<(), Failure> {
    let prompts = match &arguments.prompts {
        Some(path) => prompts::read_file(path)?,
        None => {
            PROMPTS.iter().map(|&text| Prompt { id: serde_json::Value::Null, turns: vec![text.to_owned()] }).collect()
        }
    };
    interrupt::install(|| {})?;
    let model = arguments.model.load()?;
    let prompts = tokenize(arguments, &model, &prompts)?;
    let mut modes = Vec::new();
    // Where our kernels do not run, `off` is llama.cpp.
    if arguments.model.kernels == Kernels::Auto && offramp::kernels_here().is_ok() {
        let plain = arguments.model.load_with(Kernels::LlamaCpp)?;
        modes.push(Mode { kernels: Kernels::LlamaCpp, ..open(arguments, &plain, Exits::Off, None, &prompts)? });
    }
    for (exits, kv) in modes_to_compare(&arguments.model.exits, &arguments.model.kv) {
        modes.push(open(arguments, &model, exits, kv, &prompts)?);
    }
    if let Some(mode) = modes.last() {
        let names: Vec<String> = modes.iter().map(Mode::name).collect();
        output::announce(&mode.session, &format!("modes {}", names.join(", ")));
    }
    let mut rescorer = arguments.model.open_rescorer(&model)?;
    let n = arguments.n_predict;
    let told = progress::counting("measuring", "replies", prompts.len() * modes.len());
    for (i, prompt) in prompts.iter().enumerate() {
        let n_modes = modes.len();
        for turn in 0..n_modes {
            let mode = &mut modes[(turn + i) % n_modes];
            let reply = reply(&mut mode.session, prompt, n)?;
            mode.replies.push(reply);
            told.inc(1);
        }
        // A text that equals `off`'s needs no second scoring.
        let mut scored: Option<(Vec<Token>, Rescored)> = None;
        for mode in &mut modes {
            let Some(reply) = mode.replies.last() else { continue };
            let result = match &scored {
                Some((tokens, result)) if *tokens == reply.tokens => result.with_exits_of(reply),
                _ => Rescored::of(&mut rescorer, prompt, reply, &mut || !interrupt::is_requested())?,
            };
            mode.rescored.add(&result);
            scored.get_or_insert((reply.tokens.clone(), result));
        }
        eprintln!("offramp: prompt {} of {}", i + 1, prompts.len());
    }
    told.finish_and_clear();
    let n_layer = model.info().n_layer;
    let report =
        Report::new(&model, &arguments.model, n, prompts.len(), modes.iter().map(summary(&modes, n_layer)).collect());
    report.print(arguments.json, arguments.markdown)
}

/// `off`, then every mode that is asked for: calibrated exits once with each K/V policy.
fn modes_to_compare(exits: &[Exits], kv: &[Kv]) -> Vec<(Exits, Option<Kv>)> {
    let exits = if exits.is_empty() { &[Exits::Calibrated, Exits::Exact] } else { exits };
    let mut modes = vec![(Exits::Off, None)];
    for &exits in exits {
        match exits {
            Exits::Calibrated => modes.extend(kv.iter().map(|&kv| (exits, Some(kv)))),
            _ => modes.push((exits, None)),
        }
    }
    // Asked for twice, a mode is measured once.
    let mut unique = Vec::new();
    modes.into_iter().for_each(|mode| {
        if !unique.contains(&mode) {
            unique.push(mode);
        }
    });
    unique
}

/// The tokens of each prompt's first turn.
fn tokenize(arguments: &BenchArgs, model: &Model, prompts: &[Prompt]) -> Result<Vec<Vec<Token>>, Failure> {
    let session = arguments.model.open_session_with(model, Exits::Off, Kv::Auto)?;
    let settings = Settings { sampler: SamplerParams::default(), limits: GenerateParams::default(), system: None };
    let conversation = Conversation::new(session, settings, arguments.raw)?;
    prompts.iter().map(|prompt| Ok(conversation.prompt(prompt.turns.first().map_or("", String::as_str))?.1)).collect()
}

fn open(
    arguments: &BenchArgs,
    model: &Model,
    exits: Exits,
    kv: Option<Kv>,
    prompts: &[Vec<Token>],
) -> Result<Mode, Failure> {
    let before = memory::resident();
    let mut session = arguments.model.open_session_with(model, exits, kv.unwrap_or_default())?;
    if let Some(prompt) = prompts.first() {
        reply(&mut session, prompt, N_WARM_UP)?;
    }
    let resident = memory::resident().saturating_sub(before);
    Ok(Mode {
        kernels: Kernels::Auto,
        exits,
        kv,
        session,
        resident,
        replies: Vec::new(),
        rescored: Rescored::default(),
    })
}

/// Decodes `prompt` and at most `n` greedy tokens; Ctrl-C stops it.
fn reply(session: &mut Session, prompt: &[Token], n: usize) -> Result<Reply, Failure> {
    let mut greedy = SamplerParams::default();
    greedy.temperature = 0.0;
    let _cancels = interrupt::cancels(&session.cancel_handle());
    Ok(Reply::decode(session, prompt, &greedy, n)?)
}

fn summary(modes: &[Mode], n_layer: u32) -> impl Fn(&Mode) -> ModeReport {
    let base: Vec<f64> =
        modes.first().map(|mode| mode.replies.iter().map(Reply::decode_rate).collect()).unwrap_or_default();
    move |mode| {
        let replies = || mode.replies.iter();
        let ratios = replies().zip(&base).map(|(reply, base)| reply.decode_rate() / base).collect();
        let prompt: (usize, Duration) =
            replies().fold((0, Duration::ZERO), |sum, reply| (sum.0 + reply.n_prompt, sum.1 + reply.prompt_time));
        let decode: (usize, Duration) =
            replies().fold((0, Duration::ZERO), |sum, reply| (sum.0 + reply.n_decoded(), sum.1 + reply.decode_time));
        let drafts = replies().fold((0, 0), |sum, reply| (sum.0 + reply.n_drafted, sum.1 + reply.n_right));
        let points = replies().flat_map(|reply| reply.exits.iter().copied()).collect();
        let totals = Totals { prompt, decode, ratios, points, drafts, session_bytes: mode.resident };
        ModeReport::new((mode.name(), mode.exits, mode.kv), n_layer, &totals, &mode.rescored)
    }
}
