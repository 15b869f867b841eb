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
    /// 0 or less is greedy: the best token, of equals the one with the lowest id.
    pub temperature: f32,
    /// Keep the `top_k` best tokens; 0 or less keeps all.
    pub top_k: i32,
    /// Keep the best tokens whose probabilities reach `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens of at least `min_p` times the best one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides the logits of repeated tokens; 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many of the last tokens count as repeated; 0 is none.
    pub repeat_last_n: i32,
    /// Lowers a token's logit by this much for each of its repetitions.
    pub frequency_penalty: f32,
    /// Lowers the logit of every token that was there before by this much.
    pub presence_penalty: f32,
    /// Seed of the random numbers; `None` takes one from the system.
    pub seed: Option<u32>,
    /// The grammar that the text follows.
    pub grammar: Option<Grammar>,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
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
        let stages = stages(params, seed);
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

    /// Picks from `logits`, `[n_vocab]`. `None` if a grammar allows no token, or if there are no finite logits.
    pub(crate) fn pick(&mut self, logits: &[f32]) -> Result<Option<Token>> {
        match &mut self.chain {
            None => Ok(argmax(logits)),
            Some(chain) => chain.pick((0i32..).map(Token).zip(logits.iter().copied())),
        }
    }

    /// Picks among `candidates`, by ascending id, as [`Sampler::pick`] does among all.
    pub(crate) fn pick_among(&mut self, candidates: &[(Token, f32)]) -> Result<Option<Token>> {
        match &mut self.chain {
            None => Ok(best(candidates).map(|(id, _)| id)),
            Some(chain) => chain.pick(candidates.iter().copied()),
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

fn chain(vocab: &Vocab, stages: &[Stage], params: &SamplerParams) -> Result<Chain> {
    Chain::new(vocab, stages, params.grammar.as_ref())
}

fn stages(params: &SamplerParams, seed: u32) -> Vec<Stage> {
    let mut stages = Vec::new();
    let penalises = params.repeat_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0;
    if penalises && params.repeat_last_n != 0 {
        stages.push(Stage::Penalties {
            last_n: params.repeat_last_n,
            repeat: params.repeat_penalty,
            frequency: params.frequency_penalty,
            presence: params.presence_penalty,
        });
    }
    if params.temperature <= 0.0 {
        stages.push(Stage::Greedy);
        return stages;
    }
    if params.top_k > 0 {
        stages.push(Stage::TopK(params.top_k));
    }
    if params.top_p < 1.0 {
        stages.push(Stage::TopP(params.top_p));
    }
    if params.min_p > 0.0 {
        stages.push(Stage::MinP(params.min_p));
    }
    stages.push(Stage::Temperature(params.temperature));
    stages.push(Stage::Draw { seed });
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
    in_range("repeat_last_n", params.repeat_last_n as f32, 0.0, 1_000_000.0, "between 0 and 1000000")
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
