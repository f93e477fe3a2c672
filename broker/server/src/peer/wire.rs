//! Messages of replication ↔ the structs of a frame.
//!
//! Plain functions, no state. Invariant: numbers that this version does not know are refused, never guessed.

use logic::ids::{
    BrokerEpoch, LeaderEpoch, Offset, OpenSequence, PartitionIndex, ReplicaGeneration, TopicId,
    TopicPartition,
};
use logic::replication::message::{Append, Body, FromFollower, FromLeader, Message, Nack, Opened, Status};
use schema::replication::{self as wire, FrameWriter, Kind, NO_EPOCH, Opening};

/// The kinds of refusals, by their number on the wire, from 1 on.
const NACKS: [Nack; 6] =
    [Nack::Gap, Nack::StaleLeader, Nack::UnknownEpoch, Nack::NotReplica, Nack::StorageFull, Nack::Suspect];

/// Which place a message has among those of its frame.
pub fn kind(message: &Message) -> Kind {
    match &message.body {
        Body::FromLeader(FromLeader::Open { .. }) => Kind::Open,
        Body::FromLeader(FromLeader::Reset { .. }) => Kind::Reset,
        Body::FromLeader(FromLeader::Match { .. }) => Kind::Match,
        Body::FromLeader(FromLeader::Append(_)) => Kind::Append,
        Body::FromLeader(FromLeader::Watermarks { .. }) => Kind::Watermarks,
        Body::FromFollower(FromFollower::Opened(_)) => Kind::Opened,
        Body::FromFollower(FromFollower::Matched { .. }) => Kind::Matched,
        Body::FromFollower(FromFollower::Ack { .. }) => Kind::Acknowledgement,
        Body::FromFollower(FromFollower::Nack(_)) => Kind::Refusal,
    }
}

/// What a message counts for among those of a frame.
pub fn weight(message: &Message) -> usize {
    match &message.body {
        Body::FromFollower(FromFollower::Opened(opened)) => 1 + opened.epochs.len(),
        _ => 1,
    }
}

/// Adds a message to a frame that takes its kind; with an append go `batch_bytes` in the body.
pub fn write(frame: &mut FrameWriter, id: TopicPartition, message: &Message, batch_bytes: usize) {
    let partition = id.partition.get();
    let (epoch, sequence) = (message.leader_epoch.get(), message.open_sequence.get());
    let opening = Opening::of(id.topic.get(), partition, epoch, sequence);
    match &message.body {
        Body::FromLeader(FromLeader::Open { generation, log_start }) => {
            frame.open(wire::Open::new(&opening, log_start.get(), generation.get(), 0));
        }
        Body::FromLeader(FromLeader::Reset { log_start }) => {
            frame.reset(wire::Reset::new(&opening, log_start.get()));
        }
        Body::FromLeader(FromLeader::Match { to, fingerprint }) => {
            let checked = u32::from(fingerprint.is_some());
            frame.match_(wire::Match::new(&opening, to.get(), fingerprint.unwrap_or(0), checked, 0));
        }
        Body::FromLeader(FromLeader::Append(append)) => {
            let previous = append.previous_epoch.map_or(NO_EPOCH, LeaderEpoch::get);
            let length = u32::try_from(batch_bytes).expect("a chunk is bounded");
            let (high_watermark, log_start) = (append.high_watermark.get(), append.log_start.get());
            frame.append(wire::Append::new(
                &opening,
                append.base.get(),
                high_watermark,
                log_start,
                previous,
                length,
            ));
        }
        Body::FromLeader(FromLeader::Watermarks { high_watermark, log_start }) => {
            frame.watermarks(wire::Watermarks::new(&opening, high_watermark.get(), log_start.get()));
        }
        Body::FromFollower(FromFollower::Opened(opened)) => {
            let status = match opened.status {
                Status::Clean => 0,
                Status::Suspect => 1,
            };
            let epochs = opened.epochs.iter();
            let epochs = epochs.map(|(epoch, start)| wire::EpochStart::new(start.get(), epoch.get(), 0));
            let message = wire::Opened::new(
                &opening,
                opened.broker_epoch.get(),
                opened.log_start.get(),
                opened.durable_end.get(),
                opened.generation.get(),
                opened.epochs.len() as u32,
                status,
                0,
            );
            frame.opened(message, epochs);
        }
        Body::FromFollower(FromFollower::Matched { end }) => {
            frame.matched(wire::Matched::new(&opening, end.get()));
        }
        Body::FromFollower(FromFollower::Ack { durable_end }) => {
            frame.acknowledgement(wire::Acknowledgement::new(&opening, durable_end.get()));
        }
        Body::FromFollower(FromFollower::Nack(nack)) => {
            let reason = NACKS.iter().position(|one| one == nack).expect("every kind is listed") + 1;
            frame.refusal(wire::Refusal::new(&opening, reason as u32, 0));
        }
    }
}

