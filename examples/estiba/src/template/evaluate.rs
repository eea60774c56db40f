//! Executes a template.

use super::Template;
use super::error::Error;
use super::functions::{self, Dialect, Refusal};
use super::parser::{Branch, Command, Node, Operand, OperandKind, Pipe};
use super::value::Value;

/// The longest output, in bytes.
pub(super) const MAX_OUTPUT: usize = 16 << 20;

/// How many nodes and commands are executed at most.
const MAX_STEPS: u32 = 4_000_000;

/// How deep templates may call each other.
const MAX_CALLS: u32 = 100;

pub(super) fn execute(template: &Template, dot: &Value, dialect: Dialect) -> Result<String, Error> {
    let mut state = State {
        template,
        dialect,
        variables: vec![("$".to_owned(), dot.clone())],
        out: String::new(),
        steps: 0,
        calls: 0,
    };
    state.nodes(dot, &template.nodes)?;
    Ok(state.out)
}

struct State<'a> {
    template: &'a Template,
    dialect: Dialect,
    variables: Vec<(String, Value)>,
    out: String,
    steps: u32,
    calls: u32,
}

/// What comes after a list of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

type Result<T, E = Error> = std::result::Result<T, E>;

impl<'a> State<'a> {
    fn fail<T>(&self, at: usize, node: impl std::fmt::Display, reason: impl std::fmt::Display) -> Result<T> {
        Err(Error::execute(&self.template.text, at, &node.to_string(), reason))
    }

