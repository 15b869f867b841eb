//! Heads beside and around a model: both forms read the same, the model comes back byte for byte, and
//! nothing that contradicts itself is accepted.

use crate::random::{heads, model, open};
use offramp::gguf::exits::{self, BaseCheck, ExitHeads, ExitMeta, Form, HeadMap, HeadType, Metric};
use offramp::gguf::{Error, File, TensorType, WriteOptions, Writer, preflight};

const LAYERS: [u32; 2] = [0, 1];
const TYPES: [HeadType; 2] = [HeadType::Affine, HeadType::LowRankMlp];

fn run(_: u64, _: u64) -> bool {
    true
}

#[test]
fn a_sidecar_reads_as_it_was_described() {
    let base = open(&model(1));
    let sidecar = open(&heads(&base, &LAYERS, &TYPES, 2));
    let view = ExitHeads::open(&sidecar).unwrap();
    assert_eq!(view.form(), Form::Sidecar);
    let described = exits::Base::of(&base, &mut run).unwrap();
    assert_eq!(*view.meta(), crate::random::meta(described, &LAYERS, &TYPES));
    assert_eq!(view.meta().level(0.96), Some(1));
    assert_eq!(view.screen().unwrap().output.info.dims(), [8, 259]);
    let [first, second] = view.heads() else { panic!("two heads") };
    assert!(matches!(first.map, HeadMap::Affine(weight) if weight.info.ty() == TensorType::Q8_0));
    assert!(first.mlp.is_none() && second.mlp.is_some());
    assert!(matches!(second.map, HeadMap::LowRank { down, .. } if down.info.dims() == [64, 16]));
    assert_eq!(first.kv.iter().map(|map| map.layer).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(second.kv.len(), 1);
    view.check_base(&base, BaseCheck::Data, &mut run).unwrap();
}

#[test]
fn a_merged_file_holds_the_model_and_the_same_heads() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    model(1).write(path("model.gguf"), WriteOptions::default(), &mut run).unwrap();
    let base = File::open(path("model.gguf")).unwrap();
    heads(&base, &LAYERS, &TYPES, 2).write(path("heads.gguf"), WriteOptions::default(), &mut run).unwrap();
    let sidecar = File::open(path("heads.gguf")).unwrap();
    let merged = exits::attach(&base, &sidecar, &mut run).unwrap();
    merged.write(path("merged.gguf"), WriteOptions::default(), &mut run).unwrap();

    let merged = File::open(path("merged.gguf")).unwrap();
    let view = ExitHeads::open(&merged).unwrap();
    let beside = ExitHeads::open(&sidecar).unwrap();
    assert_eq!(view.form(), Form::Merged);
    assert_eq!(view.meta(), beside.meta());
    for (a, b) in view.tensors().zip(beside.tensors()) {
        assert_eq!((a.name(), merged.data(a)), (b.name(), sidecar.data(b)));
    }
    // Every base tensor is in the outer file, with the same data.
    for tensor in base.tensors() {
        let outer = merged.tensor(tensor.name()).unwrap();
        assert_eq!((outer.ty(), outer.dims()), (tensor.ty(), tensor.dims()));
        assert_eq!(merged.data(outer), base.data(tensor));
    }
    let found = preflight(&merged).unwrap();
    assert_eq!(found.base_offset, exits::base_offset(&merged).unwrap());
    assert_eq!(found.base_offset % 32, 0);
    assert!(found.base_offset > 0);
    assert_eq!(preflight(&base).unwrap().base_offset, 0);

    let sha = exits::strip(&merged, &path("stripped.gguf"), WriteOptions::default(), &mut run).unwrap();
    assert_eq!(sha, exits::file_sha256(&base, &mut run).unwrap());
    assert_eq!(std::fs::read(path("stripped.gguf")).unwrap(), std::fs::read(path("model.gguf")).unwrap());
    let extracted = exits::extract(&merged).unwrap().to_bytes().unwrap();
    assert_eq!(extracted, std::fs::read(path("heads.gguf")).unwrap());
    // Heads move from one merged file to another, too.
    let again = exits::attach(&base, &merged, &mut run).unwrap().to_bytes().unwrap();
    assert_eq!(again, std::fs::read(path("merged.gguf")).unwrap());
}

