//! `offramp inspect`, `--list-devices` and `--version`: what a model, a machine and a build are.

use std::io::{self, Write};

use offramp::Model;

use crate::args::InspectArgs;
use crate::failure::Failure;
use crate::{interrupt, output};

/// What build.rs found out, by name.
const BUILD: &[(&str, &str)] = &[
    ("commit", env!("OFFRAMP_BUILD_COMMIT")),
    ("target", env!("OFFRAMP_BUILD_TARGET")),
    ("profile", env!("OFFRAMP_BUILD_PROFILE")),
    ("target-cpu", env!("OFFRAMP_BUILD_CPU")),
    ("llama-cpp-sys-2", env!("OFFRAMP_BUILD_LLAMA")),
];

/// Features that can be built with.
const FEATURES: &[(&str, bool)] = &[
    ("cuda", cfg!(feature = "cuda")),
    ("metal", cfg!(feature = "metal")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("dynamic-backends", cfg!(feature = "dynamic-backends")),
    ("hf", cfg!(feature = "hf")),
    ("serve", cfg!(feature = "serve")),
];

/// # Errors
/// When the model does not load, or whoever reads the output has gone.
pub fn inspect(arguments: &InspectArgs) -> Result<(), Failure> {
    interrupt::install(interrupt::leave)?;
    let model = arguments.model.load()?;
    let support = model.gate_support()?.to_string();
    let mut out = io::stdout().lock();
    write_info(&mut out, &model)?;
    let session = arguments.model.session_params(model.info().n_ctx_train);
    let memory = offramp::memory_estimate(&model.info().path, &session)?;
    writeln!(out, "needs: {memory}, with a context of {} tokens", session.n_ctx)?;
    writeln!(out, "layer gate:\n  {}", support.replace('\n', "\n  "))?;
    Ok(())
}

fn write_info(out: &mut impl Write, model: &Model) -> io::Result<()> {
    let info = model.info();
    writeln!(out, "file: {}", info.path.display())?;
    if info.n_parts > 1 {
        writeln!(out, "parts: {} files", info.n_parts)?;
    }
    if let Some(name) = &info.name {
        writeln!(out, "name: {}", output::tamed(name))?;
    }
    writeln!(out, "architecture: {} ({})", info.architecture, output::quantization(info))?;
    writeln!(out, "weights: {} in {} MiB", info.n_params, info.size >> 20)?;
    writeln!(out, "layers: {}", info.n_layer)?;
    writeln!(out, "hidden state: {} values", info.n_embd)?;
    writeln!(out, "vocabulary: {} tokens", info.n_vocab)?;
    writeln!(out, "trained context: {} tokens", info.n_ctx_train)?;
    if info.n_swa > 0 {
        writeln!(out, "sliding window: {} tokens", info.n_swa)?;
    }
    let memory = match (info.recurrent, info.hybrid) {
        (true, _) => "recurrent state",
        (_, true) => "K/V cache and recurrent state",
        _ => "K/V cache",
    };
    writeln!(out, "memory: {memory}")?;
    writeln!(out, "chat template: {}", if model.chat_template().is_some() { "yes" } else { "none" })?;
    write_heads(out, model)
}

/// Where tokens can leave, and for which agreements they do.
fn write_heads(out: &mut impl Write, model: &Model) -> io::Result<()> {
    if !model.has_heads() {
        return writeln!(out, "exit heads: none");
    }
    let last = model.info().n_layer.saturating_sub(1);
    let layers: Vec<String> = model.exit_layers().iter().map(u32::to_string).collect();
    let after = match layers.len() {
        0 => "none".to_owned(),
        1 => format!("after layer {} of 0 to {last}", layers.join(", ")),
        _ => format!("after layers {} of 0 to {last}", layers.join(", ")),
    };
    writeln!(out, "exit heads: {after}, and a screen of the output matrix")?;
    let levels = model.exit_levels();
    for (level, exits) in &levels {
        writeln!(out, "  agreement {level}: {}", if *exits { "certified" } else { "not certified, nothing exits" })?;
    }
    if levels.is_empty() {
        writeln!(out, "  never calibrated, nothing exits")?;
    }
    if model.has_draft_head() {
        writeln!(out, "  a head drafts tokens, for the model to verify")?;
    }
    Ok(())
}

/// Features that this was built with.
pub fn features() -> Vec<&'static str> {
    FEATURES.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect()
}

/// # Errors
/// When whoever reads the output has gone.
pub fn print_devices() -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for device in offramp::devices() {
        let (free, total) = (device.memory_free >> 20, device.memory_total >> 20);
        writeln!(out, "{}: {} ({}), {free} of {total} MiB free", device.name, device.description, device.kind)?;
    }
    Ok(())
}

/// Whose kernels compute quantized weights on the processor, in words.
pub fn kernels() -> String {
    match offramp::kernels_here() {
        Ok(set) => format!("offramp's, {set}"),
        Err(reason) => format!("llama.cpp's: {reason}"),
    }
}

/// # Errors
/// When whoever reads the output has gone.
pub fn print_version(verbose: bool) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "offramp {}", env!("CARGO_PKG_VERSION"))?;
    if verbose {
        for (name, value) in BUILD {
            writeln!(out, "{name}: {value}")?;
        }
        writeln!(out, "features: {}", features().join(" "))?;
        writeln!(out, "CPU features that ggml uses: {}", offramp::cpu_features().join(" "))?;
        writeln!(out, "kernels: {}", kernels())?;
    }
    Ok(())
}
