//! How fast is it? Load against a broker over the wire, and the report of what came back.
//!
//! Owner: the `ringlog bench` subcommand, or a test that wants load. Invariant: nothing here looks into the
//! broker; a figure is what a client could have measured.
//! Absent on purpose: ceilings of the machine (`perf` has them) and assertions about timings.

pub mod load;

mod consume;
mod meter;
mod produce;
