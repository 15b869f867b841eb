//! How much tokens, shapes and settings of heads are worth: the table that the defaults were chosen from.
//!
//! `head_forms MODEL DIR LAYERS SETTING…`, where a setting is `tokens:form:epochs:rate:decay:rows`, as in
//! `30000:affine:4:1e-3:0.02:4096` with a form of `affine`, `rank128` or `mlp`; left out from the right are the defaults.
//! Every setting trains from scratch on the first tokens of the same split and is judged on the same unseen
//! sequences, as stored in 8 bits and through the screen.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use gguf_tools::add_heads::split::Split;
use gguf_tools::add_heads::vocab::Wanted;
use gguf_tools::add_heads::{Options, heads, screen};
use gguf_tools::collect::store::{Reader, sequences};
use gguf_tools::screen::evaluate::Evaluator;
use gguf_tools::screen::output_matrix::OutputMatrix;
use gguf_tools::train::evaluate;
use gguf_tools::train::fit::Settings;
use gguf_tools::train::network::Form;
use offramp::gguf::File;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, store, layers, wanted @ ..] = args.as_slice() else {
        bail!("usage: head_forms MODEL DIR LAYERS SETTING...");
    };
    let file = File::open_model(model)?;
    let matrix = OutputMatrix::of(&file)?;
    let reader = Reader::open(Path::new(store))?;
    let layers: Vec<u32> = layers.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let whole = Split::of(&reader, 0)?;
    let options = Options {
        screen_rank: Some(128),
        shortlist: Some(2048),
        vocab: Wanted::All,
        heads: None,
        draft: None,
        metric: None,
        agreements: Vec::new(),
        seed: 0,
    };
    let made = screen::make(&matrix, &reader, &whole, &options, &mut |_, _, _| true)?;
    eprintln!("the screen is made");
    let mut evaluator = Evaluator::new(matrix, &made.screen)?;
    evaluator.unpack()?;
    println!(
        "setting                              layer  divergence  agrees   0.5 %     1 %     2 %     5 %  metric           time"
    );
    for setting in wanted {
        let (tokens, settings) = parse(setting)?;
        let split = Split { fit: sequences::first(&whole.fit, tokens), ..whole.clone() };
        let n = sequences::count(&split.fit);
        let start = Instant::now();
        let count = options.shortlist.unwrap_or(2048);
        let mut training = std::time::Duration::ZERO;
        let mut began = None;
        let candidates = heads::train(
            &matrix,
            (&evaluator, count),
            &reader,
            &split,
            (&layers, None, &settings),
            &mut |what, done, total| {
                if done == total {
                    eprintln!("{what}: {:.1} s", start.elapsed().as_secs_f64());
                }
                if what == "training" {
                    let began = *began.get_or_insert_with(Instant::now);
                    if done == total {
                        training = began.elapsed();
                    }
                }
                true
            },
        )?;
        let metric = evaluate::position(candidates.metric);
        for (i, quality) in candidates.quality.iter().enumerate() {
            let best = candidates.looks.iter().map(|look| look.divergence[i]).fold(f64::INFINITY, f64::min);
            let exits: Vec<String> =
                quality.exits[metric].iter().map(|share| format!("{:6.1}", 100.0 * share)).collect();
            println!(
                "{setting:36} {:5}  {best:10.4}  {:5.1}  {}  {:16} {:.0} + {:.0} s, {n} tokens",
                quality.layer,
                100.0 * quality.agreement,
                exits.join("  "),
                candidates.metric.name(),
                training.as_secs_f64(),
                (start.elapsed() - training).as_secs_f64(),
            );
        }
    }
    Ok(())
}

fn parse(setting: &str) -> anyhow::Result<(u64, Settings)> {
    let mut parts = setting.split(':');
    let tokens = parts.next().context("a setting without tokens")?.parse()?;
    let mut settings = Settings::default();
    if let Some(form) = parts.next() {
        settings.form = match form {
            "affine" => Form { rank: None, mlp: false },
            "mlp" => Form { rank: None, mlp: true },
            _ => Form { rank: Some(form.strip_prefix("rank").context("affine, rankN or mlp")?.parse()?), mlp: false },
        };
    }
    for (value, place) in parts.by_ref().zip([&mut settings.epochs, &mut settings.rate, &mut settings.decay]) {
        *place = value.parse()?;
    }
    if let Some(rows) = setting.split(':').nth(5) {
        settings.n_rows = rows.parse()?;
    }
    ensure!(settings.epochs > 0.0, "no epochs");
    Ok((tokens, settings))
}
