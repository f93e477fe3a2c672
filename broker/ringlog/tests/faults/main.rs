//! The real broker under ill treatment: killed, fed with damaged files and hostile bytes, put on full and
//! strange disks, loaded up to its memory bound.
//!
//! One binary, so that it links once. Every broker is a process of its own, ended by its id when its test
//! ends, however that ends; only time-outs and what a shard takes are tested on an embedded broker, whose
//! limits can be lowered. What the suite promises and the figures that it prints: `docs/TESTING.md`.
//! Absent on purpose: crash images (a killed process loses nothing that the kernel has), and timings as
//! assertions; deadlines here only turn a hang into a failure.

mod bad_input;
mod bit_flips;
mod host;
mod kill_nine;
mod memory;
mod moving_homes;
mod requests;
mod support;
mod time_outs;
mod two_shards;
