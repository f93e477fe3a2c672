//! The history as one picture: a panel per figure, a line per workload, commits from left to right.
//!
//! SVG text, made from the entries alone: the same history gives the same bytes. Invariant: a line joins only
//! figures of one workload and its settings, driver, durability and host. Panels without a value are left out. Absent on purpose:
//! smoothing; every point is a run.

use super::{Entry, Run};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::ops::Range;

const WIDTH: u32 = 1280;
const PANEL_HEIGHT: u32 = 300;
const LEGEND_LINE_HEIGHT: u32 = 20;
const FONT: &str = "sans-serif";
const COLUMNS: usize = 2;

/// A panel.
struct Figure {
    title: &'static str,
    /// Latencies differ by powers of ten.
    logarithmic: bool,
    of: fn(&Run) -> f64,
}

const FIGURES: [Figure; 6] = [
    Figure { title: "produced, MB/s", logarithmic: false, of: |run| run.produced_mb_s },
    Figure { title: "consumed, MB/s", logarithmic: false, of: |run| run.consumed_mb_s },
    Figure { title: "acknowledge p50, ms", logarithmic: true, of: |run| run.acknowledge_p50_us / 1e3 },
    Figure { title: "acknowledge p99, ms", logarithmic: true, of: |run| run.acknowledge_p99_us / 1e3 },
    Figure { title: "end to end p99, ms", logarithmic: true, of: |run| run.end_to_end_p99_us / 1e3 },
    Figure {
        title: "share of the ceiling that binds, %",
        logarithmic: false,
        of: |run| run.share.as_ref().map_or(0.0, |share| share.share * 100.0),
    },
];

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// Nothing to plot.
    #[error("the history has no run; record one with: ringlog perf record --from REPORT.json")]
    Empty,
    /// The drawing library.
    #[error("drawing the history failed: {0}")]
    Drawing(String),
}

/// A line: its name and, per entry, its run.
struct Series<'a> {
    name: String,
    points: Vec<(usize, &'a Run)>,
}

fn series(entries: &[Entry]) -> Vec<Series<'_>> {
    let hosts = |entry: &Entry| {
        let crate::Host { cores, cpu, kernel } = &entry.host.machine;
        format!("{cores} cores, {cpu}, {kernel}")
    };
    let first = entries.first().map(hosts);
    let several = entries.iter().any(|entry| Some(hosts(entry)) != first);
    let mut series: Vec<Series<'_>> = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        for run in &entry.runs {
            let mut name = format!("{} ({}; {}, {})", run.workload, run.settings, run.driver, run.durability);
            if several {
                name.push_str(&format!(" on {}", hosts(entry)));
            }
            match series.iter_mut().find(|it| it.name == name) {
                Some(it) => it.points.push((at, run)),
                None => series.push(Series { name, points: vec![(at, run)] }),
            }
        }
    }
    series.sort_by(|a, b| a.name.cmp(&b.name));
    series
}

/// Draws `entries`, which are in the order of their commits.
///
/// # Errors
/// [`PlotError::Empty`] without a run.
pub fn svg(entries: &[Entry]) -> Result<String, PlotError> {
    let series = series(entries);
    let has_values = |figure: &&Figure| {
        let values = series.iter().flat_map(|it| &it.points).map(|(_, run)| (figure.of)(run));
        values.into_iter().any(|value| value > 0.0)
    };
    let figures: Vec<&Figure> = FIGURES.iter().filter(has_values).collect();
    if figures.is_empty() {
        return Err(PlotError::Empty);
    }
    let mut text = String::new();
    draw(&mut text, entries, &series, &figures).map_err(PlotError::Drawing)?;
    Ok(text)
}

