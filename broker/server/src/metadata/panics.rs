//! What a panic comes to on the metadata's threads.
//!
//! A broken invariant ends the process. Where panics unwind, Raft's library and its runtime catch those of their tasks, and
//! the broker would go on without metadata; so the process ends where the panic is reported. The one exception is a file
//! that is being opened: redb follows some fields of a damaged one before it has checked them.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// What this thread does, as far as it matters for its panics.
#[derive(Clone, Default)]
enum Doing {
    /// Nothing of the metadata's.
    #[default]
    Else,
    /// It runs the metadata, or writes its log.
    Metadata,
    /// It opens this file, which may be damaged.
    Opening(PathBuf),
}

thread_local! {
    static DOING: RefCell<Doing> = const { RefCell::new(Doing::Else) };
}

/// A panic of this thread ends the process from now on.
pub fn end_the_process() {
    install_hook();
    DOING.set(Doing::Metadata);
}

/// Runs `open`, and turns a panic into its message. Where panics end the process by themselves, at least the message
/// says which file it was.
pub fn guarded<T>(path: &Path, open: impl FnOnce() -> T) -> Result<T, String> {
    install_hook();
    let before = DOING.replace(Doing::Opening(path.to_owned()));
    let result = std::panic::catch_unwind(AssertUnwindSafe(open));
    DOING.set(before);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or(NO_REASON).to_owned()
    })
}

const NO_REASON: &str = "it makes redb panic";

/// Once for the process: threads that do nothing of the metadata's are left to the hook that was there before.
fn install_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let inner = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
            let doing = DOING.try_with(|doing| doing.borrow().clone()).unwrap_or_default();
            if let Doing::Opening(path) = &doing {
                let reason = panic.payload_as_str().unwrap_or(NO_REASON);
                return eprintln!("ringlog: {}: {}", path.display(), super::store::foreign(reason));
            }
            inner(panic);
            if let Doing::Metadata = doing {
                crate::fatal("the metadata panicked: an invariant is broken, see the message above");
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::super::{ClusterConfig, Command, start};
    use crate::mailbox::mailboxes;
    use logic::metadata::Image;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::sync::Arc;

    /// Set in the process that is to end: its data directory.
    const CHILD: &str = "RINGLOG_TEST_PANICS_IN";

    fn panics(directory: &Path) {
        // Called by a task of the library's.
        let publish = |image: Arc<Image>| assert!(image.version() == 0, "made by the test");
        let settings = ClusterConfig::default();
        let (handle, _thread) =
            start(directory, settings, "a:1".to_owned(), &mailboxes(0).0, Box::new(publish))
                .expect("nothing is wrong yet");
        let command = Command::InitializeCluster { id: 1 };
        let answered = futures_executor::block_on(handle.submit(command));
        panic!("the process goes on, and answers {answered:?}");
    }

    #[test]
    fn a_broken_invariant_ends_the_process() {
        if let Some(directory) = std::env::var_os(CHILD) {
            return panics(Path::new(&directory));
        }
        let directory = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "metadata::panics::tests::a_broken_invariant_ends_the_process",
            "--nocapture",
        ]);
        let output = child.env(CHILD, directory.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("made by the test"), "{said}");
        assert!(said.contains("ringlog: fatal: the metadata panicked"), "{said}");
        assert_eq!(output.status.signal(), Some(6), "{said}");
    }
}
