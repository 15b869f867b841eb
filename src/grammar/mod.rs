//! What a reply may be: any grammar, from GBNF or from a JSON schema, held by the crate `llguidance`.
//!
//! Both may come from a stranger. Everything that becomes large is bounded before it is compiled, compiling has a fuel that
//! runs out, and so has each step of matching; [`GrammarError`] says which bound it was. Nothing here knows of llama.cpp.

mod error;
mod gbnf;
mod json;
mod keywords;
mod matcher;
mod pattern;
mod references;
mod schema;
#[cfg(test)]
mod tests;
mod weight;

use std::sync::Arc;

use llguidance::api::{GrammarInit, GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::Grammar as Compiled;
use llguidance::earley::lexerspec::LexerSpec;
use serde_json::{Value, json};

pub use error::GrammarError;
pub(crate) use matcher::{Matcher, Tokens};

/// Space between the parts of a JSON text. It ends: a model that writes nothing but space would never.
const SPACE: &str = r" |\n[ \t]{0,16}";
/// Escapes in JSON texts. Without `\u`, every text can be written in one way only, and so can each name of a property.
const ESCAPES: &str = r#"nrbtf\""#;
/// Bytes of a grammar for [`Grammar::lark`].
const MAX_LARK: usize = 256 << 10;

/// A grammar that was checked, for replies that follow it. Cheap to clone.
#[derive(Clone)]
pub struct Grammar(Arc<Source>);

struct Source {
    /// As it came, to tell two apart.
    text: String,
    kind: Kind,
}

enum Kind {
    Gbnf(gbnf::Gbnf),
    /// Compiled already.
    Schema(Box<(Compiled, LexerSpec)>),
    Lark(String),
}

impl Grammar {
    /// A grammar in llama.cpp's GBNF, with the root rule `root`.
    ///
    /// # Errors
    /// [`GrammarError`] for a text that is none, or that is larger, deeper or more repetitive than is accepted.
    pub fn gbnf(text: &str) -> Result<Self, GrammarError> {
        let gbnf = gbnf::Gbnf::parse(text)?;
        compiled(lark(gbnf.lark(&|_| Some(0))?))?;
        Ok(Self(Arc::new(Source { text: text.to_owned(), kind: Kind::Gbnf(gbnf) })))
    }

    /// The grammar of the JSON texts that `schema` accepts.
    ///
    /// # Errors
    /// [`GrammarError`] that names the keyword that cannot be kept, or what is too large.
    pub fn json_schema(schema: &Value) -> Result<Self, GrammarError> {
        let accepted = with_options(schema::accepted(schema)?);
        let grammar = TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(accepted));
        let compiled = compiled(grammar).map_err(|error| match error {
            GrammarError::Unusable(text) => GrammarError::Schema(in_words(&text).to_owned()),
            other => other,
        })?;
        Ok(Self(Arc::new(Source { text: schema.to_string(), kind: Kind::Schema(Box::new(compiled)) })))
    }

    /// A grammar in `llguidance`'s Lark, with the start rule `start`, and with one rule for the JSON texts of each of
    /// `schemas`. For texts that only partly are JSON, such as tool calls.
    ///
    /// ```
    /// # use offramp::Grammar;
    /// let call = serde_json::json!({"type": "object", "properties": {"name": {"const": "clock"}}});
    /// let grammar = Grammar::lark(r#"start: "<call>" call "</call>""#, &[("call", call)]).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`GrammarError`] for a schema that cannot be kept, and for a text that is no such grammar.
    pub fn lark(text: &str, schemas: &[(&str, Value)]) -> Result<Self, GrammarError> {
        let mut text = text.to_owned();
        for (name, schema) in schemas {
            let accepted = with_options(schema::accepted(schema)?);
            text.push_str(&format!("\n{name}: %json {accepted}\n"));
        }
        if text.len() > MAX_LARK {
            let found = format!("{} bytes", text.len());
            return Err(GrammarError::TooLarge { what: "grammar", found, limit: MAX_LARK as u64 });
        }
        compiled(lark(text.clone()))?;
        Ok(Self(Arc::new(Source { text: text.clone(), kind: Kind::Lark(text) })))
    }

    /// For a matcher: what `llguidance` compiles, or has compiled.
    fn init(&self, token_id: &dyn Fn(&str) -> Option<u32>) -> Result<GrammarInit, GrammarError> {
        Ok(match &self.0.kind {
            Kind::Gbnf(gbnf) => GrammarInit::Serialized(lark(gbnf.lark(token_id)?)),
            Kind::Schema(compiled) => GrammarInit::Internal(compiled.0.clone(), compiled.1.clone()),
            Kind::Lark(text) => GrammarInit::Serialized(lark(text.clone())),
        })
    }

    /// True if every text of the grammar is JSON.
    fn is_json(&self) -> bool {
        matches!(self.0.kind, Kind::Schema(_))
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text && std::mem::discriminant(&self.0.kind) == std::mem::discriminant(&other.0.kind)
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Grammar").field(&self.0.text).finish()
    }
}

/// What `llguidance` says of a schema, without what is quoted of it: errors are logged, schemas may be private.
fn in_words(text: &str) -> &'static str {
    const WORDS: &[(&str, &str)] = &[
        ("oneOf", "the alternatives of a oneOf may hold at once; use anyOf, or a property with another const in each"),
        ("Unsatisfiable", "no text satisfies it; its keywords contradict each other"),
        ("min/maxProperties", "minProperties and maxProperties are kept where each of the properties is required"),
        ("patternProperty", "several patternProperties may match one name"),
        ("Unable to determine", "its pattern, format and lengths are too intricate together"),
        ("circular", "a $ref that leads to itself stands beside other keywords"),
    ];
    let known = WORDS.iter().find(|(begin, _)| text.starts_with(begin));
    known.map_or("it is too large or too intricate", |(_, words)| words)
}

/// A schema, with how its JSON is written.
fn with_options(mut schema: Value) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("x-guidance".to_owned(), json!({"whitespace_pattern": SPACE, "json_allowed_escapes": ESCAPES}));
        return schema;
    }
    match schema {
        Value::Bool(true) => with_options(json!({})),
        other => other,
    }
}

fn lark(text: String) -> TopLevelGrammar {
    TopLevelGrammar::from_lark(text)
}

/// What compiling and each step of matching may cost.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 10_000,
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 200_000,
        step_max_items: 1_000_000,
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// Compiles without a vocabulary, to know that it can be done.
fn compiled(grammar: TopLevelGrammar) -> Result<(Compiled, LexerSpec), GrammarError> {
    guarded(|| {
        let (compiled, spec) = GrammarInit::Serialized(grammar).to_internal(None, limits())?;
        let bytes = matcher::single_bytes()?;
        bytes.create_parser_from_init_default(GrammarInit::Internal(compiled.clone(), spec.clone()))?;
        Ok((compiled, spec))
    })
}

/// Answers with an error where `llguidance` does, or panics.
fn guarded<T>(work: impl FnOnce() -> anyhow::Result<T>) -> Result<T, GrammarError> {
    let done = llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(work));
    done.map_err(|error| GrammarError::Unusable(first_line(&error.to_string())))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}
