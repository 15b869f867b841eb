//! Whether K and V that are written past the model's own layers are what those layers write, found out by doing it.
//!
//! One token is decoded plainly, and K and V of each layer are read as they are computed. The same token then stops after
//! a block, on cells that another token has overwritten, and the very same K and V are written for the layers above: every
//! byte of its cells must come out as before, and the next token's logits with them. Models whose K and V are not found,
//! or that keep more of a token than K and V, fail here instead of giving wrong tokens later.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::KvWriter;
use crate::error::{Error, Result};
use crate::gate::{Gate, Seen, Tap};
use crate::llama::Token;
use crate::llama::batch::Logits;

/// Tokens before the one whose K and V are written: a position at which K is rotated.
const N_BEFORE: usize = 4;

/// Why K and V of skipped layers cannot be written on this model; `None` if they can. `gate` is empty; its cache is used
/// and left empty.
///
/// # Errors
/// Only if plain decoding fails.
pub(crate) fn self_test(gate: &mut Gate, n_vocab: usize) -> Result<Option<String>> {
    gate.clear();
    let n_layer = gate.kv_layout()?.n_layer();
    if n_layer < 2 {
        return Ok(Some("the model has a single block".to_owned()));
    }
    let tokens: Vec<Token> = (0..N_BEFORE + 3).map(|i| Token(((i * 6841 + 17) % n_vocab.max(1)) as i32)).collect();
    let layer = (n_layer / 2).min(n_layer - 2);
    let reason = match compare(gate, &tokens, layer) {
        Ok(reason) => reason,
        Err(Error::Unsupported { found, .. } | Error::Gate { found } | Error::Heads { found }) => Some(found),
        Err(error) => return Err(error),
    };
    gate.clear();
    Ok(reason)
}

/// Writes K and V of the token after `N_BEFORE` for the layers above `layer`. Why that was wrong, if it was.
fn compare(gate: &mut Gate, tokens: &[Token], layer: u32) -> Result<Option<String>> {
    let (before, [token, other, next]) = tokens.split_at(N_BEFORE) else {
        return Err(Error::Gate { found: format!("a self-test of {} tokens", tokens.len()) });
    };
    let mut writer = KvWriter::given(layer, gate)?;
    gate.decode(before, Logits::Last)?;
    stop(gate, *token, layer)?;
    let cells = gate.pending_cells().unwrap_or_default().to_vec();

    go_back(gate)?;
    let n_layer = gate.kv_layout()?.n_layer();
    let skipped: Vec<u32> = (layer + 1..n_layer).collect();
    let (mut k, mut v) = (BTreeMap::new(), BTreeMap::new());
    gate.decode_watched(&[*token], &[], &skipped, &mut |seen, values| match seen {
        Seen::K(il) => drop(k.insert(il, values.to_vec())),
        Seen::V(il) => drop(v.insert(il, values.to_vec())),
        Seen::Hidden(_) => {}
    })?;
    let expected = bytes(gate, &cells)?;
    gate.decode(&[*next], Logits::Last)?;
    let expected_logits = gate.logits(0).map(<[f32]>::to_vec);

    // Otherwise the skipped layers would still hold what is expected.
    go_back(gate)?;
    gate.decode(&[*other], Logits::Last)?;
    go_back(gate)?;
    stop(gate, *token, layer)?;
    writer.set_given(&k.into_values().chain(v.into_values()).flatten().collect::<Vec<f32>>())?;
    gate.predict(&mut writer)?;
    if let Some(il) =
        (0..).zip(expected.iter().zip(&bytes(gate, &cells)?)).find_map(|(il, (a, b))| (a != b).then_some(il))
    {
        let il: u32 = il;
        return Ok(Some(format!("after block {layer} the cells of layer {il} are not what its own K and V give")));
    }
    gate.decode(&[*next], Logits::Last)?;
    if gate.logits(0) != expected_logits.as_deref() {
        return Ok(Some(format!("after block {layer} the cells are right and the next token's logits are not")));
    }
    Ok(None)
}

fn stop(gate: &mut Gate, token: Token, layer: u32) -> Result<()> {
    gate.decode_tapped(&[token], &[Tap::Layer(layer)], &mut |_, _| ControlFlow::Break(())).map(drop)
}

fn go_back(gate: &mut Gate) -> Result<()> {
    if gate.truncate(N_BEFORE, 0) {
        return Ok(());
    }
    Err(Error::Gate { found: "a memory that cannot forget its last tokens".to_owned() })
}

/// What the token's cell in each cache holds, layer by layer.
fn bytes(gate: &mut Gate, cells: &[i64]) -> Result<Vec<[Vec<u8>; 2]>> {
    let n_layer = gate.kv_layout()?.n_layer();
    (0..n_layer)
        .map(|il| {
            let cell = cells.get(gate.kv_layout()?.layer(il)?.cache).and_then(|&cell| usize::try_from(cell).ok());
            let unknown =
                || Error::Gate { found: format!("a cache of layer {il} that no layer below the exit stores to") };
            gate.stored(il, cell.ok_or_else(unknown)?)
        })
        .collect()
}
