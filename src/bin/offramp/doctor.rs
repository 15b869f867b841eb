//! `offramp doctor`: what this machine and this build can do with models, and what stands in the way. It measures how fast
//! memory is read, because tokens that run through all of a model come no faster than its weights can be read.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use offramp::SessionParams;
use offramp::gguf::Value;
use serde::Serialize;

use crate::failure::Failure;
use crate::{inspect, machine, model_args, throttle};

/// Arguments of `offramp doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Report {
    cpu_features: Vec<String>,
    kernels: String,
    cores: usize,
    hardware_threads: usize,
    threads_to_use: usize,
    memory: u64,
    memory_available: u64,
    /// Bytes a second, by the number of threads.
    bandwidth: Vec<(usize, f64)>,
    devices: Vec<String>,
    models: Vec<Fit>,
    problems: Vec<String>,
}

/// What a model of the cache would do here.
#[derive(Serialize)]
struct Fit {
    name: String,
    /// Bytes that it needs with the default context.
    needs: u64,
    fits: bool,
    /// Bytes that a token at full depth reads.
    reads: Option<u64>,
    /// Tokens a second at full depth, one after another, that reading these allows; `None` where memory sets no limit.
    at_most: Option<f64>,
}

/// # Errors
/// When whoever reads the output has gone.
pub fn doctor(arguments: &DoctorArgs) -> Result<(), Failure> {
    let report = examine();
    if arguments.json {
        println!("{}", serde_json::to_string(&report).map_err(Failure::failed)?);
        return Ok(());
    }
    write(&mut io::stdout().lock(), &report)?;
    Ok(())
}

fn examine() -> Report {
    let (cores, hardware_threads) = machine::cores();
    let (memory, memory_available) = machine::memory();
    let threads = offramp::default_threads();
    let mut counts = vec![1, threads, hardware_threads];
    counts.sort_unstable();
    counts.dedup();
    let bandwidth: Vec<(usize, f64)> = counts.into_iter().filter_map(|n| Some((n, machine::bandwidth(n)?))).collect();
    let best = bandwidth.iter().map(|(_, bytes)| *bytes).reduce(f64::max);
    let cpu_features: Vec<String> = offramp::cpu_features();
    let devices = offramp::devices().into_iter();
    let devices = devices.map(|device| format!("{}, {}", device.name, device.description)).collect();
    let params = model_args::default_session_params();
    let models = models(&params, memory_available, best);
    let mut problems = problems(&cpu_features, memory_available, &models);
    problems.extend(throttle::problems(Path::new("/sys")));
    let load = machine::load();
    if load > hardware_threads as f64 {
        problems.push(format!(
            "other programs keep the processors busy (load {load:.1} on {hardware_threads}): what is measured is what they leave"
        ));
    }
    Report {
        cpu_features,
        kernels: inspect::kernels(),
        cores,
        hardware_threads,
        threads_to_use: threads,
        memory,
        memory_available,
        bandwidth,
        devices,
        models,
        problems,
    }
}

fn models(params: &SessionParams, available: u64, bandwidth: Option<f64>) -> Vec<Fit> {
    let mut paths: Vec<(String, std::path::PathBuf)> = Vec::new();
    if let Ok(path) = crate::resolve::model_file(None, None, false) {
        paths.push(("the default model".to_owned(), path));
    }
    #[cfg(feature = "hf")]
    paths
        .extend(crate::cache::models().into_iter().map(|model| (format!("{} {}", model.repo, model.file), model.path)));
    // A device has a memory of its own, which is not measured.
    let is_cpu = |device: &offramp::Device| device.name.starts_with("CPU");
    let bandwidth = bandwidth.filter(|_| offramp::devices().iter().all(is_cpu));
    let cache = machine::last_cache(Path::new("/sys"));
    let fit = |(name, path): (String, std::path::PathBuf)| {
        // A file that cannot be read is left to `show`, which says why.
        let estimate = offramp::memory_estimate(&path, params).ok()?;
        let needs = estimate.total();
        let reads = reads(&path);
        Some(Fit { name, needs, fits: needs <= available, reads, at_most: at_most(bandwidth, reads, cache) })
    };
    paths.into_iter().filter_map(fit).collect()
}

/// Tokens a second that reading `reads` bytes for each allows. Weights that fit into the caches are not bound by memory.
fn at_most(bandwidth: Option<f64>, reads: Option<u64>, cache: u64) -> Option<f64> {
    let reads = reads.filter(|reads| *reads > cache)?;
    Some(bandwidth? / reads as f64)
}

