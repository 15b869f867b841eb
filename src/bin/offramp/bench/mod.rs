//! `offramp bench`: what early exits gain on this machine, every mode in one process and prompt after prompt in turn.
//!
//! Greedy, each prompt alone in an empty cache. The modes take turns at going first, so that a machine that slows down
//! slows all of them. What an exit emitted is scored again by the full model, one token at a time as `off` decodes. It
//! measures what `run` does and has no switches of its own for how to decode.

mod measure;
mod report;
mod stats;

use std::time::Duration;

use offramp::{Exits, GenerateParams, Model, SamplerParams, Session, Token};

use crate::args::BenchArgs;
use crate::conversation::{Conversation, Settings};
use crate::failure::Failure;
use crate::prompts::{self, Prompt};
use crate::{interrupt, output};
use measure::{Measured, Rescored};
use report::{ModeReport, Report};

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
    exits: Exits,
    session: Session,
    resident: u64,
    runs: Vec<Measured>,
    rescored: Rescored,
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
    let mut reference = arguments.model.open_session_with(&model, Exits::Off, true)?;
    let mut modes = Vec::new();
    for exits in modes_to_compare(arguments.model.exits) {
        modes.push(open(arguments, &model, exits, &prompts)?);
    }
    output::announce(&reference);
    let n = arguments.n_predict;
    for (i, prompt) in prompts.iter().enumerate() {
        let n_modes = modes.len();
        for turn in 0..n_modes {
            let mode = &mut modes[(turn + i) % n_modes];
            let run = measure::run(&mut mode.session, prompt, n)?;
            mode.runs.push(run);
        }
        // A text that equals `off`'s needs no second scoring.
        let mut scored: Option<(Vec<Token>, Rescored)> = None;
        for mode in &mut modes {
            let Some(run) = mode.runs.last() else { continue };
            let result = match &scored {
                Some((tokens, result)) if *tokens == run.emitted => result.clone(),
                _ => measure::rescore(&mut reference, prompt, &run.emitted)?,
            };
            mode.rescored.add(&result);
            scored.get_or_insert((run.emitted.clone(), result));
        }
        eprintln!("offramp: prompt {} of {}", i + 1, prompts.len());
    }
    let report = Report::new(&model, &arguments.model, n, prompts.len(), modes.iter().map(summary(&modes)).collect());
    report.print(arguments.json, arguments.markdown)
}

fn modes_to_compare(exits: Exits) -> Vec<Exits> {
    if exits == Exits::Off { vec![Exits::Off] } else { vec![Exits::Off, exits] }
}

/// The tokens of each prompt's first turn.
fn tokenize(arguments: &BenchArgs, model: &Model, prompts: &[Prompt]) -> Result<Vec<Vec<Token>>, Failure> {
    let session = arguments.model.open_session_with(model, Exits::Off, false)?;
    let settings = Settings { sampler: SamplerParams::default(), limits: GenerateParams::default(), system: None };
    let conversation = Conversation::new(session, settings, arguments.raw)?;
    prompts.iter().map(|prompt| Ok(conversation.prompt(prompt.turns.first().map_or("", String::as_str))?.1)).collect()
}

fn open(arguments: &BenchArgs, model: &Model, exits: Exits, prompts: &[Vec<Token>]) -> Result<Mode, Failure> {
    let before = measure::resident();
    let mut session = arguments.model.open_session_with(model, exits, false)?;
    if let Some(prompt) = prompts.first() {
        measure::run(&mut session, prompt, N_WARM_UP)?;
    }
    let resident = measure::resident().saturating_sub(before);
    Ok(Mode { exits, session, resident, runs: Vec::new(), rescored: Rescored::default() })
}

fn summary(modes: &[Mode]) -> impl Fn(&Mode) -> ModeReport {
    let off: Vec<f64> =
        modes.first().map(|mode| mode.runs.iter().map(Measured::decode_rate).collect()).unwrap_or_default();
    move |mode| {
        let ratios = mode.runs.iter().zip(&off).map(|(run, off)| run.decode_rate() / off).collect();
        let prompt: (usize, Duration) =
            mode.runs.iter().fold((0, Duration::ZERO), |sum, run| (sum.0 + run.n_prompt, sum.1 + run.prompt));
        let decode: (usize, Duration) =
            mode.runs.iter().fold((0, Duration::ZERO), |sum, run| (sum.0 + run.n_decoded(), sum.1 + run.decode));
        let exits = mode.runs.iter().flat_map(|run| &run.exits).copied().collect();
        ModeReport::new(mode.exits, prompt, decode, ratios, exits, &mode.rescored, mode.resident)
    }
}
