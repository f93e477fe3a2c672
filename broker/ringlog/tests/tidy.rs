//! The repository's own rules, as a test: edges between crates, module headers, paths named in the
//! documents, tests named by the feature table, the broker's settings, the codes of errors, unfinished code, long files, skipped tests
//! that nobody hears of, and what the deciding crate must not touch.
//!
//! Each rule is a function from text to complaints, used twice: over the repository, where it must say
//! nothing, and over a table of good and bad input in memory, where it must tell them apart.
//! Absent on purpose: what rustc, clippy and rustfmt check better.

use schema::error_code::{Class, ErrorCode};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Which of our crates may name which, and no others. `ringlog`, the binary, may name all. An edge more is
/// a decision: it needs a record in `docs/adr` first. Tests and examples may use anything.
const ALLOWED_EDGES: [(&str, &[&str]); 8] = [
    ("schema", &[]),
    ("logic", &["schema"]),
    ("ringlog-client", &["schema"]),
    ("server", &["logic", "schema"]),
    ("sim", &["logic", "schema"]),
    ("perf", &["schema", "logic"]),
    ("tuning", &[]),
    ("bench", &["ringlog-client", "schema", "server"]),
];
const BINARY: &str = "ringlog";

const LINES_MAX: usize = 1500;

/// Macros that say that something is not finished.
const UNFINISHED: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Modules of the standard library that reach outside the process.
const OUTSIDE: [&str; 6] = ["fs", "net", "thread", "process", "env", "os"];

// ---- The rules ---------------------------------------------------------------------------------------

/// Edges between our crates that are not allowed. `manifests`: path → text, the root's under `Cargo.toml`.
fn forbidden_edges(manifests: &BTreeMap<String, String>) -> Vec<String> {
    let parse = |text: &String| text.parse::<toml::Table>().expect("cargo has read the same file");
    let root = manifests.get("Cargo.toml").map(parse).unwrap_or_default();
    let shared = root.get("workspace").and_then(|workspace| workspace.get("dependencies"));
    let members: Vec<toml::Table> =
        manifests.iter().filter(|(path, _)| *path != "Cargo.toml").map(|(_, text)| parse(text)).collect();
    let name = |member: &toml::Table| member["package"]["name"].as_str().unwrap_or_default().to_owned();
    let ours: Vec<String> = members.iter().map(name).collect();
    let mut complaints = Vec::new();
    for member in &members {
        let from = name(member);
        if from == BINARY {
            continue;
        }
        let Some((_, allowed)) = ALLOWED_EDGES.iter().find(|(crate_name, _)| *crate_name == from) else {
            complaints.push(format!("{from} is a new crate: record its edges in docs/adr and in this test"));
            continue;
        };
        for (key, spec) in dependencies(member) {
            // A renamed dependency, here or in the root, is its `package`.
            let own = spec.get("package");
            let inherited =
                || shared.and_then(|shared| shared.get(&key)).and_then(|spec| spec.get("package"));
            let to = own.or_else(inherited).and_then(toml::Value::as_str).unwrap_or(&key).to_owned();
            if ours.contains(&to) && !allowed.contains(&to.as_str()) {
                complaints.push(format!("{from} must not depend on {to}"));
            }
        }
    }
    complaints
}

/// Everything that the crate's product is built with: plain, build-time and per target.
fn dependencies(manifest: &toml::Table) -> Vec<(String, toml::Value)> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let tables = targets.into_iter().flat_map(|targets| targets.values()).filter_map(toml::Value::as_table);
    let tables = std::iter::once(manifest).chain(tables);
    tables
        .flat_map(|table| ["dependencies", "build-dependencies"].map(|kind| table.get(kind)))
        .flatten()
        .filter_map(toml::Value::as_table)
        .flat_map(|table| table.iter().map(|(key, spec)| (key.clone(), spec.clone())))
        .collect()
}

/// A source file must start by saying what it is.
fn missing_header(text: &str) -> Vec<String> {
    let first = text.lines().next().unwrap_or_default();
    match first.strip_prefix("//!") {
        Some(words) if words.trim().len() >= 8 => Vec::new(),
        _ => vec!["the first line is no `//!` header that says what this file is".into()],
    }
}

