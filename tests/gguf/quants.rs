//! Our decoders against ggml's own, for every type that ggml can decode, on random blocks: bit for bit.

use llama_cpp_sys_2 as sys;
use offramp::gguf::{TensorType, quants};

const BLOCKS: usize = 500;

/// ggml's decoder of a type, `None` where it has none.
#[allow(unsafe_code)]
fn ggml(ty: TensorType, bytes: &[u8]) -> Option<Vec<f32>> {
    let mut values = vec![0f32; BLOCKS * ty.block_size() as usize];
    // SAFETY: the traits are a static table; `to_float` reads whole blocks of its own type, of which
    // `bytes` holds as many as `values` has room for. A u128 buffer aligns the blocks for any of them.
    unsafe {
        let traits = sys::ggml_get_type_traits(ty.id() as sys::ggml_type);
        assert_eq!((*traits).blck_size as u64, ty.block_size(), "{ty}");
        assert_eq!((*traits).type_size as u64, ty.block_bytes(), "{ty}");
        let to_float = (*traits).to_float?;
        let mut aligned = vec![0u128; bytes.len() / 16 + 1];
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), aligned.as_mut_ptr().cast::<u8>(), bytes.len());
        to_float(aligned.as_ptr().cast(), values.as_mut_ptr(), values.len() as i64);
    }
    Some(values)
}

#[test]
fn every_type_decodes_as_in_ggml() {
    let mut compared = Vec::new();
    for &ty in TensorType::ALL {
        let mut random = crate::random::Random::new(u64::from(ty.id()) + 1);
        let bytes: Vec<u8> = (0..BLOCKS * ty.block_bytes() as usize).map(|_| random.below(256) as u8).collect();
        let Some(expected) = ggml(ty, &bytes) else {
            continue;
        };
        let found = quants::dequantize(ty, &bytes).unwrap();
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
            assert!(same, "{ty}, value {index}: expected {expected:e}, found {found:e}");
        }
        compared.push(ty);
    }
    // ggml has no decoder for whole numbers and F64; F32 needs none, and Q8_1 and Q8_K occur in no file.
    assert_eq!(compared.len(), 27, "{compared:?}");
}
