//! A model's tensors, against its hyperparameters and vocabulary.
//!
//! llama.cpp compares the shapes it knows; what is refused here are the tensors it computes with unchecked:
//! zero dimensions, norms, biases and rope factors that are not F32, matrices of types without a product
//! (integers, F64, and the activation formats Q8_1 and Q8_K), and attention matrices that are absent where
//! the loader takes them for optional.

use super::super::error::{Error, Result, printable};
use super::super::reader::{File, TensorInfo};
use super::super::types::TensorType;
use super::hparams::Hparams;

pub(super) fn check(model: &File, hparams: &Hparams, n_vocab: u32, is_read: bool) -> Result<()> {
    for tensor in model.tensors() {
        if tensor.dims().contains(&0) {
            return Err(Error::ZeroDim { name: printable(tensor.name()), dims: tensor.dims().to_vec() });
        }
        if is_read {
            computable(tensor)?;
        }
    }
    if model.tensors().is_empty() {
        return Err(missing("token_embd.weight"));
    }
    if is_read {
        shape(model, "token_embd.weight", &[hparams.n_embd, n_vocab.into()])?;
        shape(model, "output_norm.weight", &[hparams.n_embd])?;
        for layer in 0..hparams.n_layer {
            attention(model, hparams, layer)?;
        }
    }
    Ok(())
}

/// Refuses types that the graph's operators abort on.
fn computable(tensor: &TensorInfo) -> Result<()> {
    let name = tensor.name();
    let is_vector = tensor.dims4()[1..] == [1, 1, 1];
    let expected = if is_vector || name.ends_with("_norm.weight") || name.ends_with(".bias") {
        if tensor.ty() == TensorType::F32 {
            return Ok(());
        }
        "F32, as vectors, norms and biases are"
    } else {
        use TensorType::{F64, I8, I16, I32, I64, Q8_1, Q8_K};
        if !matches!(tensor.ty(), I8 | I16 | I32 | I64 | F64 | Q8_1 | Q8_K) {
            return Ok(());
        }
        "a type that matrices can be multiplied in"
    };
    Err(Error::TensorShape { name: printable(name), expected: expected.into(), found: tensor.ty().to_string() })
}

/// The attention matrices of one layer: one for all three, or one each.
fn attention(model: &File, hparams: &Hparams, layer: u64) -> Result<()> {
    let index = layer as usize;
    let (Some(&n_head), Some(&n_head_kv)) = (hparams.n_head.get(index), hparams.n_head_kv.get(index)) else {
        return Err(missing(&format!("blk.{layer}.attn_q.weight")));
    };
    // Both factors are at most 2^24.
    let (q, kv) = (hparams.head_length * n_head, hparams.head_length * n_head_kv);
    let fused = format!("blk.{layer}.attn_qkv.weight");
    if model.tensor(&fused).is_some() {
        return shape(model, &fused, &[hparams.n_embd, q + 2 * kv]);
    }
    shape(model, &format!("blk.{layer}.attn_q.weight"), &[hparams.n_embd, q])?;
    shape(model, &format!("blk.{layer}.attn_k.weight"), &[hparams.n_embd, kv])?;
    shape(model, &format!("blk.{layer}.attn_v.weight"), &[hparams.n_embd, kv])?;
    Ok(())
}

fn shape(model: &File, name: &str, expected: &[u64]) -> Result<()> {
    let tensor = model.tensor(name).ok_or_else(|| missing(name))?;
    let mut dims = [1; 4];
    dims[..expected.len()].copy_from_slice(expected);
    if tensor.dims4() != dims {
        return Err(Error::TensorShape {
            name: name.into(),
            expected: format!("of shape {expected:?}"),
            found: format!("of shape {:?}", tensor.dims()),
        });
    }
    Ok(())
}

fn missing(name: &str) -> Error {
    Error::MissingTensor { name: name.into(), why: "the model cannot be computed without it" }
}