/// Long files are several nouns.
fn too_long(text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines > LINES_MAX { vec![format!("{lines} lines, at most {LINES_MAX}")] } else { Vec::new() }
}

/// A test that says only to the harness that it is skipped, where CI does not hear it.
fn skipped_unheard(text: &str) -> Vec<String> {
    let said = ["println!(\"", "SKIPPED"].concat();
    text.lines()
        .filter(|line| line.contains(&said))
        .map(|line| format!("say it by skipped(): {}", line.trim()))
        .collect()
}

/// Macros of unfinished code.
fn unfinished(text: &str) -> Vec<String> {
    let words = words(&code_only(text));
    let pairs = words.windows(2).filter(|pair| pair[1] == "!" && UNFINISHED.contains(&pair[0].as_str()));
    pairs.map(|pair| format!("{}! must not be committed", pair[0])).collect()
}

/// What code that decides must not do: ask the clock, reach outside the process, wait, or be unsafe.
fn undecided(text: &str) -> Vec<String> {
    let words = words(&code_only(text));
    let word = |at: usize| words.get(at).map_or("", String::as_str);
    let mut complaints = Vec::new();
    for at in 0..words.len() {
        match (word(at), word(at + 1), word(at + 2)) {
            ("SystemTime" | "Instant", "::", "now") => complaints.push(format!("{}::now", word(at))),
            ("std", "::", "{") => {
                let grouped = group(&words[at + 3..]);
                complaints
                    .extend(grouped.filter(|name| OUTSIDE.contains(name)).map(|name| format!("std::{name}")));
            }
            ("std", "::", module) if OUTSIDE.contains(&module) => complaints.push(format!("std::{module}")),
            ("async", "fn" | "move" | "{", _) => complaints.push("async".into()),
            (".", "await", _) => complaints.push("await".into()),
            ("unsafe", ..) => complaints.push("unsafe".into()),
            _ => {}
        }
    }
    complaints.iter().map(|what| format!("logic decides and must not use {what}")).collect()
}

/// The first names in `{a, b::c, d::{e}}`, from after the opening brace.
fn group(words: &[String]) -> impl Iterator<Item = &str> {
    let (mut depth, mut first) = (0, true);
    words
        .iter()
        .map(String::as_str)
        .take_while(move |word| {
            depth += i32::from(*word == "{") - i32::from(*word == "}");
            depth >= 0
        })
        .scan(0, |depth, word| {
            *depth += i32::from(word == "{") - i32::from(word == "}");
            Some((*depth, word))
        })
        .filter_map(move |(depth, word)| {
            let name = first && depth == 0;
            first = depth == 0 && word == ",";
            name.then_some(word)
        })
}

/// Paths in inline code and relative links of the document `file` that do not exist.
/// `folders` are the top-level ones: a span that starts otherwise is no path of this repository.
fn broken_paths(file: &str, text: &str, folders: &[String], exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut fenced = false;
    let mut named = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            let spans = line.split('`').skip(1).step_by(2);
            named.extend(spans.filter(|span| is_path(span, folders)).flat_map(expand));
            let links =
                line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
            let relative = links.filter(|link| !link.contains("://") && !link.starts_with('#'));
            named.extend(relative.map(|link| relative_to(file, link.split('#').next().unwrap_or(link))));
        }
    }
    named.retain(|path| !exists(path));
    named.into_iter().map(|path| format!("{path} does not exist")).collect()
}

/// Tests that the last column of a table names and that are no function anywhere. A name is in backticks, of small
/// letters, and has an underscore.
fn missing_tests(table: &str, functions: &BTreeSet<String>) -> Vec<String> {
    let is_name = |span: &str| {
        span.contains('_') && span.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    };
    let columns = table.lines().filter_map(|line| line.strip_suffix('|')?.rsplit('|').next());
    let names = columns.flat_map(|column| column.split('`').skip(1).step_by(2)).filter(|span| is_name(span));
    names.filter(|name| !functions.contains(*name)).map(|name| format!("there is no test {name}")).collect()
}

