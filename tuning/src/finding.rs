//! What a check says: the one shape of finding, and the verdict that becomes one.
//!
//! Owner: whoever asked. A [`Check`] is a row of the catalogue: what it looks at, how bad it can be, and
//! its usual cost and fix; a verdict may say both more exactly. Absent on purpose: facts.

use crate::doctor::Host;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to complain about, or nothing there that could be complained about.
    Ok,
    /// Good to know.
    Note,
    /// The broker works, worse than it could or with less of a promise.
    Warning,
    /// The broker cannot start.
    Fatal,
}

impl Severity {
    /// In one word, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Fatal => "fatal",
        }
    }
}

/// One thing to know about this host.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was checked: a stable name for programs, one of [`catalogue`](crate::catalogue).
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What it will hurt; empty where all is well.
    pub cost: String,
    /// What to do about it; empty where all is well.
    pub fix: String,
}

/// One row of the catalogue.
#[derive(Clone, Copy)]
pub struct Check {
    /// The name of its findings.
    pub name: &'static str,
    /// What it looks at, and when it complains.
    pub complains: &'static str,
    /// How bad its complaints can be, the worst first.
    pub severities: &'static [Severity],
    /// What they usually cost.
    pub cost: &'static str,
    /// What usually mends them.
    pub fix: &'static str,
    /// `None`: judged by the preflight, which `serve` makes too.
    pub(crate) judge: Option<fn(&Host) -> Verdict>,
}

/// What a check says about a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    severity: Severity,
    found: String,
    cost: Option<String>,
    fix: Option<String>,
}

impl Verdict {
    fn new(severity: Severity, found: impl Into<String>) -> Self {
        Self { severity, found: found.into(), cost: None, fix: None }
    }

    pub(crate) fn fine(found: impl Into<String>) -> Self {
        Self::new(Severity::Ok, found)
    }

    pub(crate) fn note(found: impl Into<String>) -> Self {
        Self::new(Severity::Note, found)
    }

    pub(crate) fn warning(found: impl Into<String>) -> Self {
        Self::new(Severity::Warning, found)
    }

    /// Instead of the usual cost.
    pub(crate) fn cost(mut self, cost: impl Into<String>) -> Self {
        self.cost = Some(cost.into());
        self
    }

    /// Instead of the usual fix.
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    pub(crate) fn into_finding(self, check: &Check) -> Finding {
        let unless_fine = |own: Option<String>, usual: &str| match self.severity {
            Severity::Ok => String::new(),
            _ => own.unwrap_or_else(|| usual.to_owned()),
        };
        Finding {
            name: check.name,
            severity: self.severity,
            cost: unless_fine(self.cost, check.cost),
            fix: unless_fine(self.fix, check.fix),
            found: self.found,
        }
    }
}
