//! A session on disk: its tokens and the K/V cache that belongs to them, so that a conversation goes on without its
//! prompt being decoded again.
//!
//! The file names the model (a hash of its tensor entries and of samples of their data), the cache's number formats and
//! its own version, and ends with a hash of everything before; it appears whole or not at all. A hash keeps accidents
//! out, not intent, so that the K/V themselves are checked too, number by number ([`layout`]): llama.cpp checks the
//! shape of a state that it is given, but takes any position in it. Everything is checked before anything changes.
//!
//! It refuses models with a recurrent state, whose snapshots follow other rules.
//!
//! ```text
//! "OFFRAMPS"  version u32  type_k u32  type_v u32  model [64 hexadecimal digits]
//! n_tokens u64  n_cached u64  n_state u64
//! tokens [n_tokens] i32   state [n_state] bytes, llama.cpp's of sequence 0   SHA-256 [32]      all little-endian
//! ```

mod layout;

use std::fs;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Next, Session};
use crate::error::{Error, LlamaLog, Result};
use crate::gguf::AtomicFile;
use crate::llama::Token;
use layout::Layout;

const MAGIC: &[u8; 8] = b"OFFRAMPS";
const VERSION: u32 = 1;
const HASH_DIGITS: usize = 64;
/// Bytes before the tokens.
const HEADER: usize = 8 + 3 * 4 + HASH_DIGITS + 3 * 8;
const DIGEST: usize = 32;

/// Why a saved session cannot be loaded, or a session not be saved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Not a file that [`Session::save`] wrote.
    #[error("it is no saved session")]
    NotASession,
    /// Written by another version of this library.
    #[error("its format is version {found}, and this library reads version {VERSION}; decode the text again")]
    Version {
        /// The file's.
        found: u32,
    },
    /// Cut off, changed, or never right.
    #[error("it is damaged: {found}; decode the text again")]
    Damaged {
        /// What was met.
        found: String,
    },
    /// Saved with other weights.
    #[error("it was saved with another model (fingerprint {found}, this one has {expected})")]
    OtherModel {
        /// The fingerprint of the session's model.
        expected: String,
        /// The file's.
        found: String,
    },
    /// The K/V are in other number formats.
    #[error("its K/V cache is of ggml's types {found:?}, this session's of {expected:?}; take the same -ctk and -ctv")]
    OtherCache {
        /// ggml's type ids of the session's K and V.
        expected: (u32, u32),
        /// The file's.
        found: (u32, u32),
    },
    /// More tokens than the session's context holds.
    #[error("it has {n_tokens} tokens and the context holds {n_ctx}; raise the context with -c")]
    TooLong {
        /// Tokens in the file.
        n_tokens: u64,
        /// Tokens that the context holds.
        n_ctx: usize,
    },
    /// llama.cpp did not give or take a state that should be sound.
    #[error("llama.cpp refused the state: {log}")]
    Refused {
        /// llama.cpp's own words.
        log: LlamaLog,
    },
}

impl Session {
    /// Writes the session's text and its K/V cache to `path`, whole or not at all; an old file is replaced. Tokens whose
    /// upper layers are pending are caught up first, and drafts are dropped. What a cancelled call left to decode is left to the loading session.
    ///
    /// The file takes the bytes of the cache that are in use, and as much memory meanwhile.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for models with a recurrent state, [`Error::Gguf`] with the system's reason for a file that
    /// cannot be written, [`Error::Decode`] and [`Error::Cancelled`] where something must be decoded first, [`Error::State`].
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let wrong = |source| Error::State { path: path.to_owned(), source };
        self.drop_drafts();
        let layout = self.layout()?;
        self.drop_drafts();
        if self.gate.n_pending() > 0 {
            // The catch-up leaves other logits than those after the last token.
            self.next = Next::Unknown;
        }
        if self.gate.awaits_rotation() {
            self.roll_back(self.gate.position().saturating_sub(1));
            self.decode_missing(&mut |_| {})?;
        }
        let state = if self.gate.position() == 0 {
            Vec::new()
        } else {
            self.gate.state()?.map_err(|log| wrong(StateError::Refused { log }))?
        };
        let n_cached = self.gate.position();
        if n_cached > 0 {
            let n_swa = self.model.info().n_swa as usize;
            layout.check(&state, n_cached, n_swa).map_err(|found| wrong(StateError::Damaged { found }))?;
        }
        let (type_k, type_v) = self.gate.cache_types();
        let mut header = Vec::with_capacity(HEADER + self.tokens.len() * 4);
        header.extend_from_slice(MAGIC);
        [VERSION, type_k, type_v].iter().for_each(|number| header.extend(number.to_le_bytes()));
        header.extend_from_slice(self.model.fingerprint().as_bytes());
        [self.tokens.len(), n_cached, state.len()].iter().for_each(|&n| header.extend((n as u64).to_le_bytes()));
        self.tokens.iter().for_each(|token| header.extend(token.0.to_le_bytes()));
        let digest = Sha256::new().chain_update(&header).chain_update(&state).finalize();
        let mut file = AtomicFile::create(path, true)?;
        file.write_all(&header)?;
        file.write_all(&state)?;
        file.write_all(&digest)?;
        file.commit()?;
        Ok(())
    }

    /// Replaces the session's text and cache by those of a file that [`Session::save`] wrote, with this model, these
    /// cache types, and no more tokens than this context holds.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::State`], which leave the session's text as it was; only where llama.cpp itself refuses
    /// a state that passed every check ([`StateError::Refused`]) must the next call decode that text again.
    /// [`Error::Unsupported`] as for [`Session::save`].
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let layout = self.layout()?;
        let saved = Saved::read(path, self, &layout)?;
        self.drop_drafts();
        self.next = Next::Unknown;
        self.gate.clear();
        if saved.n_cached > 0
            && let Err(log) = self.gate.restore(&saved.state, saved.n_cached)
        {
            return Err(Error::State { path: path.to_owned(), source: StateError::Refused { log } });
        }
        self.tokens = saved.tokens;
        Ok(())
    }

    /// Makes `tokens` the text of a session that is empty, with `state` as their K/V, which comes from another session of this
    /// model. Where llama.cpp refuses it, the session stays empty.
    pub(super) fn restore(&mut self, tokens: &[Token], state: &[u8]) {
        match self.gate.restore(state, tokens.len()) {
            Ok(()) => self.tokens.extend_from_slice(tokens),
            Err(log) => tracing::info!("K/V cannot be taken over: {log}"),
        }
    }

    /// How llama.cpp lays out the K/V of this session's cache.
    fn layout(&self) -> Result<Layout> {
        let info = self.model.info();
        let unsupported = |found: String| Error::Unsupported {
            what: "saving and loading a session",
            found,
            fix: "keep the text and decode it again",
        };
        if info.recurrent || info.hybrid {
            return Err(unsupported(format!("{} keeps a recurrent state", info.architecture)));
        }
        let sample = self.gate.sample_state()?;
        Layout::of(&sample)
            .ok_or_else(|| unsupported(format!("{} keeps more than keys and values in its cache", info.architecture)))
    }
}