#[test]
fn a_wrong_base_is_refused_with_both_names() {
    let base = open(&model(1));
    let sidecar = open(&heads(&base, &LAYERS, &TYPES, 2));
    let mut other = Writer::new();
    other.copy_keys(&base, |name| name != "general.name").unwrap().key("general.name", "another").unwrap();
    crate::random::model_weights(&mut other, 99);
    let other = open(&other);
    // The same shapes: only the data tells them apart.
    let view = ExitHeads::open(&sidecar).unwrap();
    view.check_base(&other, BaseCheck::Infos, &mut run).unwrap();
    let error = exits::attach(&other, &sidecar, &mut run).err().unwrap();
    assert!(matches!(error, Error::WrongBase { .. }));
    let message = error.to_string();
    assert!(message.contains("\"tiny\"") && message.contains("\"another\""), "{message}");
}

#[test]
fn what_has_no_heads_or_has_them_already_is_refused() {
    let base = open(&model(1));
    let sidecar = open(&heads(&base, &LAYERS, &TYPES, 2));
    assert!(matches!(ExitHeads::open(&base), Err(Error::NoHeads { .. })));
    assert!(matches!(exits::extract(&base), Err(Error::NoHeads { .. })));
    assert!(matches!(exits::attach(&base, &base, &mut run), Err(Error::NoHeads { .. })));
    let merged = open(&exits::attach(&base, &sidecar, &mut run).unwrap());
    assert!(matches!(exits::attach(&merged, &sidecar, &mut run), Err(Error::WrongForm { .. })));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    assert!(matches!(exits::strip(&sidecar, &out, WriteOptions::default(), &mut run), Err(Error::WrongForm { .. })));
    assert!(!out.exists());
    // A sidecar is no model.
    assert!(matches!(preflight(&sidecar), Err(Error::KeyValue { .. })));
}

