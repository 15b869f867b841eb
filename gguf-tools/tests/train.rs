//! Exits on a world whose answer is known: hidden states that show the final state under noise.

mod world;

use gguf_tools::add_heads::costs::Timing;
use gguf_tools::add_heads::vocab::Wanted;
use gguf_tools::add_heads::{self, HeadOptions, Made, Options, maps};
use gguf_tools::screen::output_matrix::OutputMatrix;
use gguf_tools::train::data::{Exit, Source};
use gguf_tools::train::fit::{self, Settings};
use gguf_tools::train::network::Form;
use offramp::gguf::exits::{ExitHeads, HeadType, Metric};
use offramp::gguf::{Error, File, exits};
use world::{N_EMBD, N_LAYER, World, world, world_where};

fn options(form: Form, layers: Option<Vec<u32>>) -> Options {
    Options {
        metric: None,
        screen_rank: Some(32),
        shortlist: Some(64),
        vocab: Wanted::Auto,
        heads: Some(HeadOptions {
            layers,
            settings: Settings { form, epochs: 8.0, batch: 64, n_rows: 200, ..Settings::default() },
            kv_maps: maps::Wanted::On,
            timing: Timing { layer: 1.0, output: 2.0, caught_up: Some(0.5) },
        }),
        draft: None,
        agreements: vec![0.9, 0.99],
        seed: 3,
    }
}

fn make(world: &World, options: &Options) -> anyhow::Result<Made> {
    let matrix = OutputMatrix::of(&world.model).unwrap();
    add_heads::make(&matrix, world.base.clone(), &world.reader, options, &mut |_, _, _| true)
}

fn bytes(world: &World, made: &Made) -> Vec<u8> {
    let mut writer = exits::sidecar(&world.model, &made.meta).unwrap();
    made.write_tensors(&mut writer).unwrap();
    writer.to_bytes().unwrap()
}

#[test]
fn heads_learn_what_hidden_states_show_and_are_written_as_the_runtime_reads_them() {
    let world = world();
    let options = options(Form { rank: None, mlp: false }, None);
    let made = make(&world, &options).unwrap();
    // The upper layer shows the final state more clearly, and neither is a guess.
    let [lower, upper] = made.quality.as_slice() else { panic!("two candidates") };
    assert!(upper.agreement > lower.agreement + 0.05 && lower.agreement > 0.3, "{lower:?} {upper:?}");
    assert!(upper.r2 > 0.9 && lower.r2 < upper.r2);
    // Half of the tokens are easy: an exit that spares half of the blocks pays.
    assert!(!made.heads.is_empty() && made.choice().unwrap().worth() > 1.1, "{:?}", made.choice());
    assert!(made.levels[0].threshold.is_finite() && made.levels[0].gain > 1.0, "{:?}", made.levels);
    assert!(made.levels.iter().all(|level| level.summary.error < 2.0 * (1.0 - f64::from(level.agreement))));

    let sidecar = File::from_bytes(bytes(&world, &made), "heads.gguf").unwrap();
    let heads = ExitHeads::open(&sidecar).unwrap();
    assert_eq!(*heads.meta(), made.meta);
    assert_eq!(heads.heads().len(), made.heads.len());
    for (read, head) in heads.heads().iter().zip(&made.heads) {
        assert_eq!((read.layer, read.kv.len()), (head.layer, (N_LAYER - head.layer - 1) as usize));
        assert!(read.gate.is_some() && read.bias.is_some());
    }
    assert!(heads.meta().calibration.is_none(), "nothing exits before it is calibrated");
    // The same seed gives the same bytes.
    assert_eq!(bytes(&world, &make(&world, &options).unwrap()), bytes(&world, &made));
}

