//! The values of keys: borrowed from a file as [`Value`], or owned and on their way into one as
//! [`OwnedValue`].
//!
//! Refuses nothing itself: the reader has checked every value before it hands one out, so that the
//! accessors here are plain slicing.

use super::types::ValueType;

/// A key's value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An unsigned byte.
    U8(u8),
    /// A signed byte.
    I8(i8),
    /// An unsigned 16-bit number.
    U16(u16),
    /// A signed 16-bit number.
    I16(i16),
    /// An unsigned 32-bit number.
    U32(u32),
    /// A signed 32-bit number.
    I32(i32),
    /// A 32-bit float.
    F32(f32),
    /// A boolean.
    Bool(bool),
    /// Text.
    Str(&'a str),
    /// Several values of one type.
    Array(Array<'a>),
    /// An unsigned 64-bit number.
    U64(u64),
    /// A signed 64-bit number.
    I64(i64),
    /// A 64-bit float.
    F64(f64),
}

impl<'a> Value<'a> {
    /// The value's type; `ValueType::Array` for an array of any type.
    pub fn ty(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::Str(_) => ValueType::Str,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value as an unsigned number, where it is a whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a float, where it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => None,
        }
    }

    /// The value as text, where it is text.
    pub fn as_str(&self) -> Option<&'a str> {
        match *self {
            Value::Str(v) => Some(v),
            _ => None,
        }
    }

    /// The value as an array, where it is one.
    pub fn as_array(&self) -> Option<Array<'a>> {
        match *self {
            Value::Array(v) => Some(v),
            _ => None,
        }
    }

    /// Copies the value out of the file.
    pub fn to_owned(&self) -> OwnedValue {
        match *self {
            Value::U8(v) => OwnedValue::U8(v),
            Value::I8(v) => OwnedValue::I8(v),
            Value::U16(v) => OwnedValue::U16(v),
            Value::I16(v) => OwnedValue::I16(v),
            Value::U32(v) => OwnedValue::U32(v),
            Value::I32(v) => OwnedValue::I32(v),
            Value::F32(v) => OwnedValue::F32(v),
            Value::Bool(v) => OwnedValue::Bool(v),
            Value::Str(v) => OwnedValue::Str(v.to_string()),
            Value::Array(v) => OwnedValue::Array(v.ty, v.iter().map(|v| v.to_owned()).collect()),
            Value::U64(v) => OwnedValue::U64(v),
            Value::I64(v) => OwnedValue::I64(v),
            Value::F64(v) => OwnedValue::F64(v),
        }
    }
}

/// An array's values, all of one type, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    pub(super) ty: ValueType,
    pub(super) len: u64,
    /// The elements as they stand in the file, checked by the reader.
    pub(super) bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The type of the elements, never `ValueType::Array`.
    pub fn element_type(&self) -> ValueType {
        self.ty
    }

    /// How many elements there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let ty = self.ty;
        let mut rest = self.bytes;
        (0..self.len).map_while(move |_| {
            let (value, used) = decode(ty, rest)?;
            rest = rest.get(used..)?;
            Some(value)
        })
    }
}

/// Decodes one value that is not an array from the start of `bytes`; also says how many bytes it took.
/// `None` where the bytes do not suffice or are no such value.
pub(super) fn decode(ty: ValueType, bytes: &[u8]) -> Option<(Value<'_>, usize)> {
    macro_rules! number {
        ($variant:ident, $ty:ty) => {{
            let (head, _) = bytes.split_first_chunk()?;
            Some((Value::$variant(<$ty>::from_le_bytes(*head)), size_of::<$ty>()))
        }};
    }
    match ty {
        ValueType::U8 => number!(U8, u8),
        ValueType::I8 => number!(I8, i8),
        ValueType::U16 => number!(U16, u16),
        ValueType::I16 => number!(I16, i16),
        ValueType::U32 => number!(U32, u32),
        ValueType::I32 => number!(I32, i32),
        ValueType::F32 => number!(F32, f32),
        ValueType::U64 => number!(U64, u64),
        ValueType::I64 => number!(I64, i64),
        ValueType::F64 => number!(F64, f64),
        ValueType::Bool => Some((Value::Bool(*bytes.first()? != 0), 1)),
        ValueType::Str => {
            let (head, rest) = bytes.split_first_chunk()?;
            let len = usize::try_from(u64::from_le_bytes(*head)).ok()?;
            let text = std::str::from_utf8(rest.get(..len)?).ok()?;
            Some((Value::Str(text), 8 + len))
        }
        ValueType::Array => None,
    }
}

