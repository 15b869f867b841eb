//! Which tokens may come next in a text that follows a grammar, for one vocabulary.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher as Inner, ParserFactory};

use super::error::GrammarError;
use super::json::Position;
use super::{Grammar, guarded, limits};

/// What all steps of one text may cost together, in llguidance's units of new states.
const MAX_COST: u64 = 20_000_000;

/// A vocabulary, as matchers need it.
pub(crate) struct Tokens {
    factory: ParserFactory,
    /// The bytes of each token; none for those that have no text of their own.
    words: Vec<Vec<u8>>,
    ends: Vec<bool>,
    longest: usize,
}

impl Tokens {
    /// `words` has the bytes of each token, `ends` whether it ends a text.
    ///
    /// # Errors
    /// [`GrammarError::Unusable`].
    pub(crate) fn new(words: Vec<Vec<u8>>, ends: Vec<bool>) -> Result<Self, GrammarError> {
        let longest = words.iter().map(Vec::len).max().unwrap_or(0);
        // 0xFF is no byte of UTF-8: a token with it can follow no grammar, and the trie has another use for it.
        let is_text = |(word, is_end): (&Vec<u8>, &bool)| !*is_end && word.len() < 1024 && !word.contains(&0xFF);
        let known = words.iter().zip(&ends);
        let mut entries: Vec<Vec<u8>> =
            known.map(|pair| if is_text(pair) { pair.0.clone() } else { Vec::new() }).collect();
        // Ends are not asked for by their token; the trie wants one, and gets one that is none.
        entries.push(b"\xFF<end>".to_vec());
        let n = u32::try_from(entries.len()).map_err(|_| GrammarError::Unusable("too many tokens".to_owned()))?;
        let factory = guarded(|| {
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&TokRxInfo::new(n, n - 1), &entries)));
            factory(&env)
        })?;
        Ok(Self { factory, words, ends, longest })
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("n", &self.words.len()).finish_non_exhaustive()
    }
}

fn factory(env: &TokEnv) -> anyhow::Result<ParserFactory> {
    let slices = llguidance::earley::SlicedBiasComputer::json_slices();
    let mut factory = ParserFactory::new(env, InferenceCapabilities::default(), &slices)?;
    *factory.limits_mut() = limits();
    factory.quiet();
    Ok(factory)
}

/// A vocabulary of the 256 bytes, to try a grammar with.
pub(super) fn single_bytes() -> anyhow::Result<ParserFactory> {
    let env = ApproximateTokEnv::single_byte_env();
    let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &[])?;
    *factory.limits_mut() = limits();
    factory.quiet();
    Ok(factory)
}

/// Follows one text.
pub(crate) struct Matcher {
    inner: Inner,
    tokens: Arc<Tokens>,
    /// Which tokens may come next, if that was worked out.
    mask: Option<SimpleVob>,
    /// Whether the text may end here.
    may_end: bool,
    /// Where in its JSON the text is, if it is JSON.
    json: Option<Position>,
    cost: u64,
}

impl Matcher {
    /// `token_id` finds the token that is written as a text, for grammars that name tokens.
    ///
    /// # Errors
    /// [`GrammarError::Unusable`].
    pub(crate) fn new(
        grammar: &Grammar,
        tokens: &Arc<Tokens>,
        token_id: &dyn Fn(&str) -> Option<u32>,
    ) -> Result<Self, GrammarError> {
        let init = grammar.init(token_id)?;
        let parser = guarded(|| tokens.factory.create_parser_from_init_default(init))?;
        let json = grammar.is_json().then(Position::default);
        Ok(Self {
            inner: Inner::new(Ok(parser)),
            tokens: Arc::clone(tokens),
            mask: None,
            may_end: false,
            json,
            cost: 0,
        })
    }

    /// Works out which tokens may come next.
    ///
    /// # Errors
    /// [`GrammarError::Unusable`] where the grammar has become too intricate.
    pub(crate) fn prepare(&mut self) -> Result<(), GrammarError> {
        if self.mask.is_some() {
            return Ok(());
        }
        if self.inner.is_stopped() {
            self.failed()?;
            self.may_end = true;
            self.mask = Some(SimpleVob::alloc(self.tokens.words.len() + 1));
            return Ok(());
        }
        self.may_end = self.inner.is_accepting().map_err(unusable)?;
        let mut mask = self.inner.compute_mask().map_err(unusable)?;
        self.cost += self.inner.last_step_stats().map_or(0, |stats| stats.lexer_cost);
        if self.cost > MAX_COST {
            return Err(GrammarError::Unusable("it has become too intricate to follow".to_owned()));
        }
        self.bound_json(&mut mask);
        self.mask = Some(mask);
        Ok(())
    }

    /// Takes tokens from `mask` that go beyond what every program reads, unless nothing would be left.
    fn bound_json(&self, mask: &mut SimpleVob) {
        let Some(position) = self.json.filter(|position| !position.is_far(self.tokens.longest)) else { return };
        let mut bounded = mask.clone();
        for token in mask.iter() {
            let word = self.tokens.words.get(token as usize).map_or(&[][..], Vec::as_slice);
            if position.behind(word).is_none() {
                bounded.disallow_token(token);
            }
        }
        if self.may_end || !bounded.is_zero() {
            *mask = bounded;
        }
    }

    /// True if `token` may come next. [`Matcher::prepare`] comes first.
    pub(crate) fn allows(&self, token: usize) -> bool {
        match self.tokens.ends.get(token) {
            None => false,
            Some(true) => self.may_end,
            Some(false) => self.mask.as_ref().is_some_and(|mask| mask.is_allowed(token as u32)),
        }
    }

    /// The text goes on with `token`.
    ///
    /// # Errors
    /// [`GrammarError::Unusable`] if the grammar does not allow it.
    pub(crate) fn accept(&mut self, token: usize) -> Result<(), GrammarError> {
        self.prepare()?;
        if !self.allows(token) {
            return Err(GrammarError::Unusable(format!("it does not allow the token {token} here")));
        }
        if self.tokens.ends[token] {
            return Ok(());
        }
        self.mask = None;
        self.json = self.json.map(|position| position.advanced(&self.tokens.words[token]));
        self.inner.consume_token(token as u32).map_err(unusable)
    }

    /// Begins again.
    ///
    /// # Errors
    /// [`GrammarError::Unusable`] after an error.
    pub(crate) fn reset(&mut self) -> Result<(), GrammarError> {
        self.mask = None;
        self.cost = 0;
        self.json = self.json.map(|_| Position::default());
        self.inner.reset().map_err(unusable)
    }

    fn failed(&self) -> Result<(), GrammarError> {
        if self.inner.stop_reason().is_ok() {
            return Ok(());
        }
        let reason = self.inner.get_error().unwrap_or_else(|| self.inner.stop_reason().to_string());
        Err(GrammarError::Unusable(super::first_line(&reason)))
    }
}

fn unusable(error: anyhow::Error) -> GrammarError {
    GrammarError::Unusable(super::first_line(&error.to_string()))
}