#[test]
fn training_finds_what_it_did_not_start_from() {
    let world = world();
    let (fit, held_out) = world.reader.answers().split_at(180);
    let matrix = OutputMatrix::of(&world.model).unwrap();
    let mut exit = Exit::measure(&world.reader, &matrix, Source::Layer(1), fit, held_out, &mut |_| true).unwrap();
    exit.start.weight.fill(0.0);
    exit.start.bias.fill(0.0);
    let settings = Settings { epochs: 20.0, batch: 64, n_rows: 200, rate: 1e-2, ..Settings::default() };
    let fitted = fit::fit(&world.reader, &matrix, &[exit], fit, held_out, &settings, &mut |_, _| true).unwrap();
    let (first, last) = (fitted.looks.first().unwrap(), fitted.looks.last().unwrap());
    assert!(last.divergence[0] < 0.8 * first.divergence[0] && last.agreement[0] > 0.4, "{:?}", fitted.looks);
}

#[test]
fn every_form_of_head_can_be_trained_and_read() {
    let world = world();
    for (form, expected) in [
        (Form { rank: Some(32), mlp: false }, HeadType::LowRank),
        (Form { rank: None, mlp: true }, HeadType::AffineMlp),
        (Form { rank: Some(32), mlp: true }, HeadType::LowRankMlp),
    ] {
        let mut options = options(form, Some(vec![1]));
        options.heads.as_mut().unwrap().settings.epochs = 2.0;
        let made = make(&world, &options).unwrap();
        assert_eq!((made.meta.layers.as_slice(), made.head_type()), ([1].as_slice(), Some(expected)));
        let sidecar = File::from_bytes(bytes(&world, &made), "heads.gguf").unwrap();
        assert_eq!(ExitHeads::open(&sidecar).unwrap().meta().head_types, [expected]);
    }
}

#[test]
fn exits_that_choose_among_frequent_tokens_are_judged_as_such() {
    let world = world();
    let affine = Form { rank: None, mlp: false };
    let whole = make(&world, &options(affine, Some(vec![1]))).unwrap();
    let mut among = options(affine, Some(vec![1]));
    among.vocab = Wanted::These(70);
    let made = make(&world, &among).unwrap();
    let vocab = made.vocab.as_ref().unwrap();
    assert_eq!((vocab.tokens.len(), vocab.shortlist), (64, 16));
    assert!(vocab.tokens.is_sorted() && made.sets.0.costs.check < whole.sets.0.costs.check);
    // Nobody is right about a token that is not among them.
    assert!(made.quality[0].agreement < whole.quality[0].agreement && made.quality[0].agreement > 0.1);
    let sidecar = File::from_bytes(bytes(&world, &made), "heads.gguf").unwrap();
    assert_eq!(ExitHeads::open(&sidecar).unwrap().vocab(), Some(&vocab.tokens[..]));
    among.vocab = Wanted::These(601);
    assert!(make(&world, &among).unwrap_err().to_string().contains("give 16 to 600"));
}

#[test]
fn classifiers_are_written_where_they_are_the_metric() {
    let world = world();
    for metric in [Metric::Classifier, Metric::TopProbability] {
        let mut options = options(Form { rank: None, mlp: false }, Some(vec![1]));
        (options.metric, options.vocab) = (Some(metric), Wanted::These(70));
        let made = make(&world, &options).unwrap();
        let sidecar = File::from_bytes(bytes(&world, &made), "heads.gguf").unwrap();
        let heads = ExitHeads::open(&sidecar).unwrap();
        assert_eq!(heads.meta().metric, metric);
        let of_exit = heads.heads()[0].classifier.map(|classifier| classifier.weight.info.dims().to_vec());
        let of_vocab = heads.vocab_classifier().map(|classifier| classifier.weight.info.dims().to_vec());
        let expected = (metric == Metric::Classifier).then(|| vec![u64::from(made.meta.base.n_embd) + 1]);
        assert_eq!((&of_exit, &of_vocab), (&expected, &expected));
    }
}

