//! `--filter KEY=VALUE`.

use std::collections::BTreeMap;

use crate::failure::{Failure, Result};

/// The filters of a command line. An object has to fit one value of each key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads the options; a key that is not among `known` is refused.
    pub(crate) fn parse(options: &[String], known: &[&str]) -> Result<Self> {
        let mut filters = Self::default();
        for option in options {
            let Some((key, value)) = option.split_once('=') else {
                return Err(Failure::new(format!("the filter {option:?} is refused: it must be KEY=VALUE")));
            };
            let key = key.trim().to_ascii_lowercase();
            if !known.contains(&key.as_str()) {
                let known = known.join(", ");
                return Err(Failure::new(format!("invalid filter '{key}': it must be one of {known}")));
            }
            filters.0.entry(key).or_default().push(value.trim().to_owned());
        }
        Ok(filters)
    }

    /// The values of a key; none: it was not asked for.
    pub(crate) fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Whether one of the key's values fits, or there is none.
    pub(crate) fn any(&self, key: &str, fits: impl Fn(&str) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().any(|value| fits(value))
    }

    /// Whether all labels that are asked for are there (`KEY` or `KEY=VALUE`).
    pub(crate) fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(key).iter().all(|wanted| has_label(wanted, labels))
    }

    /// The value of a key that is true or false.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.values(key).last() else { return Ok(None) };
        crate::flags::boolean(value)
            .map(Some)
            .map_err(|reason| Failure::new(format!("the filter {key}={value} is refused: {reason}")))
    }
}

pub(crate) fn has_label(wanted: &str, labels: &BTreeMap<String, String>) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    }
}

/// Whether a name fits a pattern: the same, or a regular expression that is found in it. One that is none is searched for
/// as it is.
pub(crate) fn is_match(pattern: &str, name: &str) -> bool {
    if pattern == name {
        return true;
    }
    match regex_lite::Regex::new(pattern) {
        Ok(expression) => expression.is_match(name),
        Err(_) => name.contains(pattern),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_applied() {
        let options = ["label=a", "label=b=c", "name=web", "name=^db$", "dangling=true"].map(str::to_owned);
        let filters = Filters::parse(&options, &["label", "name", "dangling"]).expect("read");
        assert!(filters.has("label") && !filters.has("status"));
        for (name, fits) in [("web-1", true), ("db", true), ("db2", false), ("x", false)] {
            assert_eq!(filters.any("name", |pattern| is_match(pattern, name)), fits, "{name}");
        }
        assert!(filters.any("status", |_| false));
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert!(filters.labels("label", &labels(&[("a", ""), ("b", "c")])));
        assert!(!filters.labels("label", &labels(&[("a", ""), ("b", "d")])));
        assert_eq!(filters.flag("dangling").expect("a flag"), Some(true));
        assert!(Filters::parse(&["foo=bar".to_owned()], &["name"]).is_err());
        assert!(Filters::parse(&["name".to_owned()], &["name"]).is_err());
        assert!(is_match("a[", "xa[x"));
    }
}
