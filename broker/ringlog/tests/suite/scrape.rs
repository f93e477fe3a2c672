//! What the HTTP port says, asked with a socket and judged with the rules of Prometheus' text format.
//!
//! [`Scrape::parse`] refuses what a metrics system would: a sample without its type, a metric in two places, a
//! counter without `_total`, a label that is not closed, classes of a histogram that fall or lack the last.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Status and body.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let (status, _, body) = ask(address, request.as_bytes());
    (status, body)
}

/// Status, head and body of the answer to `request`.
pub fn ask(address: &str, request: &[u8]) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    stream.write_all(request).expect("it reads");
    let mut answer = Vec::new();
    // A connection that is reset after its answer has said all the same.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).expect("it is text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.unwrap_or_else(|| panic!("no status in {head:?}")), head.to_owned(), body.to_owned())
}

/// Samples by name and labels.
#[derive(Debug)]
pub struct Scrape(BTreeMap<(String, BTreeMap<String, String>), f64>);

impl Scrape {
    /// `/metrics` of this address, which must be right.
    pub fn of(address: &str) -> Self {
        let (status, text) = get(address, "/metrics");
        assert_eq!(status, 200, "{text}");
        Self::parse(&text).unwrap_or_else(|error| panic!("{error} in:\n{text}"))
    }

    /// The sum of all samples of `name` that have these labels; they must be there.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<f64> = self.samples(name, labels).collect();
        assert!(!found.is_empty(), "no {name} {labels:?} in {:?}", self.0.keys());
        found.into_iter().sum()
    }

    /// Whether there is a sample of `name` that has these labels.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.samples(name, labels).next().is_some()
    }

    fn samples(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let fits = move |own: &BTreeMap<String, String>| {
            labels.iter().all(|(label, value)| own.get(*label).is_some_and(|own| own == value))
        };
        self.0.iter().filter(move |((own, labels), _)| own == name && fits(labels)).map(|it| *it.1)
    }

    /// The names of all samples.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.keys().map(|(name, _)| name.as_str()).collect()
    }

    /// Reads a text, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut samples = BTreeMap::new();
        let mut types: BTreeMap<String, String> = BTreeMap::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| format!("no type: {line}"))?;
                let total = name.ends_with("_total");
                if (kind == "counter") != total || !["counter", "gauge", "histogram"].contains(&kind) {
                    return Err(format!("a wrong type: {line}"));
                }
                if types.insert(name.to_owned(), kind.to_owned()).is_some() {
                    return Err(format!("in two places: {line}"));
                }
                current = name.to_owned();
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let (name, labels, value) = sample(line).ok_or_else(|| format!("no sample: {line}"))?;
            let kind = types.get(&current).map_or("", String::as_str);
            let own = match kind {
                "histogram" => {
                    ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{current}{end}"))
                }
                _ => name == current,
            };
            if !own {
                return Err(format!("not below its type: {line}"));
            }
            if samples.insert((name, labels), value).is_some() {
                return Err(format!("twice: {line}"));
            }
        }
        for (name, kind) in types {
            if kind == "histogram" {
                classes(&name, &samples)?;
            }
        }
        if !text.ends_with('\n') {
            return Err("the last line has no end".to_owned());
        }
        Ok(Self(samples))
    }
}

type Labels = BTreeMap<String, String>;

/// `name{label="text",…} value`
fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let good = |at: usize, letter: char| {
        letter.is_ascii_alphabetic() || letter == '_' || (at > 0 && letter.is_ascii_digit())
    };
    if name.is_empty() || !name.char_indices().all(|(at, letter)| good(at, letter)) {
        return None;
    }
    let mut labels = Labels::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            let (label, after) = inside.split_once("=\"")?;
            let mut text = String::new();
            let mut letters = after.char_indices();
            let close = loop {
                match letters.next()? {
                    (_, '\\') => text.push(match letters.next()?.1 {
                        'n' => '\n',
                        letter @ ('\\' | '"') => letter,
                        _ => return None,
                    }),
                    (at, '"') => break at,
                    (_, letter) => text.push(letter),
                }
            };
            labels.insert(label.to_owned(), text).is_none().then_some(())?;
            inside = &after[close + 1..];
            match inside.strip_prefix(',') {
                Some(more) => inside = more,
                None => break,
            }
        }
        rest = inside.strip_prefix('}')?;
    }
    Some((name.to_owned(), labels, rest.strip_prefix(' ')?.parse().ok()?))
}

/// Classes rise, and the last has all.
fn classes(name: &str, samples: &BTreeMap<(String, Labels), f64>) -> Result<(), String> {
    let mut rows: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for ((own, labels), count) in samples {
        if *own == format!("{name}_bucket") {
            let mut labels = labels.clone();
            let bound = labels.remove("le").and_then(|le| le.replace("+Inf", "inf").parse().ok());
            rows.entry(labels).or_default().push((bound.ok_or("a class without a bound")?, *count));
        }
    }
    for (labels, mut classes) in rows {
        classes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = samples.get(&(format!("{name}_count"), labels.clone())).ok_or("no count")?;
        samples.get(&(format!("{name}_sum"), labels.clone())).ok_or("no sum")?;
        let last = classes.last().ok_or("no classes")?;
        if !classes.is_sorted_by(|a, b| a.1 <= b.1) || last.0.is_finite() || last.1 != *count {
            return Err(format!("wrong classes of {name} {labels:?}: {classes:?}, count {count}"));
        }
    }
    Ok(())
}

/// The judge must notice what it is for.
#[test]
fn the_parser_refuses_what_is_wrong() {
    let rows = [
        ("# TYPE a gauge\na 1\n", ""),
        ("# HELP a b\n# TYPE a_total counter\na_total{x=\"\\\"}\\n\",y=\"2\"} 1.5\n", ""),
        ("a 1\n", "not below its type"),
        ("# TYPE a gauge\nb 1\n", "not below its type"),
        ("# TYPE a counter\na 1\n", "a wrong type"),
        ("# TYPE a_total gauge\na_total 1\n", "a wrong type"),
        ("# TYPE a gauge\na 1\n# TYPE b gauge\n# TYPE a gauge\n", "in two places"),
        ("# TYPE a gauge\na 1\na 2\n", "twice"),
        ("# TYPE a gauge\na{x=\"1} 1\n", "no sample"),
        ("# TYPE a gauge\na{x=\"1\"}\n", "no sample"),
        ("# TYPE a gauge\na 1", "has no end"),
        ("# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 2\n", "wrong classes"),
        ("# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n", "wrong classes"),
        (
            "# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n",
            "wrong classes",
        ),
        ("# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n", ""),
    ];
    for (text, expect) in rows {
        match Scrape::parse(text) {
            Ok(_) => assert_eq!(expect, "", "{text}"),
            Err(error) => assert!(!expect.is_empty() && error.contains(expect), "{text}: {error}"),
        }
    }
}
