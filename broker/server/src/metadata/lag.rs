//! How far groups are behind where other brokers lead: asked of their metadata threads, and answered to them.
//!
//! ```text
//! who looks (a shard, the HTTP thread) → queue → metadata thread ═ other metadata thread → mailboxes → shards that lead
//! ```
//!
//! The metadata thread only carries it: it knows every broker and has a connection to each, and it is on none of the
//! cores that serve data. Lifecycle: a question lives until its deadline, [`LAG_PEER_TIMEOUT_MS`] after it was asked.
//! Invariants: at most [`LAG_QUESTIONS_MAX`] questions are under way, over connections of their own, so that nothing of
//! the metadata waits behind one; what comes back names only places that were asked about. Absent on purpose: asking
//! again. What is not known in time is unknown, and who looks says so.

use super::codec::{self, Builder, Malformed};
use super::network::Kind;
use super::peers::{Member, Peers};
use crate::group::lag::{Answer, Behind, Leader, Question, by_leader};
use crate::mailbox::Message;
use async_channel::{Receiver, Sender};
use flatbuffers::{UnionWIPOffset, WIPOffset};
use futures_util::future::join_all;
use logic::ids::{BrokerId, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::limits::{LAG_PARTITIONS_MAX, LAG_PEER_TIMEOUT_MS, LAG_QUESTIONS_MAX, LAG_SHARD_TIMEOUT_MS};
use logic::metadata::reconcile::Here;
use schema::consensus as fb;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A question on its way to another broker.
pub(super) struct Asked {
    /// Who leads the partitions.
    broker: BrokerId,
    places: Vec<Question>,
    deadline: Instant,
    answer: Sender<Vec<Answer>>,
}

/// The way to the thread that asks.
pub(super) type Queue = Sender<Asked>;

/// Has `broker` asked about `places` in partitions that it leads; what it does not say in time is not there. Works on any
/// executor.
pub(super) async fn measure(queue: &Queue, broker: BrokerId, places: Vec<Question>) -> Vec<Answer> {
    let (answer, reply) = async_channel::bounded(1);
    let deadline = Instant::now() + Duration::from_millis(LAG_PEER_TIMEOUT_MS);
    // A thread that has stopped asks nobody.
    let asked = Asked { broker, places, deadline, answer };
    if queue.send(asked).await.is_err() {
        return Vec::new();
    }
    reply.recv().await.unwrap_or_default()
}

/// Asks what is in the queue, for as long as there is one.
pub(super) async fn ask_others(peers: Arc<Peers>, queue: Receiver<Asked>) {
    let turns = Arc::new(Semaphore::new(LAG_QUESTIONS_MAX));
    while let Ok(turn) = turns.clone().acquire_owned().await
        && let Ok(asked) = queue.recv().await
    {
        let peers = peers.clone();
        tokio::spawn(async move {
            // Nobody waits any more if this fails.
            let _ = asked.answer.try_send(ask(&peers, asked.broker, &asked.places, asked.deadline).await);
            drop(turn);
        });
    }
}

async fn ask(peers: &Peers, broker: BrokerId, places: &[Question], deadline: Instant) -> Vec<Answer> {
    let link = peers.link(u64::from(broker.get()), Kind::Lag);
    let mut answers = Vec::with_capacity(places.len());
    for places in places.chunks(LAG_PARTITIONS_MAX).take_while(|_| Instant::now() < deadline) {
        let answered = match link.call_by(peers, deadline, |b| question(b, places)).await {
            Ok(bytes) => distances(&bytes, places).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match answered {
            Ok(answered) => answers.extend(answered),
            Err(error) => {
                tracing::debug!("broker {broker} does not say how far groups are behind: {error}");
                break;
            }
        }
    }
    answers
}

fn question(b: &mut Builder, places: &[Question]) -> (fb::Ask, WIPOffset<UnionWIPOffset>) {
    let place = |(id, offset): &Question| {
        let topic = id.topic.get();
        let (high, low) = ((topic >> 64) as u64, topic as u64);
        fb::Place::new(high, low, offset.unwrap_or(0), id.partition.get(), offset.is_some())
    };
    let places: Vec<fb::Place> = places.iter().map(place).collect();
    let places = Some(b.create_vector(&places));
    (fb::Ask::MeasureLag, fb::MeasureLag::create(b, &fb::MeasureLagArgs { places }).as_union_value())
}

/// What was asked about `places`.
fn distances(bytes: &[u8], places: &[Question]) -> Result<Vec<Answer>, Malformed> {
    codec::read_response(bytes, |response| {
        let Some(measured) = response.answer_as_lag_measured() else {
            let refused = response.answer_as_refused().map(|refused| refused.message().to_owned());
            return Err(Malformed(refused.unwrap_or_else(|| "it answers something else".to_owned())));
        };
        let answer = |distance: &fb::Distance| {
            let question = *places.get(distance.place() as usize)?;
            let ms = distance.time_known().then(|| distance.ms());
            Some((question, Behind { records: distance.records(), ms }))
        };
        Ok(measured.distances().iter().filter_map(answer).collect())
    })
}

/// The places of a request.
pub(super) fn places_of(ask: &fb::MeasureLag<'_>) -> Result<Vec<Question>, Malformed> {
    let places = ask.places();
    if places.len() > LAG_PARTITIONS_MAX {
        return Err(Malformed(format!("{} places are asked about at once", places.len())));
    }
    let question = |place: &fb::Place| {
        let topic = TopicId::new(u128::from(place.topic_high()) << 64 | u128::from(place.topic_low()));
        let id = TopicPartition { topic, partition: PartitionIndex::new(place.partition()) };
        (id, place.committed().then(|| place.offset()))
    };
    Ok(places.iter().map(question).collect())
}

/// How far `places` are from their ends, of those in partitions that this broker leads; by the place's position.
pub(super) async fn measured(member: &Member, places: Vec<Question>) -> Vec<fb::Distance> {
    let here = Here { broker: member.peers.me(), shard: ShardId::new(0), shards: member.mailboxes.shards() };
    let at: HashMap<Question, u32> = places.iter().copied().zip(0..).collect();
    let limit = Duration::from_millis(LAG_SHARD_TIMEOUT_MS);
    let asked = by_leader(places, &member.peers.image(), here).into_iter();
    let answers = asked.map(|(leader, asked)| async move {
        // Who asks has another image than this broker, and asks anew when it has caught up.
        let Leader::Shard(shard) = leader else { return None };
        let answer = member.mailboxes.ask(shard, |reply| Message::Lag(asked, reply));
        tokio::time::timeout(limit, answer).await.ok().flatten()
    });
    let answers = join_all(answers).await.into_iter().flatten().flatten();
    let distance = |(question, behind): Answer| {
        let place = *at.get(&question)?;
        Some(fb::Distance::new(place, behind.ms.is_some(), behind.records, behind.ms.unwrap_or(0)))
    };
    answers.filter_map(distance).collect()
}

/// The answer to a request.
pub(super) fn answer(b: &mut Builder, distances: &[fb::Distance]) -> (fb::Answer, WIPOffset<UnionWIPOffset>) {
    let distances = Some(b.create_vector(distances));
    let measured = fb::LagMeasured::create(b, &fb::LagMeasuredArgs { distances });
    (fb::Answer::LagMeasured, measured.as_union_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: u32, offset: Option<u64>) -> Question {
        let id =
            TopicPartition { topic: TopicId::new(u128::MAX - 7), partition: PartitionIndex::new(number) };
        (id, offset)
    }

    /// The metadata of a frame.
    fn metadata(frame: &[u8]) -> Vec<u8> {
        let prefix = schema::frame::Prefix::decode(frame[..8].try_into().unwrap(), frame.len()).unwrap();
        frame[8..][..prefix.metadata_bytes].to_vec()
    }

    #[test]
    fn a_question_and_its_answer_come_as_they_went() {
        let places = [place(0, None), place(1, Some(0)), place(1, Some(u64::MAX)), place(u32::MAX, Some(7))];
        let request = metadata(&codec::request(3, |b| question(b, &places)));
        let read = codec::read_request(&request, |request| {
            places_of(&request.ask_as_measure_lag().expect("that is what was asked"))
        });
        assert_eq!(read, Ok(places.to_vec()));
        let told = [
            fb::Distance::new(3, true, 9, 0),
            fb::Distance::new(0, false, 8, 0),
            // Nobody asked about it.
            fb::Distance::new(4, true, 1, 1),
        ];
        let response = metadata(&codec::response(3, |b| answer(b, &told)));
        let behind = |records, ms| Behind { records, ms };
        let expect = vec![(places[3], behind(9, Some(0))), (places[0], behind(8, None))];
        assert_eq!(distances(&response, &places), Ok(expect));
    }

    #[test]
    fn more_places_than_a_question_may_have_are_refused() {
        for (count, taken) in [(LAG_PARTITIONS_MAX, true), (LAG_PARTITIONS_MAX + 1, false)] {
            let places: Vec<Question> = (0..count as u32).map(|number| place(number, Some(1))).collect();
            let request = metadata(&codec::request(3, |b| question(b, &places)));
            let read = codec::read_request(&request, |request| {
                places_of(&request.ask_as_measure_lag().expect("that is what was asked"))
            });
            assert_eq!(read.is_ok(), taken, "{count}");
        }
    }
}
