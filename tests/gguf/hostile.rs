//! Files that must be refused, each with the name of the error, and some that must not.
//!
//! The first table rebuilds the 33 hand-made files of llama.cpp's `test-gguf` under their names there; the
//! second adds what those leave out. Both are bytes put together here, because the writer refuses to make
//! them. The third table changes one thing about a sound small model.

use offramp::gguf::{OwnedValue, TensorType, ValueType, Writer};

use super::random;

/// A file and the name of the error it must raise; `None` where it must be read.
pub struct Case {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub expected: Option<&'static str>,
}

/// A GGUF put together without any check.
#[derive(Clone)]
struct Raw {
    magic: [u8; 4],
    version: u32,
    n_tensors: Option<u64>,
    n_keys: Option<u64>,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: usize,
    data: Vec<u8>,
}

fn raw() -> Raw {
    Raw {
        magic: *b"GGUF",
        version: 3,
        n_tensors: None,
        n_keys: None,
        keys: Vec::new(),
        tensors: Vec::new(),
        alignment: 32,
        data: Vec::new(),
    }
}

impl Raw {
    fn key(mut self, name: &[u8], ty: u32, value: &[u8]) -> Raw {
        self.keys.push([&string(name), &ty.to_le_bytes()[..], value].concat());
        self
    }

    fn tensor(mut self, name: &[u8], dims: &[u64], ty: u32, offset: u64) -> Raw {
        let dims: Vec<u8> = (dims.len() as u32)
            .to_le_bytes()
            .into_iter()
            .chain(dims.iter().flat_map(|dim| dim.to_le_bytes()))
            .collect();
        self.tensors.push([&string(name), &dims, &ty.to_le_bytes()[..], &offset.to_le_bytes()[..]].concat());
        self
    }

    fn align(self, alignment: u32) -> Raw {
        let mut raw = self.key(b"general.alignment", 4, &alignment.to_le_bytes());
        raw.alignment = alignment as usize;
        raw
    }

    fn data(mut self, bytes: usize) -> Raw {
        self.data = vec![0; bytes];
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::from(self.magic);
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        out.extend(self.tensors.concat());
        if !self.data.is_empty() {
            out.resize(out.len().next_multiple_of(self.alignment.clamp(1, 4096)), 0);
            out.extend(&self.data);
        }
        out
    }
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

fn array(ty: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &len.to_le_bytes()[..], elements].concat()
}

const F32: u32 = 0;
const I8: u32 = 24;
const F64: u32 = 28;

fn some_keys() -> Raw {
    raw()
        .key(b"a.u8", 0, &[7])
        .key(b"a.i16", 3, &[1, 0])
        .key(b"a.f64", 12, &1.5f64.to_le_bytes())
        .key(b"a.bool", 7, &[1])
        .key(b"a.str", 8, &string("text\u{1f600}".as_bytes()))
        .key(b"a.array", 9, &array(8, 2, &[string(b"x"), string(b"")].concat()))
        .key(b"a.empty", 9, &array(4, 0, &[]))
}

fn two_tensors(raw: Raw, alignment: u64) -> Raw {
    raw.tensor(b"a", &[4, 3], F32, 0).tensor(b"b", &[5], F32, 48u64.next_multiple_of(alignment))
}

