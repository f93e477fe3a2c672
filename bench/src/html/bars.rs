//! Bars as boxes of the page: parts of a whole, and one measure of several kinds of run.
//!
//! Made from values, drawn once. Invariants: bars of one panel share one scale that begins at zero; a bar of
//! several runs is their median and marks every one of them.

use super::plot::COLORS;
use crate::compare::Spread;
use maud::{Markup, html};

/// A whole and its parts.
#[derive(Clone, Debug)]
pub struct Stack {
    /// What it is.
    pub name: String,
    /// Its size, to be read.
    pub total: String,
    /// Sizes, one per part, in one unit.
    pub parts: Vec<f64>,
}

/// Wholes of the same parts, each as long as the others: what differs is the shares. Goes into a figure.
pub fn stacked(
    title: &str,
    note: &str,
    names: &[String],
    stacks: &[Stack],
    format: fn(f64) -> String,
) -> Markup {
    html! {
            figcaption { b { (title) } " " span.note { (note) } }
            ul.legend {
                @for (at, name) in names.iter().enumerate() {
                    li { span class=(format!("key b{}", at % COLORS)) {} (name) }
                }
            }
            @for stack in stacks {
                @let whole: f64 = stack.parts.iter().sum();
                div.bar {
                    span.who { (stack.name) }
                    span.track {
                        @for (at, part) in stack.parts.iter().enumerate() {
                            @let share = 100.0 * part / whole.max(f64::MIN_POSITIVE);
                            @if share >= 0.05 {
                                span class=(format!("part b{}", at % COLORS)) style=(format!("width:{share:.2}%"))
                                    title=(format!("{}: {} ({share:.1} %)", names[at], format(*part))) {
                                    @if share >= 14.0 { (format(*part)) }
                                }
                            }
                        }
                    }
                    span.value { (stack.total) }
                }
            }
    }
}

/// A bar: what it is of, its colour, and the value of every run.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Whose it is.
    pub name: String,
    /// Which colour.
    pub color: usize,
    /// One per run.
    pub values: Vec<f64>,
}

/// Bars of one measure, and which end of it is the better one.
pub fn compared(title: &str, note: &str, bars: &[Bar], format: fn(f64) -> String) -> Markup {
    let most = bars.iter().flat_map(|bar| &bar.values).fold(0f64, |most, value| most.max(*value));
    let width = |value: f64| format!("{:.2}%", 100.0 * value / most.max(f64::MIN_POSITIVE));
    html! {
        figure {
            figcaption { b { (title) } " " span.note { (note) } }
            @for bar in bars {
                @let middle = Spread::of(bar.values.iter().copied()).median;
                div.bar {
                    span.who title=(bar.name) { (bar.name) }
                    span.track {
                        span class=(format!("part b{}", bar.color % COLORS)) style=(format!("width:{}", width(middle))) {}
                        @if bar.values.len() > 1 {
                            @for value in &bar.values {
                                span.run style=(format!("left:{}", width(*value))) title=(format(*value)) {}
                            }
                        }
                    }
                    span.value { (format(middle)) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scale::short;
    use super::*;

    #[test]
    fn bars_share_a_scale() {
        let bar = |name: &str, values: &[f64]| Bar { name: name.into(), color: 0, values: values.into() };
        let drawn =
            compared("t", "", &[bar("a", &[50.0]), bar("b", &[100.0, 200.0, 150.0])], short).into_string();
        for expect in ["width:25.00%", "width:75.00%", "left:100.00%", "left:50.00%"] {
            assert!(drawn.contains(expect), "{expect}: {drawn}");
        }
        assert_eq!(drawn.matches("class=\"run\"").count(), 3, "one run alone needs no mark: {drawn}");
        let nothing = compared("t", "", &[bar("a", &[])], short).into_string();
        assert!(nothing.contains("width:0.00%"), "{nothing}");
    }

    #[test]
    fn parts_fill_their_whole() {
        let names = ["one".to_owned(), "two".to_owned(), "three".to_owned()];
        let stack = Stack { name: "p50".into(), total: "4".into(), parts: vec![1.0, 3.0, 0.0] };
        let drawn = stacked("t", "", &names, &[stack], short).into_string();
        assert!(drawn.contains("width:25.00%") && drawn.contains("width:75.00%"), "{drawn}");
        assert_eq!(drawn.matches("class=\"part").count(), 2, "nothing is drawn of nothing: {drawn}");
    }
}
