//! Which partition a record goes to.
//!
//! Owner: a producer holds one [`Partitioner`] for its life. Pure functions of the record and the number
//! of partitions; the sticky choice for records that leave it open is the accumulator's, because it
//! follows the batches. Invariant: [`Partitioner::Default`] puts a key where Kafka's clients put it.
//! Absent on purpose: checking an explicit partition, which [`crate::Producer::send`] does for every
//! partitioner alike.

use std::sync::Arc;

/// A function of the application: topic, key, value, number of partitions → partition.
pub type CustomPartitioner = dyn Fn(&str, Option<&[u8]>, Option<&[u8]>, u32) -> u32 + Send + Sync;

/// How a record without an explicit partition finds one.
#[derive(Clone, Default)]
pub enum Partitioner {
    /// murmur2 of the key as Kafka's clients do it; without a key sticky: one partition until its batch
    /// closes, then the next.
    #[default]
    Default,
    /// The key modulo the number of partitions: as a decimal number if it is one, else the sum of its
    /// bytes; without a key sticky.
    Modulo,
    /// The application decides; a partition that is not there fails the record.
    Custom(Arc<CustomPartitioner>),
}

impl std::fmt::Debug for Partitioner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Partitioner::Default => "Default",
            Partitioner::Modulo => "Modulo",
            Partitioner::Custom(_) => "Custom",
        })
    }
}

impl Partitioner {
    /// The partition of a record, or `None` where any will do. `partitions` is at least 1.
    pub fn choose(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        partitions: u32,
    ) -> Option<u32> {
        match self {
            Partitioner::Default => key.map(|key| (kafka_hash(key) & 0x7fff_ffff) % partitions),
            Partitioner::Modulo => key.map(|key| modulo(key, partitions)),
            Partitioner::Custom(choose) => Some(choose(topic, key, value, partitions)),
        }
    }
}

/// murmur2 with the seed of Kafka's clients.
pub fn kafka_hash(key: &[u8]) -> u32 {
    murmur2::murmur2(key, murmur2::KAFKA_SEED)
}

fn modulo(key: &[u8], partitions: u32) -> u32 {
    let number = std::str::from_utf8(key).ok().and_then(|text| text.parse::<u64>().ok());
    let sum = || key.iter().map(|byte| u64::from(*byte)).sum();
    // Below `partitions`, so it fits.
    (number.unwrap_or_else(sum) % u64::from(partitions)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `UtilsTest.testMurmur2` of Kafka's clients.
    #[test]
    fn the_hash_is_that_of_kafka() {
        let rows = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, expect) in rows {
            assert_eq!(kafka_hash(key.as_bytes()) as i32, expect, "{key}");
        }
    }

    #[test]
    fn partitions() {
        let last: Arc<CustomPartitioner> = Arc::new(|_, _, _, partitions| partitions - 1);
        let custom = Partitioner::Custom(last);
        // 'foobar' hashes to -790332482, which is 1357151166 without its sign bit.
        let rows: [(&Partitioner, Option<&str>, u32, Option<u32>); 11] = [
            (&Partitioner::Default, Some("foobar"), 10, Some(6)),
            (&Partitioner::Default, Some("abc"), 10, Some(7)),
            (&Partitioner::Default, Some(""), 1, Some(0)),
            (&Partitioner::Default, None, 10, None),
            (&Partitioner::Modulo, Some("23"), 10, Some(3)),
            (&Partitioner::Modulo, Some("18446744073709551615"), 10, Some(5)),
            (&Partitioner::Modulo, Some("ab"), 10, Some(5)),
            (&Partitioner::Modulo, Some("-1"), 100, Some(94)),
            (&Partitioner::Modulo, None, 10, None),
            (&custom, Some("x"), 8, Some(7)),
            (&custom, None, 3, Some(2)),
        ];
        for (partitioner, key, partitions, expect) in rows {
            let got = partitioner.choose("t", key.map(str::as_bytes), None, partitions);
            assert_eq!(got, expect, "{partitioner:?} {key:?} of {partitions}");
        }
    }
}