/// Where the table of a broker's settings and the code differ: a key that a file may have (a field of `struct File` in `settings`)
/// without a row in `document`, a row whose key the code does not know, and one whose option has another name.
fn differing_settings(settings: &str, document: &str) -> Vec<String> {
    let fields = settings.split_once("struct File {").and_then(|(_, rest)| rest.split_once("\n}"));
    let fields =
        fields.map_or("", |(fields, _)| fields).lines().filter_map(|line| line.trim().split_once(':'));
    let known: BTreeSet<String> = fields.map(|(name, _)| name.replace('_', "-")).collect();
    let rows = document.lines().skip_while(|line| !line.starts_with("| Option | Key in the file |")).skip(2);
    let mut complaints = Vec::new();
    let mut written = BTreeSet::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let row = row.replace("\\|", " ");
        let mut spans = row.split('`').skip(1).step_by(2);
        let option = spans.next().and_then(|span| span.split([' ', '[']).next()).unwrap_or_default();
        let cell = row.split('|').nth(2).unwrap_or_default();
        let key = cell.trim().trim_matches('`').to_owned();
        if option.strip_prefix("--") != Some(&key) {
            complaints.push(format!("{option} is no option for {key}"));
        }
        written.insert(key);
    }
    complaints.extend(known.difference(&written).map(|key| format!("{key} has no row")));
    complaints.extend(written.difference(&known).map(|key| format!("{key} is no setting")));
    complaints
}

/// Where the table of errors in `document` and the `codes`, name, number and class each, differ: every code has one row, in
/// the order of the numbers.
fn differing_codes(codes: &[(&str, u16, &str)], document: &str) -> Vec<String> {
    let rows = document.lines().skip_while(|line| !line.starts_with("| Code | | Class |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|')).map(|row| {
        let mut cells = row.split('|').skip(1).map(|cell| cell.trim().trim_matches('`'));
        [(); 3].map(|()| cells.next().unwrap_or_default())
    });
    let written: Vec<_> = rows.collect();
    let known: Vec<_> =
        codes.iter().map(|(name, number, class)| (*name, number.to_string(), *class)).collect();
    let known: Vec<[&str; 3]> =
        known.iter().map(|(name, number, class)| [*name, number.as_str(), *class]).collect();
    let missing = known.iter().filter(|code| !written.contains(code));
    let mut complaints: Vec<_> = missing.map(|code| format!("{} has no row", code.join(" "))).collect();
    let foreign = written.iter().filter(|row| !known.contains(row));
    complaints.extend(foreign.map(|row| format!("{} is no code", row.join(" "))));
    if complaints.is_empty() && known != written {
        complaints.push("the rows are not in the order of the numbers, once each".to_owned());
    }
    complaints
}

/// The names of all functions of a source.
fn functions(text: &str) -> Vec<String> {
    let words = words(&code_only(text));
    words.windows(2).filter(|pair| pair[0] == "fn").map(|pair| pair[1].clone()).collect()
}

fn is_path(span: &str, folders: &[String]) -> bool {
    let looks = span.contains('/') || [".rs", ".fbs", ".md", ".toml"].iter().any(|end| span.ends_with(end));
    let first = span.split('/').next().unwrap_or_default();
    looks && !span.contains(char::is_whitespace) && folders.iter().any(|folder| folder == first)
}

/// `a/{b,c}.rs` names two files; `a/*.rs` names the folder before the star.
fn expand(span: &str) -> Vec<String> {
    let plain = match span.find('*') {
        Some(star) => &span[..span[..star].rfind('/').map_or(0, |slash| slash + 1)],
        None => span,
    };
    match (plain.find('{'), plain.find('}')) {
        (Some(open), Some(close)) if open < close => plain[open + 1..close]
            .split(',')
            .flat_map(|name| expand(&format!("{}{}{}", &plain[..open], name.trim(), &plain[close + 1..])))
            .collect(),
        _ => vec![plain.to_owned()],
    }
}

