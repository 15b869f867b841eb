//! From a JSON schema's `pattern` to a regular expression for the whole text, with one meaning in every dialect.
//!
//! Schemas are written for ECMAScript, checked by many validators with other dialects, and matched here by a fourth. What
//! these read differently is made explicit (`\w`, `\s`, `.`) with what all of them accept, or refused: look-around, back
//! references, word boundaries, flags, anchors in the middle, and repetitions that expand to too much.

use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange, HirKind};

/// How deep groups may nest.
const MAX_DEPTH: u32 = 32;
/// Most characters that a pattern may expand to, when its repetitions are written out.
const MAX_EXPANSION: u64 = 20_000;
/// Most ranges of characters in all classes of a pattern.
const MAX_RANGES: usize = 20_000;
/// Characters that JSON texts of grammars never have: those that only `\u` can write.
const UNWRITABLE: &str = r"[\x00-\x07\x0B\x0E-\x1F\x7F]";

/// Why a pattern is refused: what was found in it.
pub(super) type Refusal = String;

enum Node {
    Class(ClassUnicode),
    Concat(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
    Start,
    End,
}

/// A regular expression for the `regex-syntax` crate that matches a whole text in which `pattern` is found.
pub(super) fn whole_text(pattern: &str) -> Result<String, Refusal> {
    let mut parser = Parser { rest: pattern.chars().collect(), at: 0, n_ranges: 0 };
    let node = parser.choice(0)?;
    if parser.at < parser.rest.len() {
        return Err("a ) without its (".to_owned());
    }
    if expansion(&node) > MAX_EXPANSION {
        return Err(format!("repetitions that expand to more than {MAX_EXPANSION} characters"));
    }
    let mut text = String::new();
    write_searched(&node, &mut text)?;
    Ok(text)
}

struct Parser {
    rest: Vec<char>,
    at: usize,
    n_ranges: usize,
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

    fn choice(&mut self, depth: u32) -> Result<Node, Refusal> {
        if depth > MAX_DEPTH {
            return Err(format!("groups nested more than {MAX_DEPTH} deep"));
        }
        let mut choices = vec![self.concat(depth)?];
        while self.eat("|") {
            choices.push(self.concat(depth)?);
        }
        Ok(if choices.len() == 1 { choices.swap_remove(0) } else { Node::Choice(choices) })
    }

    fn concat(&mut self, depth: u32) -> Result<Node, Refusal> {
        let mut parts = Vec::new();
        while self.peek().is_some_and(|c| c != '|' && c != ')') {
            let atom = self.atom(depth)?;
            let part = self.repeated(atom)?;
            parts.push(part);
        }
        Ok(Node::Concat(parts))
    }

    fn atom(&mut self, depth: u32) -> Result<Node, Refusal> {
        let Some(c) = self.peek() else { return Err("an end where something is expected".to_owned()) };
        self.at += 1;
        match c {
            '^' => Ok(Node::Start),
            '$' => Ok(Node::End),
            '.' => self.class(r"[^\n\r\x{2028}\x{2029}]"),
            '[' => self.brackets(),
            '(' => self.group(depth),
            '\\' => {
                let class = self.escape()?;
                self.counted(class)
            }
            '*' | '+' | '?' | '{' => Err(format!("{c} with nothing to repeat; write \\{c} for the character")),
            c => self.counted(one(c)),
        }
    }

    fn group(&mut self, depth: u32) -> Result<Node, Refusal> {
        if self.eat("?") {
            let is_name = self.peek() == Some('<') && !matches!(self.rest.get(self.at + 1), Some('=' | '!'));
            if is_name {
                while self.peek().is_some_and(|c| c != '>') {
                    self.at += 1;
                }
                self.at += 1;
            } else if !self.eat(":") {
                return Err("(? for look-around or flags".to_owned());
            }
        }
        let inner = self.choice(depth + 1)?;
        if self.eat(")") { Ok(inner) } else { Err("a ( without its )".to_owned()) }
    }

