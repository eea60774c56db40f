//! Makes a tree of a template's tokens.

use std::collections::BTreeMap;

use super::error::Error;
use super::functions;
use super::lexer::{self, Kind, Token};
use super::value::Value;

/// How deep blocks and parentheses may be nested.
const MAX_DEPTH: usize = 100;

/// The longest template.
const MAX_LENGTH: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) nodes: Vec<Node>,
    pub(super) named: BTreeMap<String, Vec<Node>>,
}

#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    Action(Pipe),
    If(Branch),
    Range(Branch),
    With(Branch),
    Template { at: usize, name: String, pipe: Option<Pipe> },
    Break,
    Continue,
}

/// `{{if}}`, `{{range}}` or `{{with}}`, and its `{{else}}`.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    pub(super) pipe: Pipe,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

#[derive(Debug, Clone)]
pub(super) struct Pipe {
    /// Variables that take the value, with their dollar.
    pub(super) variables: Vec<String>,
    /// Whether they are there already (`=`).
    pub(super) assigns: bool,
    pub(super) commands: Vec<Command>,
}

/// An operand or function, and its arguments.
#[derive(Debug, Clone)]
pub(super) struct Command {
    pub(super) at: usize,
    pub(super) operands: Vec<Operand>,
}

#[derive(Debug, Clone)]
pub(super) struct Operand {
    pub(super) at: usize,
    pub(super) kind: OperandKind,
}

#[derive(Debug, Clone)]
pub(super) enum OperandKind {
    Dot,
    Nil,
    Constant(Value, String),
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Function(String),
    Pipe(Box<Pipe>),
    /// Fields of a value in parentheses.
    Chain(Box<Operand>, Vec<String>),
}

