//! Go's text/template, as far as Docker's `--format` is written in it: a template is parsed once and executed for each
//! row or object.
//!
//! Names are looked up in [`Value`]s, whose printing is Go's. Whatever a template or a value holds, execution ends: the
//! depth of the nesting, the steps taken and the output are bounded.

mod error;
mod evaluate;
mod functions;
mod lexer;
mod parser;
mod printf;
mod value;

use std::collections::BTreeMap;

pub(crate) use self::error::Error;
pub(crate) use self::functions::Dialect;
pub(crate) use self::printf::quoted;
pub(crate) use self::value::{Json, Lookup, Record, Value};

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Template {
    text: String,
    nodes: Vec<parser::Node>,
    /// What `{{define}}` and `{{block}}` have named.
    named: BTreeMap<String, Vec<parser::Node>>,
}

impl Template {
    /// Parses the text of a template. An error reads like Go's: `template: :1: unclosed action`.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let parsed = parser::parse(text)?;
        Ok(Self { text: text.to_owned(), nodes: parsed.nodes, named: parsed.named })
    }

    /// Executes the template with `dot` for `.` and `$`.
    pub(crate) fn execute(&self, dot: &Value, dialect: Dialect) -> Result<String, Error> {
        evaluate::execute(self, dot, dialect)
    }
}

#[cfg(test)]
mod tests;
