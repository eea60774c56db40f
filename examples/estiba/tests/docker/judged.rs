//! Differences, and what was said of them.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use crate::transcript::{Said, Transcript};

/// A command to which two engines said different things.
#[derive(Debug)]
pub(crate) struct Difference {
    /// The command; from its second occurrence on with a number.
    pub(crate) command: String,
    /// `stdout`, `stderr`, `status`.
    pub(crate) parts: Vec<&'static str>,
    expected: Said,
    said: Said,
}

impl Display for Difference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "`{}` differs: {}", self.command, self.parts.join(", "))?;
        writeln!(f, "- docker\n{}\n- estiba\n{}", self.expected, self.said)
    }
}

/// Each command whose words or status differ between two transcripts of the same commands.
pub(crate) fn differences(expected: &Transcript, said: &Transcript) -> Vec<Difference> {
    let steps = |transcript: &Transcript| {
        transcript.sections.iter().flat_map(|section| section.steps.clone()).collect::<Vec<_>>()
    };
    let mut seen = BTreeMap::<String, u32>::new();
    let mut found = Vec::new();
    for (expected, step) in steps(expected).into_iter().zip(steps(said)) {
        let times = seen.entry(step.command.clone()).or_default();
        *times += 1;
        let command = if *times == 1 { step.command } else { format!("{} ({times})", step.command) };
        let (expected, said) = (expected.said, step.said);
        let mut parts = Vec::new();
        if expected.out != said.out {
            parts.push("stdout");
        }
        if !same_errors(&expected.err, &said.err) {
            parts.push("stderr");
        }
        if expected.status != said.status {
            parts.push("status");
        }
        if !parts.is_empty() {
            found.push(Difference { command, parts, expected, said });
        }
    }
    found
}

/// What an engine itself says has words of its own: that it says something is the same, and all else is the same.
fn same_errors(docker: &[String], estiba: &[String]) -> bool {
    let (own, others): (Vec<&String>, Vec<&String>) = estiba.iter().partition(|line| line.starts_with("estiba: "));
    let (same, of_docker): (Vec<&String>, Vec<&String>) =
        docker.iter().filter(|line| !line.is_empty()).partition(|line| others.contains(line));
    same == others && of_docker.is_empty() == own.is_empty()
}

/// What `judged.md` says: of each command which parts differ, and why.
#[derive(Debug, Default)]
pub(crate) struct Judged(BTreeMap<String, Vec<String>>);

impl Judged {
    /// A heading ``## `COMMAND` ``, a line `differs: PART, PART`, and the reason.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut judged = BTreeMap::new();
        for section in text.split("\n## `").skip(1) {
            let (command, rest) = section.split_once("`\n").ok_or_else(|| format!("no heading: {section:?}"))?;
            let mut lines = rest.lines().filter(|line| !line.trim().is_empty());
            let parts = lines.next().and_then(|line| line.strip_prefix("differs: "));
            let parts = parts.ok_or_else(|| format!("`{command}`: no line that begins with \"differs: \""))?;
            lines.next().ok_or_else(|| format!("`{command}`: no reason"))?;
            judged.insert(command.to_owned(), parts.split(", ").map(str::to_owned).collect());
        }
        Ok(Self(judged))
    }

    /// The differences that are not judged, and the judgements of what does not differ.
    pub(crate) fn wrong(&self, differences: &[Difference]) -> Vec<String> {
        let is_not_judged =
            |difference: &&Difference| self.0.get(&difference.command).is_none_or(|parts| *parts != difference.parts);
        let mut wrong: Vec<String> = differences.iter().filter(is_not_judged).map(ToString::to_string).collect();
        let differs = |command: &String| differences.iter().any(|difference| difference.command == *command);
        let gone = self.0.keys().filter(|command| !differs(command));
        wrong.extend(gone.map(|command| format!("`{command}` does not differ any more: take it out of judged.md")));
        wrong
    }
}
