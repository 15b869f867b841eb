//! The types a GGUF file can hold: those of its keys and those of its tensors.
//!
//! Refuses numbers that no version of the format defines, and those of quantizations that have been
//! withdrawn (Q4_2, Q4_3 and the interleaved Q4_0/IQ4_NL forms), whose block sizes no reader knows any more.

use std::fmt;

macro_rules! value_types {
    ($($variant:ident = $id:literal, $name:literal, $size:expr;)*) => {
        /// The type of a key's value, or of the elements of an array.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ValueType {
            $(#[doc = concat!("`", $name, "`, number ", stringify!($id), " in the file.")] $variant,)*
        }

        impl ValueType {
            /// Every type, in the order of their numbers.
            pub const ALL: &'static [ValueType] = &[$(ValueType::$variant,)*];

            /// The type that a file's number stands for.
            pub fn from_id(id: u32) -> Option<ValueType> {
                match id {
                    $($id => Some(ValueType::$variant),)*
                    _ => None,
                }
            }

            /// The number that stands for the type in a file.
            pub fn id(self) -> u32 {
                match self {
                    $(ValueType::$variant => $id,)*
                }
            }

            /// The bytes of one value, `None` for strings and arrays.
            pub fn size(self) -> Option<usize> {
                match self {
                    $(ValueType::$variant => $size,)*
                }
            }

            /// The short name that ggml prints.
            pub fn name(self) -> &'static str {
                match self {
                    $(ValueType::$variant => $name,)*
                }
            }
        }
    };
}

value_types! {
    U8 = 0, "u8", Some(1);
    I8 = 1, "i8", Some(1);
    U16 = 2, "u16", Some(2);
    I16 = 3, "i16", Some(2);
    U32 = 4, "u32", Some(4);
    I32 = 5, "i32", Some(4);
    F32 = 6, "f32", Some(4);
    Bool = 7, "bool", Some(1);
    Str = 8, "str", None;
    Array = 9, "arr", None;
    U64 = 10, "u64", Some(8);
    I64 = 11, "i64", Some(8);
    F64 = 12, "f64", Some(8);
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! tensor_types {
    ($($variant:ident = $id:literal, $name:literal, $block:literal, $bytes:literal;)*) => {
        /// The type of a tensor's elements: plain numbers, or blocks of quantized ones (`ggml_type`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types)] // the names are ggml's
        pub enum TensorType {
            $(#[doc = concat!("`", $name, "`: ", stringify!($block), " elements in ", stringify!($bytes), " bytes.")] $variant,)*
        }

        impl TensorType {
            /// Every type, in the order of their numbers.
            pub const ALL: &'static [TensorType] = &[$(TensorType::$variant,)*];

            /// The type that a file's number stands for.
            pub fn from_id(id: u32) -> Option<TensorType> {
                match id {
                    $($id => Some(TensorType::$variant),)*
                    _ => None,
                }
            }

            /// The number that stands for the type in a file.
            pub fn id(self) -> u32 {
                match self {
                    $(TensorType::$variant => $id,)*
                }
            }

            /// Elements in one block; 1 for plain numbers.
            pub fn block_size(self) -> u64 {
                match self {
                    $(TensorType::$variant => $block,)*
                }
            }

            /// Bytes of one block.
            pub fn block_bytes(self) -> u64 {
                match self {
                    $(TensorType::$variant => $bytes,)*
                }
            }

            /// ggml's name, in the case that GGUF tools print.
            pub fn name(self) -> &'static str {
                match self {
                    $(TensorType::$variant => $name,)*
                }
            }
        }
    };
}

tensor_types! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q8_1 = 9, "Q8_1", 32, 36;
    Q2_K = 10, "Q2_K", 256, 84;
    Q3_K = 11, "Q3_K", 256, 110;
    Q4_K = 12, "Q4_K", 256, 144;
    Q5_K = 13, "Q5_K", 256, 176;
    Q6_K = 14, "Q6_K", 256, 210;
    Q8_K = 15, "Q8_K", 256, 292;
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    IQ1_S = 19, "IQ1_S", 256, 50;
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    IQ3_S = 21, "IQ3_S", 256, 110;
    IQ2_S = 22, "IQ2_S", 256, 82;
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    IQ1_M = 29, "IQ1_M", 256, 56;
    BF16 = 30, "BF16", 1, 2;
    TQ1_0 = 34, "TQ1_0", 256, 54;
    TQ2_0 = 35, "TQ2_0", 256, 66;
    MXFP4 = 39, "MXFP4", 32, 17;
    NVFP4 = 40, "NVFP4", 64, 36;
    Q1_0 = 41, "Q1_0", 128, 18;
    Q2_0 = 42, "Q2_0", 64, 18;
}

impl TensorType {
    /// The bytes of a tensor of the shape `dims`, `None` where they exceed 64 bits or a row is no whole
    /// number of blocks.
    pub fn bytes(self, dims: &[u64]) -> Option<u64> {
        let row = dims.first().copied().unwrap_or(1);
        if row % self.block_size() != 0 {
            return None;
        }
        let mut blocks = row / self.block_size();
        for &dim in dims.iter().skip(1) {
            blocks = blocks.checked_mul(dim)?;
        }
        blocks.checked_mul(self.block_bytes())
    }

    /// Whether the type holds quantized blocks rather than plain numbers.
    pub fn is_quantized(self) -> bool {
        self.block_size() > 1
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_types_are_inverse() {
        for &ty in TensorType::ALL {
            assert_eq!(TensorType::from_id(ty.id()), Some(ty));
        }
        for &ty in ValueType::ALL {
            assert_eq!(ValueType::from_id(ty.id()), Some(ty));
        }
        for withdrawn in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(TensorType::from_id(withdrawn), None);
        }
    }

    #[test]
    fn sizes_never_wrap() {
        assert_eq!(TensorType::Q4_0.bytes(&[64, 3]), Some(2 * 18 * 3));
        assert_eq!(TensorType::Q4_0.bytes(&[33]), None);
        assert_eq!(TensorType::F32.bytes(&[u64::MAX, 2]), None);
        assert_eq!(TensorType::F64.bytes(&[1 << 61]), None);
        assert_eq!(TensorType::F32.bytes(&[]), Some(4));
    }
}
