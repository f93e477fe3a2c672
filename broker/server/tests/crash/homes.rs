//! Partitions that move from one store of a broker to another, into power cuts.
//!
//! What is played here in place of shards and their messages: the metadata decides, the old store releases, the new one
//! takes over, writes a checkpoint, and has the old one forget. The stores are the real ones; a start gives them
//! checkpoints as the data directory's does, by the same functions. Who finds no room to open a partition keeps it and
//! tries again. A crash comes anywhere in between; what must hold after it is the `ledger`'s, for whichever store the
//! metadata names.

use super::image::Image;
use super::ledger::{Ledger, judge_taken_over};
use super::life::{LOOK_AGAIN, Life, Plan, UUID, root};
use logic::ids::TopicPartition;
use schema::checkpoint::Checkpoint;
use server::storage::checkpoints::{CHECKPOINTS, has_strays, merge, shard_directory, usable_checkpoint};
use server::storage::is_no_space;

impl Plan {
    /// The plan of a root seed with two stores.
    pub fn draw_moving(seed: u64) -> Self {
        let plan = Self::draw(seed, false);
        // Enough that both have some.
        Self { shards: 2, partitions: plan.partitions.max(2), ..plan }
    }

    /// Whether a partition has other replicas.
    pub fn is_replicated(&self, partition: u32) -> bool {
        self.shards > 1 && partition % 2 == 1
    }
}

/// What a start does before any store is opened: each is given what any checkpoint says, if a partition has moved.
pub fn give_checkpoints(image: &mut Image, shards: usize, ledger: &Ledger) {
    let path = |shard: usize, name: &str| shard_directory(&root(), shard).join(name);
    let of_shard = |shard: usize| -> Vec<Checkpoint> {
        let bytes = CHECKPOINTS.iter().filter_map(|name| image.read(&path(shard, name)));
        bytes.filter_map(|bytes| usable_checkpoint(&bytes, UUID).ok()).collect()
    };
    let found: Vec<Vec<Checkpoint>> = (0..shards).map(of_shard).collect();
    let home = |id: TopicPartition| {
        let slot = ledger.slots.iter().rev().find(|slot| slot.identity.partition == id);
        slot.map(|slot| slot.home)
    };
    let strays = |(shard, own): (usize, &Vec<Checkpoint>)| has_strays(own, |id| home(id) == Some(shard));
    if !found.iter().enumerate().any(strays) {
        return;
    }
    let Some(all) = merge(found.iter().flatten()) else { return };
    let bytes = Checkpoint { storage_uuid: UUID, ..all }.encode();
    for shard in 0..shards {
        image.put(&path(shard, CHECKPOINTS[0]), Some(&bytes));
        image.put(&path(shard, CHECKPOINTS[1]), None);
    }
}

impl Life<'_> {
    /// Moves a partition from the store that serves it to another.
    pub fn move_home(&mut self) {
        let Some((at, partition)) = self.any_open() else { return };
        if !self.moving.borrow_mut().insert(at) {
            return;
        }
        self.event("partitions moved");
        let identity = partition.identity();
        // From here on the metadata says so, whatever is left of this life.
        let (from, to) = {
            let slot = &mut self.ledger.borrow_mut().slots[at];
            let from = slot.home;
            slot.home = (from + 1) % self.plan.shards;
            (self.stores[from].clone(), self.stores[slot.home].clone())
        };
        let (open, moving, stopping) = (self.open.clone(), self.moving.clone(), self.stopping.clone());
        let (ledger, tally, filled) = (self.ledger.clone(), self.tally.clone(), self.plan.fills_up);
        let disk = self.disk.clone();
        let (settings, epoch) = (self.plan.settings, self.ledger.borrow().slots[at].epoch(self.depth + 1));
        glommio::spawn_local(async move {
            let stopped = || {
                open.borrow_mut().remove(&at);
                let slot = &mut ledger.borrow_mut().slots[at];
                slot.log_start = slot.log_start.max(partition.with_log(|log| log.log_start().get()));
            };
            let released = from.release(&identity.partition, stopped).await;
            let released = released.expect("nobody else closes it");
            if !released.at_rest {
                tally.borrow_mut().add("partitions that were not at rest", 1);
                disk.inherit_groups(identity.partition);
            }
            let partition = loop {
                // What a stopping store has is in its last checkpoint.
                if stopping.get() {
                    return;
                }
                match to.take_over(identity, settings, epoch, &released).await {
                    Ok(partition) => break partition,
                    Err(error) => assert!(is_no_space(&error), "{error}"),
                }
                tally.borrow_mut().add("partitions that waited for room", 1);
                to.carry(identity.partition, released.checkpoint.clone());
                to.storage.environment.sleep(LOOK_AGAIN).await;
            };
            {
                let (mut ledger, mut tally) = (ledger.borrow_mut(), tally.borrow_mut());
                let slot = &mut ledger.slots[at];
                judge_taken_over(&partition, &released, &to.storage.disk, slot, filled, &mut tally);
            }
            open.borrow_mut().insert(at, partition);
            loop {
                match to.checkpoint_now().await {
                    Ok(true) => break,
                    Ok(false) => return,
                    Err(error) => assert!(is_no_space(&error), "{error}"),
                }
                to.storage.environment.sleep(LOOK_AGAIN).await;
            }
            from.forget_released(&identity);
            moving.borrow_mut().remove(&at);
        })
        .detach();
    }

    /// No partition is served by two stores, nor by one where it is not at home, unless it is about to leave that.
    pub fn check_homes(&self) {
        let ledger = self.ledger.borrow();
        for (at, slot) in ledger.slots.iter().enumerate().filter(|(_, slot)| !slot.deleted) {
            let id = slot.identity.partition;
            let serving: Vec<usize> =
                (0..self.stores.len()).filter(|store| self.stores[*store].partition(&id).is_some()).collect();
            let moves = self.moving.borrow().contains(&at);
            let right = match serving[..] {
                [] => true,
                [store] => moves || store == slot.home,
                _ => false,
            };
            assert!(right, "{id} is at home with store {}, and served by {serving:?}", slot.home);
        }
    }
}