fn relative_to(file: &str, link: &str) -> String {
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

// ---- Just enough of Rust's lexical structure ---------------------------------------------------------

/// `text` with comments and the insides of string and character literals blanked out.
fn code_only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let identifier_before = out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let (skipped, keep) = match c {
            '/' if rest.starts_with("//") => (rest.find('\n').unwrap_or(rest.len()), ""),
            '/' if rest.starts_with("/*") => (block_comment(rest), " "),
            '"' => (1 + string(&rest[1..]), "\"\""),
            'r' if !identifier_before && raw_string(rest).is_some() => {
                (raw_string(rest).unwrap_or(1), "\"\"")
            }
            '\'' => match character(rest) {
                Some(length) => (length, "''"),
                None => (1, "'"),
            },
            _ => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        out.push_str(keep);
        rest = &rest[skipped..];
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let (change, length) = match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (1, 2),
            [b'*', b'/', ..] => (-1, 2),
            _ => (0, 1),
        };
        depth += change;
        at += length;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Bytes up to and with the closing quote, from after the opening one.
fn string(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().position(|byte| {
        let end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        end
    });
    end.map_or(text.len(), |end| end + 1)
}

/// The length of a raw string that starts here, if one does.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    let inside = text[1 + hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(inside.find(&close).map_or(text.len(), |end| 2 + hashes + end + close.len()))
}

/// The length of a character literal that starts here; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    match chars.next()? {
        // The character after the backslash may itself be a quote.
        (_, '\\') => text[3..].find('\'').map(|end| 3 + end + 1),
        _ => match chars.next()? {
            (at, '\'') => Some(at + 1),
            _ => None,
        },
    }
}

/// Identifiers, `::`, and every other character that is not blank.
fn words(code: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut joined = false;
    for c in code.chars() {
        let part = c.is_alphanumeric() || c == '_';
        match words.last_mut() {
            Some(last) if joined && part && last.ends_with(|c: char| c.is_alphanumeric() || c == '_') => {
                last.push(c)
            }
            Some(last) if joined && c == ':' && last == ":" => last.push(c),
            _ if !c.is_whitespace() => words.push(c.to_string()),
            _ => {}
        }
        joined = !c.is_whitespace();
    }
    words
}

// ---- The repository ----------------------------------------------------------------------------------

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace is two folders up")
}

/// Every file below the root whose name ends with `end`, as `(path from the root, text)`.
fn files(end: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, end: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("the repository can be read").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => walk(&entry.path(), end, found),
                _ if name.ends_with(end) => found.push(entry.path()),
                _ => {}
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, end, &mut found);
    found.sort();
    let path =
        |file: &PathBuf| file.strip_prefix(&root).expect("found below it").to_string_lossy().into_owned();
    found.iter().map(|file| (path(file), std::fs::read_to_string(file).expect("sources are UTF-8"))).collect()
}

/// Hand-written sources.
fn sources() -> Vec<(String, String)> {
    let mut sources = files(".rs");
    assert!(sources.len() > 20, "the walk has lost its way");
    sources.retain(|(path, _)| !path.contains("/generated/"));
    sources
}

fn demand_silence(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n  {}\n", complaints.join("\n  "));
}

fn over_sources(rule: fn(&str) -> Vec<String>, concerns: fn(&str) -> bool) {
    let sources = sources().into_iter().filter(|(path, _)| concerns(path));
    let complaints =
        sources.flat_map(|(path, text)| rule(&text).into_iter().map(move |it| format!("{path}: {it}")));
    demand_silence(complaints.collect());
}

#[test]
fn crates_depend_only_on_what_they_may() {
    let manifests: BTreeMap<_, _> = files("Cargo.toml").into_iter().collect();
    let root: toml::Table = manifests["Cargo.toml"].parse().unwrap();
    let members = root["workspace"]["members"].as_array().unwrap();
    let is_member = |path: &String| {
        path == "Cargo.toml"
            || members.iter().any(|member| {
                Some(path.as_str()) == member.as_str().map(|m| m.to_owned() + "/Cargo.toml").as_deref()
            })
    };
    let manifests: BTreeMap<_, _> = manifests.into_iter().filter(|(path, _)| is_member(path)).collect();
    assert_eq!(manifests.len(), members.len() + 1, "a member's manifest was not found");
    demand_silence(forbidden_edges(&manifests));
}

#[test]
fn sources_say_what_they_are() {
    over_sources(missing_header, |_| true);
}

