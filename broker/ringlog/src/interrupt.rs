//! The end that somebody else wants: Ctrl-C in a terminal, SIGTERM from whoever started the command.
//!
//! For commands that have something to put away before they end: a broker to stop, a directory to remove,
//! records to wait for. Stateless. `serve` listens for itself: it needs the second signal, too.

use tokio::signal::unix::{SignalKind, signal};

/// Ready at the first signal. Without a right to listen for one there is none to come: the default action ends
/// the process.
pub async fn interrupted() {
    let Ok(mut terminated) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        heard = tokio::signal::ctrl_c() => if heard.is_err() { std::future::pending().await },
        _ = terminated.recv() => {}
    }
}
