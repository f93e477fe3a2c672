//! Deliveries that a client library has under way, settled in the order in which they come back.
//!
//! Owner: one producer, on its thread. It hands every delivery over to [`watch`], a task that ends when the producer is
//! gone and everything that it handed over has come back. Bounded by what the producer lets in.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::future::IntoFuture;
use tokio::sync::mpsc;

/// A delivery under way: the client's future, when its record was intended, how large it is.
pub(super) struct Delivery<F> {
    pub future: F,
    pub intended_ns: u64,
    pub bytes: usize,
}

/// Settles deliveries: calls `settle` with what each came to, its intended moment and its bytes.
pub(super) async fn watch<F: IntoFuture>(
    mut incoming: mpsc::UnboundedReceiver<Delivery<F>>,
    settle: impl Fn(F::Output, u64, usize),
) {
    let mut waiting = FuturesUnordered::new();
    let mut more = true;
    while more || !waiting.is_empty() {
        tokio::select! {
            biased;
            Some((outcome, intended_ns, bytes)) = waiting.next(), if !waiting.is_empty() => {
                settle(outcome, intended_ns, bytes);
            }
            delivery = incoming.recv(), if more => match delivery {
                Some(Delivery { future, intended_ns, bytes }) => {
                    let future = future.into_future();
                    waiting.push(async move { (future.await, intended_ns, bytes) });
                }
                None => more = false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use tokio::sync::oneshot;

    #[test]
    fn all_are_settled_as_they_come_back_also_after_the_producer() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (sender, incoming) = mpsc::unbounded_channel();
        let seen = RefCell::new(Vec::new());
        let (answers, futures): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel::<char>()).unzip();
        for (number, future) in futures.into_iter().enumerate() {
            let delivery = Delivery { future, intended_ns: number as u64, bytes: 10 + number };
            assert!(sender.send(delivery).is_ok());
        }
        drop(sender);
        let answering = async {
            for (at, answer) in answers.into_iter().enumerate().rev() {
                tokio::task::yield_now().await;
                let _ = answer.send(['a', 'b', 'c'][at]);
            }
        };
        let watching = watch(incoming, |outcome, intended_ns, bytes| {
            seen.borrow_mut().push((outcome.ok(), intended_ns, bytes));
        });
        runtime.block_on(async { tokio::join!(watching, answering) });
        let mut seen = seen.into_inner();
        seen.sort_unstable();
        assert_eq!(seen, [(Some('a'), 0, 10), (Some('b'), 1, 11), (Some('c'), 2, 12)]);
    }
}
