//! A reply with each token coloured by where it left the model, and marked where the full model would have said another.

use std::collections::BTreeMap;

use offramp::measure::{Reply, Rescored};
use offramp::{ExitPoint, Vocab};

use super::page::escape;

/// The most tokens that wait for the rest of a character.
const MAX_WAITING: usize = 4;
/// The colours of exits after blocks; what is deeper takes the last.
const N_COLOURS: usize = 4;

/// One text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// What was asked.
    pub prompt: String,
    /// The reply, token by token.
    pub pieces: Vec<Piece>,
}

/// A token, or several of them that make one character.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its text.
    pub text: String,
    /// Where it left the model.
    pub exit: Option<ExitPoint>,
    /// What the full model would have emitted instead.
    pub instead: Option<String>,
}

impl Sample {
    /// The sample of a reply to the text `prompt`.
    pub fn of(vocab: &Vocab, prompt: &str, reply: &Reply, rescored: &Rescored) -> Sample {
        let mut pieces = Vec::new();
        let mut waiting = Vec::new();
        let mut instead = None;
        for (position, (token, exit)) in reply.tokens.iter().zip(&reply.exits).enumerate() {
            waiting.push(*token);
            if let Some(differing) = rescored.differing.iter().find(|differing| differing.position == position) {
                instead.get_or_insert_with(|| vocab.text(&[differing.best], true));
            }
            let text = vocab.text(&waiting, true);
            let is_last = position + 1 == reply.tokens.len();
            if text.ends_with(char::REPLACEMENT_CHARACTER) && waiting.len() < MAX_WAITING && !is_last {
                continue;
            }
            pieces.push(Piece { text, exit: *exit, instead: instead.take() });
            waiting.clear();
        }
        Sample { prompt: prompt.to_string(), pieces }
    }
}

/// The name of a depth.
fn name(exit: Option<ExitPoint>) -> String {
    match exit {
        Some(ExitPoint::Layer(layer)) => format!("after block {layer}"),
        Some(_) => "at the screen".to_string(),
        None => "whole model".to_string(),
    }
}

/// Samples with one key to their colours, every text escaped.
pub(super) fn html(samples: &[Sample]) -> String {
    let pieces = || samples.iter().flat_map(|sample| &sample.pieces);
    let mut depths: BTreeMap<u32, (Option<ExitPoint>, usize)> = BTreeMap::new();
    for piece in pieces() {
        depths.entry(depth(piece.exit)).or_insert((piece.exit, 0)).1 += 1;
    }
    let layers: Vec<u32> = depths.keys().copied().filter(|depth| *depth < SCREEN).collect();
    let class = |exit: Option<ExitPoint>| match exit {
        Some(ExitPoint::Layer(layer)) => {
            let rank = layers.iter().position(|other| *other == layer).unwrap_or(0);
            format!("d{}", rank.min(N_COLOURS - 1))
        }
        Some(_) => "ds".to_string(),
        None => "df".to_string(),
    };
    let total = pieces().count().max(1) as f64;
    let mut key: String = depths
        .values()
        .map(|(exit, n)| {
            format!(
                "<li><span class=\"swatch {}\"></span>{}: {:.0} %</li>\n",
                class(*exit),
                name(*exit),
                100.0 * *n as f64 / total
            )
        })
        .collect();
    let n_differing = pieces().filter(|piece| piece.instead.is_some()).count();
    key.push_str(&format!(
        "<li><span><span class=\"differs\">underlined</span>: the full model differs ({n_differing})</span></li>\n"
    ));
    let mut html = format!("<ul class=\"key\">\n{key}</ul>\n");
    for sample in samples {
        let reply: String = sample
            .pieces
            .iter()
            .map(|piece| {
                let mut class = class(piece.exit);
                let mut title = name(piece.exit);
                if let Some(instead) = &piece.instead {
                    class.push_str(" differs");
                    title.push_str(&format!("; the full model: {instead:?}"));
                }
                format!("<span class=\"{class}\" title=\"{}\">{}</span>", escape(&title), escape(&piece.text))
            })
            .collect();
        html.push_str(&format!(
            "<div class=\"sample\"><p class=\"prompt\">{}</p><p class=\"reply\">{reply}</p></div>\n",
            escape(&sample.prompt)
        ));
    }
    html
}

/// Where the screen stands among the blocks, for an order from shallow to deep.
const SCREEN: u32 = u32::MAX - 1;

fn depth(exit: Option<ExitPoint>) -> u32 {
    match exit {
        Some(ExitPoint::Layer(layer)) => layer,
        Some(_) => SCREEN,
        None => u32::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_have_colours_and_texts_are_escaped() {
        let piece = |text: &str, exit, instead: Option<&str>| Piece {
            text: text.to_string(),
            exit,
            instead: instead.map(str::to_string),
        };
        let pieces = vec![
            piece("<b>", Some(ExitPoint::Layer(17)), None),
            piece(" & ", Some(ExitPoint::Layer(9)), Some("\"><script>")),
            piece("c", Some(ExitPoint::Screen), None),
            piece("d", None, None),
        ];
        let html = html(&[Sample { prompt: "<p>".to_string(), pieces }]);
        assert!(html.contains("<span class=\"d1\" title=\"after block 17\">&lt;b&gt;</span>"), "{html}");
        assert!(html.contains("<span class=\"d0 differs\" title=\"after block 9; the full model"));
        assert!(html.contains("class=\"ds\"") && html.contains("class=\"df\"") && html.contains("&lt;p&gt;"));
        assert!(!html.contains("<script>") && html.contains("after block 9: 25 %"));
    }
}
