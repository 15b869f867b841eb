//! How the next token is picked from a distribution.

use crate::error::{Error, Result};
use crate::grammar::Grammar;
use crate::heads::best;
use crate::llama::sampler::{Chain, Stage};
use crate::llama::{Token, Vocab};

use super::model::Model;

/// The sampling parameters; the defaults are llama.cpp's.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SamplerParams {
    /// 0 is greedy: the best token, of equals the one with the lowest id. So is what is below 0.00001: divided by less,
    /// logits are no numbers any more.
    pub temperature: f32,
    /// Keep the `top_k` best tokens; 0 or less keeps all.
    pub top_k: i32,
    /// Keep the tokens whose surprise is nearest to the expected one, up to this probability; 1 keeps all.
    pub typical_p: f32,
    /// Keep the best tokens whose probabilities reach `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens of at least `min_p` times the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides the logits of repeated tokens; 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many of the reply's last tokens count as repeated; 0 is none, -1 as many as the model was trained with.
    pub repeat_last_n: i32,
    /// Lowers a token's logit by this much for each of its repetitions.
    pub frequency_penalty: f32,
    /// Lowers the logit of every token that was there before by this much.
    pub presence_penalty: f32,
    /// Lowers the logit of a token that would go on repeating a sequence, by this times a power of `dry_base`; 0 is off.
    pub dry_multiplier: f32,
    /// What that power is of: the exponent is by how much the repeated sequence is longer than `dry_allowed_length`.
    pub dry_base: f32,
    /// Sequences up to this length may be repeated.
    pub dry_allowed_length: i32,
    /// How many of the reply's last tokens are searched for the sequence; as `repeat_last_n`.
    pub dry_penalty_last_n: i32,
    /// Texts that no repeated sequence reaches across: at most 16, of 1 to 40 bytes.
    pub dry_sequence_breakers: Vec<String>,
    /// How often the likeliest tokens are left out, all but the least likely of those above `xtc_threshold`; 0 is never.
    pub xtc_probability: f32,
    /// See `xtc_probability`; above 0.5 nothing is left out.
    pub xtc_threshold: f32,
    /// Seed of the random numbers; `None` takes one from the system. Every number is a seed that can be repeated.
    pub seed: Option<u32>,
    /// The grammar that the text follows.
    pub grammar: Option<Grammar>,
}

/// Below this temperature sampling is greedy.
const LEAST_TEMPERATURE: f32 = 1e-5;
/// Candidates this much less likely than the best are none: their probability may be 0, which has no logarithm.
const LEAST_SHARE: f32 = 1e-30;
/// Most tokens that penalties look back on.
const MOST_LAST_N: i32 = 1_000_000;
/// Most texts that break a repeated sequence, and bytes of one: llama.cpp compares each with the whole vocabulary.
const MAX_BREAKERS: usize = 16;
const MAX_BREAKER_BYTES: usize = 40;

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            typical_p: 1.0,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: 64,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(str::to_owned).to_vec(),
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            seed: None,
            grammar: None,
        }
    }
}

impl SamplerParams {
    /// # Errors
    /// [`Error::InvalidValue`] for a number that means nothing.
    pub fn check(&self) -> Result<()> {
        check(self)
    }
}

/// Picks tokens. One of these follows one generation: penalties and grammar remember what was emitted.
#[derive(Debug)]
pub struct Sampler {
    /// `None` for plain greedy sampling, which needs no candidates to be gathered.
    chain: Option<Chain>,
    seed: u32,
}

impl Sampler {
    /// # Errors
    /// [`Error::InvalidValue`] for numbers that mean nothing, [`Error::Grammar`].
    pub fn new(model: &Model, params: &SamplerParams) -> Result<Self> {
        check(params)?;
        let seed = params.seed.unwrap_or_else(random_seed);
        let stages = stages(params, seed, model.info().n_ctx_train);
        let greedy_alone = matches!(stages.as_slice(), [Stage::Greedy]) && params.grammar.is_none();
        let chain = if greedy_alone { None } else { Some(chain(model.vocab(), &stages, params)?) };
        Ok(Self { chain, seed })
    }

