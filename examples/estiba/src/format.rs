//! `--format` of listings: a table, JSON, or a template for each row.

use std::fmt::Write as _;

use crate::columns;
use crate::failure::{Failure, Result};
use crate::template::{Dialect, Error, Lookup, Record, Template, Value};

/// How a listing is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    /// Rows of that template in columns below their heads.
    Table(String),
    /// Each row by that template.
    Rows(String),
}

impl Format {
    /// What `--format` says; `table` alone is the listing's own table.
    pub(crate) fn parse(text: &str, table: &str) -> Self {
        let unescaped = |text: &str| text.trim_matches(' ').replace("\\t", "\t").replace("\\n", "\n");
        match text {
            "" | "table" => Self::Table(table.to_owned()),
            "json" => Self::Rows("{{json .}}".to_owned()),
            _ => match text.strip_prefix("table") {
                Some(template) => Self::Table(unescaped(template)),
                None => Self::Rows(unescaped(text)),
            },
        }
    }

    fn template(&self) -> &str {
        match self {
            Self::Table(template) | Self::Rows(template) => template,
        }
    }

    /// Whether the template speaks of a field: some are costly to find out.
    pub(crate) fn names(&self, field: &str) -> bool {
        self.template().contains(&format!(".{field}")) || self.template().contains("json .}}")
    }

    /// The listing: a line for each row.
    pub(crate) fn print(&self, columns: &[Column], rows: &[Value]) -> Result<String> {
        let template = self.prepare()?;
        let mut text = String::new();
        if matches!(self, Self::Table(_)) {
            let _ =
                writeln!(text, "{}", template.execute(&heads(columns), Dialect::Head).map_err(|error| failed(&error))?);
        }
        for row in rows {
            let line = template.execute(row, Dialect::Row).map_err(|error| failed(&error))?;
            // A table's cell must not move the others, and no terminal is driven by what a container is called.
            let line = if matches!(self, Self::Table(_)) { shown(&line) } else { line };
            let _ = writeln!(text, "{line}");
        }
        Ok(if matches!(self, Self::Table(_)) { columns::align(&text) } else { text })
    }

    /// The parsed template, for a listing that goes on.
    pub(crate) fn prepare(&self) -> Result<Template> {
        Template::parse(self.template()).map_err(|error| Failure::new(format!("failed to parse template: {error}")))
    }
}

fn failed(error: &Error) -> Failure {
    Failure::new(format!("failed to execute template: {error}"))
}

/// One row by a template.
pub(crate) fn row(template: &Template, row: &Value) -> Result<String> {
    template.execute(row, Dialect::Row).map_err(|error| failed(&error))
}

/// What would drive the terminal is shown, not done. Tabs and line feeds are the template's.
pub(crate) fn shown(text: &str) -> String {
    let harmless = |c: char| if c.is_control() && !matches!(c, '\t' | '\n') { '\u{fffd}' } else { c };
    text.chars().map(harmless).collect()
}

/// A field of a listing's rows, and the head of its column.
pub(crate) type Column = (&'static str, &'static str);

fn heads(columns: &[Column]) -> Value {
    let heads = columns.iter().fold(Record::new("head"), |heads, (field, head)| heads.with(field, *head));
    heads.hidden("Label", Lookup::Head).into()
}

