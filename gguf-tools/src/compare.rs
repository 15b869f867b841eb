//! `compare A B`: which keys and tensors differ, and by how much the weights do.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value as Json, json};

use offramp::gguf::{File, TensorInfo, quants};

use crate::output::{Output, escape};
use crate::split::open;

/// How many blocks are decoded at once.
const BLOCKS: usize = 4096;

pub fn run(a: &Path, b: &Path, out: &mut Output) -> anyhow::Result<ExitCode> {
    let (a, b) = (open(a)?, open(b)?);
    let mut report = Report { lines: Vec::new(), json: Vec::new(), equal: 0 };
    keys(&a, &b, &mut report, out);
    for tensor in a.tensors() {
        match b.tensor(tensor.name()) {
            None => report.add("tensor", tensor.name(), "only in the first file", json!({ "only_in": "a" })),
            Some(other) => tensors(&a, tensor, &b, other, &mut report, out)?,
        }
    }
    for tensor in b.tensors().iter().filter(|tensor| a.tensor(tensor.name()).is_none()) {
        report.add("tensor", tensor.name(), "only in the second file", json!({ "only_in": "b" }));
    }
    let differ = report.json.iter().any(|entry| entry.get("equal").is_none());
    if out.json {
        out.value(&json!({ "differ": differ, "equal": report.equal, "entries": report.json }))?;
    } else {
        for line in &report.lines {
            out.line(line)?;
        }
        let n_differ = report.json.iter().filter(|entry| entry.get("equal").is_none()).count();
        out.line(format!("{} keys and tensors are equal, {n_differ} differ", report.equal))?;
    }
    Ok(if differ { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What was found, as text and as JSON.
struct Report {
    lines: Vec<String>,
    json: Vec<Json>,
    equal: u64,
}

impl Report {
    fn add(&mut self, what: &str, name: &str, text: impl std::fmt::Display, mut value: Json) {
        self.lines.push(format!("{what} {}: {text}", escape(name)));
        value["what"] = json!(what);
        value["name"] = json!(name);
        self.json.push(value);
    }

    fn equal(&mut self, what: &str, name: &str, out: &Output) {
        self.equal += 1;
        if out.verbose {
            self.add(what, name, "equal", json!({ "equal": true }));
        }
    }
}

fn keys(a: &File, b: &File, report: &mut Report, out: &Output) {
    for (name, value) in a.keys() {
        match b.get(name) {
            None => report.add("key", name, "only in the first file", json!({ "only_in": "a" })),
            Some(other) if other == value => report.equal("key", name, out),
            Some(other) => {
                let (left, right) = (out.text_of(&value), out.text_of(&other));
                let text = match (Output::type_of(&value), Output::type_of(&other)) {
                    (ty, other_ty) if ty == other_ty => format!("[{ty}] {left} / {right}"),
                    (ty, other_ty) => format!("[{ty}] {left} / [{other_ty}] {right}"),
                };
                report.add("key", name, text, json!({ "a": out.json_of(&value), "b": out.json_of(&other) }));
            }
        }
    }
    for (name, _) in b.keys().filter(|(name, _)| a.get(name).is_none()) {
        report.add("key", name, "only in the second file", json!({ "only_in": "b" }));
    }
}

fn tensors(
    a: &File,
    left: &TensorInfo,
    b: &File,
    right: &TensorInfo,
    report: &mut Report,
    out: &Output,
) -> anyhow::Result<()> {
    let name = left.name();
    if left.dims4() != right.dims4() {
        let text = format!("dims {:?} / {:?}", left.dims(), right.dims());
        report.add("tensor", name, text, json!({ "dims": [left.dims(), right.dims()] }));
    } else if left.ty() == right.ty() && a.data(left) == b.data(right) {
        report.equal("tensor", name, out);
    } else {
        let (difference, magnitude) = mean_difference(a, left, b, right)?;
        let relative = if difference == 0.0 { 0.0 } else { 100.0 * difference / magnitude };
        let types =
            if left.ty() == right.ty() { left.ty().to_string() } else { format!("{} / {}", left.ty(), right.ty()) };
        let text = format!("{types}, average difference of weights {difference:e}, {relative:.4} % of their magnitude");
        let value = json!({
            "types": [left.ty().name(), right.ty().name()],
            "mean_difference": difference,
            "mean_magnitude": magnitude,
        });
        report.add("tensor", name, text, value);
    }
    Ok(())
}

/// The mean of the weights' absolute differences, and that of the first file's absolute weights.
fn mean_difference(a: &File, left: &TensorInfo, b: &File, right: &TensorInfo) -> anyhow::Result<(f64, f64)> {
    // Whole blocks of both types at once: block sizes are powers of two.
    let step = left.ty().block_size().max(right.ty().block_size()) as usize * BLOCKS;
    let bytes = |tensor: &TensorInfo| step / tensor.ty().block_size() as usize * tensor.ty().block_bytes() as usize;
    let (mut difference, mut magnitude) = (0.0, 0.0);
    for (x, y) in a.data(left).chunks(bytes(left)).zip(b.data(right).chunks(bytes(right))) {
        for (x, y) in quants::dequantize(left.ty(), x)?.iter().zip(quants::dequantize(right.ty(), y)?) {
            difference += f64::from(x - y).abs();
            magnitude += f64::from(*x).abs();
        }
    }
    let n = left.elements().max(1) as f64;
    Ok((difference / n, magnitude / n))
}