    /// The seed in use, chosen or given.
    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// Forgets what was emitted and starts the random numbers again.
    pub fn reset(&mut self) {
        if let Some(chain) = &mut self.chain {
            chain.reset();
        }
    }

    /// True if the best token is always the one that is picked.
    pub(crate) fn is_greedy(&self) -> bool {
        self.chain.is_none()
    }

    /// Picks from `logits`, `[n_vocab]`, none of `barred` if there is another. `None` if a grammar allows no token, or if
    /// there are no finite logits.
    pub(crate) fn pick(&mut self, logits: &[f32], barred: &[Token]) -> Result<Option<Token>> {
        let Some(chain) = &mut self.chain else {
            let best = argmax(logits);
            let is_barred = best.is_some_and(|best| barred.contains(&best));
            return Ok(if is_barred { argmax_without(logits, barred).or(best) } else { best });
        };
        let all = (0i32..).map(Token).zip(logits.iter().copied());
        match chain.pick(all.clone(), barred)? {
            None if !barred.is_empty() => chain.pick(all, &[]),
            picked => Ok(picked),
        }
    }

    /// Picks among `candidates`, by ascending id, as [`Sampler::pick`] does among all; `None` if `barred` has the best, or
    /// all that there are.
    pub(crate) fn pick_among(&mut self, candidates: &[(Token, f32)], barred: &[Token]) -> Result<Option<Token>> {
        match &mut self.chain {
            None => Ok(best(candidates).map(|(id, _)| id).filter(|id| !barred.contains(id))),
            Some(chain) => chain.pick(candidates.iter().copied(), barred),
        }
    }

    pub(crate) fn accept(&mut self, token: Token) -> Result<()> {
        self.chain.as_mut().map_or(Ok(()), |chain| chain.accept(token))
    }
}

/// The index of the largest value, of equals the lowest. `None` without any number.
pub(crate) fn argmax(logits: &[f32]) -> Option<Token> {
    // Blocks let the compiler compare many values at once; a running index in the loop would keep it from that.
    const BLOCK: usize = 256;
    let mut best: Option<(usize, f32)> = None;
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        let largest = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if best.is_none_or(|(_, value)| largest > value) {
            best = Some((i, largest));
        }
    }
    let (block, value) = best?;
    let start = block * BLOCK;
    let index = logits[start..].iter().position(|&logit| logit == value)?;
    i32::try_from(start + index).ok().map(Token)
}

/// The index of the largest value that is none of `barred`.
fn argmax_without(logits: &[f32], barred: &[Token]) -> Option<Token> {
    let all = (0i32..).map(Token).zip(logits.iter().copied());
    let others: Vec<(Token, f32)> = all.filter(|(id, logit)| logit.is_finite() && !barred.contains(id)).collect();
    best(&others).map(|(id, _)| id)
}

fn chain(vocab: &Vocab, stages: &[Stage], params: &SamplerParams) -> Result<Chain> {
    Chain::new(vocab, stages, params.grammar.as_ref())
}

