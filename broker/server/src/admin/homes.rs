//! Moves of partitions to other cores of this broker, one after the other, each with how long it took nothing.
//!
//! Only the broker that has the replica is asked, because only it knows when its shards have done it. What moving is:
//! [`crate::homes`].

use super::{Reply, ask, submit};
use crate::homes::{self, Arrived};
use crate::mailbox::Message;
use crate::shard::Shard;
use logic::ids::{PartitionIndex, ShardId, TopicPartition};
use logic::metadata::Command;
use schema::error_code::ErrorCode;
use schema::wire;
use std::rc::Rc;
use std::time::Duration;

/// Moves in one request: each takes its time.
const MOVES_MAX: usize = 100;

/// A partition that is to move.
pub struct Asked {
    topic: String,
    partition: u32,
    shard: u32,
}

/// What became of it: the shard that had it, and for how long it took nothing.
type Moved = Result<(ShardId, Duration), (ErrorCode, String)>;

/// The moves of a request; one more than may be asked for if there are too many.
pub fn parse(request: &wire::MoveHomesRequest<'_>) -> Vec<Asked> {
    let moves = request.moves().into_iter().flatten().take(MOVES_MAX + 1);
    let asked = moves.map(|one| Asked {
        topic: one.topic().unwrap_or("").to_owned(),
        partition: one.partition(),
        shard: one.shard(),
    });
    asked.collect()
}

impl Reply {
    pub(super) async fn move_homes(&self, shard: &Rc<Shard>, moves: Vec<Asked>) {
        if moves.len() > MOVES_MAX {
            let text = format!("more than {MOVES_MAX} moves in one request");
            return self.refuse(ErrorCode::InvalidRequest, &text);
        }
        let mut moved = Vec::with_capacity(moves.len());
        for asked in &moves {
            moved.push(move_home(shard, asked).await);
        }
        self.send(wire::ResponseApi::MoveHomesResponse, |builder| {
            let moved: Vec<_> = moves
                .iter()
                .zip(&moved)
                .map(|(asked, moved)| {
                    let (from, pause) = moved.as_ref().map_or_else(|_| Default::default(), |moved| *moved);
                    let refused = moved.as_ref().err();
                    let args = wire::HomeMovedArgs {
                        topic: Some(builder.create_string(&asked.topic)),
                        partition: asked.partition,
                        error: refused.map_or(0, |(code, _)| code.to_wire()),
                        message: refused.map(|(_, text)| builder.create_string(text)),
                        from: u32::from(from.get()),
                        pause_us: pause.as_micros() as u64,
                    };
                    wire::HomeMoved::create(builder, &args)
                })
                .collect();
            let moved = Some(builder.create_vector(&moved));
            wire::MoveHomesResponse::create(builder, &wire::MoveHomesResponseArgs { moved }).as_union_value()
        });
    }
}

async fn move_home(shard: &Rc<Shard>, asked: &Asked) -> Moved {
    let (broker, shards) = (shard.identity.broker, shard.identity.shards);
    let Asked { topic: name, partition, .. } = asked;
    let image = shard.metadata.image();
    let Some(topic) = image.topic_by_name(name) else {
        let text = format!("there is no topic {name:?}; see ringlog topic list");
        return Err((ErrorCode::UnknownTopic, text));
    };
    let Some(entry) = topic.partitions.get(*partition as usize) else {
        return Err((ErrorCode::UnknownPartition, format!("topic {name} has no partition {partition}")));
    };
    if !entry.is_replica(broker) {
        let text = format!("broker {broker} has no replica of topic {name} partition {partition}");
        return Err((ErrorCode::InvalidReplicaAssignment, text));
    }
    let to =
        u16::try_from(asked.shard).ok().filter(|to| *to < shards).map(ShardId::new).ok_or_else(|| {
            let text =
                format!("broker {broker} has {shards} cores, counted from 0: it has no core {}", asked.shard);
            (ErrorCode::InvalidRequest, text)
        })?;
    let id = TopicPartition { topic: topic.id, partition: PartitionIndex::new(*partition) };
    if image.home_here(shard.identity.here(), id) == to {
        return Ok((to, Duration::ZERO));
    }
    if shard.store.storage.is_full() {
        // What waits for room could not be brought to the device before another core has the log.
        let text = "the disk is full: nothing moves until there is room".to_owned();
        return Err((ErrorCode::StorageFull, text));
    }
    let command = Command::MoveHome { partition: id, broker, shard: to };
    let submitted = submit(shard, command).await;
    submitted.map_err(|error| (error.error_code(), error.in_words(&image)))?;
    let arrived = match to == shard.identity.shard {
        true => homes::arrival(shard, &id),
        false => ask(shard, to, |reply| Message::Arrival(id, reply)).await.unwrap_or(Arrived::Not),
    };
    match arrived {
        Arrived::Here(arrival) => Ok((arrival.from, arrival.pause)),
        Arrived::NoRoom => {
            let text = format!(
                "the disk is full: topic {name} partition {partition} has moved to core {to}, which has no room to \
                 open it, and serves it as soon as there is room"
            );
            Err((ErrorCode::StorageFull, text))
        }
        Arrived::Not => {
            let text = format!("topic {name} partition {partition} has been moved again meanwhile");
            Err((ErrorCode::LeaderNotAvailable, text))
        }
    }
}
