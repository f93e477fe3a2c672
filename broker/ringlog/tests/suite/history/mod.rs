//! Histories of groups under faults, and what is wrong with them (suite G).
//!
//! Real broker and worker processes ([`worker`]) are killed, paused and restarted by a seed ([`run`]); everything that
//! anybody was told is written down, and [`checker`] looks for what must not be in it. A handful of seeds here;
//! `RINGLOG_HISTORY_SEEDS=N` for more, `RINGLOG_HISTORY_FIRST=S` to begin at a seed.
//!
//! Absent on purpose: replaying a seed step by step. Processes are scheduled by the kernel; a seed fixes the plan of
//! the faults, not their moment.

mod checker;
mod run;
mod worker;