#[test]
fn sources_are_not_too_long() {
    over_sources(too_long, |_| true);
}

#[test]
fn sources_are_finished() {
    over_sources(unfinished, |_| true);
}

#[test]
fn what_is_skipped_is_heard() {
    over_sources(skipped_unheard, |_| true);
}

#[test]
fn logic_only_decides() {
    over_sources(undecided, |path| path.starts_with("broker/logic/src/"));
}

#[test]
fn documents_name_only_what_exists() {
    let root = root();
    let is_document = |path: &str| path == "README.md" || path.starts_with("docs/");
    let documents: Vec<_> = files(".md").into_iter().filter(|(path, _)| is_document(path)).collect();
    assert!(documents.iter().any(|(path, _)| path == "README.md"), "no documents found");
    let entries = std::fs::read_dir(&root).unwrap().flatten();
    // What a build makes is no part of the repository.
    let folders = entries.filter(|entry| entry.path().is_dir() && entry.file_name() != "target");
    let folders: Vec<_> = folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let exists = |path: &str| root.join(path).exists();
    let complaints = documents.iter().flat_map(|(path, text)| {
        broken_paths(path, text, &folders, &exists).into_iter().map(move |it| format!("{path}: {it}"))
    });
    demand_silence(complaints.collect());
}

#[test]
fn the_feature_table_names_tests_that_exist() {
    let table = std::fs::read_to_string(root().join("docs/FEATURES.md")).expect("it is there");
    let functions = sources().iter().flat_map(|(_, text)| functions(text)).collect();
    demand_silence(missing_tests(&table, &functions));
}

#[test]
fn the_table_of_settings_is_complete() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("it is there");
    let (settings, table) = (read("broker/ringlog/src/serve/settings.rs"), read("docs/OPERATIONS.md"));
    demand_silence(differing_settings(&settings, &table));
}

#[test]
fn the_table_of_errors_is_complete() {
    let class = |code: &ErrorCode| match code.class() {
        Class::Retry => "retry",
        Class::RefreshAndRetry => "refresh",
        Class::Unknown => "unknown",
        Class::Fatal => "fatal",
    };
    let codes: Vec<_> =
        ErrorCode::ALL.iter().map(|code| (code.name(), code.to_wire(), class(code))).collect();
    let table = std::fs::read_to_string(root().join("docs/OPERATIONS.md")).expect("it is there");
    demand_silence(differing_codes(&codes, &table));
}

// ---- The rules themselves ----------------------------------------------------------------------------

/// `rule` must complain about `text` with exactly these words in it; none of them: it must say nothing.
#[track_caller]
fn check(rule: fn(&str) -> Vec<String>, text: &str, expect: &[&str]) {
    let complaints = rule(text);
    assert_eq!(complaints.len(), expect.len(), "{text}: {complaints:?}");
    for (complaint, part) in complaints.iter().zip(expect) {
        assert!(complaint.contains(part), "{text}: {complaint}");
    }
}

#[test]
fn a_forbidden_edge_is_noticed() {
    let check = |from: &str, sections: &str, expect: &[&str]| {
        let shared =
            "[workspace.dependencies]\nschema = {path='schema'}\nalias = {path='s', package='server'}\n";
        let mut manifests = BTreeMap::from([("Cargo.toml".to_owned(), shared.to_owned())]);
        for name in ["schema", "logic", "server", "tuning", "ringlog-client", "ringlog"] {
            manifests.insert(format!("{name}/Cargo.toml"), format!("[package]\nname = '{name}'"));
        }
        manifests.insert(format!("{from}/Cargo.toml"), format!("[package]\nname = '{from}'\n{sections}"));
        assert_eq!(forbidden_edges(&manifests), expect, "{from}: {sections}");
    };
    check("logic", "[dependencies]\nschema = {workspace=true}\nbytes = '1'", &[]);
    check("logic", "[dependencies]\nserver = {path='../server'}", &["logic must not depend on server"]);
    check("logic", "[dependencies]\nalias = {workspace=true}", &["logic must not depend on server"]);
    check("logic", "[dependencies]\nx = {path='y', package='tuning'}", &["logic must not depend on tuning"]);
    check("tuning", "[dependencies]\nschema = {workspace=true}", &["tuning must not depend on schema"]);
    check("tuning", "[dependencies.logic]\npath = 'l'", &["tuning must not depend on logic"]);
    check("schema", "[build-dependencies]\nlogic = {path='l'}", &["schema must not depend on logic"]);
    check(
        "schema",
        "[target.'cfg(unix)'.dependencies]\nlogic = {path='l'}",
        &["schema must not depend on logic"],
    );
    check("schema", "[dev-dependencies]\nserver = {path='s'}", &[]);
    check("ringlog", "[dependencies]\nserver = {path='s'}\ntuning = {path='t'}", &[]);
    let unknown = "common is a new crate: record its edges in docs/adr and in this test";
    check("common", "", &[unknown]);
}

