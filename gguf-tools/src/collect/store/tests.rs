use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use super::*;

fn manifest() -> Manifest {
    Manifest {
        version: Manifest::VERSION,
        model: "tiny".into(),
        sha256: "0".repeat(64),
        n_embd: 4,
        n_vocab: 100,
        layers: vec![2, 5],
        kv: vec![KvWidths { layer: 6, k: 2, v: 3 }],
        prompts: "none".into(),
        answer: 8,
        seed: 7,
        batch_width: 16,
        engine: "test".into(),
        width_difference: 0.5,
    }
}

/// Sequence `index`, of `index + 1` tokens that can be told apart; the first of several is the user's turn.
fn rows(index: u64) -> Rows {
    let mut rows = Rows::new(&manifest());
    for token in 0..=index {
        if token == 1 {
            rows.end_turn();
        }
        let mut logits = vec![0.0; 100];
        logits[(index * 10 + token) as usize] = 5.0;
        let label = Label::of(offramp::Token(token as i32), &logits);
        let value = |series: u64| (index * 100 + token * 10 + series) as f32;
        let values: Vec<Vec<f32>> =
            [4, 4, 4, 2, 3].into_iter().zip(0..).map(|(width, series)| vec![value(series); width]).collect();
        rows.push(&label, values.iter().map(Vec::as_slice)).unwrap();
    }
    rows
}

fn commit(store: &mut Store, index: u64) {
    store.commit(&Sequence { index, n_prompt: 3, is_greedy: index.is_multiple_of(2) }, &rows(index)).unwrap();
}

fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.file_name().unwrap().into(), fs::read(path).unwrap())).collect()
}

#[test]
fn what_is_pushed_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), manifest(), 100, false).unwrap();
    (0..3).for_each(|index| commit(&mut store, index));
    assert_eq!((store.n_tokens(), store.n_turn_tokens(), store.n_sequences(), store.next_index()), (4, 2, 3, 3));
    drop(store);
    let reader = Reader::open(folder.path()).unwrap();
    assert_eq!((reader.turns(), reader.answers()), (&[0..0, 1..2, 3..4][..], &[0..1, 2..3, 4..6][..]));
    assert_eq!(reader.n_tokens(), 4);
    assert_eq!(reader.hidden(Tap::Layer(5), 3..5).unwrap(), [[201.0; 4], [211.0; 4]].concat());
    assert_eq!(reader.hidden(Tap::ResultNorm, 0..1).unwrap(), [2.0; 4]);
    assert_eq!(reader.k(6, 1..3).unwrap(), [103.0, 103.0, 113.0, 113.0]);
    assert_eq!(reader.v(6, 5..6).unwrap(), [224.0; 3]);
    assert!(reader.k(5, 0..1).unwrap_err().to_string().contains("no k-5.f16"));
    let labels = reader.labels(1..3).unwrap();
    assert_eq!((labels[0].argmax(), labels[1].argmax(), labels[1].token), (10, 11, 1));
}

#[test]
fn an_interrupted_store_goes_on_to_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    let mut store = Store::open(whole.path(), manifest(), 100, false).unwrap();
    (0..4).for_each(|index| commit(&mut store, index));
    drop(store);

    let torn = tempfile::tempdir().unwrap();
    let mut store = Store::open(torn.path(), manifest(), 100, false).unwrap();
    (0..2).for_each(|index| commit(&mut store, index));
    drop(store);
    // The rows of a sequence whose line was never finished.
    for entry in fs::read_dir(torn.path()).unwrap().map(|entry| entry.unwrap().path()) {
        let is_rows = entry.extension().is_some_and(|extension| extension == "f16" || extension == "bin");
        if is_rows {
            OpenOptions::new().append(true).open(entry).unwrap().write_all(&[9; 7]).unwrap();
        }
    }
    let mut sequences = OpenOptions::new().append(true).open(torn.path().join(SEQUENCES)).unwrap();
    sequences.write_all(br#"{"index": 2, "pro"#).unwrap();

    let mut store = Store::open(torn.path(), manifest(), 100, true).unwrap();
    assert_eq!((store.n_tokens(), store.next_index()), (2, 2));
    (2..4).for_each(|index| commit(&mut store, index));
    drop(store);
    assert_eq!(contents(torn.path()), contents(whole.path()));
}

