//! Templates with what Go prints for them.

use serde_json::Value as Other;

use super::*;

/// A template, and what the text/template of Go 1.27 with Docker's functions made of it and `data.json`: after `=` its
/// output, after `!` its error. Both are JSON strings.
const CASES: &str = include_str!("cases.tsv");

fn data() -> Value {
    let data: Other = serde_json::from_str(include_str!("data.json")).expect("JSON");
    data.into()
}

fn run(template: &str, dot: &Value, dialect: Dialect) -> String {
    match Template::parse(template).and_then(|template| template.execute(dot, dialect)) {
        Ok(output) => format!("={output}"),
        Err(error) => format!("!{error}"),
    }
}

/// Errors whose wording is Go's own business: that there is one is what counts.
fn comparable(result: &str) -> String {
    if result.starts_with('!') { "!".to_owned() } else { result.to_owned() }
}

#[test]
fn templates_print_what_go_prints() {
    let data = data();
    let mut wrong = Vec::new();
    let mut same_words = 0;
    let mut errors = 0;
    for line in CASES.lines() {
        let (template, expected) = line.split_once('\t').expect("two columns");
        let template: String = serde_json::from_str(template).expect("a string");
        let expected: String = serde_json::from_str(expected).expect("a string");
        let found = run(&template, &data, Dialect::Object);
        if expected.starts_with('!') {
            errors += 1;
            same_words += u32::from(found == expected);
        }
        if comparable(&found) != comparable(&expected) {
            wrong.push(format!("{template:?}\n  Go: {expected}\n  us: {found}"));
        } else if found != expected && std::env::var_os("SHOW_WORDS").is_some() {
            eprintln!("{template:?}\n  Go: {expected}\n  us: {found}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(same_words * 10 >= errors * 8, "{same_words} of {errors} errors are in Go's words");
}

fn row() -> Value {
    let labels = std::collections::BTreeMap::from([("x".to_owned(), "y".to_owned())]);
    Record::row("formatter.ContainerContext")
        .with("Names", "one")
        .with("Labels", "x=y")
        .hidden("Label", value::Lookup::Entries(labels))
        .into()
}

/// What `docker ps --format` of version 28 prints and says.
#[test]
fn rows_have_methods_and_say_what_they_lack() {
    for (template, expected) in [
        ("{{.Names}}", "=one"),
        ("{{.Label \"x\"}}|{{.Label \"nope\"}}|{{\"x\" | .Label}}", "=y||y"),
        ("{{.Label}}", "!template: :1:2: executing \"\" at <.Label>: wrong number of args for Label: want 1 got 0"),
        (
            "{{.Nope}}",
            "!template: :1:2: executing \"\" at <.Nope>: can't evaluate field Nope in type *formatter.ContainerContext",
        ),
        ("{{json .}}", "={\"Labels\":\"x=y\",\"Names\":\"one\"}"),
    ] {
        assert_eq!(run(template, &row(), Dialect::Row), expected, "{template}");
    }
}

#[test]
fn heads_are_not_changed() {
    let head = Record::row("head").with("Names", "NAMES").hidden("Label", value::Lookup::Head).into();
    for (template, expected) in [
        ("{{upper .Names}} {{truncate .Names 1}} {{json .Names}} {{title .Names}}", "=NAMES NAMES NAMES NAMES"),
        ("{{.Label \"com.example.some-key\"}}", "=some key"),
        ("{{pad .Names 1 1}}|{{.Nope}}", "= NAMES |<no value>"),
    ] {
        assert_eq!(run(template, &head, Dialect::Head), expected, "{template}");
    }
}

/// An object of `inspect`: structs have an order, nil pointers and slices are printed as Go prints them.
#[test]
fn structs_are_gos() {
    let state = Record::new("container.State")
        .with("Status", "exited")
        .with("Running", false)
        .with("ExitCode", 3)
        .with_some("Health", None::<String>);
    let object = Record::new("container.InspectResponse")
        .with("State", state)
        .with("CapAdd", Value::nil_list())
        .with("Labels", Value::strings([(&"a".to_owned(), &"b".to_owned())]))
        .with("None", Value::nil_map())
        .into();
    for (template, expected) in [
        ("{{.State}}", "={exited false 3 <nil>}"),
        ("{{json .State}}", "={\"Status\":\"exited\",\"Running\":false,\"ExitCode\":3}"),
        ("{{if .State.Health}}y{{else}}n{{end}}", "=n"),
        ("{{.CapAdd}} {{json .CapAdd}} {{len .CapAdd}}{{range .CapAdd}}x{{end}}", "=[] null 0"),
        ("{{.None}} {{json .None}} {{index .None \"x\"}}|", "=map[] null |"),
        ("{{index .Labels \"nope\"}}|{{.Labels.nope}}|{{.Labels.a}}", "=|<no value>|b"),
        ("{{.State.Nope}}", "!template: :1:8: executing \"\" at <.State.Nope>: map has no entry for key \"Nope\""),
    ] {
        assert_eq!(run(template, &object, Dialect::Object), expected, "{template}");
    }
}

#[test]
fn what_would_not_end_is_refused() {
    let data = data();
    for template in [
        "{{range 1000000000}}x{{end}}".to_owned(),
        "{{range 100000}}{{printf \"%9999d\" 1}}{{end}}".to_owned(),
        "{{range 100000}}{{range 100000}}{{end}}{{end}}".to_owned(),
        "{{define \"x\"}}{{template \"x\"}}{{end}}{{template \"x\"}}".to_owned(),
        format!("{{{{{}1{}}}}}", "(".repeat(100_000), ")".repeat(100_000)),
        "{{if true}}".repeat(10_000),
        "{{if true}}".to_owned() + &"{{else if true}}".repeat(10_000),
        "x".repeat(1 << 20),
    ] {
        let found = run(&template, &data, Dialect::Object);
        assert!(found.starts_with('!') || found.len() < 32 << 20, "{}", &template[..template.len().min(60)]);
    }
}

/// Templates that are put together at random from pieces: whatever comes out, nothing panics.
#[test]
fn no_template_panics() {
    const PIECES: [&str; 56] = [
        "{{",
        "}}",
        "{{-",
        "-}}",
        "{{- ",
        " -}}",
        " ",
        "\n",
        "\t",
        ".",
        ".Name",
        ".State",
        ".Args",
        ".Labels",
        "$",
        "$x",
        ":=",
        "=",
        "|",
        "(",
        ")",
        "\"",
        "`",
        "'",
        "\\",
        "/*",
        "*/",
        "if ",
        "else ",
        "end",
        "range ",
        "with ",
        "define ",
        "template ",
        "block ",
        "break",
        "continue",
        "index ",
        "slice ",
        "len ",
        "printf ",
        "\"%*.*d%q\" ",
        "eq ",
        "and ",
        "json ",
        "truncate ",
        "pad ",
        "split ",
        "1",
        "-1",
        "0x",
        "1e9",
        "'a'",
        "nil",
        "é",
        ",",
    ];
    let data = data();
    let mut seed = 1_u64;
    let mut random = || {
        // xorshift64
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20_000 {
        let length = 1 + random() % 14;
        let mut template = if random() % 2 == 0 { "{{".to_owned() } else { String::new() };
        for _ in 0..length {
            template.push_str(PIECES[(random() % PIECES.len() as u64) as usize]);
        }
        if random() % 2 == 0 {
            template.push_str("}}");
        }
        for dialect in [Dialect::Object, Dialect::Row, Dialect::Head] {
            let _ = run(&template, &data, dialect);
        }
    }
}
