//! The demo's consumer group: two members that share the partitions and, together, read every record once.

use crate::demo::flights::Flights;
use crate::demo::ledger::Tally;
use crate::demo::writer::{HEADER, decode_header};
use crate::demo::{PARTITIONS, TOPIC};
use crate::failure::Failure;
use indicatif::ProgressBar;
use ringlog_client::{Client, FetchedBatch, GroupConfig, GroupConsumer};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Longer than any failover, and than any pause of a disk that works.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// What both members have read.
struct Read {
    tally: Tally,
    /// By partition: the offset after the last record.
    ends: Vec<u64>,
}

/// Reads until the ends that `finished` tells are reached, or nothing comes for a long time.
pub async fn read(
    client: &Client,
    flights: &Flights,
    finished: watch::Receiver<Option<Vec<u64>>>,
    bar: &ProgressBar,
) -> Result<Tally, Failure> {
    let read =
        Mutex::new(Read { tally: Tally::new(flights, PARTITIONS), ends: vec![0; PARTITIONS as usize] });
    // The other one learns of the end by this.
    let (progress, _) = watch::channel(());
    let member = || async {
        let member = client.group_consumer(GroupConfig::new("demo").with_topic(TOPIC))?;
        share(member, flights, &read, finished.clone(), &progress, bar).await
    };
    tokio::try_join!(member(), member())?;
    bar.finish();
    Ok(read.into_inner().unwrap_or_else(PoisonError::into_inner).tally)
}

async fn share(
    mut member: GroupConsumer,
    flights: &Flights,
    read: &Mutex<Read>,
    mut finished: watch::Receiver<Option<Vec<u64>>>,
    progress: &watch::Sender<()>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut changed = progress.subscribe();
    loop {
        let is_done = {
            let read = read.lock().unwrap_or_else(PoisonError::into_inner);
            let ends = finished.borrow();
            ends.as_ref().is_some_and(|ends| read.ends.iter().zip(ends).all(|(at, end)| at >= end))
        };
        if is_done {
            // What was read counts; a commit that fails now takes nothing from it.
            let _ = member.close().await;
            return Ok(());
        }
        tokio::select! {
            polled = member.poll() => match polled {
                Ok(batch) => {
                    note(&batch, flights, &mut read.lock().unwrap_or_else(PoisonError::into_inner), bar)?;
                    progress.send_replace(());
                }
                Err(error) if error.is_final() => return Err(error.into()),
                // It goes on by itself.
                Err(_) => {}
            },
            told = finished.changed() => if told.is_err() && finished.borrow().is_none() {
                return Err(Failure::operation("the writer ended before it had finished"));
            } else if told.is_err() {
                tokio::task::yield_now().await;
            },
            _ = changed.changed() => {}
            () = tokio::time::sleep(STALLED_AFTER) => return Ok(()),
        }
    }
}

fn note(batch: &FetchedBatch, flights: &Flights, read: &mut Read, bar: &ProgressBar) -> Result<(), Failure> {
    for record in batch.records() {
        let record = record?;
        let header = record.headers().next().and_then(Result::ok);
        let header = header.filter(|(name, _)| *name == HEADER).and_then(|(_, value)| value);
        let sequence = header.and_then(decode_header).map(|(sequence, _)| sequence);
        let (key, value) = (record.key.unwrap_or_default(), record.value.unwrap_or_default());
        read.tally.note(flights, batch.partition(), record.offset, sequence, key, value);
        let end = &mut read.ends[batch.partition() as usize];
        *end = (*end).max(record.offset + 1);
    }
    bar.set_position(read.tally.records);
    Ok(())
}