/// llama.cpp's own 33: 26 that its reader must refuse, and 7 that it must accept.
pub fn test_gguf() -> Vec<Case> {
    let t = || two_tensors(some_keys(), 32);
    let with = |change: fn(&mut Raw)| {
        let mut raw = raw();
        change(&mut raw);
        raw
    };
    [
        ("HEADER_BAD_MAGIC", with(|raw| raw.magic = *b"GGML"), Some("BadMagic")),
        ("HEADER_BAD_VERSION_0", with(|raw| raw.version = 0), Some("BadVersion")),
        ("HEADER_BAD_VERSION_1", with(|raw| raw.version = 1), Some("BadVersion")),
        ("HEADER_BAD_VERSION_FUTURE", with(|raw| raw.version = 4), Some("BadVersion")),
        ("HEADER_BAD_N_TENSORS", with(|raw| raw.n_tensors = Some(u64::MAX)), Some("CountTooLarge")),
        ("HEADER_BAD_N_KV", with(|raw| raw.n_keys = Some(u64::MAX)), Some("CountTooLarge")),
        ("HEADER_EMPTY", raw(), None),
        (
            "KV_BAD_KEY_SIZE",
            with(|raw| {
                raw.n_keys = Some(1);
                raw.keys.push([&u64::MAX.to_le_bytes()[..], &[0; 16]].concat());
            }),
            Some("StringTooLong"),
        ),
        ("KV_EMPTY_KEY", raw().key(b"", 0, &[1]), Some("BadName")),
        ("KV_BAD_TYPE", raw().key(b"key", 13, &[0; 8]), Some("BadValueType")),
        ("KV_DUPLICATE_KEY", raw().key(b"key", 0, &[1]).key(b"key", 0, &[1]), Some("Duplicate")),
        ("KV_BAD_ALIGN", raw().align(13), Some("BadAlignment")),
        ("KV_WRONG_TYPE_ALIGN", raw().key(b"general.alignment", 5, &[32, 0, 0, 0]), Some("KeyType")),
        ("KV_SUCCESS", some_keys(), None),
        ("TENSORS_BAD_NAME_SIZE", t().tensor(&[b'x'; 100], &[1], F32, 96), Some("StringTooLong")),
        ("TENSORS_BAD_N_DIMS", t().tensor(b"c", &[1; 5], F32, 96), Some("TooManyDims")),
        ("TENSORS_BAD_SHAPE", t().tensor(b"c", &[u64::MAX], F32, 96), Some("BadDim")),
        ("TENSORS_NE_TOO_BIG", t().tensor(b"c", &[1 << 62, 1 << 62], F32, 96), Some("TensorTooLarge")),
        ("TENSORS_NBYTES_TOO_BIG", t().tensor(b"c", &[1 << 61, 3], F32, 96), Some("TensorTooLarge")),
        ("TENSORS_BAD_TYPE", t().tensor(b"c", &[1], 43, 96), Some("BadTensorType")),
        ("TENSORS_BAD_OFFSET", t().tensor(b"c", &[1], F32, 97), Some("BadOffset")),
        ("TENSORS_DUPLICATE_NAME", t().tensor(b"b", &[1], F32, 96), Some("Duplicate")),
        ("TENSORS_BAD_ALIGN", two_tensors(raw().align(13), 13), Some("BadAlignment")),
        ("TENSORS_INCONSISTENT_ALIGN", two_tensors(raw().align(128), 32), Some("BadOffset")),
        ("TENSORS_ZERO_DIM", raw().tensor(b"a", &[4, 0], F32, 0).data(32), None),
        // The originals have no data; a tensor beyond the end of its file is refused below.
        ("TENSORS_SUCCESS", t().data(96), None),
        ("TENSORS_CUSTOM_ALIGN", two_tensors(raw().align(64), 64).data(128), None),
        ("DATA_NOT_ENOUGH_DATA", t().data(64), Some("TensorBeyondFile")),
        ("DATA_BAD_ALIGN", two_tensors(raw().align(13), 13).data(96), Some("BadAlignment")),
        ("DATA_INCONSISTENT_ALIGN", two_tensors(raw().align(128), 32).data(96), Some("BadOffset")),
        (
            "DATA_MEM_SIZE_OVERFLOW",
            raw()
                .tensor(b"a", &[i64::MAX as u64 - 63], I8, 0)
                .tensor(b"b", &[1 << 62], I8, i64::MAX as u64 - 63)
                .data(32),
            Some("TensorBeyondFile"),
        ),
        ("DATA_SUCCESS", t().data(96), None),
        ("DATA_CUSTOM_ALIGN", two_tensors(raw().align(128), 128).data(256), None),
    ]
    .map(|(name, raw, expected)| Case { name, bytes: raw.bytes(), expected })
    .into()
}

