//! llama.cpp's GBNF: read with bounds, and written again in `llguidance`'s Lark.
//!
//! Every character is a token of the grammar by itself, so that no text is read in another way than llama.cpp would: a
//! grammar without recursion becomes one regular expression, any other a grammar of single characters. It refuses grammars
//! that are large, nest deep or repeat often, unknown rules, and bounds that are the wrong way round.

use std::collections::HashMap;
use std::fmt::Write;

use super::error::GrammarError;

/// Bytes of a grammar.
const MAX_TEXT: usize = 128 << 10;
/// How deep groups may nest.
const MAX_DEPTH: usize = 64;
/// Rules, and everything in them.
const MAX_NODES: usize = 10_000;
/// Rules and groups that lead into each other, one below the other: whoever walks a grammar goes as deep on the stack.
const MAX_CHAIN: usize = 600;
/// What `{m,n}` may count up to, as in llama.cpp.
const MAX_REPEAT: u32 = 2_000;
/// Characters of a grammar without recursion that is made one regular expression.
const MAX_REGULAR: u64 = 20_000;

/// A grammar that was read.
pub(super) struct Gbnf {
    /// In the order in which they are written out; the first is `root`.
    rules: Vec<Node>,
    /// It has no recursion and no tokens.
    is_regular: bool,
}