/// A received message, and the batches that go with it; `None` if it has a number that means nothing here.
pub fn read(message: wire::Message<'_>) -> Option<(TopicPartition, Message, &[u8])> {
    let mut batches: &[u8] = &[];
    let body = match message {
        wire::Message::Open(open) => Body::FromLeader(FromLeader::Open {
            generation: ReplicaGeneration::new(open.generation()),
            log_start: Offset::new(open.log_start()),
        }),
        wire::Message::Reset(reset) => {
            Body::FromLeader(FromLeader::Reset { log_start: Offset::new(reset.log_start()) })
        }
        wire::Message::Match(one) => {
            let fingerprint = match one.checked() {
                0 => None,
                1 => Some(one.fingerprint()),
                _ => return None,
            };
            Body::FromLeader(FromLeader::Match { to: Offset::new(one.to()), fingerprint })
        }
        wire::Message::Append(append, bytes) => {
            batches = bytes;
            let previous = append.previous_epoch();
            Body::FromLeader(FromLeader::Append(Append {
                base: Offset::new(append.base()),
                previous_epoch: (previous != NO_EPOCH).then(|| LeaderEpoch::new(previous)),
                high_watermark: Offset::new(append.high_watermark()),
                log_start: Offset::new(append.log_start()),
            }))
        }
        wire::Message::Watermarks(one) => Body::FromLeader(FromLeader::Watermarks {
            high_watermark: Offset::new(one.high_watermark()),
            log_start: Offset::new(one.log_start()),
        }),
        wire::Message::Opened(opened, epochs) => {
            let status = match opened.status() {
                0 => Status::Clean,
                1 => Status::Suspect,
                _ => return None,
            };
            Body::FromFollower(FromFollower::Opened(Box::new(Opened {
                broker_epoch: BrokerEpoch::new(opened.broker_epoch()),
                generation: ReplicaGeneration::new(opened.generation()),
                epochs: epochs
                    .iter()
                    .map(|one| (LeaderEpoch::new(one.epoch()), Offset::new(one.start())))
                    .collect(),
                log_start: Offset::new(opened.log_start()),
                durable_end: Offset::new(opened.durable_end()),
                status,
            })))
        }
        wire::Message::Matched(one) => {
            Body::FromFollower(FromFollower::Matched { end: Offset::new(one.end()) })
        }
        wire::Message::Acknowledgement(one) => {
            Body::FromFollower(FromFollower::Ack { durable_end: Offset::new(one.durable_end()) })
        }
        wire::Message::Refusal(one) => {
            let nack = NACKS.get((one.reason() as usize).checked_sub(1)?)?;
            Body::FromFollower(FromFollower::Nack(*nack))
        }
    };
    let opening = message.opening();
    let id = TopicPartition {
        topic: TopicId::new(opening.topic()),
        partition: PartitionIndex::new(opening.partition()),
    };
    let message = Message {
        leader_epoch: LeaderEpoch::new(opening.leader_epoch()),
        open_sequence: OpenSequence::new(opening.number()),
        body,
    };
    Some((id, message, batches))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::frame::{Aligned, PREFIX_BYTES, Prefix};

    fn id() -> TopicPartition {
        TopicPartition { topic: TopicId::new(0xabc << 70 | 5), partition: PartitionIndex::new(3) }
    }

    /// One message of each kind, or two where its values decide how it is written.
    fn messages() -> Vec<Message> {
        let offset = Offset::new;
        let append = |previous_epoch| {
            Body::FromLeader(FromLeader::Append(Append {
                base: offset(7),
                previous_epoch,
                high_watermark: offset(5),
                log_start: offset(2),
            }))
        };
        let opened = |status, epochs| {
            Body::FromFollower(FromFollower::Opened(Box::new(Opened {
                broker_epoch: BrokerEpoch::new(1 << 40),
                generation: ReplicaGeneration::new(2),
                epochs,
                log_start: offset(1),
                durable_end: offset(9),
                status,
            })))
        };
        let (generation, log_start) = (ReplicaGeneration::new(1), offset(4));
        let bodies = [
            Body::FromLeader(FromLeader::Open { generation, log_start }),
            Body::FromLeader(FromLeader::Reset { log_start }),
            Body::FromLeader(FromLeader::Match { to: offset(8), fingerprint: None }),
            Body::FromLeader(FromLeader::Match { to: offset(8), fingerprint: Some(0) }),
            append(None),
            append(Some(LeaderEpoch::new(0))),
            Body::FromLeader(FromLeader::Watermarks { high_watermark: offset(6), log_start }),
            opened(Status::Clean, vec![]),
            opened(Status::Suspect, vec![(LeaderEpoch::new(1), offset(0)), (LeaderEpoch::new(4), offset(3))]),
            Body::FromFollower(FromFollower::Matched { end: offset(3) }),
            Body::FromFollower(FromFollower::Ack { durable_end: offset(u64::MAX) }),
        ];
        let nacks = NACKS.map(|nack| Body::FromFollower(FromFollower::Nack(nack)));
        let (leader_epoch, open_sequence) = (LeaderEpoch::new(6), OpenSequence::new(8));
        let message = |body| Message { leader_epoch, open_sequence, body };
        bodies.into_iter().chain(nacks).map(message).collect()
    }

    #[test]
    fn messages_survive_the_frame() {
        let mut frame = FrameWriter::default();
        let sent = messages();
        let mut body = Vec::new();
        for (at, message) in sent.iter().enumerate() {
            assert!(frame.takes(kind(message)));
            let is_append = kind(message) == Kind::Append;
            let batches = if is_append { vec![at as u8; at] } else { Vec::new() };
            write(&mut frame, id(), message, batches.len());
            body.extend_from_slice(&batches);
        }
        let mut out = Vec::new();
        frame.finish(&mut out);
        let prefix = Prefix::decode(*out.first_chunk().unwrap(), 1 << 20).unwrap();
        let mut aligned = Aligned::default();
        let metadata = aligned.align(&out[PREFIX_BYTES..PREFIX_BYTES + prefix.metadata_bytes]);
        let frame = wire::frame(metadata, body.len(), 100).unwrap();
        let received: Vec<_> = frame.messages(&body).map(|one| read(one).unwrap()).collect();
        assert_eq!(received.len(), sent.len());
        for (at, ((partition, message, batches), expected)) in received.iter().zip(&sent).enumerate() {
            assert_eq!((*partition, message), (id(), expected));
            let is_append = kind(message) == Kind::Append;
            assert_eq!(*batches, if is_append { vec![at as u8; at] } else { Vec::new() });
        }
    }

    #[test]
    fn numbers_of_another_version_are_refused() {
        let opening = Opening::of(1, 2, 3, 4);
        for reason in [0, NACKS.len() as u32 + 1, u32::MAX] {
            assert_eq!(read(wire::Message::Refusal(&wire::Refusal::new(&opening, reason, 0))), None);
        }
        assert_eq!(read(wire::Message::Match(&wire::Match::new(&opening, 1, 1, 2, 0))), None);
    }
}
