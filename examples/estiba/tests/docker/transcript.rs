//! The transcript: commands, and what Docker said to them.

use std::fmt::{self, Display, Formatter};

/// A line of a shell, and what it said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) command: String,
    pub(crate) said: Said,
}

/// What a command said, with all that differs from run to run replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) out: Vec<String>,
    pub(crate) err: Vec<String>,
    pub(crate) status: i32,
}

/// Commands that build on each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Transcript {
    /// The comment at the head of the file.
    pub(crate) head: Vec<String>,
    pub(crate) sections: Vec<Section>,
}

impl Transcript {
    pub(crate) fn commands(&self) -> usize {
        self.sections.iter().map(|section| section.steps.len()).sum()
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut transcript = Self::default();
        for (number, line) in text.lines().enumerate() {
            let wrong = || format!("line {} of the transcript: {line:?}", number + 1);
            let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
            if mark == "==" {
                transcript.sections.push(Section { name: rest.to_owned(), steps: Vec::new() });
                continue;
            }
            let Some(section) = transcript.sections.last_mut() else {
                transcript.head.push(line.to_owned());
                continue;
            };
            if mark == "$" {
                section.steps.push(Step { command: rest.to_owned(), ..Step::default() });
                continue;
            }
            if line.is_empty() {
                continue;
            }
            let said = &mut section.steps.last_mut().ok_or_else(wrong)?.said;
            match mark {
                ">" => said.out.push(rest.to_owned()),
                "!" => said.err.push(rest.to_owned()),
                "?" => said.status = rest.parse().map_err(|_| wrong())?,
                _ => return Err(wrong()),
            }
        }
        Ok(transcript)
    }
}

impl Display for Transcript {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let blank = |line: &String| line.is_empty();
        let head = self.head.iter().rev().skip_while(|line| blank(line)).collect::<Vec<_>>();
        for line in head.into_iter().rev() {
            writeln!(f, "{line}")?;
        }
        for section in &self.sections {
            writeln!(f, "\n== {}", section.name)?;
            for step in &section.steps {
                writeln!(f, "$ {}\n{}", step.command, step.said)?;
            }
        }
        Ok(())
    }
}

impl Display for Said {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (mark, lines) in [('>', &self.out), ('!', &self.err)] {
            for line in lines {
                writeln!(f, "{}", format!("{mark} {line}").trim_end())?;
            }
        }
        write!(f, "? {}", self.status)
    }
}
