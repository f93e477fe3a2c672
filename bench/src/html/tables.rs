//! The tables of a page: what was measured, and every setting it was measured with.
//!
//! One column per report. Invariant: a setting is in the table because it is in the report's JSON, not
//! because somebody remembered to add it here.

use super::scale::{duration, short};
use crate::report::Report;
use crate::usage::Usage;
use maud::{Markup, html};
use serde_json::Value;

/// Figures, one column per report.
pub fn figures(names: &[String], reports: &[Report]) -> Markup {
    type Cell = fn(&Report) -> String;
    let usage = |usage: Option<Usage>, of: fn(Usage) -> String| usage.map_or("-".to_owned(), of);
    let rows: [(&str, Cell); 15] = [
        ("acknowledged, records/s", |r| short(r.produced.records_s)),
        ("acknowledged, MB/s", |r| short(r.produced.mb_s)),
        ("received, records/s", |r| short(r.consumed.records_s)),
        ("received, MB/s", |r| short(r.consumed.mb_s)),
        ("acknowledge mean", |r| duration(r.acknowledge.mean_us)),
        ("acknowledge p50", |r| duration(r.acknowledge.p50_us)),
        ("acknowledge p99", |r| duration(r.acknowledge.p99_us)),
        ("acknowledge p99.9", |r| duration(r.acknowledge.p999_us)),
        ("acknowledge p99.99", |r| duration(r.acknowledge.p9999_us)),
        ("acknowledge max", |r| duration(r.acknowledge.max_us)),
        ("end to end p50", |r| duration(r.end_to_end.p50_us)),
        ("end to end p99", |r| duration(r.end_to_end.p99_us)),
        ("end to end p99.9", |r| duration(r.end_to_end.p999_us)),
        ("end to end max", |r| duration(r.end_to_end.max_us)),
        ("failed; not received", |r| format!("{}; {}", r.failed, r.not_received)),
    ];
    type Used = fn(Usage) -> String;
    let used: [(&str, Used); 3] = [
        ("processor time", |usage| format!("{:.1} s", usage.cpu_s)),
        ("resident memory, most", |usage| format!("{:.0} MB", usage.resident_max_bytes as f64 / 1e6)),
        ("context switches", |usage| short((usage.switches_voluntary + usage.switches_involuntary) as f64)),
    ];
    html! {
        div.wide { table {
            (heading("measured", names, true))
            @for (name, cell) in rows {
                tr { th { (name) } @for report in reports { td.n { (cell(report)) } } }
            }
            @for (name, of) in used {
                tr {
                    th { (name) ": broker; load" }
                    @for report in reports {
                        td.n { (usage(report.broker_usage, of)) "; " (usage(report.client_usage, of)) }
                    }
                }
            }
        } }
    }
}

/// Where the time went, in figures.
pub fn explained(report: &Report) -> Markup {
    let names: Vec<String> =
        report.explained.iter().map(|explained| format!("p{}", explained.quantile * 100.0)).collect();
    let parts = report.explained.first().map(|explained| explained.parts_us.as_slice()).unwrap_or_default();
    html! {
        div.wide { table {
            (heading("mean of the records around", &names, true))
            @for (at, (part, _)) in parts.iter().enumerate() {
                tr {
                    th { (part) }
                    @for explained in &report.explained { td.n { (duration(explained.parts_us[at].1)) } }
                }
            }
        } }
    }
}

/// Every setting and what is known of the host, one column per report.
pub fn settings(names: &[String], reports: &[Report]) -> Markup {
    let columns: Vec<Vec<(String, String)>> = reports.iter().map(all_settings).collect();
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in columns.iter().flatten() {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let cell = |column: &Vec<(String, String)>, key: &String| {
        column.iter().find(|(name, _)| name == key).map_or(String::new(), |(_, value)| value.clone())
    };
    html! {
        div.wide { table {
            (heading("setting", names, false))
            @for key in keys {
                tr { th { (key) } @for column in &columns { td { (cell(column, key)) } } }
            }
        } }
    }
}

/// Everything in a report that was not measured by the run.
fn all_settings(report: &Report) -> Vec<(String, String)> {
    let cores = |cores: &[usize]| match cores.is_empty() {
        true => "not pinned".to_owned(),
        false => cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut all = vec![
        ("driver".to_owned(), report.driver.clone()),
        ("durability".to_owned(), report.durability.name().to_owned()),
        ("durability settings".to_owned(), report.durability_settings.clone()),
        ("broker cores".to_owned(), cores(&report.broker_cores)),
        ("load cores".to_owned(), cores(&report.client_cores)),
        ("ended (unix seconds)".to_owned(), report.ended_unix_s.to_string()),
    ];
    for (prefix, value) in
        [("workload", serde_json::to_value(&report.workload)), ("host", serde_json::to_value(&report.host))]
    {
        let Ok(Value::Object(fields)) = value else { continue };
        all.extend(fields.into_iter().map(|(name, value)| (format!("{prefix}: {name}"), plain(&value))));
    }
    all
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "unknown".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            // Minutes are written as fractions that do not end.
            format!("{}", (number * 1e4).round() / 1e4)
        }
        other => other.to_string(),
    }
}

/// The broker's counters of one report.
pub fn counters(report: &Report) -> Markup {
    html! {
        div.wide { table {
            (heading("counter, as the run added to it", &["value".to_owned()], true))
            @for (name, value) in report.counters.iter().filter(|(_, value)| **value > 0) {
                tr { th { (name) } td.n { (value) } }
            }
        } }
    }
}

/// The trials of a search.
pub fn steps(report: &Report) -> Markup {
    html! {
        @if let Some(search) = &report.search {
            div.wide { table {
                tr { th.n { "intended/s" } th.n { "acknowledged/s" } th.n { "p99" } th { "verdict" } }
                @for step in &search.steps {
                    tr {
                        td.n { (short(step.records_s)) }
                        td.n { (short(step.achieved_records_s)) }
                        td.n { (duration(step.p99_us)) }
                        td { (step.verdict.name()) }
                    }
                }
            } }
        }
    }
}

fn heading(first: &str, names: &[String], numbers: bool) -> Markup {
    html! {
        tr {
            th { (first) }
            @for name in names {
                @if numbers { th.n { (name) } } @else { th { (name) } }
            }
        }
    }
}