#[test]
fn a_missing_header_is_noticed() {
    check(missing_header, "//! What this is.\n\nuse std::fs;\n", &[]);
    check(missing_header, "use std::fs;\n//! Too late.\n", &["first line"]);
    check(missing_header, "//!\n//! No words in the first line.\n", &["first line"]);
    check(missing_header, "// A plain comment.\n", &["first line"]);
    check(missing_header, "", &["first line"]);
}

#[test]
fn a_long_file_is_noticed() {
    check(too_long, &"x\n".repeat(LINES_MAX), &[]);
    check(too_long, &"x\n".repeat(LINES_MAX + 1), &["1501 lines"]);
}

#[test]
fn unfinished_code_is_noticed() {
    check(unfinished, "fn a() { todo!() }", &["todo!"]);
    check(unfinished, "fn a() { unimplemented !(\"later\"); dbg![1]; }", &["unimplemented!", "dbg!"]);
    check(unfinished, "/// Calls `todo!()`.\nfn a() { b(\"todo!()\", r#\"dbg!(\"#); } /* dbg!() */", &[]);
    check(unfinished, "let quote = '\"'; todo!(); let other = '\\''; dbg!(1);", &["todo!", "dbg!"]);
    check(unfinished, "fn a<'a>(x: &'a str) { not_todo!(); todo = !done; }", &[]);
}

#[test]
fn a_skip_that_nobody_hears_is_noticed() {
    check(skipped_unheard, "skipped(\"a host: no right\");\n// SKIPPED\n", &[]);
    let said = ["println!(\"", "SKIPPED a host\");"].concat();
    check(skipped_unheard, &format!("x();\n    {said}\n    e{said}"), &["say it by skipped()"; 2]);
}

#[test]
fn logic_that_does_more_than_decide_is_noticed() {
    check(
        undecided,
        "//! No std::fs, no unsafe.\n#![forbid(unsafe_code)]\nuse std::collections::BTreeMap;",
        &[],
    );
    check(undecided, "use std::time::Instant; fn f(now: Instant) { g(\"std::net\") }", &[]);
    check(undecided, "let now = std::time::Instant::now();", &["Instant::now"]);
    check(undecided, "let now = SystemTime :: now();", &["SystemTime::now"]);
    check(undecided, "use std::fs; use std::net::TcpStream;", &["std::fs", "std::net"]);
    check(
        undecided,
        "use std::{collections::{BTreeMap, HashMap}, fs, thread::{self, JoinHandle}};",
        &["fs", "thread"],
    );
    check(undecided, "use std::{fmt, mem};", &[]);
    check(undecided, "async fn f() { g().await }", &["async", "await"]);
    check(undecided, "fn f() { let r#async = 1; h(async move { 1 }) }", &["async"]);
    check(undecided, "let x = unsafe { *p };", &["unsafe"]);
}

#[test]
fn a_test_that_does_not_exist_is_noticed() {
    let source = "fn one_test() {}\n// fn in_a_comment() {}\n#[test]\nasync fn other_test() {}";
    let functions: BTreeSet<String> = functions(source).into_iter().collect();
    let rows: [(&str, &[&str]); 5] = [
        ("| a | done | `broker/x.rs`: `one_test`, `other_test` |", &[]),
        ("| a | done | `gone_test`, `one_test` |", &["gone_test"]),
        ("| a | done | `in_a_comment` |", &["in_a_comment"]),
        ("| `a_setting` | done: `a_flag` | words, `Receipt`, `--explain`, `x.y_z` |", &[]),
        ("no table: `gone_test`", &[]),
    ];
    for (table, expect) in rows {
        let expect: Vec<String> = expect.iter().map(|name| format!("there is no test {name}")).collect();
        assert_eq!(missing_tests(table, &functions), expect, "{table}");
    }
}