/// What the 33 leave out.
pub fn more() -> Vec<Case> {
    let max = i64::MAX as u64;
    let cases = vec![
        // Sums and products that wrap.
        ("sum of three sizes wraps", three_halves().bytes(), Some("TensorTooLarge")),
        (
            "sum of two sizes beyond the file",
            raw().tensor(b"a", &[1 << 62], I8, 0).tensor(b"b", &[1 << 62], I8, 1 << 62).data(32).bytes(),
            Some("TensorBeyondFile"),
        ),
        ("padding wraps", raw().tensor(b"a", &[max], I8, 0).bytes(), Some("TensorTooLarge")),
        (
            "padding wraps with a large alignment",
            raw().align(1 << 20).tensor(b"a", &[max - 31], I8, 0).bytes(),
            Some("TensorTooLarge"),
        ),
        ("dimension of 2^63", raw().tensor(b"a", &[1 << 63], I8, 0).bytes(), Some("BadDim")),
        ("dimensions (2^63 - 1, 2, 1, 1)", raw().tensor(b"a", &[max, 2, 1, 1], I8, 0).bytes(), Some("TensorTooLarge")),
        ("dimensions of 2^16 four times", raw().tensor(b"a", &[1 << 16; 4], I8, 0).bytes(), Some("TensorTooLarge")),
        (
            "a zero hides a product that wraps",
            raw().tensor(b"a", &[0, 1 << 62, 4], I8, 0).bytes(),
            Some("TensorTooLarge"),
        ),
        ("elements fit, bytes do not", raw().tensor(b"a", &[1 << 61], F64, 0).bytes(), Some("TensorTooLarge")),
        // Alignment.
        ("alignment of 2^31", raw().align(1 << 31).bytes(), Some("BadAlignment")),
        ("alignment of 2^21", raw().align(1 << 21).bytes(), Some("BadAlignment")),
        ("alignment of 0", raw().align(0).bytes(), Some("BadAlignment")),
        ("alignment of 4", raw().align(4).bytes(), Some("BadAlignment")),
        ("alignment as u64", raw().key(b"general.alignment", 10, &[32, 0, 0, 0, 0, 0, 0, 0]).bytes(), Some("KeyType")),
        ("alignment as text", raw().key(b"general.alignment", 8, &string(b"32")).bytes(), Some("KeyType")),
        (
            "alignment as an array",
            raw().key(b"general.alignment", 9, &array(4, 1, &[32, 0, 0, 0])).bytes(),
            Some("KeyType"),
        ),
        // Arrays.
        ("array of arrays", raw().key(b"a", 9, &array(9, 1, &array(4, 0, &[]))).bytes(), Some("NestedArray")),
        ("array of 2^64 - 1 bytes", raw().key(b"a", 9, &array(0, u64::MAX, &[0; 64])).bytes(), Some("CountTooLarge")),
        (
            "array of 2^61 numbers of eight bytes",
            raw().key(b"a", 9, &array(10, 1 << 61, &[0; 64])).bytes(),
            Some("CountTooLarge"),
        ),
        (
            "array of more strings than the file has room for",
            raw().key(b"a", 9, &array(8, 9, &[0; 64])).bytes(),
            Some("CountTooLarge"),
        ),
        ("array of an unknown type", raw().key(b"a", 9, &array(13, 1, &[0; 64])).bytes(), Some("BadValueType")),
        (
            "string in an array longer than the file",
            raw().key(b"a", 9, &array(8, 1, &[255, 255, 0, 0, 0, 0, 0, 0])).bytes(),
            Some("Truncated"),
        ),
        // Text.
        (
            "string longer than the file",
            raw().key(b"a", 8, &[[255, 255, 0, 0, 0, 0, 0, 0], [0; 8]].concat()).bytes(),
            Some("Truncated"),
        ),
        (
            "string of 2^63 bytes",
            raw().key(b"a", 8, &[[0, 0, 0, 0, 0, 0, 0, 128], [0; 8]].concat()).bytes(),
            Some("StringTooLong"),
        ),
        ("key that is not UTF-8", raw().key(b"a\xff", 0, &[1]).bytes(), Some("NotUtf8")),
        ("string that is not UTF-8", raw().key(b"a", 8, &string(b"\xc3\x28")).bytes(), Some("NotUtf8")),
        (
            "string in an array that is not UTF-8",
            raw().key(b"a", 9, &array(8, 1, &string(b"\x80"))).bytes(),
            Some("NotUtf8"),
        ),
        ("key with a zero byte", raw().key(b"a\0b", 0, &[1]).bytes(), Some("BadName")),
        ("key that drives a terminal", raw().key(b"\x1b[2J", 0, &[1]).bytes(), Some("BadName")),
        ("key of 65,536 bytes", raw().key(&[b'k'; 65_536], 0, &[1]).bytes(), Some("StringTooLong")),
        ("boolean of 2", raw().key(b"a", 7, &[2]).bytes(), Some("BadBool")),
        ("boolean of 255 in an array", raw().key(b"a", 9, &array(7, 3, &[0, 1, 255])).bytes(), Some("BadBool")),
        // Tensors.
        ("tensor without a name", raw().tensor(b"", &[1], F32, 0).data(32).bytes(), Some("BadName")),
        ("tensor name with a line break", raw().tensor(b"a\nb", &[1], F32, 0).data(32).bytes(), Some("BadName")),
        ("tensor name of 64 bytes", raw().tensor(&[b'x'; 64], &[1], F32, 0).data(32).bytes(), Some("StringTooLong")),
        ("2^32 - 1 dimensions", dims_of_u32_max(), Some("TooManyDims")),
        ("withdrawn type Q4_2", raw().tensor(b"a", &[32], 4, 0).data(32).bytes(), Some("BadTensorType")),
        ("withdrawn type Q4_0_4_4", raw().tensor(b"a", &[32], 31, 0).data(32).bytes(), Some("BadTensorType")),
        ("type of 2^32 - 1", raw().tensor(b"a", &[32], u32::MAX, 0).data(32).bytes(), Some("BadTensorType")),
        ("rows that end within a block", raw().tensor(b"a", &[33, 32], 2, 0).data(1024).bytes(), Some("PartialBlock")),
        ("a scalar of a block type", raw().tensor(b"a", &[], 2, 0).data(32).bytes(), Some("PartialBlock")),
        (
            "tensors that overlap",
            raw().tensor(b"a", &[8], F32, 0).tensor(b"b", &[8], F32, 0).data(64).bytes(),
            Some("BadOffset"),
        ),
        (
            "a gap between tensors",
            raw().tensor(b"a", &[8], F32, 0).tensor(b"b", &[8], F32, 64).data(96).bytes(),
            Some("BadOffset"),
        ),
        (
            "a first tensor that does not start at 0",
            raw().tensor(b"a", &[8], F32, 32).data(64).bytes(),
            Some("BadOffset"),
        ),
        (
            "one byte less than the last tensor needs",
            raw().tensor(b"a", &[8], F32, 0).data(31).bytes(),
            Some("TensorBeyondFile"),
        ),
        ("no data at all", two_tensors(some_keys(), 32).bytes(), Some("Truncated")),
        ("data of exactly the needed size, without padding", raw().tensor(b"a", &[5], F32, 0).data(20).bytes(), None),
        ("a scalar", raw().tensor(b"a", &[], F32, 0).data(4).bytes(), None),
        // Counts and the header itself.
        ("one tensor more than there is", counted(1, 0), Some("CountTooLarge")),
        ("one key more than there is", counted(0, 1), Some("CountTooLarge")),
        ("65,537 keys", many_keys(65_537), Some("CountTooLarge")),
        ("big-endian version", [b"GGUF", &3u32.to_be_bytes()[..], &[0; 16]].concat(), Some("BigEndian")),
        (
            "counts of 32 bits, as version 1 had them",
            [b"GGUF", &3u32.to_le_bytes()[..], &[0; 8]].concat(),
            Some("Truncated"),
        ),
        ("version 2", Raw { version: 2, ..two_tensors(some_keys(), 32).data(96) }.bytes(), None),
        ("an empty file", Vec::new(), Some("Truncated")),
        ("three bytes", b"GGU".to_vec(), Some("Truncated")),
        (
            "a string's length cut off",
            raw().key(b"a", 8, &string(b"text")).bytes()[..24 + 8 + 1 + 4 + 3].to_vec(),
            Some("Truncated"),
        ),
        ("other bytes after a small header", [raw().bytes(), vec![0xff; 100]].concat(), None),
    ];
    cases.into_iter().map(|(name, bytes, expected)| Case { name, bytes, expected }).collect()
}

