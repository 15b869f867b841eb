use super::*;

fn manifest() -> Manifest {
    Manifest {
        version: Manifest::VERSION,
        model: "tiny".into(),
        sha256: "0".repeat(64),
        n_embd: 4,
        n_vocab: 100,
        layers: vec![2, 5],
        prompts: "none".into(),
        answer: 8,
        seed: 7,
        engine: "test".into(),
        width_difference: 0.5,
    }
}

/// Pushes sequence `index`, of `index + 1` tokens that can be told apart.
fn push(store: &mut Store, index: u64) {
    for token in 0..=index {
        let mut logits = vec![0.0; 100];
        logits[(index * 10 + token) as usize] = 5.0;
        let label = Label::of(offramp::Token(token as i32), &logits);
        let hidden: Vec<Vec<f32>> = (0..3).map(|tap| vec![(index * 100 + token * 10 + tap) as f32; 4]).collect();
        store.push(&label, &hidden).unwrap();
    }
    store.commit(&Sequence { index, n_prompt: 3, is_greedy: index.is_multiple_of(2) }).unwrap();
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
    (0..3).for_each(|index| push(&mut store, index));
    assert_eq!((store.n_tokens(), store.n_sequences(), store.next_index()), (6, 3, 3));
    drop(store);
    let reader = Reader::open(folder.path()).unwrap();
    assert_eq!(reader.sequences(), [0..1, 1..3, 3..6]);
    assert_eq!(reader.hidden(Tap::Layer(5), 3..5).unwrap(), [[201.0; 4], [211.0; 4]].concat());
    assert_eq!(reader.hidden(Tap::ResultNorm, 0..1).unwrap(), [2.0; 4]);
    let labels = reader.labels(1..3).unwrap();
    assert_eq!((labels[0].argmax(), labels[1].argmax(), labels[1].token), (10, 11, 1));
}

#[test]
fn an_interrupted_store_goes_on_to_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    let mut store = Store::open(whole.path(), manifest(), 100, false).unwrap();
    (0..4).for_each(|index| push(&mut store, index));
    drop(store);

    let torn = tempfile::tempdir().unwrap();
    let mut store = Store::open(torn.path(), manifest(), 100, false).unwrap();
    (0..2).for_each(|index| push(&mut store, index));
    let label = Label::of(offramp::Token(9), &[0.0; 100]);
    store.push(&label, &vec![vec![9.0; 4]; 3]).unwrap();
    drop(store);
    let mut sequences = OpenOptions::new().append(true).open(torn.path().join(SEQUENCES)).unwrap();
    sequences.write_all(br#"{"index": 2, "pro"#).unwrap();

    let mut store = Store::open(torn.path(), manifest(), 100, true).unwrap();
    assert_eq!((store.n_tokens(), store.next_index()), (3, 2));
    (2..4).for_each(|index| push(&mut store, index));
    drop(store);
    assert_eq!(contents(torn.path()), contents(whole.path()));
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
    (0..3).for_each(|index| push(&mut store, index));
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
    fs::write(folder.path().join(SEQUENCES), "{}\n").unwrap();
    assert!(Reader::open(folder.path()).is_err());
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
fn hidden_states_beyond_half_precision_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), manifest(), 1, false).unwrap();
    let label = Label::of(offramp::Token(0), &[0.0; 100]);
    assert!(store.push(&label, &vec![vec![1e6; 4]; 3]).is_err());
    assert!(store.push(&label, &vec![vec![1.0; 3]; 3]).is_err());
}
