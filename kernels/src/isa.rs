//! An instruction set: vectors of `ROWS` weight rows beside each other, four columns of each.
//!
//! A lane is a row, so that sums run along a row's columns and nothing is added across lanes. All integer sums are
//! exact; floats are added in the order that `product` writes them in, which is the same for every number of tokens.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod plain;

/// The operations that packing and products are written in.
///
/// # Safety
/// Every method may be called only where the processor has the set's instructions; pointers must be readable (for
/// `store`, writable) for as many bytes as the method says.
pub(super) trait Isa: 'static {
    /// Weight rows in a vector.
    const ROWS: usize;
    /// Tokens that are computed together: their sums and a block's codes fit the registers, or nearly do.
    const TOKENS: usize = 8;
    /// Products take signed bytes: values with an offset of 128 are kept without it. Else they take unsigned ones.
    const SIGNED: bool;
    /// Four bytes of each row.
    type Bytes: Copy;
    /// A 32-bit integer of each row.
    type Ints: Copy;
    /// A float of each row.
    type Floats: Copy;

    /// `4 * ROWS` bytes.
    unsafe fn load(p: *const u8) -> Self::Bytes;
    /// Both masks of bits.
    unsafe fn and(a: Self::Bytes, mask: u8) -> Self::Bytes;
    /// Either's bits.
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Bits moved up by `N`, by at most 4; what leaves a byte is garbage in the next one, to be masked away.
    unsafe fn up<const N: u32>(a: Self::Bytes) -> Self::Bytes;
    /// Bits moved down by `N`, likewise.
    unsafe fn down<const N: u32>(a: Self::Bytes) -> Self::Bytes;
    /// The table's entry for each byte below 16.
    unsafe fn lookup(table: &[u8; 16], codes: Self::Bytes) -> Self::Bytes;
    /// `init` plus the products of `N` vectors from `FROM` on with `4 * N` activations at `y`.
    /// `BITS` bounds the weights: values below `1 << BITS`; 8 for signed or unsigned bytes, as the set takes them.
    unsafe fn dot<const BITS: usize, const FROM: usize, const N: usize>(
        init: i32,
        w: &[Self::Bytes; 8],
        y: *const i8,
    ) -> Self::Ints;
    /// Each row's sum of products of `2 * PAIRS` unsigned bytes, of which `ROWS` pairs lie beside each other at `p`, with
    /// pairs of 16-bit integers at `y`. `PAIRS` is 4 or 8.
    unsafe fn minima<const PAIRS: usize>(p: *const u8, y: *const i32) -> Self::Ints;
    /// As floats.
    unsafe fn floats(a: Self::Ints) -> Self::Floats;
    /// `ROWS` floats.
    unsafe fn f32(p: *const f32) -> Self::Floats;
    /// `ROWS` numbers in half precision.
    unsafe fn f16(p: *const u8) -> Self::Floats;
    /// `ROWS` numbers as the upper halves of floats.
    unsafe fn bf16(p: *const u8) -> Self::Floats;
    /// `ROWS` signed bytes as floats.
    unsafe fn i8(p: *const u8) -> Self::Floats;
    /// The same float for each row.
    unsafe fn splat(value: f32) -> Self::Floats;
    /// `a + b`.
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b`.
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c - a * b`, rounded once.
    unsafe fn fnma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Writes `ROWS` floats.
    unsafe fn store(p: *mut f32, a: Self::Floats);
    /// Asks for the cache line at `p`, which may lie outside of any allocation.
    unsafe fn prefetch(p: *const u8);
}