fn draw(
    text: &mut String,
    entries: &[Entry],
    series: &[Series<'_>],
    figures: &[&Figure],
) -> Result<(), String> {
    fn say(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let rows = figures.len().div_ceil(COLUMNS);
    let plots_height = PANEL_HEIGHT * rows as u32;
    let height = plots_height + LEGEND_LINE_HEIGHT * (series.len() as u32 + 1);
    let root = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE).map_err(say)?;
    let (plots, legend) = root.split_vertically(plots_height);
    for (panel, figure) in plots.split_evenly((rows, COLUMNS)).iter().zip(figures) {
        let values = series.iter().flat_map(|it| &it.points).map(|(_, run)| (figure.of)(run));
        let values = values.filter(|value| *value > 0.0).collect::<Vec<_>>();
        let most = values.iter().copied().fold(f64::MIN, f64::max);
        let least = values.iter().copied().fold(f64::MAX, f64::min);
        let mut chart = ChartBuilder::on(panel);
        chart.caption(figure.title, (FONT, 16)).margin(8).x_label_area_size(46).y_label_area_size(64);
        let x = -0.5..entries.len() as f64 - 0.5;
        let result = if figure.logarithmic {
            // Whole decades: those are what a logarithmic axis has labels for.
            let least = 10f64.powf(least.log10().floor());
            let y = (least..10f64.powf(most.log10().ceil()).max(least * 10.0)).log_scale();
            chart.build_cartesian_2d(x, y).map_err(say).and_then(|it| lines(it, entries, series, figure))
        } else {
            let y: Range<f64> = 0.0..most * 1.15;
            chart.build_cartesian_2d(x, y).map_err(say).and_then(|it| lines(it, entries, series, figure))
        };
        result?;
    }
    for (at, it) in series.iter().enumerate() {
        let y = LEGEND_LINE_HEIGHT as i32 * at as i32 + 8;
        let color = Palette99::pick(at).to_rgba();
        let line = PathElement::new(vec![(24, y + 6), (52, y + 6)], color.stroke_width(3));
        legend.draw(&line).map_err(say)?;
        legend.draw(&Text::new(it.name.clone(), (60, y), (FONT, 13))).map_err(say)?;
    }
    root.present().map_err(say)
}

fn lines<Y>(
    mut chart: ChartContext<'_, SVGBackend<'_>, Cartesian2d<RangedCoordf64, Y>>,
    entries: &[Entry],
    series: &[Series<'_>],
    figure: &Figure,
) -> Result<(), String>
where
    Y: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
{
    let label = |x: &f64| {
        let whole = (x - x.round()).abs() < 1e-6 && *x >= 0.0;
        let entry = entries.get(x.round() as usize).filter(|_| whole);
        entry.map_or(String::new(), |it| {
            let commit: String = it.commit.chars().take(7).collect();
            let changed = if it.commit.ends_with('+') && !commit.ends_with('+') { "+" } else { "" };
            format!("{} {commit}{changed}", it.date.get(5..).unwrap_or(&it.date))
        })
    };
    chart
        .configure_mesh()
        .x_labels(entries.len().clamp(2, 12))
        .x_label_formatter(&label)
        .y_label_formatter(&|y: &f64| short(*y))
        .disable_x_mesh()
        .light_line_style(WHITE.mix(0.0))
        .label_style((FONT, 12))
        .draw()
        .map_err(|error| error.to_string())?;
    for (at, it) in series.iter().enumerate() {
        let color = Palette99::pick(at).to_rgba();
        let points: Vec<(f64, f64)> = it
            .points
            .iter()
            .map(|(x, run)| (*x as f64, (figure.of)(run)))
            .filter(|(_, y)| *y > 0.0)
            .collect();
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2));
        chart.draw_series(line).map_err(|error| error.to_string())?;
        let dots = points.into_iter().map(|point| Circle::new(point, 4, color.filled()));
        chart.draw_series(dots).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// As many digits as an axis needs.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 10.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Host;

    fn entry(commit: &str, cpu: &str, runs: &[(&str, f64)]) -> Entry {
        let run = |(workload, mb_s): &(&str, f64)| Run {
            workload: (*workload).to_owned(),
            settings: "s".to_owned(),
            driver: "ringlog".to_owned(),
            durability: "device".to_owned(),
            produced_mb_s: *mb_s,
            acknowledge_p50_us: 1e5 / (1.0 + mb_s),
            ..Run::default()
        };
        Entry {
            format_version: super::super::FORMAT_VERSION,
            date: "2026-01-02".into(),
            commit: commit.into(),
            host: Host { machine: crate::Host { cpu: cpu.into(), ..Default::default() }, ..Host::default() },
            runs: runs.iter().map(run).collect(),
        }
    }

    #[test]
    fn lines_join_one_workload_on_one_host() {
        // A workload's first letter, and the entries that its line joins.
        type Line = (&'static str, &'static [usize]);
        let rows: [(&[Entry], &[Line]); 3] = [
            (
                &[entry("a", "X", &[("w", 1.0)]), entry("b", "X", &[("w", 2.0), ("v", 3.0)])],
                &[("v", &[1]), ("w", &[0, 1])],
            ),
            (&[entry("a", "X", &[("w", 1.0)]), entry("b", "Y", &[("w", 2.0)])], &[("w", &[0]), ("w", &[1])]),
            (&[], &[]),
        ];
        for (entries, expect) in rows {
            let series = series(entries);
            let got: Vec<(&str, Vec<usize>)> = series
                .iter()
                .map(|it| (&it.name[..1], it.points.iter().map(|(at, _)| *at).collect()))
                .collect();
            let expect: Vec<(&str, Vec<usize>)> =
                expect.iter().map(|(name, at)| (*name, at.to_vec())).collect();
            assert_eq!(got, expect);
        }
    }

    #[test]
    fn the_picture_names_panels_commits_and_workloads() {
        let entries =
            [entry("0123456789ab+", "X", &[("one", 1.0)]), entry("b", "X", &[("one", 2.0), ("two", 300.0)])];
        let picture = svg(&entries).unwrap();
        for part in [
            "produced, MB/s",
            "acknowledge p50, ms",
            "01-02 0123456+",
            "01-02 b",
            "one (s; ringlog, device)",
            "two (s; ringlog",
        ] {
            assert!(picture.contains(part), "{part}");
        }
        // Nothing was consumed, and no ceilings are known.
        assert!(!picture.contains("consumed") && !picture.contains("share of"));
        assert_eq!(svg(&entries).unwrap(), picture);
        assert!(matches!(svg(&[]), Err(PlotError::Empty)));
        assert!(matches!(svg(&[entry("a", "X", &[])]), Err(PlotError::Empty)));
    }
}
