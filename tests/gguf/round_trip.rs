//! Random keys and tensors survive writing and reading, and writing again gives the same bytes.

use offramp::gguf::{File, OwnedValue, TensorType, ValueType, Writer};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// A value of a type that is no array.
fn scalar(ty: ValueType) -> BoxedStrategy<OwnedValue> {
    match ty {
        ValueType::U8 => any::<u8>().prop_map(OwnedValue::from).boxed(),
        ValueType::I8 => any::<i8>().prop_map(OwnedValue::from).boxed(),
        ValueType::U16 => any::<u16>().prop_map(OwnedValue::from).boxed(),
        ValueType::I16 => any::<i16>().prop_map(OwnedValue::from).boxed(),
        ValueType::U32 => any::<u32>().prop_map(OwnedValue::from).boxed(),
        ValueType::I32 => any::<i32>().prop_map(OwnedValue::from).boxed(),
        ValueType::F32 => any::<f32>().prop_map(OwnedValue::from).boxed(),
        ValueType::Bool => any::<bool>().prop_map(OwnedValue::from).boxed(),
        ValueType::U64 => any::<u64>().prop_map(OwnedValue::from).boxed(),
        ValueType::I64 => any::<i64>().prop_map(OwnedValue::from).boxed(),
        ValueType::F64 => any::<f64>().prop_map(OwnedValue::from).boxed(),
        ValueType::Str | ValueType::Array => any::<String>().prop_map(OwnedValue::from).boxed(),
    }
}

pub fn value() -> impl Strategy<Value = OwnedValue> {
    let element = prop::sample::select(ValueType::ALL).prop_filter("no array", |ty| *ty != ValueType::Array);
    element.prop_flat_map(|ty| {
        let array = vec(scalar(ty), 0..6).prop_map(move |values| OwnedValue::Array(ty, values));
        prop_oneof![scalar(ty), array]
    })
}

/// A tensor's type, its dimensions (the first in blocks) and a seed for its bytes.
pub fn tensor() -> impl Strategy<Value = (TensorType, Vec<u64>, u8)> {
    (prop::sample::select(TensorType::ALL), vec(0..4u64, 0..=4), any::<u8>())
}

pub const NAME: &str = "[a-z][a-z0-9_.]{0,40}";

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_written_is_read(
        keys in btree_map(NAME, value(), 0..12),
        tensors in btree_map(NAME, tensor(), 0..12),
        alignment in prop::option::of(3..13u32),
    ) {
        let mut writer = Writer::new();
        if let Some(power) = alignment {
            writer.key("general.alignment", 1u32 << power).unwrap();
        }
        for (name, value) in keys.iter().filter(|(name, _)| *name != "general.alignment") {
            writer.key(name, value.clone()).unwrap();
        }
        let mut written = Vec::new();
        for (name, (ty, dims, seed)) in &tensors {
            let mut dims = dims.clone();
            match dims.first_mut() {
                Some(first) => *first *= ty.block_size(),
                None => dims.push(ty.block_size()),
            }
            let n_bytes = ty.bytes(&dims).unwrap();
            let data: Vec<u8> = (0..n_bytes).map(|i| seed.wrapping_mul(31).wrapping_add(i as u8)).collect();
            writer.tensor(name, *ty, &dims, data.clone()).unwrap();
            written.push((name, *ty, dims, data));
        }
        let bytes = writer.to_bytes().unwrap();
        prop_assert_eq!(bytes.len() as u64, writer.size());

        let file = File::from_bytes(bytes.clone(), "written").unwrap();
        prop_assert_eq!(file.alignment(), alignment.map_or(32, |power| 1 << power));
        for (name, value) in keys.iter().filter(|(name, _)| *name != "general.alignment") {
            // As text, because NaN is equal to nothing.
            prop_assert_eq!(format!("{:?}", file.get(name).unwrap().to_owned()), format!("{value:?}"));
        }
        prop_assert_eq!(file.tensors().len(), written.len());
        for (found, (name, ty, dims, data)) in file.tensors().iter().zip(&written) {
            prop_assert_eq!((found.name(), found.ty(), found.dims()), (name.as_str(), *ty, dims.as_slice()));
            prop_assert_eq!(found.offset() % file.alignment(), 0);
            prop_assert_eq!(file.data(found), data);
        }

        let mut again = Writer::new();
        again.copy_keys(&file, |_| true).unwrap();
        for tensor in file.tensors() {
            again.copy_tensor(&file, tensor).unwrap();
        }
        prop_assert_eq!(again.to_bytes().unwrap(), bytes);
    }
}
