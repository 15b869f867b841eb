//! `verify FILE`: structure, weights, and heads against their model.

use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;

use offramp::gguf::exits::{self, BaseCheck, ExitHeads, Form};
use offramp::gguf::{Error, File, preflight};

use crate::inspect::Statistics;
use crate::output::{Output, Progress, escape};

pub fn run(path: &Path, model: Option<&Path>, out: &mut Output) -> anyhow::Result<ExitCode> {
    let mut checks = Vec::new();
    let file = File::open_model(path)?;
    checks.push(format!("structure: {} keys and {} tensors are sound", file.keys().len(), file.tensors().len()));

    let heads = match ExitHeads::open(&file) {
        Ok(heads) => Some(heads),
        Err(Error::NoHeads { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let is_model = heads.as_ref().is_none_or(|heads| heads.form() == Form::Merged);
    if is_model && file.get("general.type").is_none_or(|kind| kind.as_str() == Some("model")) {
        let found = preflight(&file)?;
        checks.push(format!(
            "model: {} with {} layers and a vocabulary of {} can be loaded",
            found.architecture, found.n_layer, found.n_vocab
        ));
    }
    let mut progress = Progress::new("weights");
    not_finite(&file, &mut progress)?;
    checks.push("weights: no NaN, no infinity".into());

    match (&heads, model) {
        (Some(heads), given) => {
            checks.push(format!("heads: {} exits, every tensor as declared", heads.heads().len()));
            progress.next("model");
            let inner = exits::base(&file)?;
            let given = given.map(File::open_model).transpose()?;
            let mut compare =
                |base: &File| heads.check_base(base, BaseCheck::Data, &mut |done, total| progress.step(done, total));
            if let Some(base) = inner.iter().chain(&given).next() {
                compare(base)?;
                checks.push(format!("base: the heads were made for this model, {:?}", escape(&heads.meta().base.name)));
            } else {
                checks.push(format!("base: not compared; name {:?} with --model", escape(&heads.meta().base.name)));
            }
        }
        (None, Some(_)) => bail!("{}: holds no heads that could be compared with a model", path.display()),
        (None, None) => {}
    }
    drop(progress);
    if out.json {
        out.value(&json!({ "ok": true, "checks": checks }))?;
    } else {
        for check in checks {
            out.line(check)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses tensors with values that are no numbers; names the first few.
fn not_finite(file: &File, progress: &mut Progress) -> anyhow::Result<()> {
    let total = file.tensors().iter().map(|tensor| tensor.bytes()).sum();
    let (mut done, mut bad) = (0, Vec::new());
    for tensor in file.tensors() {
        let found = Statistics::of(file, tensor)?.not_finite;
        if found > 0 {
            bad.push(format!("{} ({found})", escape(tensor.name())));
        }
        done += tensor.bytes();
        if !progress.step(done, total) {
            return Err(Error::Interrupted.into());
        }
    }
    if bad.is_empty() {
        return Ok(());
    }
    let more = bad.len().saturating_sub(8);
    bad.truncate(8);
    let more = if more > 0 { format!(" and {more} more tensors") } else { String::new() };
    bail!("weights that are NaN or infinite: {}{more}; the file is damaged or was badly converted", bad.join(", "))
}
