//! The rules of what may leave when, without a runtime: time is a number here.
//!
//! A script of steps runs against one accumulator of one lane; what leaves is written as text, one
//! request after the other: the record counts of its batches by partition.

use super::*;
use crate::reply::PartitionPlace;

const HOME: Home = Home { broker: 1, shard: 0 };

enum Step {
    /// Append a record of about this many bytes to a partition.
    Append(u32, usize),
    /// Time passes, milliseconds.
    Pass(u64),
    /// What leaves now.
    Leaves(&'static str),
    /// The oldest request comes back: acknowledged.
    Acknowledge,
    /// The newest request comes back before the others: acknowledged.
    AcknowledgeNewest,
    /// The oldest request comes back: to be tried again after milliseconds.
    Retry(u64),
    /// The oldest request comes back: without a word.
    Lost,
    /// The oldest request comes back: there is a gap before it.
    Gap,
    /// The oldest request comes back: it will not do.
    Refuse,
    /// The producer's id and epoch come.
    Identified(i64, i16),
    /// Somebody waits for memory.
    Pressed(&'static str),
    Flush,
    Expire,
    /// How many batches are not settled.
    Unsettled(usize),
}

use Step::{
    Acknowledge, AcknowledgeNewest, Append, Expire, Flush, Gap, Identified, Leaves, Lost, Pass, Pressed,
    Refuse, Retry, Unsettled,
};

fn check(config: ProducerConfig, steps: &[Step]) {
    let start = Instant::now();
    let mut now = start;
    let mut accumulator = Accumulator::new(&config, Duration::from_secs(1));
    let place = |partition| PartitionPlace { partition, leader: Some(1), shard: 0, leader_epoch: 0 };
    let topic = Topic {
        name: "t".into(),
        id: TopicId(1),
        places: (0..4).map(place).collect(),
        compacted: false,
        learnt_at: now,
    };
    let index = accumulator.learn(Arc::new(topic), now);
    accumulator.opened(HOME, 1 << 20);
    let budget = Arc::new(Semaphore::new(0));
    let mut flying: VecDeque<Flight> = VecDeque::new();
    let drain = |accumulator: &mut Accumulator, now, pressed, flying: &mut VecDeque<Flight>| {
        let mut work = Vec::new();
        accumulator.drain(now, pressed, &mut work);
        let mut text = Vec::new();
        for item in work {
            let mut flight = match item {
                Work::Send(flight) => flight,
                Work::Identify => {
                    text.push("who".to_owned());
                    continue;
                }
                _ => continue,
            };
            let batch = |(batch, ..): &mut (Batch, TopicId, u32)| {
                let stamp = batch.stamp.map_or(String::new(), |stamp| {
                    format!("@{}.{}.{}", stamp.id, stamp.epoch, stamp.base_sequence)
                });
                let header = record_batch::verify(&batch.encoded(Compression::None)).unwrap();
                let told = (header.producer_id, header.producer_epoch, header.base_sequence);
                let expect = batch.stamp.unwrap_or(Stamp::NONE);
                assert_eq!(told, (expect.id, expect.epoch, expect.base_sequence));
                format!("{}:{}{stamp}", batch.route.partition, batch.record_count)
            };
            text.push(flight.cargo.iter_mut().map(batch).collect::<Vec<_>>().join(" "));
            flying.push_back(flight);
        }
        text.join(" | ")
    };
    for (at, step) in steps.iter().enumerate() {
        match step {
            Append(partition, bytes) => {
                let value = vec![0; *bytes];
                let parts = RecordParts {
                    timestamp_ms: 0,
                    key: None,
                    value: Some(&value),
                    headers: &[],
                    bytes_max: *bytes,
                };
                let memory = Reservation::new(*bytes, budget.clone());
                accumulator.append(index, Some(*partition), &parts, memory, now).unwrap();
            }
            Pass(ms) => now += Duration::from_millis(*ms),
            Leaves(expect) => {
                assert_eq!(drain(&mut accumulator, now, false, &mut flying), *expect, "step {at}");
            }
            Pressed(expect) => {
                assert_eq!(drain(&mut accumulator, now, true, &mut flying), *expect, "step {at}");
            }
            Identified(id, epoch) => accumulator.identified(*id, *epoch),
            Acknowledge | AcknowledgeNewest | Retry(_) | Lost | Gap | Refuse => {
                let newest = matches!(step, AcknowledgeNewest);
                let flight = if newest { flying.pop_back() } else { flying.pop_front() }.unwrap();
                accumulator.landed(HOME, Duration::ZERO, now);
                for (batch, ..) in flight.cargo {
                    let verdict = match step {
                        Retry(ms) => Verdict::Retry {
                            wait: Duration::from_millis(*ms),
                            refresh: false,
                            outcome_unknown: false,
                            reason: "told to".into(),
                        },
                        Lost => Verdict::Retry {
                            wait: Duration::ZERO,
                            refresh: false,
                            outcome_unknown: true,
                            reason: "lost".into(),
                        },
                        Gap => Verdict::OutOfSequence { reason: "a gap".into() },
                        Refuse => Verdict::Failed(ProduceError::UnexpectedReply),
                        _ => Verdict::Acknowledged(BatchReceipt {
                            partition: batch.route.partition,
                            base_offset: 0,
                            record_count: batch.record_count,
                            durability: crate::reply::Durability::LeaderDevice,
                            durable_end: 0,
                            append_time_ms: 0,
                            duplicate: false,
                            anatomy: None,
                        }),
                    };
                    accumulator.settle(batch, verdict, Duration::ZERO, now);
                }
            }
            Flush => drop(accumulator.flush()),
            Expire => accumulator.expire(now),
            Unsettled(expect) => assert_eq!(accumulator.unsettled, *expect, "step {at}"),
        }
    }
}

fn config() -> ProducerConfig {
    ProducerConfig {
        batch_size: 1000,
        max_in_flight_requests_per_connection: 5,
        delivery_timeout: Duration::from_millis(500),
        enable_idempotence: false,
        ..ProducerConfig::default()
    }
}

fn idempotent() -> ProducerConfig {
    ProducerConfig { enable_idempotence: true, ..config() }
}

#[test]
fn sequences_follow_the_order_of_leaving() {
    check(
        idempotent(),
        &[
            Append(0, 900),
            Append(0, 900),
            Append(1, 10),
            Append(1, 10),
            // The id is asked for once; nothing leaves before it is there.
            Leaves("who"),
            Leaves(""),
            Identified(5, 0),
            Leaves("0:1@5.0.0 1:2@5.0.0 | 0:1@5.0.1"),
            Acknowledge,
            Acknowledge,
            Append(1, 10),
            Leaves("1:1@5.0.2"),
        ],
    );
    check(ProducerConfig { acks: Acks::None, ..idempotent() }, &[Append(0, 10), Leaves("0:1")]);
}

#[test]
fn five_of_a_partition_are_out() {
    let wide = ProducerConfig { max_in_flight_requests_per_connection: 20, ..idempotent() };
    let mut steps = vec![Append(0, 1), Leaves("who"), Identified(1, 0), Leaves("0:1@1.0.0"), Acknowledge];
    steps.extend((0..7).map(|_| Append(0, 900)));
    steps.extend([
        Leaves("0:1@1.0.1 | 0:1@1.0.2 | 0:1@1.0.3 | 0:1@1.0.4 | 0:1@1.0.5"),
        Acknowledge,
        Leaves("0:1@1.0.6"),
        Unsettled(6),
    ]);
    check(wide, &steps);
}

/// Found by the demo with three brokers: a request waited for another partition's batch, while many of its own partition
/// were acknowledged; when its broker was killed and it was sent again, the next leader did not remember it any more.
#[test]
fn none_leaves_far_behind_one_that_is_not_answered() {
    let mut steps = vec![Append(0, 900)];
    steps.extend([Leaves("who"), Identified(7, 0), Leaves("0:1@7.0.0")]);
    for leaves in ["0:1@7.0.1", "0:1@7.0.2", "0:1@7.0.3", "0:1@7.0.4"] {
        steps.extend([Append(0, 900), Leaves(leaves), AcknowledgeNewest]);
    }
    // One is out, and the sixth from it on would push it out of what the broker remembers.
    steps.extend([Append(0, 900), Leaves(""), Append(1, 900), Leaves("1:1@7.0.0"), AcknowledgeNewest]);
    steps.extend([Lost, Leaves("0:1@7.0.0"), Leaves("")]);
    steps.extend([Acknowledge, Leaves("0:1@7.0.5"), Unsettled(1)]);
    check(idempotent(), &steps);
}

/// Three batches are out, with sequences 0, 1, 2 of epoch 0.
fn three_out() -> Vec<Step> {
    vec![
        Append(0, 900),
        Append(0, 900),
        Append(0, 900),
        Leaves("who"),
        Identified(1, 0),
        Leaves("0:1@1.0.0 | 0:1@1.0.1 | 0:1@1.0.2"),
    ]
}

#[test]
fn what_is_sent_again_keeps_its_sequence() {
    let mut steps = three_out();
    steps.extend([
        Lost,
        Lost,
        Acknowledge,
        Leaves("0:1@1.0.0"),
        Acknowledge,
        Leaves("0:1@1.0.1"),
        Acknowledge,
        Append(0, 1),
        Leaves("0:1@1.0.3"),
    ]);
    check(idempotent(), &steps);
}

#[test]
fn behind_a_gap_all_begin_again_under_the_next_epoch() {
    let mut steps = three_out();
    steps.extend([
        // Of the first nothing is known; the second is certainly not there, and so the third is not.
        Lost,
        Gap,
        Append(0, 1),
        Leaves(""),
        Lost,
        Leaves("0:1@1.0.0"),
        Gap,
        Leaves("0:1@1.1.0"),
        Acknowledge,
        Leaves("0:1@1.1.1"),
        Acknowledge,
        Leaves("0:1@1.1.2"),
        Acknowledge,
        Leaves("0:1@1.1.3"),
        Acknowledge,
        Unsettled(0),
    ]);
    check(idempotent(), &steps);
}

#[test]
fn what_is_given_up_ends_its_epoch_but_not_what_may_be_there() {
    let mut steps = three_out();
    steps.extend([
        Refuse,
        // Perhaps there: asked for under its old sequence, and only then sent again under a new one.
        Lost,
        Acknowledge,
        Append(0, 1),
        Leaves("0:1@1.0.1"),
        Gap,
        Leaves("0:1@1.1.0"),
        Acknowledge,
        Leaves("0:1@1.1.1"),
        // Its time is up, nobody knows what became of it.
        Lost,
        Pass(500),
        Expire,
        Unsettled(0),
        Append(0, 1),
        Leaves("0:1@1.2.0"),
    ]);
    check(idempotent(), &steps);
}

#[test]
fn the_last_epoch_of_an_id_is_followed_by_another_id() {
    check(
        idempotent(),
        &[
            Append(0, 10),
            Leaves("who"),
            Identified(1, i16::MAX),
            Leaves("0:1@1.32767.0"),
            Refuse,
            Append(0, 10),
            Append(1, 10),
            // The other partition has no use for another id.
            Leaves("1:1@1.32767.0 | who"),
            Identified(2, 0),
            Leaves("0:1@2.0.0"),
            Acknowledge,
            Acknowledge,
            Append(1, 10),
            Leaves("1:1@1.32767.1"),
        ],
    );
}

#[test]
fn adaptive_linger_grows_with_what_is_in_flight() {
    check(
        config(),
        &[
            Append(0, 10),
            Leaves("0:1"),
            // One in flight: a fifth of a batch must be there.
            Append(0, 10),
            Leaves(""),
            Append(0, 150),
            Leaves("0:2"),
            // Two in flight: two fifths.
            Append(0, 200),
            Leaves(""),
            Append(0, 200),
            Leaves("0:2"),
            // Another partition is idle.
            Append(1, 10),
            Leaves("1:1"),
            // All back: anything goes.
            Append(0, 1),
            Leaves(""),
            Acknowledge,
            Acknowledge,
            Acknowledge,
            Leaves("0:1"),
            Unsettled(2),
        ],
    );
}

#[test]
fn requests_take_one_batch_per_partition_up_to_the_bound() {
    let mut steps = Vec::new();
    steps.extend((0..8).map(|_| Append(0, 900)));
    steps.push(Append(2, 900));
    // Two 900 do not fit one batch of 1000. Five requests, then it waits.
    steps.push(Leaves("0:1 2:1 | 0:1 | 0:1 | 0:1 | 0:1"));
    steps.extend([Acknowledge, Leaves("0:1"), Acknowledge, Acknowledge, Acknowledge, Acknowledge]);
    steps.extend([Leaves("0:1 | 0:1"), Unsettled(3)]);
    check(config(), &steps);
}

#[test]
fn fixed_linger_waits_unless_pressed_flushed_or_full() {
    let lingering = || ProducerConfig { linger: Linger::Fixed(Duration::from_millis(10)), ..config() };
    check(
        lingering(),
        &[Append(0, 1), Leaves(""), Pass(9), Append(0, 1), Leaves(""), Pass(1), Leaves("0:2")],
    );
    check(lingering(), &[Append(0, 1), Leaves(""), Pressed("0:1")]);
    check(lingering(), &[Append(0, 1), Append(3, 1), Flush, Leaves("0:1 3:1")]);
    check(lingering(), &[Append(0, 900), Append(0, 900), Leaves("0:1"), Pass(10), Leaves("0:1")]);
}

#[test]
fn a_failed_batch_goes_again_alone_and_first() {
    check(
        config(),
        &[
            Append(0, 900),
            Append(0, 800),
            Append(0, 800),
            Append(1, 5),
            Leaves("0:1 1:1 | 0:1 | 0:1"),
            // The first fails. The others are still out: nothing of the partition may leave.
            Retry(20),
            Append(0, 3),
            Pass(30),
            Leaves("1:1"),
            Acknowledge,
            Leaves(""),
            // The third fails as well, later: both wait for the later of the two times, in their order.
            Retry(20),
            Leaves(""),
            Acknowledge,
            Pass(20),
            Leaves("0:1"),
            Leaves(""),
            Acknowledge,
            Leaves("0:1"),
            Leaves(""),
            Acknowledge,
            Leaves("0:1"),
            Acknowledge,
            Unsettled(0),
        ],
    );
}

/// Found by the simulation of producers: a look at the deadlines let others leave beside what is sent again.
#[test]
fn deadlines_do_not_end_a_recovery() {
    check(
        config(),
        &[
            Append(0, 900),
            Append(0, 900),
            Leaves("0:1 | 0:1"),
            Retry(0),
            Acknowledge,
            Append(0, 900),
            Leaves("0:1"),
            Expire,
            Leaves(""),
            Acknowledge,
            Leaves("0:1"),
        ],
    );
}

#[test]
fn what_waits_too_long_is_given_up() {
    check(
        config(),
        &[
            Append(0, 10),
            Leaves("0:1"),
            Retry(10_000),
            Append(0, 10),
            Pass(400),
            Expire,
            Unsettled(2),
            Pass(100),
            Append(0, 10),
            Expire,
            // The open batch is as old as its first record.
            Unsettled(0),
            Append(0, 10),
            Unsettled(1),
        ],
    );
}
