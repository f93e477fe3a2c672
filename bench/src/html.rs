//! A report as one page that needs nothing else: pictures, figures, every setting.
//!
//! Made from reports, which it does not change; the page is text that the caller writes to a file.
//! Invariants: no scripts and nothing from elsewhere, so that a file can be sent and kept; reports of
//! different durabilities are never side by side without a line that says so; text from reports is escaped.
//! Absent on purpose: figures that are not in the report's JSON.

mod bars;
mod plot;
mod scale;
mod tables;

use crate::report::Report;
use bars::{Bar, Stack};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use plot::{Axis, Draw, Plot, Series};
use scale::{Kind, duration, short};

const STYLE: &str = include_str!("html/style.css");
/// A percentile curve is drawn up to this: one in ten million.
const TAIL_MAX: f64 = 1e7;

/// Reports of one name: runs of the same driver with the same settings of durability.
struct Group<'a> {
    name: String,
    color: usize,
    reports: Vec<&'a Report>,
}

/// The page about `reports`; several are compared with each other.
pub fn page(title: &str, reports: &[Report]) -> String {
    let groups = groups(reports);
    let names: Vec<String> = match groups.len() == reports.len() {
        true => reports.iter().map(Report::label).collect(),
        false => {
            reports.iter().enumerate().map(|(at, report)| format!("{}. {}", at + 1, report.label())).collect()
        }
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (header(title, reports, &groups))
                @if let [report] = reports {
                    (one(report))
                } @else {
                    (several(&groups))
                }
                h2 { "Figures" }
                (tables::figures(&names, reports))
                // One report has them beside its bars.
                @for (report, name) in reports.iter().zip(&names).filter(|(report, _)| reports.len() > 1 && !report.explained.is_empty()) {
                    h2 { "Where the time went: " (name) }
                    (tables::explained(report))
                }
                h2 { "Settings and host" }
                (tables::settings(&names, reports))
                @if let [report] = reports {
                    @if report.counters.values().any(|value| *value > 0) {
                        h2 { "The broker's counters" }
                        (tables::counters(report))
                    }
                }
                footer {
                    "Latency counts from the intended moment of sending; with a rate, records that were held up "
                    "count their wait (coordinated omission corrected). MB = 10⁶ bytes of values."
                }
            }
        }
    };
    page.into_string()
}

fn groups(reports: &[Report]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for report in reports {
        let name = report.label();
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.reports.push(report),
            None => groups.push(Group { name, color: groups.len(), reports: vec![report] }),
        }
    }
    groups
}