/// In llama.cpp's order. `n_ctx` is what -1 means for how far penalties look back.
fn stages(params: &SamplerParams, seed: u32, n_ctx: u32) -> Vec<Stage<'_>> {
    // llama.cpp takes the largest number as a wish for a random seed, and would not tell which it took.
    let seed = seed.min(u32::MAX - 1);
    let last_n = |n: i32| if n < 0 { i32::try_from(n_ctx).unwrap_or(MOST_LAST_N).clamp(1, MOST_LAST_N) } else { n };
    let mut stages = Vec::new();
    let penalises = params.repeat_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0;
    if penalises && params.repeat_last_n != 0 {
        stages.push(Stage::Penalties {
            last_n: last_n(params.repeat_last_n),
            repeat: params.repeat_penalty,
            frequency: params.frequency_penalty,
            presence: params.presence_penalty,
        });
    }
    if params.dry_multiplier > 0.0 && params.dry_penalty_last_n != 0 {
        stages.push(Stage::Dry {
            multiplier: params.dry_multiplier,
            base: params.dry_base,
            allowed_length: params.dry_allowed_length,
            last_n: last_n(params.dry_penalty_last_n),
            breakers: &params.dry_sequence_breakers,
        });
    }
    let is_greedy = params.temperature < LEAST_TEMPERATURE;
    let is_typical = params.typical_p < 1.0;
    let excludes = params.xtc_probability > 0.0 && params.xtc_threshold <= 0.5;
    if is_greedy && !is_typical && !excludes {
        // No other filter takes the best token away.
        stages.push(Stage::Greedy);
        return stages;
    }
    if params.top_k > 0 {
        stages.push(Stage::TopK(params.top_k));
    }
    if is_typical {
        stages.extend([Stage::MinP(LEAST_SHARE), Stage::Typical(params.typical_p)]);
    }
    if params.top_p < 1.0 {
        stages.push(Stage::TopP(params.top_p));
    }
    if params.min_p > 0.0 {
        stages.push(Stage::MinP(params.min_p));
    }
    if excludes {
        stages.push(Stage::Xtc { probability: params.xtc_probability, threshold: params.xtc_threshold, seed });
    }
    if is_greedy {
        stages.push(Stage::Greedy);
    } else {
        stages.extend([Stage::Temperature(params.temperature), Stage::Draw { seed }]);
    }
    stages
}

fn check(params: &SamplerParams) -> Result<()> {
    let in_range = |name, value: f32, low: f32, high: f32, expected| {
        if (low..=high).contains(&value) {
            return Ok(());
        }
        Err(Error::InvalidValue { name, found: value.to_string(), expected })
    };
    in_range("temperature", params.temperature, 0.0, 100.0, "between 0 (greedy) and 100")?;
    in_range("top_p", params.top_p, 0.0, 1.0, "between 0 and 1")?;
    in_range("min_p", params.min_p, 0.0, 1.0, "between 0 and 1")?;
    in_range("repeat_penalty", params.repeat_penalty, 0.01, 100.0, "between 0.01 and 100")?;
    in_range("frequency_penalty", params.frequency_penalty, -100.0, 100.0, "between -100 and 100")?;
    in_range("presence_penalty", params.presence_penalty, -100.0, 100.0, "between -100 and 100")?;
    in_range("typical_p", params.typical_p, 0.0, 1.0, "between 0 and 1")?;
    in_range("dry_multiplier", params.dry_multiplier, 0.0, 100.0, "between 0 and 100")?;
    in_range("dry_base", params.dry_base, 1.0, 100.0, "between 1 and 100")?;
    in_range("xtc_probability", params.xtc_probability, 0.0, 1.0, "between 0 and 1")?;
    in_range("xtc_threshold", params.xtc_threshold, 0.0, 1.0, "between 0 and 1")?;
    let is_count = |name, value: i32, least: i32, expected| match value {
        value if (least..=MOST_LAST_N).contains(&value) => Ok(()),
        value => Err(Error::InvalidValue { name, found: value.to_string(), expected }),
    };
    is_count("repeat_last_n", params.repeat_last_n, -1, "between 0 and 1000000, or -1")?;
    is_count("dry_penalty_last_n", params.dry_penalty_last_n, -1, "between 0 and 1000000, or -1")?;
    is_count("dry_allowed_length", params.dry_allowed_length, 0, "between 0 and 1000000")?;
    let breakers = &params.dry_sequence_breakers;
    let is_short = |text: &String| (1..=MAX_BREAKER_BYTES).contains(&text.len()) && !text.contains('\0');
    if breakers.len() > MAX_BREAKERS || !breakers.iter().all(is_short) {
        return Err(Error::InvalidValue {
            name: "dry_sequence_breakers",
            found: format!(
                "{} texts, the longest of {} bytes",
                breakers.len(),
                breakers.iter().map(String::len).max().unwrap_or(0)
            ),
            expected: "at most 16 texts of 1 to 40 bytes without NUL",
        });
    }
    Ok(())
}

