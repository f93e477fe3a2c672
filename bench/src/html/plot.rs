//! Lines and points over two axes, as SVG inside HTML, with its legend.
//!
//! Made from values, drawn once. Colours are classes (`c0` …) that the page's style gives a value, light or
//! dark. Every point has its figures as a title, which a browser shows under the pointer: no scripts.
//! Invariants: labels of one axis do not overlap; a gap in the values is a gap in the line.

use super::scale::{Kind, Scale};
use maud::{Markup, html};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;
/// Points of a line that are still marked one by one.
const MARKED_MAX: usize = 80;
/// A letter of a label is about this wide.
const LETTER: f64 = 6.6;
/// Between two labels.
const GAP: f64 = 10.0;
/// Colours that the style has.
pub const COLORS: usize = 9;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// A line.
    Line,
    /// A thinner line: one of several that mean the same.
    Faint,
    /// A broken line, through which one below can be seen.
    Dashed,
    /// Points.
    Points,
    /// Crosses.
    Crosses,
}

/// Values that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend; a series with the same name and colour as one before is not named again.
    pub name: String,
    /// Which colour.
    pub color: usize,
    /// How.
    pub draw: Draw,
    /// In order of x. A y that has no place on its axis leaves a gap.
    pub points: Vec<(f64, f64)>,
}

/// An axis.
#[derive(Clone, Copy)]
pub struct Axis {
    /// What it shows.
    pub label: &'static str,
    /// How it is spread.
    pub kind: Kind,
    /// From where to where; `None` = as the values need.
    pub range: Option<(f64, f64)>,
    /// How a value reads.
    pub format: fn(f64) -> String,
}

/// A plot.
pub struct Plot {
    /// What it shows.
    pub title: &'static str,
    /// How it is to be read.
    pub note: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// Values of x at which there is a label; empty = round ones.
    pub x_ticks: Vec<(f64, String)>,
    /// Values.
    pub series: Vec<Series>,
    /// Parts of x that are shaded.
    pub shaded: Vec<(f64, f64)>,
    /// A level of y, and what it means.
    pub level: Option<(f64, String)>,
}

impl Plot {
    /// The figure with title, legend and picture.
    pub fn figure(&self) -> Markup {
        html! {
            figure {
                figcaption { b { (self.title) } " " span.note { (self.note) } }
                (self.legend())
                @if self.series.iter().all(|series| series.points.is_empty()) {
                    p.empty { "Nothing was measured here." }
                } @else {
                    (self.svg())
                }
            }
        }
    }

    fn legend(&self) -> Markup {
        let mut named: Vec<&Series> = Vec::new();
        for series in &self.series {
            if !named.iter().any(|other| other.name == series.name && other.color == series.color) {
                named.push(series);
            }
        }
        html! {
            ul.legend {
                @for series in named {
                    li { span class=(format!("key b{}", series.color % COLORS)) {} (series.name) }
                }
            }
        }
    }

