//! Mending: which settings a profile changes on this host, applying that, and taking it back.
//!
//! Lifecycle: [`plan`] looks and changes nothing → [`apply`] writes each change down before it makes it →
//! [`undo`] restores in reverse order what nobody changed since. Invariants: a step mends a finding that is
//! raised now, so that a host without complaints is left alone; nothing is changed before all rights are
//! there; what was changed is in the state file, whatever fails afterwards.
//! Absent on purpose: changes that last over a restart of the host, and limits of processes: those belong
//! to the host's own configuration, and are given as [`Advice`].

mod apply;
mod plan;
mod record;
#[cfg(test)]
mod tests;

pub use apply::{Outcome, TuneError, Undone, apply, undo};
pub use plan::{Advice, Plan, Profile, Step, markdown, plan};
pub use record::{Change, Setting};
