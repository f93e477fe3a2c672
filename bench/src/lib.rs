//! How fast is it? Load against a broker over the wire, and the report of what came back.
//!
//! Owner: the `ringlog bench` subcommand, or a test that wants load. Invariant: nothing here looks into the
//! broker; a figure is what a client could have measured.
//! Absent on purpose: ceilings of the machine (`perf` has them) and assertions about timings.
//!
//! Code map: [`workload`] what to run → [`run`] producers and consumers of a [`driver`], at the times of a
//! `pacer`, seen by a [`recorder`], at a rate that a [`search`] may look for → [`report`] →
//! [`html`]. [`load`] is a closed loop of raw requests, below the client library.

pub mod compare;
pub mod driver;
pub mod html;
pub mod live;
pub mod load;
pub mod recorder;
pub mod report;
pub mod run;
pub mod search;
pub mod servers;
pub mod stamp;
pub mod usage;
pub mod window;
pub mod workload;

mod consume;
mod meter;
pub mod pacer;
mod produce;
