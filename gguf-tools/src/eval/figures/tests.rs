//! Figures of replies whose exits and errors are known.

use super::super::tests::meta;
use super::*;
use crate::eval::Mode;
use offramp::measure::Differing;
use offramp::{ExitPoint, Token};

/// A reply of one full token, `n` that left after block 1, and an end token at the screen; the second differs.
fn reply(n: usize, ms: u64) -> (Reply, Rescored) {
    let exits: Vec<Option<ExitPoint>> =
        [None].into_iter().chain((0..n).map(|_| Some(ExitPoint::Layer(1)))).chain([Some(ExitPoint::Screen)]).collect();
    let reply = Reply {
        n_prompt: 3,
        prompt_time: Duration::ZERO,
        tokens: vec![Token(5); exits.len()],
        text: "18".to_string(),
        decode_time: Duration::from_millis(ms),
        n_drafted: 0,
        n_right: 0,
        is_ended: true,
        exits,
    };
    let differing = Differing { position: 1, exit: reply.exits[1], best: Token(1), gap: 0.5 };
    let n_tokens = reply.tokens.len();
    (reply, Rescored { n_tokens, differing: vec![differing], n_near_ties: 1, log_prob: -(n_tokens as f64) })
}

fn measured(exits: Exits, ms: u64) -> Measured {
    let kv = (exits == Exits::Calibrated).then_some(Kv::Auto);
    let levels = if kv.is_some() { vec![0, 1] } else { Vec::new() };
    let (replies, rescored) = [reply(18, ms), reply(38, ms)].into_iter().unzip();
    Measured { mode: Mode { exits, kv, levels }, replies, rescored, passed: vec![None, Some(true)] }
}

#[test]
fn figures_count_each_emitted_token_once() {
    let task = |category: &str, check| Task { category: Some(category.to_string()), prompt: String::new(), check };
    let tasks = [task("qa", Check::None), task("math", Check::Answer("18".to_string()))];
    let tasks: Vec<&Task> = tasks.iter().collect();
    let (off, fast) = (measured(Exits::Off, 100), measured(Exits::Calibrated, 50));
    let meta = meta(&[0.7, 0.7]);
    let figures = ModeFigures::of(&fast, &off, &tasks, &meta, 4, 0.05).unwrap();
    assert_eq!((figures.tokens, figures.exit_wrong.tokens, figures.kv_changed.tokens), (60, 2, 0));
    assert_eq!((figures.agreement, figures.ratio_to_off.median), (1.0 - 2.0 / 60.0, Some(2.0)));
    // Two full tokens and two screened ones of 4 blocks, 56 of 2.
    assert_eq!(figures.mean_depth, Some((4.0 * 4.0 + 56.0 * 2.0) / 60.0));
    assert!((figures.layers_saved.unwrap() - (1.0 - 128.0 / 240.0)).abs() < 1e-12);
    assert!((figures.perplexity.unwrap() - 1f64.exp()).abs() < 1e-12);
    let mean = (1.0 / 20.0 + 1.0 / 40.0) / 2.0;
    assert!(figures.levels.iter().all(|level| (level.disagreement - mean).abs() < 1e-12 && level.bound > mean));
    assert_eq!(figures.levels.iter().map(|level| level.is_inside).collect::<Vec<_>>(), [true, true]);
    assert_eq!(figures.levels[0].certified_bound.map(|bound| (bound * 1e3).round()), Some(30.0));
    let parts = |parts: &[PartFigures]| -> Vec<(String, usize, usize)> {
        parts.iter().map(|part| (part.name.clone(), part.prompts, part.tokens)).collect()
    };
    assert_eq!(parts(&figures.by_category), [("qa".into(), 1, 20), ("math".into(), 1, 40)]);
    assert_eq!(
        parts(&figures.by_position),
        [("1 to 16".into(), 2, 32), ("17 to 32".into(), 2, 20), ("33 to 64".into(), 1, 8)]
    );
    assert!(figures.by_position[0].agreement < 1.0 && figures.by_position[2].agreement == 1.0);
    assert_eq!(
        figures.checks.iter().map(|check| (check.name, check.tasks, check.passed)).collect::<Vec<_>>(),
        [("exact_match", 1, 1)]
    );
    let plain = ModeFigures::of(&off, &off, &tasks, &meta, 4, 0.05).unwrap();
    assert!(plain.levels.is_empty() && plain.layers_saved.is_none());
    assert_eq!(plain.ratio_to_off, Spread { median: Some(1.0), p10: Some(1.0), p90: Some(1.0) });
}

#[test]
fn what_runs_later_is_not_saved() {
    let mut meta = meta(&[0.7]);
    assert!(!runs_later(Kv::Auto, &meta) && !runs_later(Kv::Predict, &meta) && runs_later(Kv::CatchUp, &meta));
    meta.calibration.as_mut().unwrap().kv_policy = KvPolicy::CatchUp;
    assert!(runs_later(Kv::Auto, &meta) && !runs_later(Kv::Propagate, &meta));
}