impl std::fmt::Display for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.variables.is_empty() {
            write!(f, "{} {} ", self.variables.join(", "), if self.assigns { "=" } else { ":=" })?;
        }
        for (index, command) in self.commands.iter().enumerate() {
            write!(f, "{}{command}", if index > 0 { " | " } else { "" })?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, operand) in self.operands.iter().enumerate() {
            write!(f, "{}{operand}", if index > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fields =
            |f: &mut std::fmt::Formatter<'_>, names: &[String]| names.iter().try_for_each(|name| write!(f, ".{name}"));
        match &self.kind {
            OperandKind::Dot => f.write_str("."),
            OperandKind::Nil => f.write_str("nil"),
            OperandKind::Constant(_, written) => f.write_str(written),
            OperandKind::Field(names) => fields(f, names),
            OperandKind::Variable(name, names) => {
                f.write_str(name)?;
                fields(f, names)
            }
            OperandKind::Function(name) => f.write_str(name),
            OperandKind::Pipe(pipe) => write!(f, "({pipe})"),
            OperandKind::Chain(operand, names) => {
                write!(f, "{operand}")?;
                fields(f, names)
            }
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Parsed, Error> {
    if text.len() > MAX_LENGTH {
        return Err(Error::parse("", 0, format_args!("the template is longer than {MAX_LENGTH} bytes")));
    }
    let tokens = lexer::tokens(text)?;
    let mut parser =
        Parser { text, tokens, next: 0, depth: 0, loops: 0, variables: vec!["$".to_owned()], named: BTreeMap::new() };
    let (nodes, end) = parser.list(Context::Top)?;
    debug_assert!(matches!(end, Stop::Input), "the top list ends with the input");
    Ok(Parsed { nodes, named: parser.named })
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    next: usize,
    depth: usize,
    /// How many `{{range}}` are around.
    loops: usize,
    variables: Vec<String>,
    named: BTreeMap<String, Vec<Node>>,
}

/// What a list of nodes is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Context {
    Top,
    Block,
    Otherwise,
}

/// What a list of nodes ended with.
enum Stop {
    Input,
    End,
    Else,
    /// `{{else if}}` and `{{else with}}`, whose word is still to be read.
    ElseBranch,
}

impl Parser<'_> {
    fn fail<T>(&self, reason: impl std::fmt::Display) -> Result<T, Error> {
        let at = self.next.checked_sub(1).and_then(|last| self.tokens.get(last)).map_or(0, |token| token.at);
        Err(Error::parse(self.text, at, reason))
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.next).cloned();
        self.next += usize::from(token.is_some());
        token
    }

    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.next).map(|token| &token.kind)
    }

    fn skip_space(&mut self) {
        while self.peek() == Some(&Kind::Space) {
            self.next += 1;
        }
    }

    fn peek_after_space(&mut self) -> Option<Kind> {
        self.skip_space();
        self.peek().cloned()
    }

    fn expect_close(&mut self, place: &str) -> Result<(), Error> {
        self.skip_space();
        match self.take() {
            Some(Token { kind: Kind::Close, .. }) => Ok(()),
            Some(token) => self.fail(format_args!("unexpected {} in {place}", token.kind.shown())),
            None => self.fail("unexpected EOF"),
        }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.depth >= MAX_DEPTH {
            return self.fail(format_args!("nested deeper than {MAX_DEPTH} levels"));
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    fn list(&mut self, context: Context) -> Result<(Vec<Node>, Stop), Error> {
        self.deeper(|parser| parser.list_here(context))
    }

    fn list_here(&mut self, context: Context) -> Result<(Vec<Node>, Stop), Error> {
        let mut nodes = Vec::new();
        while let Some(token) = self.take() {
            match token.kind {
                Kind::Text(text) => nodes.push(Node::Text(text)),
                Kind::Open => {
                    let Some(Kind::Word(word)) = self.peek_after_space() else {
                        nodes.push(self.action()?);
                        continue;
                    };
                    match word.as_str() {
                        "end" => {
                            self.take();
                            self.expect_close("end")?;
                            if context == Context::Top {
                                return self.fail("unexpected {{end}}");
                            }
                            return Ok((nodes, Stop::End));
                        }
                        "else" => {
                            self.take();
                            match context {
                                Context::Block => {}
                                Context::Top => return self.fail("unexpected {{else}}"),
                                Context::Otherwise => return self.fail("expected end; found {{else}}"),
                            }
                            let branch = match self.peek_after_space() {
                                Some(Kind::Word(word)) => matches!(word.as_str(), "if" | "with"),
                                _ => false,
                            };
                            if branch {
                                return Ok((nodes, Stop::ElseBranch));
                            }
                            self.expect_close("else")?;
                            return Ok((nodes, Stop::Else));
                        }
                        "define" if context == Context::Top => self.define()?,
                        "define" => return self.fail("unexpected {{define}}"),
                        "block" => {
                            let node = self.block()?;
                            nodes.push(node);
                        }
                        _ => nodes.push(self.keyword_or_action(&word)?),
                    }
                }
                kind => return self.fail(format_args!("unexpected {}", kind.shown())),
            }
        }
        if context == Context::Top { Ok((nodes, Stop::Input)) } else { self.fail("unexpected EOF") }
    }

    fn keyword_or_action(&mut self, word: &str) -> Result<Node, Error> {
        match word {
            "if" => {
                self.take();
                Ok(Node::If(self.branch("if")?))
            }
            "with" => {
                self.take();
                Ok(Node::With(self.branch("with")?))
            }
            "range" => {
                self.take();
                Ok(Node::Range(self.branch("range")?))
            }
            "template" => {
                self.take();
                self.template()
            }
            "break" | "continue" => {
                self.take();
                self.expect_close(&format!("{{{{{word}}}}}"))?;
                if self.loops == 0 {
                    return self.fail(format_args!("{{{{{word}}}}} outside {{{{range}}}}"));
                }
                Ok(if word == "break" { Node::Break } else { Node::Continue })
            }
            _ => self.action(),
        }
    }

    fn action(&mut self) -> Result<Node, Error> {
        self.skip_space();
        Ok(Node::Action(self.pipe("command", &Kind::Close)?))
    }

    /// The rest of a branch after its first word. Variables that it declares end with it.
    fn branch(&mut self, word: &str) -> Result<Branch, Error> {
        let variables = self.variables.len();
        let pipe = self.pipe(word, &Kind::Close)?;
        let is_range = word == "range";
        self.loops += usize::from(is_range);
        let body = self.list(Context::Block);
        self.loops -= usize::from(is_range);
        let (body, end) = body?;
        let otherwise = match end {
            Stop::Else => self.list(Context::Otherwise)?.0,
            Stop::ElseBranch => {
                // It shares its {{end}} with this one.
                let Some(Token { kind: Kind::Word(next), .. }) = self.take() else {
                    return self.fail("unexpected EOF");
                };
                if is_range || next != word {
                    return self.fail(format_args!("unexpected <{next}> in else"));
                }
                let branch = self.deeper(|parser| parser.branch(word))?;
                vec![if word == "if" { Node::If(branch) } else { Node::With(branch) }]
            }
            Stop::End | Stop::Input => Vec::new(),
        };
        self.variables.truncate(variables);
        Ok(Branch { pipe, body, otherwise })
    }

    fn name(&mut self, place: &str) -> Result<String, Error> {
        self.skip_space();
        match self.take() {
            Some(Token { kind: Kind::String(name, _), .. }) => Ok(name),
            Some(token) => self.fail(format_args!("unexpected {} in {place}", token.kind.shown())),
            None => self.fail("unexpected EOF"),
        }
    }

    fn template(&mut self) -> Result<Node, Error> {
        let name = self.name("template clause")?;
        let at = self.tokens.get(self.next - 1).map_or(0, |token| token.at);
        let pipe = if self.peek_after_space() == Some(Kind::Close) {
            self.take();
            None
        } else {
            Some(self.pipe("template clause", &Kind::Close)?)
        };
        Ok(Node::Template { at, name, pipe })
    }

    fn define(&mut self) -> Result<(), Error> {
        self.take();
        let name = self.name("define clause")?;
        self.expect_close("define clause")?;
        self.named_list(name)
    }

    fn block(&mut self) -> Result<Node, Error> {
        self.take();
        let at = self.tokens.get(self.next - 1).map_or(0, |token| token.at);
        let name = self.name("block clause")?;
        let pipe = self.pipe("block clause", &Kind::Close)?;
        self.named_list(name.clone())?;
        Ok(Node::Template { at, name, pipe: Some(pipe) })
    }

    fn named_list(&mut self, name: String) -> Result<(), Error> {
        // What is named stands for itself: it sees neither the variables nor the loops around it.
        let variables = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let loops = std::mem::take(&mut self.loops);
        let (nodes, end) = self.list(Context::Block)?;
        if !matches!(end, Stop::End) {
            return self.fail("unexpected {{else}} in define clause");
        }
        (self.variables, self.loops) = (variables, loops);
        self.named.insert(name, nodes);
        Ok(())
    }

    /// Commands up to the closing token, which is taken.
    fn pipe(&mut self, place: &str, close: &Kind) -> Result<Pipe, Error> {
        self.deeper(|parser| parser.pipe_here(place, close))
    }

    fn pipe_here(&mut self, place: &str, close: &Kind) -> Result<Pipe, Error> {
        self.skip_space();
        let (variables, assigns) = self.declaration(place)?;
        let mut commands = Vec::new();
        loop {
            match self.peek_after_space() {
                Some(kind) if kind == *close => {
                    self.take();
                    self.check(&commands, place)?;
                    return Ok(Pipe { variables, assigns, commands });
                }
                Some(Kind::Close) => {
                    self.take();
                    return self.fail(format_args!("unexpected {} in {place}", Kind::Close.shown()));
                }
                None => return self.fail("unexpected EOF"),
                Some(
                    Kind::Word(_)
                    | Kind::Field(_)
                    | Kind::Dot
                    | Kind::Number(_)
                    | Kind::String(..)
                    | Kind::Variable(_)
                    | Kind::OpenParen,
                ) => commands.push(self.command()?),
                Some(kind) => {
                    self.take();
                    return self.fail(format_args!("unexpected {} in {place}", kind.shown()));
                }
            }
        }
    }

    fn check(&self, commands: &[Command], place: &str) -> Result<(), Error> {
        if commands.is_empty() {
            return self.fail(format_args!("missing value for {place}"));
        }
        for (index, command) in commands.iter().enumerate().skip(1) {
            if let Some(Operand { kind: OperandKind::Constant(..) | OperandKind::Dot | OperandKind::Nil, .. }) =
                command.operands.first()
            {
                return self.fail(format_args!("non executable command in pipeline stage {}", index + 1));
            }
        }
        Ok(())
    }

    /// `$x :=`, `$x =`, and in a range `$i, $x :=`.
    fn declaration(&mut self, place: &str) -> Result<(Vec<String>, bool), Error> {
        let start = self.next;
        let mut names = Vec::new();
        while let Some(Kind::Variable(name)) = self.peek_after_space() {
            self.take();
            names.push(name);
            match self.peek_after_space() {
                Some(Kind::Comma) if place == "range" && names.len() < 2 => {
                    self.take();
                }
                Some(Kind::Declare) => {
                    self.take();
                    self.variables.extend(names.iter().cloned());
                    return Ok((names, false));
                }
                Some(Kind::Assign) => {
                    self.take();
                    for name in &names {
                        self.declared(name)?;
                    }
                    return Ok((names, true));
                }
                Some(Kind::Comma) => return self.fail(format_args!("too many declarations in {place}")),
                _ => break,
            }
        }
        // It was an operand.
        self.next = start;
        Ok((Vec::new(), false))
    }

    fn declared(&self, name: &String) -> Result<(), Error> {
        if self.variables.contains(name) {
            return Ok(());
        }
        self.fail(format_args!("undefined variable {name:?}"))
    }

    fn command(&mut self) -> Result<Command, Error> {
        let at = self.tokens.get(self.next).map_or(0, |token| token.at);
        let mut operands = Vec::new();
        loop {
            self.skip_space();
            if let Some(operand) = self.operand()? {
                operands.push(operand);
            }
            match self.peek().cloned() {
                Some(Kind::Space) => self.skip_space(),
                Some(Kind::Pipe) => {
                    self.take();
                    break;
                }
                Some(Kind::Close | Kind::CloseParen) | None => break,
                Some(kind) => {
                    self.take();
                    return self.fail(format_args!("unexpected {} in operand", kind.shown()));
                }
            }
        }
        if operands.is_empty() {
            return self.fail("empty command");
        }
        Ok(Command { at, operands })
    }

    fn operand(&mut self) -> Result<Option<Operand>, Error> {
        let Some(token) = self.tokens.get(self.next).cloned() else { return Ok(None) };
        let kind = match token.kind {
            Kind::Word(word) => match word.as_str() {
                "true" | "false" => OperandKind::Constant(Value::Bool(word == "true"), word),
                "nil" => OperandKind::Nil,
                "if" | "else" | "end" | "range" | "with" | "template" | "define" | "block" | "break" | "continue" => {
                    self.take();
                    return self.fail(format_args!("unexpected <{word}> in operand"));
                }
                _ if functions::is_known(&word) => OperandKind::Function(word),
                _ => {
                    self.take();
                    return self.fail(format_args!("function {word:?} not defined"));
                }
            },
            Kind::Dot => OperandKind::Dot,
            Kind::Field(name) => OperandKind::Field(vec![name]),
            Kind::Variable(name) => {
                self.next += 1;
                self.declared(&name)?;
                self.next -= 1;
                OperandKind::Variable(name, Vec::new())
            }
            Kind::Number(written) => {
                let digits = written.trim_start_matches(['+', '-']);
                if number(&written).is_none() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
                    self.take();
                    return self.fail(format_args!("integer overflow: {written:?}"));
                }
                let Some(value) = number(&written) else {
                    self.take();
                    return self.fail(format_args!("bad number syntax: {written:?}"));
                };
                OperandKind::Constant(value, written)
            }
            Kind::String(value, written) => OperandKind::Constant(Value::from(value), written),
            Kind::OpenParen => {
                self.take();
                let pipe = self.pipe("parenthesized pipeline", &Kind::CloseParen)?;
                self.next -= 1;
                OperandKind::Pipe(Box::new(pipe))
            }
            _ => return Ok(None),
        };
        self.take();
        self.fields(Operand { at: token.at, kind }).map(Some)
    }

    /// Adds the fields that follow an operand without a space.
    fn fields(&mut self, operand: Operand) -> Result<Operand, Error> {
        let mut names = Vec::new();
        let mut first = None;
        while let Some(Token { at, kind: Kind::Field(name) }) = self.tokens.get(self.next).cloned() {
            first.get_or_insert(at);
            names.push(name);
            self.take();
        }
        let Some(at) = first else { return Ok(operand) };
        let kind = match operand.kind {
            OperandKind::Field(mut before) => {
                before.extend(names);
                OperandKind::Field(before)
            }
            OperandKind::Variable(name, _) => OperandKind::Variable(name, names),
            OperandKind::Constant(_, written) => {
                return self.fail(format_args!("unexpected . after term {written:?}"));
            }
            OperandKind::Nil | OperandKind::Dot => return self.fail("unexpected . after term"),
            kind @ (OperandKind::Pipe(_) | OperandKind::Chain(..) | OperandKind::Function(_)) => {
                OperandKind::Chain(Box::new(Operand { at: operand.at, kind }), names)
            }
        };
        Ok(Operand { at, kind })
    }
}

/// A number as Go's constants are written.
fn number(written: &str) -> Option<Value> {
    let (negative, digits) = match written.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, written.strip_prefix('+').unwrap_or(written)),
    };
    let plain: String = digits.chars().filter(|c| *c != '_').collect();
    let lower = plain.to_ascii_lowercase();
    let (radix, text) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        _ if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|byte| byte.is_ascii_digit()) => {
            (8, &lower[1..])
        }
        _ => (10, lower.as_str()),
    };
    if let Ok(value) = i128::from_str_radix(text, radix) {
        let value = if negative { -value } else { value };
        return i64::try_from(value).map(Value::Int).or_else(|_| u64::try_from(value).map(Value::Uint)).ok();
    }
    let fits = radix == 10
        && !text.bytes().all(|byte| byte.is_ascii_digit())
        && text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'+' | b'-'));
    let value: f64 = text.parse().ok().filter(|value: &f64| fits && value.is_finite())?;
    let value = if negative { -value } else { value };
    Some(Value::Float(value))
}