fn header(title: &str, reports: &[Report], groups: &[Group<'_>]) -> Markup {
    let first = reports.first();
    let kinds: Vec<&str> = reports.iter().map(|report| report.durability.name()).collect();
    let differ = kinds.windows(2).any(|pair| pair[0] != pair[1]);
    html! {
        h1 { (title) }
        @if let Some(report) = first {
            p.under {
                @for (at, group) in groups.iter().enumerate() {
                    @if at > 0 { " · " }
                    (group.name)
                    @if group.reports.len() > 1 { " × " (group.reports.len()) }
                }
            }
            @let host = &report.host;
            p.under {
                (ended(report)) " · Ringlog " (known(&host.version)) ", commit " (known(&host.commit)) " · " (known(&host.cpu)) ", "
                (host.cores) " cores · Linux " (known(&host.kernel)) " · " (known(&host.filesystem)) " on "
                (known(&host.disk)) ", write cache " (known(&host.write_cache))
            }
        }
        @if differ {
            p.warn { "These runs do not promise the same: an acknowledgement means different durabilities." }
        }
    }
}

fn ended(report: &Report) -> String {
    let ended = jiff::Timestamp::from_second(i64::try_from(report.ended_unix_s).unwrap_or_default());
    ended.map(|ended| ended.to_string()).unwrap_or_default()
}

fn known(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

/// One report: its own lines.
fn one(report: &Report) -> Markup {
    html! {
        div.tiles {
            (tile("acknowledged records/s", &short(report.produced.records_s)))
            (tile("acknowledged MB/s", &short(report.produced.mb_s)))
            (tile("acknowledge p50", &duration(report.acknowledge.p50_us)))
            (tile("acknowledge p99", &duration(report.acknowledge.p99_us)))
            (tile("acknowledge p99.9", &duration(report.acknowledge.p999_us)))
            (tile("acknowledged from", report.durability.name()))
        }
        @if report.failed > 0 {
            p.warn { (report.failed) " records were not acknowledged: " (report.last_failure.as_deref().unwrap_or("")) }
        }
        @if let Some(ceiling) = &report.ceiling {
            p { "Share of the ceiling that binds it: " b { (ceiling) } }
        }
        @if let Some(search) = &report.search {
            @let target = duration(search.limits.p99_us_max);
            p {
                "Highest rate with a p99 of at most " (target) ": "
                b { (search.held_records_s.map_or("none".to_owned(), |rate| format!("{} records/s", short(rate)))) }
                " (" (search.ended.name()) "). Below is the run at "
                (short(report.workload.producer_rate)) " records/s."
            }
            div.grid2 { (searched(report)) figure { figcaption { b { "Every trial" } } (tables::steps(report)) } }
        }
        div.grid2 {
            (throughput(report))
            (latency(report))
            (percentiles("Percentiles", &[
                ("acknowledged".to_owned(), 0, Draw::Line, &report.acknowledge.curve, report.acknowledge.count),
                ("end to end".to_owned(), 1, Draw::Line, &report.end_to_end.curve, report.end_to_end.count),
            ]))
            @if !report.explained.is_empty() { (parts(report)) }
        }
    }
}

fn tile(name: &str, value: &str) -> Markup {
    html! { div { span { (name) } b { (value) } } }
}

/// Several reports: one colour per group.
fn several(groups: &[Group<'_>]) -> Markup {
    type Measure = (&'static str, &'static str, fn(&Report) -> f64, fn(f64) -> String);
    let measures: [Measure; 6] = [
        ("Acknowledged, records/s", "more is better", |report| report.produced.records_s, short),
        ("Acknowledged, MB/s", "more is better", |report| report.produced.mb_s, short),
        ("Acknowledge p50", "less is better", |report| report.acknowledge.p50_us, duration),
        ("Acknowledge p99", "less is better", |report| report.acknowledge.p99_us, duration),
        ("Acknowledge p99.9", "less is better", |report| report.acknowledge.p999_us, duration),
        ("End to end p99", "less is better", |report| report.end_to_end.p99_us, duration),
    ];
    let bars = |of: fn(&Report) -> f64| -> Vec<Bar> {
        let bar = |group: &Group<'_>| Bar {
            name: group.name.clone(),
            color: group.color,
            values: group.reports.iter().map(|report| of(report)).collect(),
        };
        groups.iter().map(bar).collect()
    };
    let curves: Vec<Curve<'_>> = of_each(groups)
        .map(|(name, color, draw, report)| {
            (name, color, draw, &report.acknowledge.curve, report.acknowledge.count)
        })
        .collect();
    html! {
        p.note { "A bar is the median of its runs; the marks are the single runs." }
        div.grid2 {
            @for (title, note, of, format) in measures { (bars::compared(title, note, &bars(of), format)) }
        }
        div.grid2 {
            (over_time("Throughput over time", RECORDS, groups, produced))
            (over_time("p99 of acknowledgements over time", LATENCY, groups, |report| {
                points(report, |second| second.p99_us)
            }))
            (percentiles("Percentiles of acknowledgements", &curves))
        }
    }
}

fn of_each<'a>(groups: &'a [Group<'a>]) -> impl Iterator<Item = (String, usize, Draw, &'a Report)> {
    groups.iter().flat_map(|group| {
        let draw = if group.reports.len() > 1 { Draw::Faint } else { Draw::Line };
        group.reports.iter().map(move |report| (group.name.clone(), group.color, draw, *report))
    })
}

const SECONDS: Axis = Axis { label: "seconds →", kind: Kind::FromZero, range: None, format: short };
const RECORDS: Axis = Axis { label: "records/s", kind: Kind::FromZero, range: None, format: short };
const LATENCY: Axis = Axis { label: "latency, log scale", kind: Kind::Log, range: None, format: duration };

fn points(report: &Report, of: fn(&crate::report::SecondPoint) -> f64) -> Vec<(f64, f64)> {
    // A point stands in the middle of its second.
    report.seconds.iter().map(|second| (second.at_s + 0.5, of(second))).collect()
}

/// Acknowledged per second; a second that was not over when sending ended says nothing about throughput.
fn produced(report: &Report) -> Vec<(f64, f64)> {
    whole_seconds(report, points(report, |second| second.produced.records_s))
}

fn whole_seconds(report: &Report, points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let whole: Vec<(f64, f64)> =
        points.iter().copied().filter(|(at, _)| at + 0.5 <= report.window_s.1 + 0.01).collect();
    if whole.is_empty() { points } else { whole }
}

fn throughput(report: &Report) -> Markup {
    let received = match report.backlog_drained_s {
        // What was received after the end of sending is the point of such a run.
        Some(_) => points(report, |second| second.consumed.records_s),
        None => whole_seconds(report, points(report, |second| second.consumed.records_s)),
    };
    let line = |name: &str, color, draw, points| Series { name: name.to_owned(), color, draw, points };
    let mut series = vec![line("acknowledged", 0, Draw::Line, produced(report))];
    if received.iter().any(|(_, records_s)| *records_s > 0.0) {
        series.push(line("received", 1, Draw::Dashed, received));
    }
    Plot {
        title: "Throughput over time",
        note: "shaded: warming up and draining, not measured".to_owned(),
        x: seconds(report),
        y: RECORDS,
        x_ticks: Vec::new(),
        series,
        shaded: outside(report),
        level: (report.workload.producer_rate > 0.0)
            .then(|| (report.workload.producer_rate, "intended rate".to_owned())),
    }
    .figure()
}

fn latency(report: &Report) -> Markup {
    let line = |name: &str, color, points| Series { name: name.to_owned(), color, draw: Draw::Line, points };
    Plot {
        title: "Acknowledge latency over time",
        note: "of the records acknowledged in each second".to_owned(),
        x: seconds(report),
        y: LATENCY,
        x_ticks: Vec::new(),
        series: vec![
            line("p50", 0, points(report, |second| second.p50_us)),
            line("p99", 1, points(report, |second| second.p99_us)),
            line("max", 3, points(report, |second| second.max_us)),
        ],
        shaded: outside(report),
        level: None,
    }
    .figure()
}

/// From the start to the last second that has anything.
fn seconds(report: &Report) -> Axis {
    let end = report.seconds.last().map_or(0.0, |second| second.at_s + 1.0).max(report.window_s.1);
    Axis { range: Some((0.0, end.max(1.0))), ..SECONDS }
}

fn outside(report: &Report) -> Vec<(f64, f64)> {
    vec![(0.0, report.window_s.0), (report.window_s.1, f64::MAX)]
}

fn over_time(
    title: &'static str,
    y: Axis,
    groups: &[Group<'_>],
    of: impl Fn(&Report) -> Vec<(f64, f64)>,
) -> Markup {
    let series: Vec<Series> = of_each(groups)
        .map(|(name, color, draw, report)| Series { name, color, draw, points: of(report) })
        .collect();
    let note = "warm-up included".to_owned();
    Plot { title, note, x: SECONDS, y, x_ticks: Vec::new(), series, shaded: Vec::new(), level: None }.figure()
}

/// Name, colour, how it is drawn, (quantile, microseconds), how many were measured.
type Curve<'a> = (String, usize, Draw, &'a Vec<(f64, f64)>, u64);

fn percentiles(title: &'static str, curves: &[Curve<'_>]) -> Markup {
    let measured = curves.iter().filter(|(.., count)| *count > 0);
    let series: Vec<Series> = measured
        .map(|(name, color, draw, curve, count)| {
            let tail = |quantile: f64| (1.0 / (1.0 - quantile)).min(*count as f64).clamp(1.0, TAIL_MAX);
            let points = curve.iter().map(|(quantile, us)| (tail(*quantile), *us)).collect();
            Series { name: name.clone(), color: *color, draw: *draw, points }
        })
        .collect();
    let most = series.iter().flat_map(|series| &series.points).fold(10f64, |most, point| most.max(point.0));
    let ticks =
        [(1.0, "0 %"), (2.0, "50 %"), (10.0, "90 %"), (1e2, "99 %"), (1e3, "99.9 %"), (1e4, "99.99 %")];
    let beyond = [(1e5, "99.999 %"), (1e6, "99.9999 %"), (1e7, "99.99999 %")];
    let all = ticks.into_iter().chain(beyond).filter(|(at, _)| *at <= most);
    Plot {
        title,
        note: "the further right, the rarer; the end of a line is its maximum".to_owned(),
        x: Axis {
            label: "percentile, log scale →",
            kind: Kind::Log,
            range: Some((1.0, most)),
            format: |tail| format!("{} %", 100.0 - 100.0 / tail),
        },
        y: LATENCY,
        x_ticks: all.map(|(at, label)| (at, label.to_owned())).collect(),
        series,
        shaded: Vec::new(),
        level: None,
    }
    .figure()
}

fn parts(report: &Report) -> Markup {
    let names: Vec<String> = match report.explained.first() {
        Some(explained) => explained.parts_us.iter().map(|(name, _)| name.clone()).collect(),
        None => Vec::new(),
    };
    let stacks: Vec<Stack> = report
        .explained
        .iter()
        .map(|explained| {
            let parts: Vec<f64> = explained.parts_us.iter().map(|(_, us)| *us).collect();
            Stack {
                name: format!("p{}", explained.quantile * 100.0),
                total: duration(parts.iter().sum()),
                parts,
            }
        })
        .collect();
    let bars = bars::stacked(
        "Where the time went",
        "shares of the records around each percentile, in the order in which the parts follow each other",
        &names,
        &stacks,
        duration,
    );
    html! { figure { (bars) (tables::explained(report)) } }
}

fn searched(report: &Report) -> Markup {
    let Some(search) = &report.search else { return html! {} };
    let of = |held: bool| -> Vec<(f64, f64)> {
        let steps = search.steps.iter().filter(|step| (step.verdict == crate::search::Verdict::Held) == held);
        steps.map(|step| (step.records_s, step.p99_us)).collect()
    };
    Plot {
        title: "The search",
        note: "every trial: its rate and its p99".to_owned(),
        x: Axis { label: "intended records/s, log scale →", kind: Kind::Log, range: None, format: short },
        y: LATENCY,
        x_ticks: Vec::new(),
        series: vec![
            Series { name: "held".to_owned(), color: 0, draw: Draw::Points, points: of(true) },
            Series { name: "missed".to_owned(), color: 1, draw: Draw::Crosses, points: of(false) },
        ],
        shaded: Vec::new(),
        level: Some((search.limits.p99_us_max, "p99 wanted".to_owned())),
    }
    .figure()
}

#[cfg(test)]
mod tests;