    fn repeated(&mut self, atom: Node) -> Result<Node, Refusal> {
        let (min, max) = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                self.at += 1;
                let (min, max) = self.bounds()?;
                // The last character is `}`, which the code below steps over.
                self.at -= 1;
                (min, max)
            }
            _ => return Ok(atom),
        };
        self.at += 1;
        if matches!(atom, Node::Start | Node::End) {
            return Err("a repeated anchor".to_owned());
        }
        // A lazy quantifier matches the same texts.
        self.eat("?");
        if matches!(self.peek(), Some('*' | '+' | '?' | '{')) {
            return Err("a quantifier behind another".to_owned());
        }
        Ok(Node::Repeat(Box::new(atom), min, max))
    }

    fn bounds(&mut self) -> Result<(u32, Option<u32>), Refusal> {
        let wrong = || "a { that is no {n}, {n,} or {n,m}".to_owned();
        let min = self.number().ok_or_else(wrong)?;
        let max = match self.eat(",") {
            false => Some(min),
            true if self.peek() == Some('}') => None,
            true => Some(self.number().ok_or_else(wrong)?),
        };
        if !self.eat("}") {
            return Err(wrong());
        }
        if let Some(max) = max.filter(|max| *max < min) {
            return Err(format!("{{{min},{max}}}, whose bounds are the wrong way round"));
        }
        Ok((min, max))
    }

    /// A number that is small enough to count up to.
    fn number(&mut self) -> Option<u32> {
        let digits: String = self.rest[self.at..].iter().take_while(|c| c.is_ascii_digit()).collect();
        self.at += digits.len();
        if digits.len() > 8 { None } else { digits.parse().ok() }
    }

    /// What stands in brackets.
    fn brackets(&mut self) -> Result<Node, Refusal> {
        let negated = self.eat("^");
        // ECMAScript reads `[]` as nothing at all, others as a bracket that is one of the characters.
        if self.peek() == Some(']') {
            return Err("an empty []".to_owned());
        }
        let mut class = ClassUnicode::empty();
        loop {
            let low = self.bracket_item()?;
            let Some(low) = low else { break };
            let is_range = self.peek() == Some('-') && !matches!(self.rest.get(self.at + 1), Some(']') | None);
            if !is_range {
                class.union(&low);
                continue;
            }
            self.at += 1;
            let high = self.bracket_item()?.ok_or_else(|| "a range without an end".to_owned())?;
            let (Some(low), Some(high)) = (single(&low), single(&high)) else {
                return Err("a range between classes of characters".to_owned());
            };
            if low > high {
                return Err(format!("[{low}-{high}], whose ends are the wrong way round"));
            }
            class.push(ClassUnicodeRange::new(low, high));
        }
        if negated {
            class.negate();
        }
        self.counted(class)
    }

    /// `None` at the closing bracket.
    fn bracket_item(&mut self) -> Result<Option<ClassUnicode>, Refusal> {
        let Some(c) = self.peek() else { return Err("a [ without its ]".to_owned()) };
        self.at += 1;
        match c {
            ']' => Ok(None),
            '\\' if self.eat("b") => Ok(Some(one('\u{8}'))),
            '\\' => self.escape().map(Some),
            c => Ok(Some(one(c))),
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<ClassUnicode, Refusal> {
        let Some(c) = self.peek() else { return Err("a \\ at the end".to_owned()) };
        self.at += 1;
        match c {
            // Of the positive classes what every dialect has in them, of the negative ones what none has.
            'd' => parsed("[0-9]"),
            'D' => parsed(r"[^\p{N}]"),
            'w' => parsed("[0-9A-Za-z_]"),
            'W' => parsed(r"[^\w\p{L}\p{N}]"),
            's' => parsed(r"[ \t\n\r\f\x0B]"),
            'S' => parsed(r"[^\s\p{Z}\x1C-\x1F\x{85}\x{FEFF}]"),
            't' => Ok(one('\t')),
            'n' => Ok(one('\n')),
            'r' => Ok(one('\r')),
            'f' => Ok(one('\u{c}')),
            'v' => Ok(one('\u{b}')),
            'x' => self.hex(2).and_then(scalar).map(one),
            'u' => self.utf16(),
            c if c.is_ascii_alphanumeric() => Err(format!("\\{c}")),
            c => Ok(one(c)),
        }
    }

    fn utf16(&mut self) -> Result<ClassUnicode, Refusal> {
        let unit = self.hex(4)?;
        if (0xD800..0xDC00).contains(&unit) && self.eat("\\u") {
            let low = self.hex(4)?;
            if (0xDC00..0xE000).contains(&low) {
                return scalar(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)).map(one);
            }
        }
        scalar(unit).map(one)
    }

    fn hex(&mut self, n: usize) -> Result<u32, Refusal> {
        let digits: String = self.rest[self.at..].iter().take(n).collect();
        self.at += n;
        let digits = (digits.len() == n && digits.chars().all(|c| c.is_ascii_hexdigit())).then_some(digits);
        let digits = digits.ok_or_else(|| format!("a \\x or \\u without its {n} hexadecimal digits"))?;
        u32::from_str_radix(&digits, 16).map_err(|_| "a number that is none".to_owned())
    }

    fn class(&mut self, text: &str) -> Result<Node, Refusal> {
        let class = parsed(text)?;
        self.counted(class)
    }

    fn counted(&mut self, mut class: ClassUnicode) -> Result<Node, Refusal> {
        class.difference(&parsed(UNWRITABLE)?);
        if class.ranges().is_empty() {
            return Err("a character that no reply can have".to_owned());
        }
        self.n_ranges += class.ranges().len();
        if self.n_ranges > MAX_RANGES {
            return Err(format!("classes of more than {MAX_RANGES} ranges of characters"));
        }
        Ok(Node::Class(class))
    }
}