#[test]
fn a_setting_without_a_row_is_noticed() {
    let settings = "struct File {\n    data: Option<PathBuf>,\n    poll_us: Option<u64>,\n}\nstruct Other {\n    x: u8,\n}\n";
    let table = |rows: &str| {
        format!(
            "| a | b |\n\n| Option | Key in the file | Means |\n|---|---|---|\n{rows}\n\n| `--c` | `c` |\n"
        )
    };
    let good = "| `--data DIR`, `DATA` | `data` | x |\n| `--poll-us a\\|b` | `poll-us` | y |";
    let rows: [(&str, &[&str]); 4] = [
        (good, &[]),
        ("| `--data` | `data` | x |", &["poll-us has no row"]),
        ("| `--data` | `data` | x |\n| `--poll` | `poll-us` | y |", &["--poll is no option for poll-us"]),
        (&format!("{good}\n| `--listen [A]` | `listen` | z |"), &["listen is no setting"]),
    ];
    for (rows, expect) in rows {
        assert_eq!(differing_settings(settings, &table(rows)), expect, "{rows}");
    }
}

#[test]
fn a_code_without_a_row_is_noticed() {
    let codes = [("A_CODE", 1, "fatal"), ("OTHER", 3, "retry")];
    let (first, second) = ("| `A_CODE` | 1 | fatal | x |", "| `OTHER` | 3 | retry | y |");
    let rows: [(&[&str], &[&str]); 6] = [
        (&[first, second], &[]),
        (&[first], &["OTHER 3 retry has no row"]),
        (&[first, second, "| `GONE` | 4 | retry | z |"], &["GONE 4 retry is no code"]),
        (&[first, "| `OTHER` | 3 | fatal | y |"], &["OTHER 3 retry has no row", "OTHER 3 fatal is no code"]),
        (&[second, first], &["the rows are not in the order of the numbers, once each"]),
        (&[first, first, second], &["the rows are not in the order of the numbers, once each"]),
    ];
    for (rows, expect) in rows {
        let table = format!(
            "| a |\n|---|\n| b |\n\n| Code | | Class | What to do |\n|---|---|---|---|\n{}\n\n| `C` | 9 | fatal |\n",
            rows.join("\n")
        );
        assert_eq!(differing_codes(&codes, &table), expect, "{rows:?}");
    }
}

#[test]
fn a_path_that_does_not_exist_is_noticed() {
    let folders = ["broker", "docs"].map(str::to_owned);
    let there = ["broker/a.rs", "broker/", "broker/b/c.rs", "docs/adr/1.md", "docs/T.md"];
    let check = |text: &str, expect: &[&str]| {
        let exists = |path: &str| {
            there.iter().any(|it| *it == path || it.starts_with(&format!("{}/", path.trim_end_matches('/'))))
        };
        let found = broken_paths("docs/X.md", text, &folders, &exists);
        let expected: Vec<_> = expect.iter().map(|path| format!("{path} does not exist")).collect();
        assert_eq!(found, expected, "{text}");
    };
    check("see `broker/a.rs` and `broker/b/` or `broker/b`", &[]);
    check("`broker/gone.rs`, `docs/T.md`", &["broker/gone.rs"]);
    check("`broker/{a,b/c,d}.rs`", &["broker/d.rs"]);
    check("`broker/*.rs` `broker/none/*.rs`", &["broker/none/"]);
    check("`server/x.rs`, `acks/all`, `cargo run broker/gone.rs`, `a.rs`", &[]);
    check("```\n`broker/gone.rs`\n```\n`broker/gone2.rs`", &["broker/gone2.rs"]);
    check(
        "[one](adr/1.md#title), [two](adr/2.md), [up](../broker/a.rs), [web](https://x.y/z)",
        &["docs/adr/2.md"],
    );
}
