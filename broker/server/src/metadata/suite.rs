//! The library's own test suite for stores, on ours and on real files.

use super::log::{Log, Writer};
use super::machine::{Applied, Machine};
use super::raft::Types;
use super::store::{Owner, Store};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

struct Fresh;

/// What must outlive a store.
struct Held {
    _directory: TempDir,
    _writer: Mutex<Writer>,
}

impl StoreBuilder<Types, Log, Machine, Held> for Fresh {
    async fn build(&self) -> Result<(Held, Log, Machine), StorageError<Types>> {
        let directory = tempfile::tempdir().unwrap();
        let owner = Owner { broker: 0, address: "127.0.0.1:1".to_owned() };
        let (store, mut contents) = Store::open(directory.path(), &owner, Arc::new(|_| Ok(()))).unwrap();
        let (log, writer) = Log::start(store, &mut contents).unwrap();
        let applied = Applied::new(Arc::default());
        let publish: super::Publish = Box::new(|_| ());
        let machine = Machine::new(log.clone(), applied, Arc::new(Mutex::new(publish)), None).unwrap();
        Ok((Held { _directory: directory, _writer: Mutex::new(writer) }, log, machine))
    }
}

#[test]
fn the_librarys_suite_for_stores() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Fresh)).unwrap();
}
