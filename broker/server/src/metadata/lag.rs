//! How far groups are behind where other brokers lead: asked of their metadata threads, and answered to them.
//!
//! ```text
//! who looks (a shard, the HTTP thread) → queue → metadata thread ═ other metadata thread → mailboxes → shards that lead
//! ```
//!
//! The metadata thread only carries it: it knows every broker and has a connection to each, and it is on none of the
//! cores that serve data. Lifecycle: a question lives until its deadline, [`LAG_PEER_TIMEOUT_MS`] after it was asked.
//! Invariants: at most [`LAG_QUESTIONS_MAX`] questions are under way, over connections of their own, so that nothing of
//! the metadata waits behind one; what comes back names only places that were asked about; a broker that owes an answer is
//! not asked another question, and holds nobody up but who looked first. Absent on purpose: asking again. What is not known
//! in time is unknown, and who looks says so.

use super::codec::{self, Builder, Malformed};
use super::network::Kind;
use super::peers::{Member, Peers};
use crate::group::lag::{Answer, Behind, Leader, Question, by_leader};
use crate::mailbox::Message;
use async_channel::{Receiver, Sender};
use flatbuffers::{UnionWIPOffset, WIPOffset};
use futures_util::future::join_all;
use logic::ids::{BrokerId, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::limits::{
    LAG_PARTITIONS_MAX, LAG_PEER_TIMEOUT_MS, LAG_QUESTIONS_MAX, LAG_SHARD_TIMEOUT_MS,
    LAG_SILENT_PEER_TIMEOUT_MS,
};
use logic::metadata::reconcile::Here;
use schema::consensus as fb;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// What a broker said.
struct Told {
    answers: Vec<Answer>,
    /// To everything that it was asked.
    whole: bool,
}

/// Asks `peers` what is in the queue, for as long as there is one.
pub(super) async fn ask_others(peers: Arc<Peers>, queue: Receiver<Asked>) {
    let ask = move |broker, places: Vec<Question>, deadline| {
        let peers = peers.clone();
        async move { ask(&peers, broker, &places, deadline).await }
    };
    answer_all(queue, ask).await;
}

/// The same by whatever way.
async fn answer_all<F>(queue: Receiver<Asked>, ask: impl Fn(BrokerId, Vec<Question>, Instant) -> F)
where
    F: Future<Output = Told> + Send + 'static,
{
    let turns = Arc::new(Semaphore::new(LAG_QUESTIONS_MAX));
    let silent: Arc<Silent> = Arc::default();
    while let Ok(turn) = turns.clone().acquire_owned().await
        && let Ok(Asked { broker, places, deadline, answer }) = queue.recv().await
    {
        let Some(patience) = silent.begin(broker) else {
            // Nobody waits any more if this fails.
            let _ = answer.try_send(Vec::new());
            continue;
        };
        let in_time = deadline.min(Instant::now() + patience);
        let (asking, silent) = (ask(broker, places, deadline), silent.clone());
        tokio::spawn(async move {
            let mut asking = Box::pin(asking);
            let told = tokio::time::timeout_at(in_time.into(), &mut asking).await;
            if let Ok(told) = &told {
                silent.end(broker, told.whole);
            } else {
                silent.late(broker);
            }
            let late = told.is_err();
            let _ = answer.try_send(told.map(|told| told.answers).unwrap_or_default());
            drop(answer);
            if late {
                // So that the next question is waited for, if it answers after all.
                silent.end(broker, asking.await.whole);
            }
            drop(turn);
        });
    }
}

/// Brokers that did not answer the last question in time, and whether another one is under way to them.
#[derive(Default)]
struct Silent(Mutex<BTreeMap<BrokerId, bool>>);

impl Silent {
    fn brokers(&self) -> MutexGuard<'_, BTreeMap<BrokerId, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the answer of `broker` is waited for; `None` = it is not asked: it owes one.
    fn begin(&self, broker: BrokerId) -> Option<Duration> {
        match self.brokers().get_mut(&broker) {
            None => Some(Duration::from_millis(LAG_PEER_TIMEOUT_MS)),
            Some(true) => None,
            Some(under_way) => {
                *under_way = true;
                Some(Duration::from_millis(LAG_SILENT_PEER_TIMEOUT_MS))
            }
        }
    }

    /// It has not answered by the time that it had.
    fn late(&self, broker: BrokerId) {
        self.brokers().insert(broker, true);
    }

    fn end(&self, broker: BrokerId, answered: bool) {
        match answered {
            true => self.brokers().remove(&broker),
            false => self.brokers().insert(broker, false),
        };
    }
}

async fn ask(peers: &Peers, broker: BrokerId, places: &[Question], deadline: Instant) -> Told {
    let link = peers.link(u64::from(broker.get()), Kind::Lag);
    let mut told = Told { answers: Vec::with_capacity(places.len()), whole: true };
    for places in places.chunks(LAG_PARTITIONS_MAX) {
        let answered = match link.call_by(peers, deadline, |b| question(b, places)).await {
            Ok(bytes) => distances(&bytes, places).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match answered {
            Ok(answered) => told.answers.extend(answered),
            Err(error) => {
                tracing::debug!("broker {broker} does not say how far groups are behind: {error}");
                told.whole = false;
                break;
            }
        }
    }
    told
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

    #[test]
    fn who_did_not_answer_is_waited_for_a_moment() {
        let (silent, broker) = (Silent::default(), BrokerId::new(2));
        let ms = |patience: Option<Duration>| patience.map(|patience| patience.as_millis() as u64);
        let (whole, moment) = (Some(LAG_PEER_TIMEOUT_MS), Some(LAG_SILENT_PEER_TIMEOUT_MS));
        assert_eq!([ms(silent.begin(broker)), ms(silent.begin(broker))], [whole, whole]);
        silent.late(broker);
        assert_eq!(ms(silent.begin(broker)), None, "it owes an answer");
        silent.end(broker, false);
        assert_eq!([ms(silent.begin(broker)), ms(silent.begin(broker))], [moment, None]);
        assert_eq!(ms(silent.begin(BrokerId::new(3))), whole);
        silent.end(broker, true);
        assert_eq!(ms(silent.begin(broker)), whole);
        // Nobody listens there.
        silent.end(broker, false);
        assert_eq!(ms(silent.begin(broker)), moment);
    }

    /// A broker that does not answer the first question, nor the next in time: whoever looks then is told so without another
    /// question, and once it has answered it is waited for again.
    #[tokio::test]
    async fn a_broker_that_owes_an_answer_is_not_asked_again() {
        let (queue, asked) = async_channel::bounded(8);
        let (owed, owes) = async_channel::unbounded();
        let answers = vec![(place(0, None), Behind { records: 7, ms: None })];
        let told = move |_, _, _| {
            let (answer, answered) = async_channel::bounded::<bool>(1);
            owed.try_send(answer).unwrap();
            let answers = answers.clone();
            async move {
                let whole = answered.recv().await.unwrap_or_default();
                Told { answers: if whole { answers } else { Vec::new() }, whole }
            }
        };
        tokio::spawn(answer_all(asked, told));
        let look = || measure(&queue, BrokerId::new(2), vec![place(0, None)]);
        assert_eq!(look().await, []);
        let mut owing = owes.recv().await.unwrap();
        for answers in [false, true] {
            for _ in 0..3 {
                assert_eq!(look().await, []);
            }
            assert!(owes.is_empty(), "it is asked again");
            // The first ends without an answer, the second is answered, too late for who asked.
            owing.try_send(answers).unwrap();
            if !answers {
                while owes.is_empty() {
                    assert_eq!(look().await, []);
                }
                owing = owes.recv().await.unwrap();
            }
        }
        tokio::spawn(async move {
            while let Ok(asked) = owes.recv().await {
                let _ = asked.try_send(true);
            }
        });
        // Not as long as the end of the second has not been noticed.
        while look().await.is_empty() {}
        assert_eq!(look().await.len(), 1);
    }

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