/// A key's value that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedValue {
    /// An unsigned byte.
    U8(u8),
    /// A signed byte.
    I8(i8),
    /// An unsigned 16-bit number.
    U16(u16),
    /// A signed 16-bit number.
    I16(i16),
    /// An unsigned 32-bit number.
    U32(u32),
    /// A signed 32-bit number.
    I32(i32),
    /// A 32-bit float.
    F32(f32),
    /// A boolean.
    Bool(bool),
    /// Text.
    Str(String),
    /// Several values of the type given; values of another type, or arrays, are refused by the writer.
    Array(ValueType, Vec<OwnedValue>),
    /// An unsigned 64-bit number.
    U64(u64),
    /// A signed 64-bit number.
    I64(i64),
    /// A 64-bit float.
    F64(f64),
}

impl OwnedValue {
    /// The value's type; `ValueType::Array` for an array of any type.
    pub fn ty(&self) -> ValueType {
        match self {
            OwnedValue::U8(_) => ValueType::U8,
            OwnedValue::I8(_) => ValueType::I8,
            OwnedValue::U16(_) => ValueType::U16,
            OwnedValue::I16(_) => ValueType::I16,
            OwnedValue::U32(_) => ValueType::U32,
            OwnedValue::I32(_) => ValueType::I32,
            OwnedValue::F32(_) => ValueType::F32,
            OwnedValue::Bool(_) => ValueType::Bool,
            OwnedValue::Str(_) => ValueType::Str,
            OwnedValue::Array(..) => ValueType::Array,
            OwnedValue::U64(_) => ValueType::U64,
            OwnedValue::I64(_) => ValueType::I64,
            OwnedValue::F64(_) => ValueType::F64,
        }
    }

    /// Appends the value as it stands in a file, without its type.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            OwnedValue::U8(v) => out.push(*v),
            OwnedValue::I8(v) => out.extend(v.to_le_bytes()),
            OwnedValue::U16(v) => out.extend(v.to_le_bytes()),
            OwnedValue::I16(v) => out.extend(v.to_le_bytes()),
            OwnedValue::U32(v) => out.extend(v.to_le_bytes()),
            OwnedValue::I32(v) => out.extend(v.to_le_bytes()),
            OwnedValue::F32(v) => out.extend(v.to_le_bytes()),
            OwnedValue::Bool(v) => out.push((*v).into()),
            OwnedValue::Str(v) => {
                out.extend((v.len() as u64).to_le_bytes());
                out.extend(v.as_bytes());
            }
            OwnedValue::Array(ty, values) => {
                out.extend(ty.id().to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                for value in values {
                    value.encode(out);
                }
            }
            OwnedValue::U64(v) => out.extend(v.to_le_bytes()),
            OwnedValue::I64(v) => out.extend(v.to_le_bytes()),
            OwnedValue::F64(v) => out.extend(v.to_le_bytes()),
        }
    }
}

macro_rules! from_plain {
    ($($ty:ty => $variant:ident;)*) => {$(
        impl From<$ty> for OwnedValue {
            fn from(value: $ty) -> OwnedValue {
                OwnedValue::$variant(value.into())
            }
        }

        impl From<Vec<$ty>> for OwnedValue {
            fn from(values: Vec<$ty>) -> OwnedValue {
                OwnedValue::Array(ValueType::$variant, values.into_iter().map(OwnedValue::from).collect())
            }
        }

        impl From<&[$ty]> for OwnedValue {
            fn from(values: &[$ty]) -> OwnedValue {
                OwnedValue::Array(ValueType::$variant, values.iter().map(|v| OwnedValue::from(v.clone())).collect())
            }
        }
    )*};
}

from_plain! {
    u8 => U8;
    i8 => I8;
    u16 => U16;
    i16 => I16;
    u32 => U32;
    i32 => I32;
    f32 => F32;
    bool => Bool;
    String => Str;
    &str => Str;
    u64 => U64;
    i64 => I64;
    f64 => F64;
}