/// Objects as `inspect` prints them: indented JSON, `json` on one line, or a template for each.
pub(crate) fn inspect(format: Option<&str>, objects: Vec<Value>) -> Result<String> {
    use crate::template::Json;
    match format {
        None | Some("") => {
            let mut text = Value::list(objects).json(Json::Indented);
            text.push('\n');
            Ok(text)
        }
        Some("json") => {
            let mut text = Value::list(objects).json(Json::Compact);
            text.push('\n');
            Ok(text)
        }
        Some(template) => {
            let failed = |error: Error| Failure::new(format!("template parsing error: {error}")).with_status(64);
            let template = Template::parse(template).map_err(failed)?;
            let mut text = String::new();
            for object in objects {
                match template.execute(&object, Dialect::Object) {
                    Ok(line) => _ = writeln!(text, "{line}"),
                    Err(error) => {
                        // What there is so far is shown, and an empty line for this one, as by Docker.
                        crate::output::print(&format!("{text}\n"))?;
                        return Err(Failure::new(format!("template parsing error: {error}")));
                    }
                }
            }
            Ok(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [("ID", "CONTAINER ID"), ("Names", "NAMES"), ("Status", "STATUS")];

    fn rows() -> Vec<Value> {
        let labels = std::collections::BTreeMap::from([("x".to_owned(), "y".to_owned())]);
        vec![
            Record::row("formatter.ContainerContext")
                .with("ID", "919d6d833ab2")
                .with("Names", "one")
                .with("Status", "Up 14 seconds (healthy)")
                .hidden("Label", Lookup::Entries(labels))
                .into(),
        ]
    }

    /// What Docker prints.
    #[test]
    fn formats_are_dockers() {
        const TABLE: &str = "table {{.ID}}\t{{.Names}}";
        for (format, expected) in [
            ("", "CONTAINER ID   NAMES\n919d6d833ab2   one\n"),
            ("table", "CONTAINER ID   NAMES\n919d6d833ab2   one\n"),
            (
                "table {{.Names}}\\t{{.Status}}\\t{{.Label \"x\"}}\\t{{upper .ID}}",
                "NAMES     STATUS                    x         CONTAINER ID\none       Up 14 seconds (healthy)   y         919D6D833AB2\n",
            ),
            ("table {{.Names | upper}}", "NAMES\nONE\n"),
            ("{{.Names}}", "one\n"),
            ("{{.Names}}\\n{{.ID}}", "one\n919d6d833ab2\n"),
            ("  {{.Names}} ", "one\n"),
            ("json", "{\"ID\":\"919d6d833ab2\",\"Names\":\"one\",\"Status\":\"Up 14 seconds (healthy)\"}\n"),
            ("x", "x\n"),
        ] {
            let found = Format::parse(format, &TABLE[6..]).print(&COLUMNS, &rows()).expect(format);
            assert_eq!(found, expected, "{format}");
        }
        for (format, part) in [
            (
                "{{.Nope}}",
                "failed to execute template: template: :1:2: executing \"\" at <.Nope>: can't evaluate field Nope in type *formatter.ContainerContext",
            ),
            ("{{", "failed to parse template: template: :1: unclosed action"),
        ] {
            let failure = Format::parse(format, "").print(&COLUMNS, &rows()).expect_err(format);
            assert_eq!(failure.to_string(), part);
        }
        // Without rows there is nothing to miss a field in.
        assert_eq!(Format::parse("{{.Nope}}", "").print(&COLUMNS, &[]).expect("nothing"), "");
        assert_eq!(Format::parse("table", "{{.ID}}").print(&COLUMNS, &[]).expect("heads"), "CONTAINER ID\n");
    }

    #[test]
    fn objects_are_printed_as_json_or_by_a_template() {
        let object = || vec![Value::from(Record::new("x").with("Id", "1").with("None", Value::nil_list()))];
        for (format, expected) in [
            (None, "[\n    {\n        \"Id\": \"1\",\n        \"None\": null\n    }\n]\n"),
            (Some("json"), "[{\"Id\":\"1\",\"None\":null}]\n"),
            (Some("{{.Id}}"), "1\n"),
        ] {
            assert_eq!(inspect(format, object()).expect("printed"), expected);
        }
        assert_eq!(inspect(None, vec![]).expect("printed"), "[]\n");
        let failure = inspect(Some("{{.Nope}}"), object()).expect_err("unknown");
        assert!(failure.to_string().ends_with("map has no entry for key \"Nope\""), "{failure}");
    }
}