fn random_seed() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::SystemTime::now()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_lowest_id() {
        let mut logits = vec![0.0; 1000];
        logits[999] = 3.0;
        logits[300] = 3.0;
        assert_eq!(argmax(&logits), Some(Token(300)));
    }

    #[test]
    fn without_numbers_there_is_no_best() {
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[f32::NAN, f32::NAN]), None);
    }

    #[test]
    fn numbers_that_mean_nothing_are_refused() {
        for bad in [f32::NAN, -1.0, f32::INFINITY] {
            let params = SamplerParams { temperature: bad, ..SamplerParams::default() };
            assert!(matches!(check(&params), Err(Error::InvalidValue { name: "temperature", .. })));
        }
        let with = |change: fn(&mut SamplerParams)| {
            let mut params = SamplerParams::default();
            change(&mut params);
            check(&params)
        };
        let wrong: [fn(&mut SamplerParams); 10] = [
            |params| params.typical_p = 1.5,
            |params| params.dry_multiplier = f32::INFINITY,
            |params| params.dry_base = 0.5,
            |params| params.dry_allowed_length = -1,
            |params| params.dry_penalty_last_n = -2,
            |params| params.repeat_last_n = i32::MAX,
            |params| params.xtc_probability = f32::NAN,
            |params| params.xtc_threshold = -0.1,
            |params| params.dry_sequence_breakers = vec!["x".repeat(41)],
            |params| params.dry_sequence_breakers = vec!["a\0b".to_owned()],
        ];
        for (i, change) in wrong.into_iter().enumerate() {
            assert!(matches!(with(change), Err(Error::InvalidValue { .. })), "{i}");
        }
        assert!(with(|params| (params.repeat_last_n, params.dry_penalty_last_n, params.top_k) = (-1, -1, -1)).is_ok());
    }

    #[test]
    fn no_seed_is_llama_cpp_s_word_for_random() {
        let seed_of = |seed| match stages(&SamplerParams::default(), seed, 512).pop() {
            Some(Stage::Draw { seed }) => seed,
            other => panic!("{other:?}"),
        };
        assert_eq!((seed_of(7), seed_of(u32::MAX)), (7, u32::MAX - 1));
    }

    #[test]
    fn temperatures_that_nothing_can_be_divided_by_are_greedy() {
        let at = |temperature: f32| SamplerParams { temperature, ..SamplerParams::default() };
        for tiny in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1e-37, 9e-6] {
            assert!(matches!(stages(&at(tiny), 1, 512).as_slice(), [Stage::Greedy]), "{tiny}");
        }
        assert!(matches!(stages(&at(1e-5), 1, 512).last(), Some(Stage::Draw { .. })));
        let mut params = at(1e-40);
        params.xtc_probability = 0.5;
        let stages = stages(&params, 1, 512);
        assert!(matches!(stages[stages.len() - 2..], [Stage::Xtc { .. }, Stage::Greedy]), "{stages:?}");
    }

    #[test]
    fn what_is_barred_is_taken_only_where_nothing_else_is() {
        let mut greedy = Sampler { chain: None, seed: 0 };
        let logits = [1.0, 5.0, 3.0];
        let mut pick = |barred: &[Token]| greedy.pick(&logits, barred).unwrap();
        assert_eq!(pick(&[]), Some(Token(1)));
        assert_eq!(pick(&[Token(1)]), Some(Token(2)));
        assert_eq!(pick(&[Token(0), Token(1), Token(2)]), Some(Token(1)));
        let candidates = [(Token(4), 1.0), (Token(9), 2.0)];
        assert_eq!(greedy.pick_among(&candidates, &[Token(4)]).unwrap(), Some(Token(9)));
        assert_eq!(greedy.pick_among(&candidates, &[Token(9)]).unwrap(), None);
    }

    proptest! {
        #[test]
        fn the_best_is_that_of_a_plain_scan(logits in prop::collection::vec(-4i8..4, 1..700)) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let mut best = 0;
            for (i, &logit) in logits.iter().enumerate() {
                if logit > logits[best] {
                    best = i;
                }
            }
            prop_assert_eq!(argmax(&logits), Some(Token(best as i32)));
        }
    }
}