enum Node {
    Text(String),
    Class {
        ranges: Vec<(char, char)>,
        negated: bool,
    },
    Any,
    Rule(usize),
    /// `<[1]>` or `<think>`, with what stands between the angles.
    Token {
        name: String,
        negated: bool,
    },
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

impl Gbnf {
    /// # Errors
    /// [`GrammarError::Syntax`], [`GrammarError::TooLarge`].
    pub(super) fn parse(text: &str) -> Result<Self, GrammarError> {
        if text.len() > MAX_TEXT {
            return Err(too_large(format!("{} bytes", text.len()), MAX_TEXT));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut parser =
            Parser { rest: text.chars().collect(), at: 0, numbers: HashMap::new(), rules: Vec::new(), n_nodes: 0 };
        parser.number("root")?;
        parser.space(true);
        while parser.peek().is_some() {
            parser.rule()?;
        }
        let Parser { numbers, rules, .. } = parser;
        let rules: Vec<Option<Node>> = rules;
        if let Some((name, _)) = numbers.iter().filter(|(_, number)| rules[**number].is_none()).min_by_key(|(_, n)| **n)
        {
            return Err(GrammarError::Unusable(format!("the rule {name} is missing; write {name} ::= …")));
        }
        let rules: Vec<Node> = rules.into_iter().flatten().collect();
        chain(&rules, &rules[0], 0, &mut vec![false; rules.len()])?;
        let is_regular = size(&rules, 0, &mut vec![State::Unseen; rules.len()]).is_some_and(|size| size <= MAX_REGULAR);
        Ok(Self { rules, is_regular })
    }

    /// The grammar in Lark. `token_id` finds the token that is written as a text.
    ///
    /// # Errors
    /// [`GrammarError::Unusable`] for a token that the vocabulary does not have.
    pub(super) fn lark(&self, token_id: &dyn Fn(&str) -> Option<u32>) -> Result<String, GrammarError> {
        let letter = if self.is_regular { 'R' } else { 'r' };
        let mut text = String::new();
        let mut out = Out { text: &mut text, letter, token_id };
        match self.is_regular {
            true if nullable(&self.rules, &self.rules[0]) => out.text.push_str("start: R0 | \"\"\n"),
            true => out.text.push_str("start: R0\n"),
            false => out.text.push_str("start: r0\n"),
        }
        for (number, rule) in self.rules.iter().enumerate() {
            let _ = write!(out.text, "{letter}{number}: ");
            out.node(rule)?;
            out.text.push('\n');
        }
        Ok(text)
    }
}

fn too_large(found: String, limit: usize) -> GrammarError {
    GrammarError::TooLarge { what: "grammar", found, limit: limit as u64 }
}

/// # Errors
/// [`GrammarError::TooLarge`] for rules that lead into each other deeper than [`MAX_CHAIN`].
fn chain(rules: &[Node], node: &Node, depth: usize, seen: &mut [bool]) -> Result<(), GrammarError> {
    if depth > MAX_CHAIN {
        return Err(too_large("rules that lead into each other deeper".to_owned(), MAX_CHAIN));
    }
    match node {
        Node::Text(_) | Node::Class { .. } | Node::Any | Node::Token { .. } => Ok(()),
        Node::Rule(number) if std::mem::replace(&mut seen[*number], true) => Ok(()),
        Node::Rule(number) => chain(rules, &rules[*number], depth + 1, seen),
        Node::Sequence(nodes) | Node::Choice(nodes) => {
            nodes.iter().try_for_each(|node| chain(rules, node, depth + 1, seen))
        }
        Node::Repeat(node, ..) => chain(rules, node, depth + 1, seen),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Unseen,
    Busy,
    Done(u64),
}

/// The characters of a rule when everything is written out. `None` with recursion, or with tokens.
fn size(rules: &[Node], number: usize, states: &mut Vec<State>) -> Option<u64> {
    match states[number] {
        State::Done(size) => return Some(size),
        State::Busy => return None,
        State::Unseen => states[number] = State::Busy,
    }
    let size = size_of(rules, &rules[number], states)?;
    states[number] = State::Done(size);
    Some(size)
}

fn size_of(rules: &[Node], node: &Node, states: &mut Vec<State>) -> Option<u64> {
    match node {
        Node::Text(text) => Some(1 + text.len() as u64),
        Node::Class { ranges, .. } => Some(1 + ranges.len() as u64),
        Node::Any => Some(1),
        Node::Token { .. } => None,
        Node::Rule(number) => size(rules, *number, states),
        Node::Sequence(nodes) | Node::Choice(nodes) => {
            nodes.iter().try_fold(1u64, |sum, node| Some(sum.saturating_add(size_of(rules, node, states)?)))
        }
        Node::Repeat(node, min, max) => {
            let times = u64::from(max.unwrap_or(*min)).max(1);
            Some(size_of(rules, node, states)?.saturating_mul(times))
        }
    }
}

/// True if the empty text is one of a grammar without recursion.
fn nullable(rules: &[Node], node: &Node) -> bool {
    match node {
        Node::Text(text) => text.is_empty(),
        Node::Class { .. } | Node::Any | Node::Token { .. } => false,
        Node::Rule(number) => nullable(rules, &rules[*number]),
        Node::Sequence(nodes) => nodes.iter().all(|node| nullable(rules, node)),
        Node::Choice(nodes) => nodes.iter().any(|node| nullable(rules, node)),
        Node::Repeat(node, min, _) => *min == 0 || nullable(rules, node),
    }
}

/// Writes Lark.
struct Out<'a> {
    text: &'a mut String,
    letter: char,
    token_id: &'a dyn Fn(&str) -> Option<u32>,
}

impl Out<'_> {
    fn node(&mut self, node: &Node) -> Result<(), GrammarError> {
        match node {
            Node::Text(text) if text.is_empty() => self.text.push_str("\"\""),
            Node::Text(text) => {
                for (i, c) in text.chars().enumerate() {
                    self.text.push_str(if i > 0 { " " } else { "" });
                    self.class(&[(c, c)], false);
                }
            }
            Node::Class { ranges, negated } => self.class(ranges, *negated),
            Node::Any => self.text.push_str("/(?s:.)/"),
            Node::Rule(number) => {
                let _ = write!(self.text, "{}{number}", self.letter);
            }
            Node::Token { name, negated } => {
                let id = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
                    Some(number) => number.parse().ok(),
                    None => (self.token_id)(&format!("<{name}>")),
                };
                let id = id.ok_or_else(|| GrammarError::Unusable(format!("<{name}> is no token of this model")))?;
                let _ = write!(self.text, "<[{}{id}]>", if *negated { "^" } else { "" });
            }
            Node::Sequence(nodes) if nodes.is_empty() => self.text.push_str("\"\""),
            Node::Sequence(nodes) => self.several(nodes, " ")?,
            Node::Choice(nodes) => self.several(nodes, " | ")?,
            Node::Repeat(node, min, max) => {
                self.text.push('(');
                self.node(node)?;
                let _ = match max {
                    Some(max) => write!(self.text, "){{{min},{max}}}"),
                    None if *min == 0 => write!(self.text, ")*"),
                    None => write!(self.text, "){{{min},}}"),
                };
            }
        }
        Ok(())
    }

    fn several(&mut self, nodes: &[Node], between: &str) -> Result<(), GrammarError> {
        self.text.push('(');
        for (i, node) in nodes.iter().enumerate() {
            self.text.push_str(if i > 0 { between } else { "" });
            self.node(node)?;
        }
        self.text.push(')');
        Ok(())
    }

    fn class(&mut self, ranges: &[(char, char)], negated: bool) {
        self.text.push_str(if negated { "/[^" } else { "/[" });
        for (low, high) in ranges {
            let _ = write!(self.text, "\\x{{{:X}}}-\\x{{{:X}}}", u32::from(*low), u32::from(*high));
        }
        self.text.push_str("]/");
    }
}