/// Bytes of the weights that one token at full depth reads: of an embedding only a row, unless it is the output matrix
/// too, and of experts those that are used.
fn reads(path: &Path) -> Option<u64> {
    let file = offramp::gguf::File::open_model(path).ok()?;
    let number = |name: &str| {
        let Some(Value::Str(architecture)) = file.get("general.architecture") else { return None };
        match file.get(&format!("{architecture}.{name}"))? {
            Value::U32(n) => Some(u64::from(n)),
            _ => None,
        }
    };
    let (used, experts) = (number("expert_used_count"), number("expert_count"));
    let has_output = file.tensor("output.weight").is_some();
    let read = file.tensors().iter().map(|tensor| match tensor.name() {
        "token_embd.weight" if has_output => 0,
        name if name.starts_with("exit") || name.starts_with("per_layer_token_embd") => 0,
        name if name.contains("_exps.") => match (used, experts) {
            (Some(used), Some(all @ 1..)) => tensor.bytes() / all * used.min(all),
            _ => tensor.bytes(),
        },
        _ => tensor.bytes(),
    });
    Some(read.fold(0, u64::saturating_add))
}

/// What stands in the way, each with what to do about it.
fn problems(features: &[String], available: u64, models: &[Fit]) -> Vec<String> {
    let has = |name: &str| features.iter().any(|feature| feature.eq_ignore_ascii_case(name));
    let mut found = Vec::new();
    if cfg!(target_arch = "x86_64") && !has("AVX2") {
        found.push(
            "ggml's kernels do without AVX2 and are several times slower: build with -C target-cpu=native, or with the \
             feature dynamic-backends"
                .to_owned(),
        );
    }
    if cfg!(target_arch = "aarch64") && !has("DOTPROD") {
        found.push("ggml's kernels do without the dot product instructions: quantized models are slow".to_owned());
    }
    if available < 512 << 20 {
        found.push(format!("{} of memory are available: only the smallest models fit", machine::size(available)));
    }
    for model in models.iter().filter(|model| !model.fits) {
        found.push(format!("{} does not fit; take a smaller quantization, or a smaller context with -c", model.name));
    }
    if models.is_empty() {
        found.push("there is no model yet: 'make model' fetches the default one, offramp pull others".to_owned());
    }
    found
}

fn write(out: &mut impl Write, report: &Report) -> io::Result<()> {
    writeln!(out, "build: offramp {}, features {}", env!("CARGO_PKG_VERSION"), inspect::features().join(" "))?;
    writeln!(out, "CPU features that ggml uses: {}", report.cpu_features.join(" "))?;
    writeln!(out, "kernels: {}", report.kernels)?;
    writeln!(
        out,
        "cores: {} ({} hardware threads); -t {} is the default: more threads than there are cores for wait for each other",
        report.cores, report.hardware_threads, report.threads_to_use
    )?;
    writeln!(out, "memory: {}, {} available", machine::size(report.memory), machine::size(report.memory_available))?;
    for (n, bytes) in &report.bandwidth {
        writeln!(out, "memory is read at {:.1} GB/s by {n} thread{}", bytes / 1e9, if *n == 1 { "" } else { "s" })?;
    }
    for device in &report.devices {
        writeln!(out, "device: {device}")?;
    }
    for model in &report.models {
        let speed = |speed| {
            format!(
                "; tokens that run through all of it one by one come at {speed:.0}/s at most, as fast as it is read; exits \
                 and drafts may be faster"
            )
        };
        let speed = model.at_most.map_or_else(String::new, speed);
        let fits = if model.fits { "fits" } else { "does not fit" };
        writeln!(out, "model: {}: needs about {}, {fits}{speed}", model.name, machine::size(model.needs))?;
    }
    for problem in &report.problems {
        writeln!(out, "problem: {problem}")?;
    }
    if report.problems.is_empty() {
        writeln!(out, "nothing stands in the way")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_told_where_memory_sets_none() {
        assert_eq!(at_most(Some(28e9), Some(14_000_000_000), 1 << 20), Some(2.0));
        assert_eq!(at_most(Some(28e9), Some(1 << 20), 1 << 20), None, "the caches hold it");
        assert_eq!(at_most(None, Some(1 << 30), 0), None);
        assert_eq!(at_most(Some(28e9), None, 0), None);
    }

    #[test]
    fn what_stands_in_the_way_is_told_with_what_to_do() {
        let model = Fit { name: "big".to_owned(), needs: 9, fits: false, reads: None, at_most: None };
        let found = problems(&[], 1 << 20, &[model]);
        assert!(found.iter().any(|problem| problem.contains("big does not fit")), "{found:?}");
        assert!(found.iter().any(|problem| problem.contains("1 MiB")), "{found:?}");
        assert!(problems(&[], 8 << 30, &[]).iter().any(|problem| problem.contains("make model")));
    }
}
