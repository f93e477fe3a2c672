//! The records of the demo: January 2013's departures from New York, repeated.
//!
//! Owner: shared, immutable. A record is known by its sequence number: line = number modulo lines,
//! repetition = number divided by lines. Repetition r is shifted by r × 31 days, so that the whole reads as
//! years of Januaries and a search by time means something.
//! Invariant: key, value and timestamp are functions of the sequence number alone; whoever reads a record
//! can tell what it must be.

use std::collections::HashMap;

/// Source and licence: `broker/ringlog/demo/README.md`.
const COMPRESSED: &[u8] = include_bytes!("../../demo/flights-2013-01.csv.zst");
const REPETITION_MS: i64 = 31 * 24 * 3600 * 1000;

/// What one line gives.
struct Flight {
    /// In the text.
    line: (u32, u32),
    /// In the text.
    tail_number: (u32, u32),
    /// Numbers the different tail numbers, from 0.
    key_id: u32,
    /// `time_hour`, milliseconds since 1970.
    timestamp_ms: i64,
}

/// See the module.
pub struct Flights {
    text: bytes::Bytes,
    flights: Vec<Flight>,
    keys: u32,
    repetitions: u64,
}

/// One record as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The tail number.
    pub key: bytes::Bytes,
    /// The line.
    pub value: bytes::Bytes,
    /// Of this repetition.
    pub timestamp_ms: i64,
}

impl Flights {
    /// The flights, repeated until there are at least `bytes_min` bytes of keys and values.
    pub fn load(bytes_min: u64) -> Self {
        // The file is a part of this program: a build with a broken one is broken.
        let text = zstd::decode_all(COMPRESSED).expect("the file that was built in is sound");
        Self::parse(text, bytes_min)
    }

    fn parse(text: Vec<u8>, bytes_min: u64) -> Self {
        let mut lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let heading: Vec<&[u8]> = lines.next().unwrap_or_default().split(|byte| *byte == b',').collect();
        let column = |name: &str| heading.iter().position(|column| *column == name.as_bytes());
        let tail_number_at = column("tailnum").expect("a heading with tailnum");
        let time_at = column("time_hour").expect("a heading with time_hour");
        let place = |part: &[u8]| {
            let start = part.as_ptr() as usize - text.as_ptr() as usize;
            (start as u32, (start + part.len()) as u32)
        };
        let mut key_ids: HashMap<&[u8], u32> = HashMap::new();
        let mut flights = Vec::new();
        for line in lines {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b',').collect();
            let tail_number = fields[tail_number_at];
            let time = std::str::from_utf8(fields[time_at]).ok().and_then(|time| time.parse().ok());
            let time: jiff::Timestamp = time.expect("time_hour is RFC 3339");
            let next_id = key_ids.len() as u32;
            let key_id = *key_ids.entry(tail_number).or_insert(next_id);
            flights.push(Flight {
                line: place(line),
                tail_number: place(tail_number),
                key_id,
                timestamp_ms: time.as_millisecond(),
            });
        }
        let keys = key_ids.len() as u32;
        let once: u64 = flights.iter().map(Flight::bytes).sum();
        Self { repetitions: bytes_min.div_ceil(once.max(1)).max(1), text: text.into(), flights, keys }
    }

    /// All repetitions together.
    pub fn total_records(&self) -> u64 {
        self.repetitions * self.flights.len() as u64
    }

    /// How many different tail numbers.
    pub fn keys(&self) -> u32 {
        self.keys
    }

    /// The middle of a month in the middle of the time that the records span.
    pub fn middle_ms(&self) -> i64 {
        let first = self.flights.first().map_or(0, |flight| flight.timestamp_ms);
        first + (self.repetitions as i64 / 2) * REPETITION_MS + REPETITION_MS / 2
    }

    fn flight(&self, sequence: u64) -> &Flight {
        &self.flights[(sequence % self.flights.len() as u64) as usize]
    }

    /// The number of the record's key, below [`Self::keys`].
    pub fn key_id(&self, sequence: u64) -> u32 {
        self.flight(sequence).key_id
    }

    /// What record `sequence` must be; slices, nothing is copied.
    pub fn record(&self, sequence: u64) -> Expected {
        let flight = self.flight(sequence);
        let slice = |(from, to): (u32, u32)| self.text.slice(from as usize..to as usize);
        Expected {
            key: slice(flight.tail_number),
            value: slice(flight.line),
            timestamp_ms: self.timestamp_ms(sequence),
        }
    }

    /// Of its repetition.
    pub fn timestamp_ms(&self, sequence: u64) -> i64 {
        let repetition = sequence / self.flights.len() as u64;
        self.flight(sequence).timestamp_ms + repetition as i64 * REPETITION_MS
    }
}

impl Flight {
    fn bytes(&self) -> u64 {
        u64::from(self.line.1 - self.line.0) + u64::from(self.tail_number.1 - self.tail_number.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn january_is_whole() {
        let flights = Flights::load(1);
        assert_eq!((flights.total_records(), flights.keys()), (27_004, 3_149));
        let first = flights.record(0);
        assert_eq!(&first.key[..], b"N14228");
        assert!(first.value.starts_with(b"2013,1,1,517,"));
        assert_eq!(first.timestamp_ms, 1_357_034_400_000);
    }

    #[test]
    fn repetitions_are_later() {
        let text =
            b"tailnum,time_hour\nA,2013-01-01T00:00:00Z\nB,2013-01-02T00:00:00Z\nA,2013-01-03T00:00:00Z\n";
        let line_bytes = 3 * (22 + 1);
        for (bytes_min, repetitions) in [(1, 1), (line_bytes, 1), (line_bytes + 1, 2), (10 * line_bytes, 10)]
        {
            let flights = Flights::parse(text.to_vec(), bytes_min);
            assert_eq!(flights.total_records(), 3 * repetitions, "{bytes_min}");
        }
        let flights = Flights::parse(text.to_vec(), 2 * line_bytes);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|sequence| flights.key_id(sequence)), [0, 1, 0, 0, 1, 0]);
        assert_eq!(flights.record(4).timestamp_ms - flights.record(1).timestamp_ms, REPETITION_MS);
        assert_eq!(flights.record(4).value, flights.record(1).value);
    }
}