#[test]
fn a_head_that_drafts_learns_what_follows_from_state_and_token() {
    let options = |layers| {
        let mut options = options(Form { rank: None, mlp: false }, Some(vec![1]));
        options.draft = Some(options.heads.as_ref().unwrap().settings.clone());
        options.heads = options.heads.filter(|_| layers);
        options
    };
    let world = world_where(true);
    let made = make(&world, &options(true)).unwrap();
    let draft = made.draft.as_ref().unwrap();
    assert!(draft.quality.r2 > 0.7 && draft.quality.agreement > 0.4, "{:?}", draft.quality);
    // What it promises is kept, and the surer it must be, the less it drafts.
    let drafts = &draft.quality.drafts;
    assert!(drafts.iter().all(|drafts| drafts.right > f64::from(drafts.least) - 0.1), "{drafts:?}");
    assert!(drafts.is_sorted_by(|lax, strict| lax.share >= strict.share) && drafts[0].share > 0.4, "{drafts:?}");
    for layers in [true, false] {
        let made = make(&world, &options(layers)).unwrap();
        let sidecar = File::from_bytes(bytes(&world, &made), "heads.gguf").unwrap();
        let heads = ExitHeads::open(&sidecar).unwrap();
        assert_eq!((heads.meta(), heads.heads().len()), (&made.meta, usize::from(layers)));
        let [width, n_embd] = [2 * N_EMBD as u64, N_EMBD as u64];
        let read = heads.draft().unwrap();
        assert_eq!(
            [read.norm, read.map, read.bias].map(|view| view.info.dims()),
            [&[width][..], &[width, n_embd], &[n_embd]]
        );
    }
    // Where nothing follows, it knows that.
    let made = make(&world_where(false), &options(false)).unwrap();
    let quality = &made.draft.as_ref().unwrap().quality;
    assert!(quality.r2 < 0.1 && quality.drafts[1].share < 0.05, "{quality:?}");
}

#[test]
fn maps_find_keys_and_values_that_follow_from_the_hidden_state() {
    let world = world();
    let made = make(&world, &options(Form { rank: None, mlp: false }, Some(vec![0, 1]))).unwrap();
    let [lower, upper] = made.kv_quality.as_slice() else { panic!("two exits") };
    let predicted = made.sets.0.costs.skipped;
    // They are linear in the upper hidden state, which the lower one shows under noise.
    assert!(upper.iter().all(|quality| quality.k.0 > 0.95 && quality.v.0 > 0.95), "{upper:?}");
    let mean = lower.iter().map(|quality| quality.k.0).sum::<f64>() / lower.len() as f64;
    assert!((0.4..0.95).contains(&mean), "{lower:?}");
    let mut without = options(Form { rank: None, mlp: false }, Some(vec![1]));
    without.heads.as_mut().unwrap().kv_maps = maps::Wanted::Off;
    let made = make(&world, &without).unwrap();
    assert!(made.heads[0].kv.is_empty() && made.kv_quality.is_empty());
    let computed = made.sets.0.costs.skipped;
    assert!(predicted > 0.0 && predicted != computed, "layers were chosen as if K and V were always computed");
    assert_eq!(computed, 0.5, "what catching up costs");
    // Left to itself, it takes maps that explain enough, and catches up where they do not.
    for (layers, uses_maps) in [(vec![1], true), (vec![0, 1], false)] {
        let mut auto = options(Form { rank: None, mlp: false }, Some(layers));
        auto.heads.as_mut().unwrap().kv_maps = maps::Wanted::Auto;
        let made = make(&world, &auto).unwrap();
        assert_eq!((made.uses_maps, made.heads.iter().all(|head| head.kv.is_empty())), (uses_maps, !uses_maps));
        assert_eq!(made.sets.0.costs.skipped == 0.5, !uses_maps);
    }
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let world = world();
    let refusal = |options: &Options| make(&world, options).unwrap_err();
    let affine = Form { rank: None, mlp: false };
    let found = format!("{:#}", refusal(&options(affine, Some(vec![2]))));
    assert!(found.contains("layer 2 was not collected") && found.contains("[0, 1]"), "{found}");
    let found = format!("{:#}", refusal(&options(Form { rank: Some(64), mlp: false }, None)));
    assert!(found.contains("rank 64"), "{found}");
    let mut steps = 0;
    let matrix = OutputMatrix::of(&world.model).unwrap();
    let stopped =
        add_heads::make(&matrix, world.base.clone(), &world.reader, &options(affine, None), &mut |what, _, _| {
            steps += usize::from(what == "training");
            steps < 3
        });
    assert!(matches!(stopped.unwrap_err().downcast_ref(), Some(Error::Interrupted)));
}