#[cfg(unix)]
#[test]
fn a_store_that_is_being_written_to_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), manifest(), 1, false).unwrap();
    commit(&mut store, 0);
    let before = contents(folder.path());
    let refused = Store::open(folder.path(), manifest(), 1, true).unwrap_err().to_string();
    assert!(refused.contains("another process is collecting"), "{refused}");
    assert_eq!(contents(folder.path()), before);
    drop(store);
    drop(Store::open(folder.path(), manifest(), 1, true).unwrap());
}

#[test]
fn a_store_of_other_settings_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(Store::open(folder.path(), manifest(), 1, false).unwrap());
    let before = contents(folder.path());
    let refused = Store::open(folder.path(), manifest(), 1, false).unwrap_err().to_string();
    assert!(refused.contains("--resume"), "{refused}");
    drop(Store::open(folder.path(), Manifest { width_difference: 0.6, ..manifest() }, 1, true).unwrap());
    assert_eq!(contents(folder.path()), before);
    let other = Manifest { seed: 8, ..manifest() };
    let refused = Store::open(folder.path(), other, 1, true).unwrap_err().to_string();
    assert!(refused.contains("seed 7, not 8"), "{refused}");
    assert_eq!(contents(folder.path()), before);
}

#[test]
fn damage_is_found_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), manifest(), 1, false).unwrap();
    (0..3).for_each(|index| commit(&mut store, index));
    drop(store);
    let labels = folder.path().join(LABELS);
    let short = OpenOptions::new().write(true).open(&labels).unwrap();
    short.set_len(Label::BYTES as u64).unwrap();
    for refused in [
        Store::open(folder.path(), manifest(), 1, true).unwrap_err().to_string(),
        Reader::open(folder.path()).unwrap_err().to_string(),
    ] {
        assert!(refused.contains("labels.bin") && refused.contains("collect again"), "{refused}");
    }
    let endless = r#"{"index": 0, "prompt": 1, "greedy": true, "turn": 18446744073709551615, "tokens": 1}"#;
    for (lines, reason) in [("{}\n", "line 1"), (&format!("{endless}\n"), "more tokens than can be counted")] {
        fs::write(folder.path().join(SEQUENCES), lines).unwrap();
        let refused = format!("{:#}", Reader::open(folder.path()).unwrap_err());
        assert!(refused.contains(reason), "{refused}");
    }
    fs::write(folder.path().join(MANIFEST), "{").unwrap();
    assert!(Reader::open(folder.path()).is_err());
}

#[test]
fn a_disk_that_is_too_small_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let refused = Store::open(folder.path(), manifest(), u64::MAX / 1000, false).unwrap_err().to_string();
    assert!(refused.contains("needs"), "{refused}");
    assert!(!folder.path().join(MANIFEST).exists());
}

#[test]
fn values_beyond_half_precision_and_rows_of_another_shape_are_refused() {
    let label = Label::of(offramp::Token(0), &[0.0; 100]);
    let refused =
        |values: &[&[f32]]| Rows::new(&manifest()).push(&label, values.iter().copied()).unwrap_err().to_string();
    let (whole, k, v) = ([1.0; 4], [1.0; 2], [1.0; 3]);
    let mut rows = Rows::new(&manifest());
    rows.push(&label, [&whole[..], &whole, &whole, &k, &v].into_iter()).unwrap();
    assert!(refused(&[&whole, &whole, &[1e6; 4], &k, &v]).contains("half precision"));
    assert!(refused(&[&whole, &whole, &whole, &v, &k]).contains("a row of 3 values, not 2"));
    assert!(refused(&[&whole, &whole, &whole]).contains("3 series, not 5"));
}

#[test]
fn sequences_come_in_the_order_of_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), manifest(), 1, false).unwrap();
    commit(&mut store, 3);
    let late = Sequence { index: 3, n_prompt: 3, is_greedy: false };
    assert!(store.commit(&late, &rows(3)).unwrap_err().to_string().contains("too late"));
}
