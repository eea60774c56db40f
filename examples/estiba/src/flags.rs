//! Options as Docker's command line takes them, on top of clap: `--rm=false`, `-it=1`, the last of several wins, and a
//! value may start with a dash.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

/// Makes Docker's the options of the commands that a command line leads to. The others are left alone: there are many, and
/// every start of the program would pay for them.
pub(crate) fn like_docker(command: Command, words: &[OsString]) -> Command {
    let names: Vec<String> = path(&command, words).0.into_iter().map(str::to_owned).collect();
    along(command, &names)
}

fn along(command: Command, names: &[String]) -> Command {
    let command = command.args_override_self(true).mut_args(option);
    match names.split_first() {
        Some((name, rest)) => command.mut_subcommand(name, |command| along(command, rest)),
        None => command,
    }
}

fn option(arg: Arg) -> Arg {
    match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_name("BOOL")
            .default_value("false")
            .default_missing_value("true")
            .value_parser(boolean),
        // What stands behind an option is its value, whatever it looks like.
        ArgAction::Set | ArgAction::Append if !arg.is_positional() => arg.allow_hyphen_values(true),
        _ => arg,
    }
}

/// A flag's value as Go's `strconv.ParseBool` reads it.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("it must be true or false".to_owned()),
    }
}

/// The names of the subcommands that a command line leads to (`container`, `ls`), and the command of the last one.
pub(crate) fn path<'a>(root: &'a Command, words: &[OsString]) -> (Vec<&'a str>, &'a Command) {
    let mut names = Vec::new();
    let mut command = root;
    let mut words = words.iter().skip(1).filter_map(|word| word.to_str());
    while command.has_subcommands() {
        let Some(found) = next(root, &mut words).and_then(|word| command.find_subcommand(word)) else { break };
        names.push(found.get_name());
        command = found;
    }
    (names, command)
}

/// The first word that is no option of all commands and no value of one.
pub(crate) fn first<'a>(root: &Command, words: &'a [OsString]) -> Option<&'a str> {
    next(root, &mut words.iter().skip(1).filter_map(|word| word.to_str()))
}

fn next<'a>(root: &Command, words: &mut impl Iterator<Item = &'a str>) -> Option<&'a str> {
    loop {
        let word = words.next()?;
        let Some(option) = word.strip_prefix("--") else {
            if word.starts_with('-') {
                continue;
            }
            return Some(word);
        };
        // An option of all commands with its value behind it.
        let takes = root.get_arguments().any(|arg| arg.get_long() == Some(option) && arg.get_action().takes_values());
        if takes && !option.contains('=') {
            words.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches as _, Parser, Subcommand};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[arg(long, global = true)]
        root: Option<String>,
        #[command(subcommand)]
        command: Sub,
    }

    #[derive(Debug, Subcommand)]
    enum Sub {
        Run(Run),
        #[command(subcommand)]
        Container(Nested),
    }

    #[derive(Debug, Subcommand)]
    enum Nested {
        #[command(visible_alias = "list")]
        Ls,
    }

    #[derive(Debug, Args)]
    struct Run {
        #[arg(long)]
        rm: bool,
        #[arg(short, long)]
        interactive: bool,
        #[arg(short, long)]
        tty: bool,
        #[arg(short, long)]
        memory: Option<String>,
        #[arg(short, long)]
        env: Vec<String>,
        #[arg(required = true, trailing_var_arg = true)]
        words: Vec<String>,
    }

    fn parse(words: &str) -> Option<Run> {
        let words: Vec<OsString> = words.split(' ').map(Into::into).collect();
        let command = like_docker(<Line as clap::CommandFactory>::command(), &words);
        let matches = command.try_get_matches_from(words).ok()?;
        match Line::from_arg_matches(&matches).ok()?.command {
            Sub::Run(run) => Some(run),
            Sub::Container(_) => None,
        }
    }

    #[test]
    fn flags_are_dockers() {
        for (words, expected) in [
            ("x run i", Some((false, false, false))),
            ("x run --rm -i -t i", Some((true, true, true))),
            ("x run -it i", Some((false, true, true))),
            ("x run -it=false i", Some((false, true, false))),
            ("x run -i=1 -t=F i", Some((false, true, false))),
            ("x run --rm=true --tty=0 i", Some((true, false, false))),
            ("x run --rm --rm=false i", Some((false, false, false))),
            ("x run --rm=false --rm i", Some((true, false, false))),
            ("x run --rm=maybe i", None),
            ("x run --rm= i", None),
            ("x run i --rm", Some((false, false, false))),
        ] {
            let found = parse(words).map(|run| (run.rm, run.interactive, run.tty));
            assert_eq!(found, expected, "{words}");
        }
        // A flag takes no word that stands alone.
        assert_eq!(parse("x run --rm true").map(|run| run.words), Some(vec!["true".to_owned()]));
    }

    #[test]
    fn the_last_value_wins_and_lists_grow() {
        let run = parse("x run -m 1g --memory 2g -m=3g -e -A -e=B -eC i").expect("parsed");
        assert_eq!(run.memory.as_deref(), Some("3g"));
        assert_eq!(run.env, ["-A", "B", "C"]);
    }

    #[test]
    fn the_path_of_a_command_line() {
        let root = <Line as clap::CommandFactory>::command();
        for (words, expected) in [
            ("x", vec![]),
            ("x --root run", vec![]),
            ("x --root run container --root=x ls", vec!["container", "ls"]),
            ("x container list -a", vec!["container", "ls"]),
            ("x run container", vec!["run"]),
            ("x nothing", vec![]),
        ] {
            let words: Vec<OsString> = words.split(' ').map(Into::into).collect();
            assert_eq!(path(&root, &words).0, expected, "{words:?}");
        }
    }
}
