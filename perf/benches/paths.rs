//! Time of the hot paths; see the budgets.
fn main() {}
