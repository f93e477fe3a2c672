//! The library's own test suite for stores, on ours and on real files, and a case that it leaves out.

use super::log::{Log, Writer};
use super::machine::{Applied, Machine};
use super::raft::{Leader, LogId, SnapshotMeta, StoredMembership, Types};
use super::store::{Contents, Owner, Store};
use logic::metadata::{Image, snapshot};
use openraft::storage::RaftStateMachine;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{RaftSnapshotBuilder, StorageError};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// Makes stores, and counts them: one for each test, two for the one that takes a snapshot to another store.
#[derive(Default)]
struct Fresh(AtomicU32);

/// What must outlive a store.
struct Held {
    directory: TempDir,
    writer: Mutex<Writer>,
}

fn open(directory: &TempDir) -> (Store, Contents) {
    let owner = Owner { broker: 0, address: "127.0.0.1:1".to_owned() };
    Store::open(directory.path(), &owner, Arc::new(|_| Ok(()))).unwrap()
}

impl StoreBuilder<Types, Log, Machine, Held> for Fresh {
    async fn build(&self) -> Result<(Held, Log, Machine), StorageError<Types>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().unwrap();
        let (store, mut contents) = open(&directory);
        let (log, writer) = Log::start(store, &mut contents).unwrap();
        let applied = Applied::new(Arc::default());
        let publish: super::Publish = Box::new(|_| ());
        let machine = Machine::new(log.clone(), applied, Arc::new(Mutex::new(publish)), None).unwrap();
        Ok((Held { directory, writer: Mutex::new(writer) }, log, machine))
    }
}

#[test]
fn the_librarys_suite_for_stores() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fresh = Fresh::default();
    runtime.block_on(Suite::test_store(&fresh)).unwrap();
    println!("{} stores judged by the library's suite, 0 failures", fresh.0.into_inner());
}

/// The library has a snapshot made beside everything else: one may come from the leader meanwhile.
#[test]
fn a_snapshot_that_was_begun_earlier_does_not_take_the_place_of_a_newer_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (held, log, mut machine) = Fresh::default().build().await.unwrap();
        let mut begun = machine.get_snapshot_builder().await;
        let last = Some(LogId::new(Leader { term: 1, node_id: 0 }, 9));
        let meta = SnapshotMeta { last_log_id: last, last_membership: StoredMembership::default() };
        machine.install_snapshot(&meta, snapshot::encode(&Image::default()).into()).await.unwrap();
        begun.build_snapshot().await.unwrap();
        drop((log, machine, begun));
        held.writer.into_inner().unwrap().join();
        let (_, contents) = open(&held.directory);
        assert_eq!(contents.snapshot.expect("it is there").id, last);
    });
}
