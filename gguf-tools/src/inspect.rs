//! `inspect-tensor FILE NAME [N]`: a tensor's weights, decoded.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use offramp::gguf::{File, TensorInfo, TensorType, quants};

use crate::output::{Output, escape, tensor_json};

/// How many bytes are decoded at once, about.
const CHUNK: usize = 1 << 20;

pub fn run(path: &Path, name: &str, count: u64, out: &mut Output) -> anyhow::Result<ExitCode> {
    let file = crate::split::open(path)?;
    let tensor = file.tensor(name).with_context(|| {
        format!("{}: has no tensor {:?}; `gguf-tools show` lists them", path.display(), escape(name))
    })?;
    let shown = first(&file, tensor, count)?;
    let statistics = if out.verbose || out.json { Some(Statistics::of(&file, tensor)?) } else { None };
    if out.json {
        let mut value = tensor_json(tensor);
        value["values"] = json!(shown);
        if let Some(statistics) = statistics {
            value["min"] = json!(statistics.min);
            value["max"] = json!(statistics.max);
            value["mean"] = json!(statistics.mean());
            value["rms"] = json!(statistics.rms());
            value["not_finite"] = json!(statistics.not_finite);
        }
        out.value(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    out.line(format!("{} tensor {}, dims {:?}", tensor.ty().name().to_lowercase(), escape(name), tensor.dims()))?;
    for row in shown.chunks(8) {
        out.line(row.iter().map(|value| format!("{value:12.6}")).collect::<Vec<_>>().join(" "))?;
    }
    if let Some(statistics) = statistics {
        let Statistics { min, max, not_finite, .. } = statistics;
        let (mean, rms) = (statistics.mean(), statistics.rms());
        out.line(format!("min {min} max {max} mean {mean} rms {rms} not finite {not_finite}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The first `count` values; whole numbers of 64 bits lose what a double cannot hold.
fn first(file: &File, tensor: &TensorInfo, count: u64) -> anyhow::Result<Vec<f64>> {
    let count = count.min(tensor.elements());
    let ty = tensor.ty();
    let bytes = (count.div_ceil(ty.block_size()) * ty.block_bytes()) as usize;
    let data = &file.data(tensor)[..bytes];
    // These have more digits than the floats that everything else decodes to.
    let words = |width: usize| data.chunks_exact(width);
    let values: Vec<f64> = match ty {
        TensorType::F64 => words(8).map(|word| f64::from_bits(little_endian(word))).collect(),
        TensorType::I64 => words(8).map(|word| little_endian(word) as i64 as f64).collect(),
        TensorType::I32 => words(4).map(|word| f64::from(little_endian(word) as u32 as i32)).collect(),
        _ => quants::dequantize(ty, data)?.into_iter().map(f64::from).collect(),
    };
    Ok(values.into_iter().take(count as usize).collect())
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Hands all of a tensor's values to `sink`, in pieces.
pub fn for_each_value(file: &File, tensor: &TensorInfo, mut sink: impl FnMut(&[f32])) -> anyhow::Result<()> {
    let block = tensor.ty().block_bytes() as usize;
    for piece in file.data(tensor).chunks((CHUNK / block).max(1) * block) {
        sink(&quants::dequantize(tensor.ty(), piece)?);
    }
    Ok(())
}

/// A tensor's values in a few numbers, of the finite ones alone.
pub struct Statistics {
    pub min: f32,
    pub max: f32,
    sum: f64,
    squares: f64,
    finite: u64,
    pub not_finite: u64,
}

impl Statistics {
    pub fn of(file: &File, tensor: &TensorInfo) -> anyhow::Result<Statistics> {
        let mut statistics =
            Statistics { min: f32::INFINITY, max: f32::NEG_INFINITY, sum: 0.0, squares: 0.0, finite: 0, not_finite: 0 };
        for_each_value(file, tensor, |values| values.iter().for_each(|&value| statistics.add(value)))?;
        Ok(statistics)
    }

    fn add(&mut self, value: f32) {
        if !value.is_finite() {
            self.not_finite += 1;
            return;
        }
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum += f64::from(value);
        self.squares += f64::from(value) * f64::from(value);
        self.finite += 1;
    }

    pub fn mean(&self) -> f64 {
        self.sum / self.finite as f64
    }

    pub fn rms(&self) -> f64 {
        (self.squares / self.finite as f64).sqrt()
    }
}