#[test]
fn a_damaged_model_is_not_restored() {
    let base = open(&model(1));
    let sidecar = open(&heads(&base, &LAYERS, &TYPES, 2));
    let mut bytes = exits::attach(&base, &sidecar, &mut run).unwrap().to_bytes().unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.gguf");
    std::fs::write(&path, bytes).unwrap();
    let merged = File::open(&path).unwrap();
    let out = folder.path().join("out.gguf");
    let refused = exits::strip(&merged, &out, WriteOptions::default(), &mut run);
    assert!(matches!(refused, Err(Error::HashMismatch { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn headers_that_disagree_are_refused() {
    let base = open(&model(1));
    let sidecar = open(&heads(&base, &LAYERS, &TYPES, 2));
    let merged = exits::attach(&base, &sidecar, &mut run).unwrap().to_bytes().unwrap();
    let at = |needle: &[u8], from: usize| {
        from + merged[from..].windows(needle.len()).position(|window| window == needle).unwrap()
    };
    let read = |bytes| File::from_bytes(bytes, "merged").and_then(|file| exits::base(&file).map(|_| ()));
    read(merged.clone()).unwrap();

    // The outer header's entry of a square matrix, its sides swapped for another shape of the same size.
    let mut reshaped = merged.clone();
    let entry = at(b"blk.0.ffn_gate.weight", 0) + "blk.0.ffn_gate.weight".len() + 4;
    reshaped[entry..entry + 16].rotate_left(8);
    assert!(matches!(read(reshaped), Err(Error::Inconsistent { .. })));

    // The inner header's magic.
    let inner = exits::base_offset(&File::from_bytes(merged.clone(), "merged").unwrap()).unwrap() as usize;
    let mut broken = merged.clone();
    broken[inner] = b'X';
    assert!(matches!(read(broken), Err(Error::BadMagic { .. })));

    // A tensor renamed in the inner header alone.
    let mut renamed = merged.clone();
    let entry = at(b"blk.0.ffn_gate.weight", inner);
    renamed[entry + 6..entry + 14].copy_from_slice(b"fxx_gate");
    assert!(matches!(read(renamed), Err(Error::Inconsistent { .. })));

    // A base tensor that calls itself a head, in both headers.
    let mut disguised = merged.clone();
    for from in [0, inner] {
        let entry = at(b"blk.0.ffn_gate.weight", from);
        disguised[entry + 6..entry + 14].copy_from_slice(b"exit_ate");
    }
    assert!(read(disguised).is_err());
}

/// Reads a sidecar after a change to its description or tensors.
fn changed(
    keys: impl Fn(&mut ExitMeta),
    keep: impl Fn(&str) -> bool,
    extra: impl Fn(&mut Writer),
) -> Result<(), Error> {
    let base = open(&model(1));
    let sidecar = open(&heads(&base, &LAYERS, &TYPES, 2));
    let mut meta = ExitHeads::open(&sidecar).unwrap().meta().clone();
    keys(&mut meta);
    let mut writer = exits::sidecar(&base, &meta)?;
    for tensor in sidecar.tensors() {
        if keep(tensor.name()) {
            writer.copy_tensor(&sidecar, tensor).unwrap();
        }
    }
    extra(&mut writer);
    let file = open(&writer);
    ExitHeads::open(&file)?.check_base(&base, BaseCheck::Infos, &mut run)
}

#[test]
fn contradictions_between_keys_and_tensors_are_refused() {
    changed(|_| {}, |_| true, |_| {}).unwrap();
    // Tensors that are missing, or too many.
    for name in [
        "exit_screen.basis",
        "exit_draft.norm.weight",
        "exit_draft.head.bias",
        "blk.0.exit_norm.weight",
        "blk.0.exit_head.weight",
        "blk.1.exit_down.weight",
    ] {
        assert!(matches!(changed(|_| {}, |tensor| tensor != name, |_| {}), Err(Error::MissingTensor { .. })), "{name}");
    }
    let extra = |writer: &mut Writer| {
        writer.tensor_f32("blk.2.exit_norm.weight", &[64], &[0.0; 64]).unwrap();
    };
    assert!(matches!(changed(|_| {}, |_| true, extra), Err(Error::TensorShape { .. })));
    // Classifiers belong to their metric: each exit has one then, and none otherwise.
    let by_classifier = |meta: &mut ExitMeta| meta.metric = Metric::Classifier;
    let classifiers = |layers: &'static [u32], len: u64| {
        move |writer: &mut Writer| {
            for layer in layers {
                let name = |part: &str| format!("blk.{layer}.exit_classifier.{part}");
                writer.tensor_f32(&name("weight"), &[len], &vec![0.5; len as usize]).unwrap();
                writer.tensor_f32(&name("bias"), &[1], &[0.0]).unwrap();
            }
        }
    };
    changed(by_classifier, |_| true, classifiers(&LAYERS, 65)).unwrap();
    let missing = changed(by_classifier, |_| true, classifiers(&LAYERS[..1], 65));
    assert!(matches!(missing, Err(Error::MissingTensor { .. })));
    for refused in [
        changed(by_classifier, |_| true, classifiers(&LAYERS, 64)),
        changed(|_| {}, |_| true, classifiers(&LAYERS, 65)),
    ] {
        assert!(matches!(refused, Err(Error::TensorShape { .. })), "{refused:?}");
    }
    // A head that drafts is there as a whole, or not at all.
    let is_draft = |tensor: &str| tensor.starts_with("exit_draft.");
    changed(|meta| meta.draft = None, |tensor| !is_draft(tensor), |_| {}).unwrap();
    assert!(matches!(changed(|meta| meta.draft = None, |_| true, |_| {}), Err(Error::TensorShape { .. })));
    // One map of the keys without that of the values.
    let gap = |tensor: &str| tensor != "blk.0.exit_v.2.weight";
    assert!(matches!(changed(|_| {}, gap, |_| {}), Err(Error::MissingTensor { .. })));
    // Shapes and types.
    for (name, ty, dims, size) in [
        ("blk.0.exit_norm.weight", TensorType::F16, vec![64], 128),
        ("blk.0.exit_norm.weight", TensorType::F32, vec![32], 128),
        ("blk.0.exit_head.weight", TensorType::F32, vec![64, 32], 8192),
        ("blk.0.exit_head.weight", TensorType::I8, vec![64, 64], 4096),
        ("exit_screen.output", TensorType::F32, vec![8, 258], 8256),
        ("exit_draft.norm.weight", TensorType::F32, vec![64], 256),
        ("exit_draft.head.weight", TensorType::F32, vec![64, 64], 16_384),
    ] {
        let replace = |writer: &mut Writer| {
            writer.tensor(name, ty, &dims, vec![0; size]).unwrap();
        };
        let refused = changed(|_| {}, |tensor| tensor != name, replace);
        assert!(matches!(refused, Err(Error::TensorShape { .. })), "{name} {ty} {dims:?}");
    }
    // A K/V map that is not as wide as the model's.
    let names = ["blk.1.exit_k.2.weight", "blk.1.exit_k.2.bias"];
    let narrow = |writer: &mut Writer| {
        writer.tensor_f32(names[0], &[64, 16], &[0.0; 1024]).unwrap();
    };
    let refused = changed(|_| {}, |tensor| !names.contains(&tensor), narrow);
    assert!(matches!(refused, Err(Error::TensorShape { .. })));
    // Keys.
    let changes: [fn(&mut ExitMeta); 18] = [
        |meta| meta.draft.as_mut().unwrap().agreement = vec![0.5, 0.4, 0.9],
        |meta| meta.draft = Some(exits::ConfidenceMap::default()),
        |meta| meta.layers = vec![1, 0],
        |meta| meta.layers = vec![0, 2],
        |meta| {
            meta.head_types.pop();
        },
        |meta| meta.head_ranks = vec![0, 0],
        |meta| meta.screen.shortlist = 0,
        |meta| meta.screen.shortlist = 260,
        |meta| meta.screen.thresholds = vec![],
        |meta| {
            meta.confidence.pop();
        },
        |meta| meta.confidence[0].agreement = vec![0.5, 0.4, 0.9],
        |meta| meta.confidence[0].metric = vec![0.0, f32::NAN, 1.0],
        |meta| meta.agreements = vec![0.95, 1.5],
        |meta| meta.thresholds[0] = vec![0.5],
        |meta| meta.thresholds[0][0] = f32::NAN,
        |meta| meta.base.sha256 = "no hash".into(),
        |meta| meta.calibration.as_mut().unwrap().risk = vec![0.5],
        |meta| meta.calibration.as_mut().unwrap().date = "yesterday".into(),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert!(matches!(changed(change, |_| true, |_| {}), Err(Error::KeyValue { .. })), "change {index}");
    }
    assert!(matches!(changed(|meta| meta.gate_thresholds.clear(), |_| true, |_| {}), Err(Error::MissingKey { .. })));
    assert!(matches!(changed(|meta| meta.base.n_embd = 32, |_| true, |_| {}), Err(Error::TensorShape { .. })));
    assert!(matches!(changed(|meta| meta.base.n_layer = 4, |_| true, |_| {}), Err(Error::MissingTensor { .. })));
    let infos = |meta: &mut ExitMeta| meta.base.infos_sha256 = "0".repeat(64);
    assert!(matches!(changed(infos, |_| true, |_| {}), Err(Error::WrongBase { .. })));
}

#[test]
fn a_confidence_map_interpolates_and_never_leaves_its_ends() {
    let map = exits::ConfidenceMap { metric: vec![0.0, 0.5, 1.0], agreement: vec![0.2, 0.6, 1.0] };
    for (metric, agreement) in [(-1.0, 0.2), (0.0, 0.2), (0.25, 0.4), (0.5, 0.6), (0.75, 0.8), (1.0, 1.0), (9.0, 1.0)] {
        assert!((map.agreement_at(metric) - agreement).abs() < 1e-6, "{metric}");
    }
    for (agreement, metric) in [(0.4, 0.25), (0.6, 0.5), (1.0, 1.0)] {
        assert!((map.least_at(agreement) - metric).abs() < 1e-6, "{agreement}");
    }
    assert_eq!((map.least_at(0.1), map.least_at(1.1)), (f32::NEG_INFINITY, f32::INFINITY));
    assert_eq!(map.agreement_at(f32::NAN), 0.0);
    assert_eq!(exits::ConfidenceMap::default().agreement_at(1.0), 0.0);
}