    fn step(&mut self) -> Result<()> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return self.fail(0, "", format_args!("the template takes more than {MAX_STEPS} steps"));
        }
        if self.out.len() > MAX_OUTPUT {
            return self.fail(0, "", format_args!("the output is longer than {MAX_OUTPUT} bytes"));
        }
        Ok(())
    }

    fn nodes(&mut self, dot: &Value, nodes: &'a [Node]) -> Result<Flow> {
        for node in nodes {
            self.step()?;
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(pipe) => {
                    let value = self.pipe(dot, pipe)?;
                    if pipe.variables.is_empty() {
                        value.print(&mut self.out, MAX_OUTPUT);
                    }
                }
                Node::If(branch) | Node::With(branch) => {
                    let flow = self.choose(dot, branch, matches!(node, Node::With(_)))?;
                    if flow != Flow::Next {
                        return Ok(flow);
                    }
                }
                Node::Range(branch) => {
                    let flow = self.range(dot, branch)?;
                    if flow != Flow::Next {
                        return Ok(flow);
                    }
                }
                Node::Template { at, name, pipe } => self.call_template(dot, *at, name, pipe.as_ref())?,
                Node::Break => return Ok(Flow::Break),
                Node::Continue => return Ok(Flow::Continue),
            }
        }
        Ok(Flow::Next)
    }

    fn choose(&mut self, dot: &Value, branch: &'a Branch, sets_dot: bool) -> Result<Flow> {
        let variables = self.variables.len();
        let value = self.pipe(dot, &branch.pipe)?;
        let flow = if value.truth() {
            self.nodes(if sets_dot { &value } else { dot }, &branch.body)
        } else {
            self.nodes(dot, &branch.otherwise)
        };
        self.variables.truncate(variables);
        flow
    }

    fn range(&mut self, dot: &Value, branch: &'a Branch) -> Result<Flow> {
        let variables = self.variables.len();
        let value = self.commands(dot, &branch.pipe)?;
        if !branch.pipe.assigns {
            // They are there in {{else}}, too.
            for name in &branch.pipe.variables {
                self.variables.push((name.clone(), value.clone()));
            }
        }
        let items: Box<dyn Iterator<Item = (Value, Value)>> = match &value {
            Value::List(list) => {
                let items = list.items.iter().enumerate();
                Box::new(items.map(|(index, item)| (Value::from(index), item.clone())))
            }
            Value::Map(map) => {
                let entries = map.entries.iter();
                Box::new(entries.map(|(key, value)| (Value::from(key), value.clone())))
            }
            Value::Int(count) if branch.pipe.variables.len() == 2 => {
                let at = branch.pipe.commands.first().map_or(0, |command| command.at);
                let reason = format!("can't use {count} to iterate over more than one variable");
                return self.fail(at, &branch.pipe, reason);
            }
            Value::Int(count) => Box::new((0..*count).map(|number| (Value::Int(number), Value::Int(number)))),
            Value::Missing | Value::Nil => Box::new(std::iter::empty()),
            other => {
                let mut shown = String::new();
                other.print(&mut shown, 1000);
                let at = branch.pipe.commands.first().map_or(0, |command| command.at);
                return self.fail(at, &branch.pipe, format_args!("range can't iterate over {shown}"));
            }
        };
        let mut any = false;
        for (key, item) in items {
            any = true;
            self.step()?;
            self.variables.truncate(variables);
            let names = &branch.pipe.variables;
            let values = if names.len() == 2 { vec![key, item.clone()] } else { vec![item.clone()] };
            for (name, value) in names.iter().zip(values) {
                self.bind(name, value, branch.pipe.assigns);
            }
            if self.nodes(&item, &branch.body)? == Flow::Break {
                break;
            }
        }
        let flow = if any { Flow::Next } else { self.nodes(dot, &branch.otherwise)? };
        self.variables.truncate(variables);
        Ok(flow)
    }

    fn bind(&mut self, name: &str, value: Value, assigns: bool) {
        if assigns {
            if let Some(variable) = self.variables.iter_mut().rev().find(|variable| variable.0 == name) {
                variable.1 = value;
            }
        } else {
            self.variables.push((name.to_owned(), value));
        }
    }

    fn call_template(&mut self, dot: &Value, at: usize, name: &str, pipe: Option<&'a Pipe>) -> Result<()> {
        let node = format_args!("{{{{template {name:?}}}}}").to_string();
        let Some(nodes) = self.template.named.get(name) else {
            return self.fail(at, node, format_args!("template {name:?} not defined"));
        };
        if self.calls >= MAX_CALLS {
            return self.fail(at, node, format_args!("exceeded maximum template depth ({MAX_CALLS})"));
        }
        let dot = match pipe {
            Some(pipe) => self.pipe(dot, pipe)?,
            None => Value::Missing,
        };
        let variables = std::mem::replace(&mut self.variables, vec![("$".to_owned(), dot.clone())]);
        self.calls += 1;
        let result = self.nodes(&dot, nodes);
        self.calls -= 1;
        self.variables = variables;
        result.map(|_| ())
    }

    /// The value of a pipeline, which its variables take.
    fn pipe(&mut self, dot: &Value, pipe: &'a Pipe) -> Result<Value> {
        let value = self.commands(dot, pipe)?;
        for name in &pipe.variables {
            self.bind(name, value.clone(), pipe.assigns);
        }
        Ok(value)
    }

    fn commands(&mut self, dot: &Value, pipe: &'a Pipe) -> Result<Value> {
        let mut value = None;
        for command in &pipe.commands {
            self.step()?;
            value = Some(self.command(dot, command, value)?);
        }
        Ok(value.unwrap_or(Value::Missing))
    }

    /// The value of a command; `last` is that of the one before, and its last argument.
    fn command(&mut self, dot: &Value, command: &'a Command, last: Option<Value>) -> Result<Value> {
        let Some((first, arguments)) = command.operands.split_first() else { return Ok(Value::Missing) };
        match &first.kind {
            OperandKind::Field(names) => self.fields(dot, dot.clone(), first, names, arguments, last.as_ref()),
            OperandKind::Variable(name, names) if !names.is_empty() => {
                let value = self.variable(name);
                self.fields(dot, value, first, names, arguments, last.as_ref())
            }
            OperandKind::Chain(base, names) => {
                let value = self.operand(dot, base)?;
                self.fields(dot, value, first, names, arguments, last.as_ref())
            }
            OperandKind::Function(name) => self.function(dot, name, command, last),
            _ if !arguments.is_empty() || last.is_some() => {
                self.fail(first.at, first, format_args!("can't give argument to non-function {first}"))
            }
            OperandKind::Nil => self.fail(first.at, first, "nil is not a command"),
            _ => self.operand(dot, first),
        }
    }

    fn variable(&self, name: &str) -> Value {
        let found = self.variables.iter().rev().find(|variable| variable.0 == name);
        found.map_or(Value::Missing, |variable| variable.1.clone())
    }

    /// The value of an operand that gets no arguments.
    fn operand(&mut self, dot: &Value, operand: &'a Operand) -> Result<Value> {
        self.step()?;
        match &operand.kind {
            OperandKind::Dot => Ok(dot.clone()),
            OperandKind::Nil => Ok(Value::Nil),
            OperandKind::Constant(value, _) => Ok(value.clone()),
            OperandKind::Field(names) => self.fields(dot, dot.clone(), operand, names, &[], None),
            OperandKind::Variable(name, names) => {
                let value = self.variable(name);
                self.fields(dot, value, operand, names, &[], None)
            }
            OperandKind::Chain(base, names) => {
                let value = self.operand(dot, base)?;
                self.fields(dot, value, operand, names, &[], None)
            }
            OperandKind::Pipe(pipe) => self.pipe(dot, pipe),
            OperandKind::Function(name) => self
                .call(name, &[])
                .or_else(|refusal| self.refuse(name, refusal, operand.at, &operand.to_string(), &[])),
        }
    }

    /// Goes through the fields; what the last one is may take the arguments.
    fn fields(
        &mut self,
        dot: &Value,
        mut value: Value,
        operand: &'a Operand,
        names: &'a [String],
        arguments: &'a [Operand],
        last: Option<&Value>,
    ) -> Result<Value> {
        let count = arguments.len() + usize::from(last.is_some());
        for (index, name) in names.iter().enumerate() {
            let found = self.field(&value, name, operand)?;
            let is_last = index + 1 == names.len();
            value = match found {
                Value::Lookup(lookup) => {
                    let key = match (arguments.first(), last) {
                        (Some(argument), None) if count == 1 && is_last => self.operand(dot, argument)?,
                        (None, Some(value)) if is_last => value.clone(),
                        _ => {
                            let count = if is_last { count } else { 0 };
                            return self.fail(
                                operand.at,
                                operand,
                                format_args!("wrong number of args for {name}: want 1 got {count}"),
                            );
                        }
                    };
                    let Value::String(key) = &key else {
                        let found = key.type_name();
                        let reason = format!("wrong type for value; expected string; got {found}");
                        return self.fail(operand.at, operand, reason);
                    };
                    return Ok(Value::from(lookup.find(key)));
                }
                _ if is_last && count > 0 => {
                    let reason = if matches!(value, Value::Record(_)) {
                        format!("{name} has arguments but cannot be invoked as function")
                    } else {
                        format!("{name} is not a method but has arguments")
                    };
                    return self.fail(operand.at, operand, reason);
                }
                // In a map from strings to anything, null is no value.
                Value::Nil if is_last && matches!(value, Value::Map(_)) => Value::Missing,
                found => found,
            };
        }
        Ok(value)
    }

    fn field(&self, value: &Value, name: &str, operand: &Operand) -> Result<Value> {
        match value {
            Value::Missing => Ok(Value::Missing),
            Value::Nil => self.fail(operand.at, operand, format_args!("nil pointer evaluating interface {{}}.{name}")),
            Value::Map(map) => Ok(map.entries.get(name).cloned().unwrap_or(Value::Missing)),
            Value::Record(record) => match (record.get(name), self.dialect) {
                (Some(value), _) => Ok(value.clone()),
                // Docker looks an object up as a struct, and then as a map.
                (None, Dialect::Object) => {
                    self.fail(operand.at, operand, format_args!("map has no entry for key {name:?}"))
                }
                (None, Dialect::Head) => Ok(Value::Missing),
                (None, Dialect::Row) => {
                    let kind = record.type_name();
                    self.fail(operand.at, operand, format_args!("can't evaluate field {name} in type *{kind}"))
                }
            },
            other => {
                // Of an object's fields as a map Go knows no more.
                let kind = if self.dialect == Dialect::Object { "interface {}".to_owned() } else { other.type_name() };
                self.fail(operand.at, operand, format_args!("can't evaluate field {name} in type {kind}"))
            }
        }
    }

    fn function(&mut self, dot: &Value, name: &str, command: &'a Command, last: Option<Value>) -> Result<Value> {
        let operands = &command.operands[1..];
        if matches!(name, "and" | "or") {
            return self.short_circuit(dot, name, command, last);
        }
        let mut arguments = Vec::with_capacity(operands.len() + 1);
        for operand in operands {
            arguments.push(self.operand(dot, operand)?);
        }
        arguments.extend(last);
        match self.call(name, &arguments) {
            Ok(value) => Ok(value),
            Err(refusal) => self.refuse(name, refusal, command.at, &command.to_string(), operands),
        }
    }

    fn call(&self, name: &str, arguments: &[Value]) -> Result<Value, Refusal> {
        functions::call(name, arguments, self.dialect)
    }

    fn refuse(&self, name: &str, refusal: Refusal, at: usize, node: &str, operands: &[Operand]) -> Result<Value> {
        match refusal {
            Refusal::Count(reason) => self.fail(at, name, reason),
            Refusal::Argument(index, expected) => {
                let operand = operands.get(index);
                let node = operand.map_or_else(|| node.to_owned(), ToString::to_string);
                let is_constant = operand.is_some_and(|operand| matches!(operand.kind, OperandKind::Constant(..)));
                let (kind, word) = (expected.kind, expected.word);
                let reason = match expected.found {
                    _ if is_constant => format!("expected {word}; found {node}"),
                    Some(found) => format!("wrong type for value; expected {kind}; got {found}"),
                    None => format!("invalid value; expected {kind}"),
                };
                self.fail(operand.map_or(at, |operand| operand.at), node, reason)
            }
            Refusal::Call(reason) => self.fail(at, node, format_args!("error calling {name}: {reason}")),
        }
    }

    /// `and` and `or` look at no argument after the one that decides.
    fn short_circuit(&mut self, dot: &Value, name: &str, command: &'a Command, last: Option<Value>) -> Result<Value> {
        let decides = |value: &Value| value.truth() == (name == "or");
        let mut result = None;
        for operand in &command.operands[1..] {
            let value = self.operand(dot, operand)?;
            if decides(&value) {
                return Ok(value);
            }
            result = Some(value);
        }
        match last.or(result) {
            Some(value) => Ok(value),
            None => self.fail(command.at, name, format_args!("wrong number of args for {name}: want at least 1 got 0")),
        }
    }
}