    fn svg(&self) -> Markup {
        let all = || self.series.iter().flat_map(|series| series.points.iter());
        let scale =
            |axis: &Axis, values: &mut dyn Iterator<Item = f64>, start: f64, end: f64| match axis.range {
                Some((from, until)) => Scale::exact(axis.kind, from, until, start, end),
                None => Scale::new(axis.kind, values, start, end),
            };
        let level = self.level.as_ref().map(|(level, _)| *level);
        let x = scale(&self.x, &mut all().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = scale(&self.y, &mut all().map(|point| point.1).chain(level), HEIGHT - BOTTOM, TOP);
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        html! {
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(self.title)
                xmlns="http://www.w3.org/2000/svg" {
                @for (from, until) in &self.shaded {
                    @let (from, until) = (x.at(*from), x.at(*until));
                    rect.shade x=(place(from)) y=(TOP) width=(place((until - from).max(0.0))) height=(bottom - TOP) {}
                }
                @for tick in y.ticks() {
                    @let at = place(y.at(tick));
                    line.grid x1=(LEFT) x2=(right) y1=(at) y2=(at) {}
                    text.tick x=(LEFT - 7.0) y=(at) dy="0.35em" text-anchor="end" { ((self.y.format)(tick)) }
                }
                @for (value, label) in self.x_ticks(&x) {
                    @let at = place(x.at(value));
                    line.grid x1=(at) x2=(at) y1=(TOP) y2=(bottom) {}
                    // The last label must not leave the picture.
                    @let fits = x.at(value) + width(&label) / 2.0 <= WIDTH;
                    text.tick x=(if fits { at } else { place(WIDTH - 1.0) }) y=(bottom + 16.0)
                        text-anchor=(if fits { "middle" } else { "end" }) { (label) }
                }
                line.axis x1=(LEFT) x2=(right) y1=(bottom) y2=(bottom) {}
                text.name x=(right) y=(HEIGHT - 8.0) text-anchor="end" { (self.x.label) }
                text.name x=(LEFT) y=(HEIGHT - 8.0) text-anchor="start" { "↑ " (self.y.label) }
                @if let Some((level, meaning)) = &self.level {
                    @let at = y.at(*level);
                    line.level x1=(LEFT) x2=(right) y1=(place(at)) y2=(place(at)) {}
                    // Below the line where there is no room above.
                    @let below = at < TOP + 16.0;
                    text.tick x=(LEFT + 6.0) y=(place(if below { at + 14.0 } else { at - 5.0 })) { (meaning) }
                }
                @for series in &self.series { (self.drawn(series, &x, &y)) }
            }
        }
    }

    /// Labels that fit beside each other; the last one wins against the one before it.
    fn x_ticks(&self, x: &Scale) -> Vec<(f64, String)> {
        let all: Vec<(f64, String)> = match self.x_ticks.is_empty() {
            true => x.ticks().into_iter().map(|tick| (tick, (self.x.format)(tick))).collect(),
            false => self.x_ticks.clone(),
        };
        let mut kept: Vec<(f64, String)> = Vec::new();
        for (value, label) in all {
            let begins = x.at(value) - width(&label) / 2.0;
            let free =
                kept.last().is_none_or(|(before, label)| x.at(*before) + width(label) / 2.0 + GAP <= begins);
            if free {
                kept.push((value, label));
            }
        }
        kept
    }

    fn drawn(&self, series: &Series, x: &Scale, y: &Scale) -> Markup {
        let seen: Vec<&(f64, f64)> =
            series.points.iter().filter(|point| x.has(point.0) && y.has(point.1)).collect();
        let title = |point: &(f64, f64)| {
            format!("{}: {} at {}", series.name, (self.y.format)(point.1), (self.x.format)(point.0))
        };
        let color = series.color % COLORS;
        let is_line = matches!(series.draw, Draw::Line | Draw::Faint | Draw::Dashed);
        html! {
            @if is_line {
                @let class = match series.draw {
                    Draw::Faint => "line faint",
                    Draw::Dashed => "line dashed",
                    Draw::Line | Draw::Points | Draw::Crosses => "line",
                };
                path class=(format!("{class} c{color}")) d=(path(series, x, y)) {}
            }
            @if !is_line || seen.len() <= MARKED_MAX {
                @for point in seen {
                    @let (at_x, at_y) = (x.at(point.0), y.at(point.1));
                    @match series.draw {
                        Draw::Crosses => {
                            path class=(format!("cross c{color}"))
                                d=(format!("M{:.1} {:.1}l8 8m0 -8l-8 8", at_x - 4.0, at_y - 4.0)) {
                                title { (title(point)) }
                            }
                        }
                        Draw::Line | Draw::Faint | Draw::Dashed | Draw::Points => {
                            @let radius = if is_line { "1.8" } else { "4.5" };
                            circle class=(format!("dot b{color}")) cx=(place(at_x)) cy=(place(at_y)) r=(radius) {
                                title { (title(point)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn path(series: &Series, x: &Scale, y: &Scale) -> String {
    let mut path = String::new();
    let mut next = 'M';
    for (at_x, at_y) in &series.points {
        if x.has(*at_x) && y.has(*at_y) {
            path.push_str(&format!("{next}{:.1} {:.1}", x.at(*at_x), y.at(*at_y)));
            next = 'L';
        } else {
            next = 'M';
        }
    }
    path
}

fn width(label: &str) -> f64 {
    label.chars().count() as f64 * LETTER
}

/// A tenth of a pixel is enough.
fn place(at: f64) -> String {
    format!("{at:.1}")
}

#[cfg(test)]
mod tests {
    use super::super::scale::{duration, short};
    use super::*;

    fn plot(points: Vec<(f64, f64)>, kind: Kind) -> Plot {
        let axis = Axis { label: "x", kind: Kind::FromZero, range: None, format: short };
        Plot {
            title: "a plot",
            note: String::new(),
            x: axis,
            y: Axis { label: "y", kind, format: duration, ..axis },
            x_ticks: Vec::new(),
            series: vec![Series { name: "a < b".into(), color: 1, draw: Draw::Line, points }],
            shaded: vec![(0.0, 1.0)],
            level: None,
        }
    }

    #[test]
    fn lines_have_gaps_where_there_is_nothing() {
        let rows = [
            (vec![(0.0, 5.0), (1.0, 5.0), (2.0, 5.0)], 1, 3),
            (vec![(0.0, 5.0), (1.0, 0.0), (2.0, 5.0), (3.0, 7.0)], 2, 3),
            (vec![(0.0, 0.0), (1.0, 5.0)], 1, 1),
        ];
        for (points, pieces, marks) in rows {
            let drawn = plot(points.clone(), Kind::Log).figure().into_string();
            let line =
                drawn.split("<path class=\"line c1\" d=\"").nth(1).and_then(|rest| rest.split('"').next());
            let line = line.expect("there is a line");
            assert_eq!(line.matches('M').count(), pieces, "{points:?}: {line}");
            assert_eq!(drawn.matches("<circle").count(), marks, "{points:?}");
            assert!(drawn.contains("a &lt; b"), "names are escaped");
        }
        assert!(plot(Vec::new(), Kind::Log).figure().into_string().contains("Nothing was measured"));
    }

    #[test]
    fn labels_do_not_overlap() {
        let mut crowded = plot((0..50).map(|n| (f64::from(n), 1.0)).collect(), Kind::FromZero);
        crowded.x_ticks = (0..50).map(|n| (f64::from(n), "12.3 ms".to_owned())).collect();
        let x = Scale::new(Kind::FromZero, [0.0, 50.0].into_iter(), LEFT, WIDTH - RIGHT);
        let kept = crowded.x_ticks(&x);
        assert!(kept.len() > 3, "{kept:?}");
        for pair in kept.windows(2) {
            assert!(x.at(pair[1].0) - x.at(pair[0].0) >= 7.0 * LETTER, "{kept:?}");
        }
    }
}
