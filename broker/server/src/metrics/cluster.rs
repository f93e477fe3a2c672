//! Metrics of the cluster, from this broker's image of it.
//!
//! What is counted of partitions counts those that this broker leads, so that sums over brokers count each once; who
//! has no leader is counted by everybody.

use super::Text;
use crate::metadata::Quorum;
use logic::ids::BrokerId;
use logic::metadata::{Broker, Image, Partition};

/// How many partitions a broker leads, and which troubles they have.
#[derive(Debug, Default, PartialEq, Eq)]
struct Led {
    all: u64,
    under_replicated: u64,
    below_minimum: u64,
    moving: u64,
    not_preferred: u64,
    leaderless: u64,
}

impl Led {
    fn by(image: &Image, broker: BrokerId) -> Self {
        let mut led = Self::default();
        for topic in image.topics() {
            for partition in topic.partitions.iter() {
                led.leaderless += u64::from(partition.leader.is_none());
                if partition.leader == Some(broker) {
                    led.count(partition, partition.min_in_sync(&topic.config));
                }
            }
        }
        led
    }

    fn count(&mut self, partition: &Partition, min_in_sync: usize) {
        self.all += 1;
        self.under_replicated += u64::from(partition.is_under_replicated());
        self.below_minimum += u64::from(partition.in_sync.len() < min_in_sync);
        self.moving += u64::from(partition.is_reassigned());
        self.not_preferred += u64::from(partition.leader != partition.preferred_leader());
    }
}

/// Whether a broker is so.
type Is = fn(&Broker) -> bool;

/// Where the group stands that keeps the metadata. Whoever leads it is known where that is heard: `is_current`.
pub(super) fn quorum(out: &mut Text, quorum: &Quorum, broker: BrokerId, is_current: bool) {
    let figures = [
        (
            "ringlog_metadata_leader_known",
            "1: this broker hears from who leads the metadata.",
            u64::from(quorum.leader.is_some() && is_current),
        ),
        ("ringlog_metadata_leads", "1: this broker leads the metadata.", {
            u64::from(quorum.leader == Some(broker))
        }),
        ("ringlog_metadata_term", "How often a leader of the metadata was elected.", quorum.term),
        ("ringlog_metadata_voters", "Brokers that vote on the metadata.", quorum.voters.len() as u64),
        (
            "ringlog_metadata_observers",
            "Brokers that follow the metadata without a vote.",
            quorum.observers.len() as u64,
        ),
        ("ringlog_metadata_log_end", "Entries of the metadata's log that this broker has.", quorum.log_end),
        (
            "ringlog_metadata_committed",
            "Of those, entries known to be on a majority's devices.",
            quorum.committed,
        ),
        ("ringlog_metadata_applied", "Of those, entries that this broker acts by.", quorum.applied),
    ];
    for (metric, help, value) in figures {
        out.metric(metric, "gauge", help);
        out.sample(metric, &[], value);
    }
    if quorum.leader == Some(broker) {
        let metric = "ringlog_metadata_member_lag";
        out.metric(metric, "gauge", "Committed entries of the metadata that a member does not have yet.");
        for (member, matched) in &quorum.matched {
            let member = member.to_string();
            out.sample(metric, &[("broker", &member)], quorum.committed.saturating_sub(*matched));
        }
    }
}

pub(super) fn cluster(out: &mut Text, image: &Image, broker: BrokerId) {
    let metric = "ringlog_cluster_brokers";
    out.metric(metric, "gauge", "Brokers of the cluster by what they do.");
    let states: [(&str, Is); 3] = [
        ("alive", |broker| !broker.fenced && !broker.draining),
        ("draining", |broker| !broker.fenced && broker.draining),
        ("fenced", |broker| broker.fenced),
    ];
    for (word, is_so) in states {
        let count = image.brokers().filter(|broker| is_so(broker)).count();
        out.sample(metric, &[("state", word)], count as u64);
    }
    let led = Led::by(image, broker);
    let figures = [
        (
            "ringlog_metadata_version",
            "The version of the metadata that this broker acts by.",
            image.version(),
        ),
        ("ringlog_partitions_led", "Partitions that this broker leads.", led.all),
        (
            "ringlog_partitions_under_replicated",
            "Of those, partitions with a replica that is not in sync.",
            led.under_replicated,
        ),
        (
            "ringlog_partitions_below_min_in_sync",
            "Of those, partitions with fewer in-sync replicas than min.insync.replicas.",
            led.below_minimum,
        ),
        ("ringlog_partitions_moving", "Of those, partitions whose replicas are being moved.", led.moving),
        (
            "ringlog_partitions_not_preferred",
            "Of those, partitions that another broker is preferred to lead.",
            led.not_preferred,
        ),
        (
            "ringlog_cluster_partitions_leaderless",
            "Partitions of the cluster without a leader.",
            led.leaderless,
        ),
    ];
    for (metric, help, value) in figures {
        out.metric(metric, "gauge", help);
        out.sample(metric, &[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::images::{fenced, three_brokers};

    #[test]
    fn each_partition_is_counted_by_its_leader() {
        let whole = three_brokers("t", 3, &[1, 2, 3, 2, 3, 1, 3, 1, 2]);
        let image = fenced(&fenced(&whole, 1), 2);
        let expect =
            Led { all: 3, under_replicated: 3, below_minimum: 3, moving: 0, not_preferred: 2, leaderless: 0 };
        assert_eq!(Led::by(&image, BrokerId::new(3)), expect);
        assert_eq!(Led::by(&image, BrokerId::new(1)), Led::default());
    }
}
