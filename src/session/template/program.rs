//! The compiled form of a template, rewritten so that every instruction which can make a value larger or nest it deeper is guarded.
//! Refuses templates whose raw texts or literals are longer than any that a real template has.

use std::borrow::Cow;
use std::collections::BTreeMap;

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, WhitespaceConfig, parse, tokenize};
use minijinja::value::{Rest, Value};
use minijinja::{Environment, Error, ErrorKind, State};

use super::guard::guarded;
use super::{TemplateError, operators};

/// Most instructions. A conversation of a thousand turns takes about a hundred thousand.
const MAX_FUEL: usize = 1_000_000;
/// Raw text between tags is copied without asking us, so fuel times the longest raw text is bounded too, in bytes.
const MAX_RAW: usize = 1 << 30;

/// A template in the virtual machine's own form.
pub(super) struct Program<'source> {
    pub(super) root: Instructions<'source>,
    pub(super) blocks: BTreeMap<&'source str, Instructions<'source>>,
}

pub(super) fn compile(source: &str) -> Result<Program<'_>, TemplateError> {
    let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let tree =
        parse(source, "chat_template", Default::default(), whitespace).map_err(|error| super::explain(&error))?;
    let mut generator = CodeGenerator::new("chat_template", source);
    generator.compile_stmt(&tree);
    let (root, blocks) = generator.finish();
    Ok(Program { root, blocks })
}

/// The filters and methods that a program calls, each with the name of its guarded form.
pub(super) struct Calls(Vec<Call>);

struct Call {
    guarded: String,
    original: String,
    is_method: bool,
}

impl Calls {
    pub(super) fn of(program: &Program<'_>) -> Self {
        let mut calls: Vec<Call> = Vec::new();
        for instructions in std::iter::once(&program.root).chain(program.blocks.values()) {
            for instruction in (0..).map_while(|i| instructions.get(i)) {
                let (name, is_method) = match instruction {
                    Instruction::ApplyFilter(name, ..) => (*name, false),
                    Instruction::CallMethod(name, _) => (*name, true),
                    _ => continue,
                };
                if !calls.iter().any(|call| call.is_method == is_method && call.original == name) {
                    let guarded = format!("guarded-{}-{name}", if is_method { "method" } else { "filter" });
                    calls.push(Call { guarded, original: name.to_owned(), is_method });
                }
            }
        }
        Self(calls)
    }

    fn guarded_name(&self, name: &str, is_method: bool) -> Option<&str> {
        self.0
            .iter()
            .find(|call| call.is_method == is_method && call.original == name)
            .map(|call| call.guarded.as_str())
    }
}

/// Sends everything in `program` that can grow or nest a value through this module, and sets the fuel.
///
/// # Errors
/// [`TemplateError::Stopped`] when a raw text or a literal is longer than any that a real template has.
pub(super) fn install<'a>(
    environment: &mut Environment<'_>,
    program: &mut Program<'a>,
    calls: &'a Calls,
) -> Result<(), TemplateError> {
    operators::install(environment);
    for Call { guarded: guarded_name, original, is_method } in &calls.0 {
        let (name, is_method) = (original.clone(), *is_method);
        environment.add_filter(guarded_name.clone(), move |state: &State, arguments: Rest<Value>| {
            guarded(&name, &arguments, |arguments| match arguments.split_first() {
                Some((receiver, rest)) if is_method => receiver.call_method(state, &name, rest),
                _ => state.apply_filter(&name, arguments).map_err(|error| match error.kind() {
                    ErrorKind::UnknownFilter => {
                        Error::new(ErrorKind::UnknownFilter, format!("filter {name} is unknown"))
                    }
                    _ => error,
                }),
            })
        });
    }
    let mut longest_raw = 1;
    for instructions in std::iter::once(&mut program.root).chain(program.blocks.values_mut()) {
        longest_raw = longest_raw.max(rewrite(instructions, calls)?);
    }
    let fuel = (MAX_RAW / longest_raw).min(MAX_FUEL);
    if fuel < MAX_FUEL / 100 {
        return Err(TemplateError::Stopped(format!("it has a raw text of {longest_raw} bytes")));
    }
    environment.set_fuel(Some(fuel as u64));
    Ok(())
}

/// Rewrites one instruction for one, so that jumps stay right. Returns the length of the longest raw text.
fn rewrite<'a>(instructions: &mut Instructions<'a>, calls: &'a Calls) -> Result<usize, TemplateError> {
    const NO_LOCAL: u8 = !0;
    let count = |n: usize| {
        u16::try_from(n).map(Some).map_err(|_| TemplateError::Stopped(format!("it has a literal of {n} elements")))
    };
    let mut longest_raw = 0;
    for index in 0..instructions.len() as u32 {
        let Some(instruction) = instructions.get_mut(index) else {
            break;
        };
        let (name, arguments, local) = match instruction {
            Instruction::EmitRaw(text) => {
                longest_raw = longest_raw.max(text.len());
                continue;
            }
            Instruction::StringConcat => (operators::CONCAT, Some(2), NO_LOCAL),
            Instruction::Add => (operators::ADD, Some(2), NO_LOCAL),
            Instruction::Mul => (operators::MUL, Some(2), NO_LOCAL),
            Instruction::Slice => (operators::SLICE, Some(4), NO_LOCAL),
            Instruction::BuildList(Some(items)) => (operators::LIST, count(*items)?, NO_LOCAL),
            Instruction::BuildMap(pairs) => (operators::MAP, count(pairs.saturating_mul(2))?, NO_LOCAL),
            Instruction::ApplyFilter(name, arguments, local) => match calls.guarded_name(name, false) {
                Some(guarded) => (guarded, *arguments, *local),
                None => continue,
            },
            Instruction::CallMethod(name, arguments) => match calls.guarded_name(name, true) {
                Some(guarded) => (guarded, *arguments, NO_LOCAL),
                None => continue,
            },
            _ => continue,
        };
        *instruction = Instruction::ApplyFilter(name, arguments, local);
    }
    Ok(longest_raw)
}

/// The compiler evaluates products of constants itself, before any bound holds: `"x" * 100000000` is 100 MB, once for each time it stands in
/// the source. A factor that it does not know, and that is 1 when the template runs, keeps it from that.
///
/// # Errors
/// [`TemplateError::Syntax`] when the source has a token that is none.
pub(super) fn without_folded_products(source: &str) -> Result<Cow<'_, str>, TemplateError> {
    if !source.contains('*') {
        return Ok(Cow::Borrowed(source));
    }
    let whitespace = WhitespaceConfig { keep_trailing_newline: true, lstrip_blocks: true, trim_blocks: true };
    let mut changed = String::with_capacity(source.len());
    let mut copied = 0;
    let mut after_operand = false;
    for token in tokenize(source, false, Default::default(), whitespace) {
        let (token, span) = token.map_err(|error| super::explain(&error))?;
        if matches!(token, Token::Mul) && after_operand {
            let start = span.start_offset as usize;
            changed.push_str(source.get(copied..start).unwrap_or_default());
            changed.push_str("* ");
            changed.push_str(operators::ONE);
            changed.push(' ');
            copied = start;
        }
        after_operand = !matches!(token, Token::ParenOpen | Token::Comma);
    }
    changed.push_str(source.get(copied..).unwrap_or_default());
    Ok(Cow::Owned(changed))
}