/// Three tensors, each as large as one may be, whose sizes add up to more than 64 bits.
fn three_halves() -> Raw {
    let size = 1u64 << 62;
    let raw = (0..4u64).fold(raw(), |raw, i| raw.tensor(&[b'a' + i as u8], &[size], I8, i.wrapping_mul(size)));
    raw.tensor(b"e", &[size], I8, 0)
}

fn dims_of_u32_max() -> Vec<u8> {
    let mut raw = raw();
    raw.tensors.push([&string(b"a"), &u32::MAX.to_le_bytes()[..], &[0; 64]].concat());
    raw.bytes()
}

fn counted(more_tensors: u64, more_keys: u64) -> Vec<u8> {
    let mut raw = raw().key(b"a", 0, &[1]);
    raw.n_tensors = Some(more_tensors);
    raw.n_keys = Some(1 + more_keys);
    raw.bytes()
}

fn many_keys(n: usize) -> Vec<u8> {
    (0..n).fold(raw(), |raw, i| raw.key(format!("key.{i}").as_bytes(), 0, &[1])).bytes()
}

/// A sound small model in which one key has another value, or none.
fn with_key(key: &str, value: Option<OwnedValue>) -> Vec<u8> {
    with_keys(vec![(key, value)])
}

fn with_keys(changes: Vec<(&str, Option<OwnedValue>)>) -> Vec<u8> {
    let model = random::open(&random::model(1));
    let mut writer = Writer::new();
    writer.copy_keys(&model, |name| changes.iter().all(|(key, _)| *key != name)).unwrap();
    for (key, value) in changes {
        if let Some(value) = value {
            writer.key(key, value).unwrap();
        }
    }
    for tensor in model.tensors() {
        writer.copy_tensor(&model, tensor).unwrap();
    }
    writer.to_bytes().unwrap()
}