fn one(c: char) -> ClassUnicode {
    ClassUnicode::new([ClassUnicodeRange::new(c, c)])
}

/// The one character of a class, if it has one.
fn single(class: &ClassUnicode) -> Option<char> {
    match class.ranges() {
        [range] if range.start() == range.end() => Some(range.start()),
        _ => None,
    }
}

fn scalar(number: u32) -> Result<char, Refusal> {
    char::from_u32(number).ok_or_else(|| "half of a surrogate pair".to_owned())
}

/// A class in `regex-syntax`'s own writing, of this file's.
fn parsed(class: &str) -> Result<ClassUnicode, Refusal> {
    let hir = regex_syntax::parse(class).map_err(|error| error.to_string())?;
    match hir.kind() {
        HirKind::Class(regex_syntax::hir::Class::Unicode(class)) => Ok(class.clone()),
        _ => Err("no class of characters".to_owned()),
    }
}

/// How many characters there are when repetitions are written out.
fn expansion(node: &Node) -> u64 {
    match node {
        Node::Class(_) => 1,
        Node::Start | Node::End => 0,
        Node::Concat(nodes) | Node::Choice(nodes) => {
            nodes.iter().fold(0, |sum: u64, node| sum.saturating_add(expansion(node)))
        }
        Node::Repeat(node, min, max) => {
            let times = u64::from(max.unwrap_or(*min)).max(1);
            expansion(node).max(1).saturating_mul(times)
        }
    }
}

/// `node` with anything before and behind it, where it has no anchors there.
fn write_searched(node: &Node, text: &mut String) -> Result<(), Refusal> {
    const ANYTHING: &str = "(?s:.*)";
    match node {
        Node::Choice(choices) => {
            text.push_str("(?:");
            for (i, choice) in choices.iter().enumerate() {
                text.push_str(if i > 0 { "|" } else { "" });
                write_searched(choice, text)?;
            }
            text.push(')');
            Ok(())
        }
        Node::Concat(parts) => {
            if let [inner @ (Node::Choice(_) | Node::Concat(_))] = parts.as_slice() {
                return write_searched(inner, text);
            }
            let n_start = parts.iter().take_while(|part| matches!(part, Node::Start)).count();
            let n_end = parts[n_start..].iter().rev().take_while(|part| matches!(part, Node::End)).count();
            text.push_str(if n_start == 0 { ANYTHING } else { "" });
            for part in &parts[n_start..parts.len() - n_end] {
                write(part, text)?;
            }
            text.push_str(if n_end == 0 { ANYTHING } else { "" });
            Ok(())
        }
        _ => Err("an anchor in the middle".to_owned()),
    }
}

fn write(node: &Node, text: &mut String) -> Result<(), Refusal> {
    match node {
        Node::Start | Node::End => return Err("^ or $ in the middle".to_owned()),
        Node::Class(class) => write_class(class, text),
        Node::Concat(parts) => parts.iter().try_for_each(|part| write(part, text))?,
        Node::Choice(choices) => {
            text.push_str("(?:");
            for (i, choice) in choices.iter().enumerate() {
                text.push_str(if i > 0 { "|" } else { "" });
                write(choice, text)?;
            }
            text.push(')');
        }
        Node::Repeat(inner, min, max) => {
            text.push_str("(?:");
            write(inner, text)?;
            let max = max.map_or_else(String::new, |max| max.to_string());
            text.push_str(&format!("){{{min},{max}}}"));
        }
    }
    Ok(())
}

/// A class in `regex-syntax`'s writing, without characters that any of the layers between could read as something else.
pub(super) fn write_class(class: &ClassUnicode, text: &mut String) {
    text.push('[');
    for range in class.ranges() {
        text.push_str(&format!("\\x{{{:X}}}-\\x{{{:X}}}", u32::from(range.start()), u32::from(range.end())));
    }
    text.push(']');
}
