//! Files that must be refused, each with the name of the error, and some that must not.
//!
//! The first table rebuilds the 33 hand-made files of llama.cpp's `test-gguf` under their names there; the
//! second adds what those leave out. Both are bytes put together here, because the writer refuses to make
//! them. A third one, of models, is a module of its own.

mod models;

pub use models::models;

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