/// A sound small model in which one tensor has another type and shape, or is missing.
fn with_tensor(name: &str, replacement: Option<(TensorType, &[u64])>) -> Vec<u8> {
    let model = random::open(&random::model(1));
    let mut writer = Writer::new();
    writer.copy_keys(&model, |_| true).unwrap();
    for tensor in model.tensors() {
        match replacement {
            _ if tensor.name() != name => {
                writer.copy_tensor(&model, tensor).unwrap();
            }
            Some((ty, dims)) => {
                writer.tensor(name, ty, dims, vec![0; ty.bytes(dims).unwrap() as usize]).unwrap();
            }
            None => {}
        }
    }
    writer.to_bytes().unwrap()
}

/// The vocabulary with one text replaced.
fn tokens_with(index: usize, text: &str) -> Option<OwnedValue> {
    let mut tokens = random::tokens();
    tokens[index] = text.to_string();
    Some(tokens.into())
}

/// Models that the reader accepts and the preflight must refuse, and some that it must not.
pub fn models() -> Vec<Case> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const TYPES: &str = "tokenizer.ggml.token_type";
    const SCORES: &str = "tokenizer.ggml.scores";
    const MERGES: &str = "tokenizer.ggml.merges";
    let n = random::tokens().len();
    let some = |value: OwnedValue| Some(value);
    let u32 = |value: u32| Some(OwnedValue::from(value));
    let f32 = |value: f32| Some(OwnedValue::from(value));
    let i32s = |values: Vec<i32>| Some(OwnedValue::from(values));
    let spm = |tokens: Vec<String>| {
        with_keys(vec![("tokenizer.ggml.model", Some("llama".into())), (TOKENS, Some(tokens.into())), (TYPES, None)])
    };
    let bytes_spelled =
        || (0..n).map(|i| if i < 256 { format!("<0x{i:02X}>") } else { format!("t{i}") }).collect::<Vec<_>>();
    let byte_types = |text: &str| {
        let mut types = vec![1; n];
        types[3] = 6;
        with_keys(vec![(TYPES, Some(types.into())), (TOKENS, tokens_with(3, text))])
    };
    let experts = |count: u32, used: u32| {
        with_keys(vec![("llama.expert_count", Some(count.into())), ("llama.expert_used_count", Some(used.into()))])
    };
    let cases = vec![
        ("the model itself", random::model(1).to_bytes().unwrap(), None),
        // Tokenizer arrays of the wrong type or length.
        ("tokens as bytes", with_key(TOKENS, some(vec![0u8; n].into())), Some("KeyType")),
        ("tokens as one text", with_key(TOKENS, some("text".into())), Some("KeyType")),
        ("no tokens", with_key(TOKENS, some(Vec::<String>::new().into())), Some("KeyValue")),
        ("tokens missing", with_key(TOKENS, None), Some("MissingKey")),
        ("token types as bytes", with_key(TYPES, some(vec![1u8; n].into())), Some("KeyType")),
        ("token types as u32", with_key(TYPES, some(vec![1u32; n].into())), Some("KeyType")),
        ("token types as one number", with_key(TYPES, some(1i32.into())), Some("KeyType")),
        ("one token type too few", with_key(TYPES, i32s(vec![1; n - 1])), Some("KeyValue")),
        ("one token type too many", with_key(TYPES, i32s(vec![1; n + 1])), Some("KeyValue")),
        ("unknown token type", with_key(TYPES, i32s(vec![7; n])), Some("ArrayEntry")),
        ("negative token type", with_key(TYPES, i32s(vec![-1; n])), Some("ArrayEntry")),
        ("scores as bytes", with_key(SCORES, some(vec![1u8; n].into())), Some("KeyType")),
        ("scores as f64", with_key(SCORES, some(vec![1f64; n].into())), Some("KeyType")),
        ("one score too few", with_key(SCORES, some(vec![1f32; n - 1].into())), Some("KeyValue")),
        ("a score that is no number", with_key(SCORES, some(vec![f32::NAN; n].into())), Some("ArrayEntry")),
        ("merges as numbers", with_key(MERGES, some(vec![1u32; 4].into())), Some("KeyType")),
        ("merges missing", with_key(MERGES, None), Some("MissingKey")),
        ("a merge of one text", with_key(MERGES, some(vec!["th"].into())), Some("ArrayEntry")),
        ("an empty merge", with_key(MERGES, some(vec![""].into())), Some("ArrayEntry")),
        (
            "suppressed tokens as f32",
            with_key("tokenizer.ggml.suppress_tokens", some(vec![1f32].into())),
            Some("KeyType"),
        ),
        ("add_bos_token as a number", with_key("tokenizer.ggml.add_bos_token", u32(1)), Some("KeyType")),
        // The vocabulary's contents.
        ("two tokens with one text", with_key(TOKENS, tokens_with(256, "!")), Some("ArrayEntry")),
        ("two tokens alike up to a zero byte", with_key(TOKENS, tokens_with(256, "!\0x")), Some("ArrayEntry")),
        (
            "a token that spells a replacement",
            with_keys(vec![(TOKENS, tokens_with(256, "[EMPTY_7]"))]),
            Some("ArrayEntry"),
        ),
        ("byte token <0x-1>", byte_types("<0x-1>"), Some("ArrayEntry")),
        ("byte token <0x>", byte_types("<0x>"), Some("ArrayEntry")),
        ("byte token without a text", byte_types(""), Some("ArrayEntry")),
        ("a sound byte token", byte_types("<0x03>"), None),
        ("SentencePiece without byte tokens", spm(random::tokens()), Some("ArrayEntry")),
        ("SentencePiece with byte tokens", spm(bytes_spelled()), None),
        ("begin token beyond the vocabulary", with_key("tokenizer.ggml.bos_token_id", u32(n as u32)), Some("KeyValue")),
        ("end token of 2^32 - 1", with_key("tokenizer.ggml.eos_token_id", u32(u32::MAX)), Some("KeyValue")),
        ("begin token as i32", with_key("tokenizer.ggml.bos_token_id", some(1i32.into())), Some("KeyType")),
        ("end token to be added, but none there", gemma4(), Some("MissingKey")),
        ("unknown tokenizer", with_key("tokenizer.ggml.model", some("magic".into())), Some("UnreadLoader")),
        ("tokenizer of an encoder", with_key("tokenizer.ggml.model", some("bert".into())), Some("UnreadLoader")),
        ("no tokenizer", with_key("tokenizer.ggml.model", None), Some("MissingKey")),
        // The architecture and its numbers.
        ("no architecture", with_key("general.architecture", None), Some("MissingKey")),
        ("architecture as a number", with_key("general.architecture", u32(1)), Some("KeyType")),
        ("unknown architecture", with_key("general.architecture", some("magic".into())), Some("UnreadLoader")),
        ("another architecture's keys", with_key("general.architecture", some("qwen2".into())), Some("MissingKey")),
        ("a part of a split model", with_key("split.count", some(2u16.into())), Some("KeyValue")),
        ("an adapter", with_key("general.type", some("adapter".into())), Some("KeyValue")),
        ("no layers", with_key("llama.block_count", u32(0)), Some("KeyValue")),
        ("513 layers", with_key("llama.block_count", u32(513)), Some("KeyValue")),
        ("layers as u64", with_key("llama.block_count", some(3u64.into())), Some("KeyType")),
        ("more layers than tensors", with_key("llama.block_count", u32(4)), Some("MissingTensor")),
        ("context of no tokens", with_key("llama.context_length", u32(0)), Some("KeyValue")),
        ("context of 2^32 - 1 tokens", with_key("llama.context_length", u32(u32::MAX)), Some("KeyValue")),
        ("hidden states of length 0", with_key("llama.embedding_length", u32(0)), Some("KeyValue")),
        ("hidden states of another length", with_key("llama.embedding_length", u32(128)), Some("KeyValue")),
        ("no heads", with_key("llama.attention.head_count", u32(0)), Some("KeyValue")),
        ("heads missing", with_key("llama.attention.head_count", None), Some("MissingKey")),
        ("more heads than values", with_key("llama.attention.head_count", u32(128)), Some("KeyValue")),
        ("no K/V heads", with_key("llama.attention.head_count_kv", u32(0)), Some("KeyValue")),
        ("K/V heads that do not divide the heads", with_key("llama.attention.head_count_kv", u32(3)), Some("KeyValue")),
        ("heads of two layers", with_key("llama.attention.head_count", some(vec![4u32; 2].into())), Some("KeyValue")),
        (
            "heads of each layer, one of them 0",
            with_key("llama.attention.head_count", some(vec![4u32, 0, 4].into())),
            Some("ArrayEntry"),
        ),
        (
            "heads of each layer, negative",
            with_key("llama.attention.head_count", i32s(vec![4, -4, 4])),
            Some("ArrayEntry"),
        ),
        (
            "heads of each layer as f32",
            with_key("llama.attention.head_count", some(vec![4f32; 3].into())),
            Some("KeyType"),
        ),
        (
            "heads of each layer as texts",
            with_key("llama.attention.head_count", some(vec!["4"; 3].into())),
            Some("KeyType"),
        ),
        ("heads of each layer", with_key("llama.attention.head_count", some(vec![4u32; 3].into())), None),
        (
            "feed-forward lengths of four layers",
            with_key("llama.feed_forward_length", some(vec![128u32; 4].into())),
            Some("KeyValue"),
        ),
        ("keys of another length than values", with_key("llama.attention.key_length", u32(32)), Some("KeyValue")),
        ("keys of length 0", with_key("llama.attention.key_length", u32(0)), Some("KeyValue")),
        ("uneven rope dimensions", with_key("llama.rope.dimension_count", u32(15)), Some("KeyValue")),
        ("more rope dimensions than values", with_key("llama.rope.dimension_count", u32(18)), Some("KeyValue")),
        ("unknown rope scaling", with_key("llama.rope.scaling.type", some("magic".into())), Some("KeyValue")),
        ("rope scaling as a number", with_key("llama.rope.scaling.type", u32(1)), Some("KeyValue")),
        ("infinite rope base", with_key("llama.rope.freq_base", f32(f32::INFINITY)), Some("KeyValue")),
        ("negative epsilon", with_key("llama.attention.layer_norm_rms_epsilon", f32(-1.0)), Some("KeyValue")),
        (
            "epsilon that is no number",
            with_key("llama.attention.layer_norm_rms_epsilon", f32(f32::NAN)),
            Some("KeyValue"),
        ),
        ("more experts used than there are", experts(2, 3), Some("KeyValue")),
        ("no experts used", experts(2, 0), Some("KeyValue")),
        ("2,000 experts", experts(2000, 2), Some("KeyValue")),
        ("experts used of none", experts(0, 1), Some("KeyValue")),
        ("expert groups without experts", with_key("llama.expert_group_count", u32(1)), Some("KeyValue")),
        ("an encoder's attention", with_key("llama.attention.causal", some(false.into())), Some("KeyValue")),
        ("unknown pooling", with_key("llama.pooling_type", u32(9)), Some("KeyValue")),
        ("only layers that predict further tokens", with_key("llama.nextn_predict_layers", u32(3)), Some("KeyValue")),
        (
            "output states longer than hidden ones",
            with_key("llama.embedding_length_out", u32(1 << 20)),
            Some("KeyValue"),
        ),
        // Tensors.
        ("zero dimension", with_tensor("blk.0.ffn_gate.weight", Some((TensorType::F32, &[64, 0]))), Some("ZeroDim")),
        (
            "norm in half precision",
            with_tensor("blk.0.attn_norm.weight", Some((TensorType::F16, &[64]))),
            Some("TensorShape"),
        ),
        (
            "norm of quantized numbers",
            with_tensor("blk.0.attn_norm.weight", Some((TensorType::Q8_0, &[64]))),
            Some("TensorShape"),
        ),
        (
            "matrix of whole numbers",
            with_tensor("blk.0.ffn_gate.weight", Some((TensorType::I32, &[64, 128]))),
            Some("TensorShape"),
        ),
        (
            "matrix of Q8_1",
            with_tensor("blk.0.ffn_gate.weight", Some((TensorType::Q8_1, &[64, 128]))),
            Some("TensorShape"),
        ),
        (
            "matrix of F64",
            with_tensor("blk.0.ffn_gate.weight", Some((TensorType::F64, &[64, 128]))),
            Some("TensorShape"),
        ),
        (
            "embedding of another vocabulary",
            with_tensor("token_embd.weight", Some((TensorType::F32, &[64, 100]))),
            Some("TensorShape"),
        ),
        ("embedding missing", with_tensor("token_embd.weight", None), Some("MissingTensor")),
        (
            "attention of another width",
            with_tensor("blk.1.attn_k.weight", Some((TensorType::F32, &[64, 64]))),
            Some("TensorShape"),
        ),
        ("attention missing", with_tensor("blk.2.attn_v.weight", None), Some("MissingTensor")),
        // llama.cpp itself reports these.
        ("feed-forward missing", with_tensor("blk.1.ffn_up.weight", None), None),
        ("feed-forward of another shape", with_tensor("blk.1.ffn_up.weight", Some((TensorType::F32, &[64, 64]))), None),
        ("an unknown pre-tokenizer", with_key("tokenizer.ggml.pre", some("magic".into())), None),
        ("a name that is a number", with_key("general.name", u32(1)), None),
        (
            "an empty array of numbers among the keys",
            with_key("more", Some(OwnedValue::Array(ValueType::U8, vec![]))),
            None,
        ),
        (
            "every matrix type that rows of 64 allow",
            with_tensor("blk.0.ffn_gate.weight", Some((TensorType::NVFP4, &[64, 128]))),
            None,
        ),
    ];
    cases.into_iter().map(|(name, bytes, expected)| Case { name, bytes, expected }).collect()
}

fn gemma4() -> Vec<u8> {
    with_keys(vec![
        ("tokenizer.ggml.model", Some("gemma4".into())),
        ("tokenizer.ggml.bos_token_id", None),
        ("tokenizer.ggml.eos_token_id", None),
        ("tokenizer.ggml.add_eos_token", Some(true.into())),
    ])
}
