//! A screen on a matrix whose answer is known: hidden states that use few directions, and choices that follow from them.

mod world;

use gguf_tools::add_heads::vocab::Wanted;
use gguf_tools::add_heads::{self, Options};
use gguf_tools::screen::Screen;
use gguf_tools::screen::basis::{Moments, Subspace};
use gguf_tools::screen::evaluate::Evaluator;
use gguf_tools::screen::output_matrix::OutputMatrix;
use offramp::gate::Tap;
use offramp::gguf::exits::{Base, ExitHeads};
use offramp::gguf::{File, Writer, exits};
use world::{N_EMBD, N_VOCAB, world};

#[test]
fn few_directions_and_four_bits_find_the_choice() {
    let world = world();
    let matrix = OutputMatrix::of(&world.model).unwrap();
    let fit = 0..600;
    let (hidden, labels) = (world.reader.hidden(Tap::ResultNorm, fit.clone()), world.reader.labels(fit));
    let mut moments = Moments::new(N_EMBD, N_VOCAB);
    moments.add(&hidden.unwrap(), &labels.unwrap()).unwrap();
    let subspace = Subspace::fit(&matrix, &moments).unwrap();
    let screen = Screen::new(&matrix, &subspace, 32, 7).unwrap();
    assert_eq!(screen.bytes(), (2 * 32 * N_EMBD + 18 * N_VOCAB) as u64);

    let held_out = &world.reader.answers()[60..120];
    let evaluator = Evaluator::new(matrix, &screen).unwrap();
    let found = evaluator.run(&world.reader, held_out, &[1, 8, 600], &mut |_| true).unwrap();
    let recall = |i: usize| found[i].concat().iter().filter(|token| token.is_found).count() as f64 / 600.0;
    assert!(recall(0) > 0.8 && recall(1) > 0.99 && recall(2) == 1.0, "{} {} {}", recall(0), recall(1), recall(2));
    // With all tokens as candidates the last one scores least: no slack is larger.
    for (few, all) in found[1].concat().iter().zip(found[2].concat()) {
        assert!(few.slack <= all.slack + 1e-3 && all.slack > 0.0);
    }

    for rank in [0, 40, 96] {
        assert!(Screen::new(&matrix, &subspace, rank, 7).is_err(), "rank {rank}");
    }
    let stopped = evaluator.run(&world.reader, held_out, &[8], &mut |_| false).unwrap_err();
    assert!(matches!(stopped.downcast_ref(), Some(offramp::gguf::Error::Interrupted)));
}

#[test]
fn what_is_made_is_judged_written_and_read_back() {
    let world = world();
    let matrix = OutputMatrix::of(&world.model).unwrap();
    let mut options = Options {
        metric: None,
        screen_rank: Some(32),
        shortlist: None,
        vocab: Wanted::Auto,
        heads: None,
        draft: None,
        agreements: vec![0.9, 0.99],
        seed: 0,
    };
    let made = add_heads::make(&matrix, world.base.clone(), &world.reader, &options, &mut |_, _, _| true);
    assert!(made.unwrap_err().to_string().contains("--shortlist"), "600 tokens are too few to choose for");
    options.shortlist = Some(32);
    let made = add_heads::make(&matrix, world.base.clone(), &world.reader, &options, &mut |_, _, _| true).unwrap();
    assert_eq!((made.n_prompts, made.levels.len()), (60, 2));
    let [lax, strict] = made.levels.as_slice() else { panic!("two levels") };
    assert!(lax.summary.screen == 1.0 && lax.screen <= strict.screen, "{lax:?} {strict:?}");

    let mut writer = exits::sidecar(&world.model, &made.meta).unwrap();
    made.write_tensors(&mut writer).unwrap();
    let sidecar = File::from_bytes(writer.to_bytes().unwrap(), "heads.gguf").unwrap();
    let heads = ExitHeads::open(&sidecar).unwrap();
    assert_eq!(*heads.meta(), made.meta);
    let screen = heads.screen().unwrap();
    assert_eq!((screen.basis.info.dims(), screen.output.info.dims()), ([64, 32].as_slice(), [32, 600].as_slice()));
    assert_eq!(screen.output.data, made.screen.output);

    let other = Base { sha256: "0".repeat(64), ..world.base };
    let refused = add_heads::make(&matrix, other, &world.reader, &options, &mut |_, _, _| true).unwrap_err();
    assert!(refused.to_string().contains("were collected from"), "{refused}");
}

#[test]
fn matrices_that_a_screen_cannot_stand_for_are_refused() {
    let refusal = |build: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::new();
        writer.key("general.architecture", "llama").unwrap();
        build(&mut writer);
        let file = File::from_bytes(writer.to_bytes().unwrap(), "bad.gguf").unwrap();
        OutputMatrix::of(&file).unwrap_err().to_string()
    };
    let none = refusal(&|writer| {
        writer.tensor_f32("other", &[4], &[0.0; 4]).unwrap();
    });
    assert!(none.contains("neither output.weight nor token_embd.weight"), "{none}");
    let bias = refusal(&|writer| {
        writer.tensor_f32("output.weight", &[4, 2], &[0.0; 8]).unwrap();
        writer.tensor_f32("output.bias", &[2], &[0.0; 2]).unwrap();
    });
    assert!(bias.contains("output.bias"), "{bias}");
    let vector = refusal(&|writer| {
        writer.tensor_f32("output.weight", &[4], &[0.0; 4]).unwrap();
    });
    assert!(vector.contains("no matrix"), "{vector}");
}