/// A file whose every part has been checked against the session that it is for.
struct Saved {
    tokens: Vec<Token>,
    n_cached: usize,
    state: Vec<u8>,
}

impl Saved {
    fn read(path: &Path, session: &Session, layout: &Layout) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let wrong = |source| Error::State { path: path.to_owned(), source };
        let damaged = |found: &str| wrong(StateError::Damaged { found: found.to_owned() });
        let mut file = fs::File::open(path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        if file_bytes < (HEADER + DIGEST) as u64 {
            return Err(wrong(StateError::NotASession));
        }
        let mut header = [0; HEADER];
        file.read_exact(&mut header).map_err(io)?;
        let sizes = check_header(&header, session).map_err(wrong)?;
        let n_ctx = session.n_ctx();
        // The last token of a full context has been sampled, and cannot be decoded.
        if sizes.n_tokens > n_ctx as u64 + 1 || sizes.n_cached > n_ctx as u64 {
            return Err(wrong(StateError::TooLong { n_tokens: sizes.n_tokens.max(sizes.n_cached), n_ctx }));
        }
        let n_cached = sizes.n_cached as usize;
        if sizes.n_cached > sizes.n_tokens || sizes.n_state > layout.max_bytes(n_cached) {
            return Err(damaged("its sizes contradict each other"));
        }
        let expected = (HEADER + DIGEST) as u64 + sizes.n_tokens * 4 + sizes.n_state;
        if file_bytes != expected {
            return Err(damaged(&format!("it has {file_bytes} bytes instead of {expected}")));
        }
        // All three are bounded by what the session itself holds.
        let mut tokens = vec![0; sizes.n_tokens as usize * 4];
        let mut state = vec![0; sizes.n_state as usize];
        let mut digest = [0; DIGEST];
        for part in [&mut tokens[..], &mut state[..], &mut digest[..]] {
            file.read_exact(part).map_err(io)?;
        }
        let hash = Sha256::new().chain_update(header).chain_update(&tokens).chain_update(&state).finalize();
        if hash[..] != digest {
            return Err(damaged("its hash does not match"));
        }
        let tokens: Vec<Token> =
            tokens.chunks_exact(4).map(|b| Token(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect();
        let n_vocab = session.model.info().n_vocab as usize;
        if let Some(token) = tokens.iter().find(|token| usize::try_from(token.0).map_or(true, |id| id >= n_vocab)) {
            return Err(damaged(&format!("token id {} is outside of the vocabulary of {n_vocab}", token.0)));
        }
        if n_cached > 0 {
            let n_swa = session.model.info().n_swa as usize;
            layout.check(&state, n_cached, n_swa).map_err(|found| wrong(StateError::Damaged { found }))?;
        }
        Ok(Self { tokens, n_cached, state })
    }
}

struct Sizes {
    n_tokens: u64,
    n_cached: u64,
    n_state: u64,
}

fn check_header(header: &[u8; HEADER], session: &Session) -> std::result::Result<Sizes, StateError> {
    let (magic, rest) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(StateError::NotASession);
    }
    let u32_at = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    match u32_at(0) {
        VERSION => {}
        found => return Err(StateError::Version { found }),
    }
    let model = &rest[12..12 + HASH_DIGITS];
    let expected = session.model.fingerprint();
    if model != expected.as_bytes() {
        let found = String::from_utf8_lossy(model).escape_debug().to_string();
        return Err(StateError::OtherModel { expected: expected.to_owned(), found });
    }
    let (expected, found) = (session.gate.cache_types(), (u32_at(4), u32_at(8)));
    if expected != found {
        return Err(StateError::OtherCache { expected, found });
    }
    let sizes = 12 + HASH_DIGITS;
    Ok(Sizes { n_tokens: u64_at(sizes), n_cached: u64_at(sizes + 8), n_state: u64_at(sizes + 16) })
}