struct Parser {
    rest: Vec<char>,
    at: usize,
    numbers: HashMap<String, usize>,
    rules: Vec<Option<Node>>,
    n_nodes: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = text.chars().enumerate().all(|(i, c)| self.rest.get(self.at + i) == Some(&c));
        self.at += if found { text.chars().count() } else { 0 };
        found
    }

    /// Spaces and comments; line ends too where a rule goes on.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n' && c != '\r') {
                        self.at += 1;
                    }
                }
                '\n' | '\r' if lines => self.at += 1,
                _ => break,
            }
        }
    }

    fn wrong(&self, found: Option<&str>, expected: &str) -> GrammarError {
        let line = 1 + self.rest[..self.at.min(self.rest.len())].iter().filter(|c| **c == '\n').count();
        let found = found.map(str::to_owned).unwrap_or_else(|| match self.peek() {
            Some(c) => format!("{c:?}"),
            None => "its end".to_owned(),
        });
        GrammarError::Syntax { line, found, expected: expected.to_owned() }
    }

    /// The number of a rule, which may still come.
    fn number(&mut self, name: &str) -> Result<usize, GrammarError> {
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        self.count()?;
        let number = self.rules.len();
        self.rules.push(None);
        self.numbers.insert(name.to_owned(), number);
        Ok(number)
    }

    fn count(&mut self) -> Result<(), GrammarError> {
        self.n_nodes += 1;
        if self.n_nodes > MAX_NODES { Err(too_large("more parts".to_owned(), MAX_NODES)) } else { Ok(()) }
    }

    fn name(&mut self) -> Result<String, GrammarError> {
        let is_part = |c: &&char| c.is_ascii_alphanumeric() || **c == '-' || **c == '_';
        let name: String = self.rest[self.at..].iter().take_while(is_part).collect();
        if name.is_empty() {
            return Err(self.wrong(None, "the name of a rule"));
        }
        self.at += name.len();
        Ok(name)
    }

    fn rule(&mut self) -> Result<(), GrammarError> {
        let name = self.name()?;
        let number = self.number(&name)?;
        self.space(false);
        if !self.eat("::=") {
            return Err(self.wrong(None, "::="));
        }
        self.space(true);
        let node = self.choice(0)?;
        if !matches!(self.peek(), None | Some('\n' | '\r')) {
            return Err(self.wrong(None, "the end of the line"));
        }
        self.rules[number] = Some(node);
        self.space(true);
        Ok(())
    }

    fn choice(&mut self, depth: usize) -> Result<Node, GrammarError> {
        let mut choices = vec![self.sequence(depth)?];
        while self.eat("|") {
            self.space(true);
            choices.push(self.sequence(depth)?);
        }
        Ok(if choices.len() == 1 { choices.swap_remove(0) } else { Node::Choice(choices) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, GrammarError> {
        let mut nodes = Vec::new();
        while let Some(c) = self.peek() {
            let node = match c {
                '"' => self.literal()?,
                '[' => self.class()?,
                '<' | '!' => self.token()?,
                '.' => {
                    self.at += 1;
                    Node::Any
                }
                '(' => {
                    if depth >= MAX_DEPTH {
                        return Err(too_large("groups that nest deeper".to_owned(), MAX_DEPTH));
                    }
                    self.at += 1;
                    self.space(true);
                    let inner = self.choice(depth + 1)?;
                    if !self.eat(")") {
                        return Err(self.wrong(None, ")"));
                    }
                    inner
                }
                c if c.is_ascii_alphanumeric() || c == '_' || c == '-' => {
                    let name = self.name()?;
                    Node::Rule(self.number(&name)?)
                }
                '*' | '+' | '?' | '{' => return Err(self.wrong(None, "something to repeat before it")),
                _ => break,
            };
            self.count()?;
            self.space(depth > 0);
            nodes.push(self.repeated(node, depth)?);
        }
        Ok(Node::Sequence(nodes))
    }

    fn repeated(&mut self, mut node: Node, depth: usize) -> Result<Node, GrammarError> {
        let mut n_times = 0;
        while let Some(c) = self.peek() {
            let (min, max) = match c {
                '*' => (0, None),
                '+' => (1, None),
                '?' => (0, Some(1)),
                '{' => {
                    self.at += 1;
                    self.bounds(depth)?
                }
                _ => break,
            };
            self.at += 1;
            self.count()?;
            n_times += 1;
            if n_times > 4 {
                return Err(too_large("quantifiers behind each other".to_owned(), 4));
            }
            node = Node::Repeat(Box::new(node), min, max);
            self.space(depth > 0);
        }
        Ok(node)
    }

    /// Up to the closing brace.
    fn bounds(&mut self, depth: usize) -> Result<(u32, Option<u32>), GrammarError> {
        self.space(depth > 0);
        let min = self.times()?;
        self.space(depth > 0);
        let mut max = Some(min);
        if self.eat(",") {
            self.space(depth > 0);
            max = if self.peek() == Some('}') { None } else { Some(self.times()?) };
            self.space(depth > 0);
        }
        if self.peek() != Some('}') {
            return Err(self.wrong(None, "}"));
        }
        if let Some(max) = max.filter(|max| *max < min) {
            return Err(self.wrong(Some(&format!("{{{min},{max}}}")), "the lower bound first"));
        }
        Ok((min, max))
    }

    fn times(&mut self) -> Result<u32, GrammarError> {
        let digits: String = self.rest[self.at..].iter().take_while(|c| c.is_ascii_digit()).collect();
        if digits.is_empty() {
            return Err(self.wrong(None, "a number"));
        }
        let number = digits.parse().ok().filter(|number| *number <= MAX_REPEAT);
        let number = number.ok_or_else(|| self.wrong(Some("a larger number of repetitions"), "at most 2000"))?;
        self.at += digits.len();
        Ok(number)
    }

    fn literal(&mut self) -> Result<Node, GrammarError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                None | Some('\n' | '\r') => return Err(self.wrong(None, "\" at the end of the text")),
                Some('"') => break,
                Some(_) => text.push(self.character()?),
            }
        }
        self.at += 1;
        self.n_nodes += text.len();
        self.count()?;
        Ok(Node::Text(text))
    }

    fn class(&mut self) -> Result<Node, GrammarError> {
        self.at += 1;
        let negated = self.eat("^");
        let mut ranges = Vec::new();
        loop {
            match self.peek() {
                None | Some('\n' | '\r') => return Err(self.wrong(None, "] at the end of the characters")),
                Some(']') => break,
                Some(_) => {}
            }
            let low = self.character()?;
            let is_range = self.peek() == Some('-') && self.rest.get(self.at + 1).is_some_and(|c| *c != ']');
            let high = if is_range {
                self.at += 1;
                self.character()?
            } else {
                low
            };
            if high < low {
                return Err(self.wrong(Some(&format!("[{low}-{high}]")), "the lower character first"));
            }
            self.count()?;
            ranges.push((low, high));
        }
        if ranges.is_empty() {
            return Err(self.wrong(None, "a character"));
        }
        self.at += 1;
        Ok(Node::Class { ranges, negated })
    }

    fn token(&mut self) -> Result<Node, GrammarError> {
        let negated = self.eat("!");
        if !self.eat("<") {
            return Err(self.wrong(None, "<"));
        }
        let name: String = self.rest[self.at..].iter().take(256).take_while(|c| **c != '>' && **c != '\n').collect();
        self.at += name.chars().count();
        if name.is_empty() || !self.eat(">") {
            return Err(self.wrong(None, "the name of a token, and >"));
        }
        Ok(Node::Token { name, negated })
    }

    /// One character, or the escape of one.
    fn character(&mut self) -> Result<char, GrammarError> {
        let Some(c) = self.peek() else { return Err(self.wrong(None, "a character")) };
        self.at += 1;
        if c != '\\' {
            return Ok(c);
        }
        let escaped = self.peek();
        self.at += 1;
        match escaped {
            Some('x') => self.hex(2),
            Some('u') => self.hex(4),
            Some('U') => self.hex(8),
            Some('t') => Ok('\t'),
            Some('r') => Ok('\r'),
            Some('n') => Ok('\n'),
            Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^')) => Ok(c),
            _ => {
                self.at -= 2;
                Err(self.wrong(Some("an unknown escape"), "one of \\x \\u \\U \\t \\r \\n \\\\ \\\" \\[ \\]"))
            }
        }
    }

    fn hex(&mut self, n: usize) -> Result<char, GrammarError> {
        let digits: String = self.rest[self.at.min(self.rest.len())..].iter().take(n).collect();
        let number = (digits.chars().count() == n && digits.chars().all(|c| c.is_ascii_hexdigit()))
            .then(|| u32::from_str_radix(&digits, 16).ok())
            .flatten();
        let Some(c) = number.and_then(char::from_u32) else {
            return Err(self.wrong(Some("an escape"), &format!("a Unicode character in {n} hexadecimal digits")));
        };
        self.at += n;
        Ok(c)
    }
}
