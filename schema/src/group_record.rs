//! The records of the internal topic `__consumer_offsets`: keys and values of what a coordinator remembers.
//!
//! Owner: the coordinator of a group writes them to the partition that coordinates the group; whoever leads that
//! partition next reads them. The topic is compacted, so the latest value of a key is all there is to know, and a
//! record without a value (a tombstone) says that the key is gone. Versions: the first byte of every key and of
//! every value is the version of its layout, 1; kinds and fields are only ever added, with a new version.
//!
//! ```text
//! key    u8 version · u8 kind · text group · then by kind
//!        1 group     —
//!        2 member    text member                what it said about itself
//!        3 target    text member                what it is going to have
//!        4 current   text member                what it may hold, and in which epochs
//!        5 offset    u128 topic · u32 partition a committed offset
//! value  u8 version · then by kind
//!        1 group     i32 epoch · i64 empty_since_ms (-1 = it has members)
//!        2 member    option instance · text rack · text client · u32 rebalance_timeout_ms ·
//!                    u32 session_timeout_ms · u32 count · texts topics · text pattern · text assignor
//!        3 target    u32 count · (u128 topic · u32 count · u32 partition…)…
//!        4 current   i32 epoch · i32 previous_epoch · owned assigned · owned revoking
//!                    owned: u32 count · (u128 topic · u32 partition · i32 since_epoch)…
//!        5 offset    u64 offset · i32 leader_epoch (-1 = unknown) · i64 commit_time_ms · text metadata
//! text   u16 bytes · UTF-8        option  u8 0, or u8 1 · text        numbers little-endian
//! ```
//!
//! Invariant: decoding never panics and takes no memory on the word of a length. Absent on purpose: what the
//! records mean together, which is the coordinator's.

/// The version of the layouts of keys and values.
const VERSION: u8 = 1;

/// A partition: topic id and number.
pub type Partition = (u128, u32);

/// A partition that a member may hold, and the member epoch since which it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnedSince {
    /// Which one.
    pub partition: Partition,
    /// Since when.
    pub since_epoch: i32,
}

/// What is remembered of a group as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupValue {
    /// Rises with every change of members, subscriptions or their topics.
    pub epoch: i32,
    /// Since when it has no members, milliseconds since 1970; -1 = it has some.
    pub empty_since_ms: i64,
}

/// What a member said about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberValue {
    /// Of a static member.
    pub instance_id: Option<String>,
    /// Where it is; may be empty.
    pub rack: String,
    /// What it calls itself in its requests; may be empty.
    pub client_id: String,
    /// How long it may take to give up partitions.
    pub rebalance_timeout_ms: u32,
    /// Silence after which it is out.
    pub session_timeout_ms: u32,
    /// Names subscribed to.
    pub topics: Vec<String>,
    /// Expression subscribed to; empty = none.
    pub pattern: String,
    /// Preferred assignor; empty = none.
    pub assignor: String,
}

/// What a member may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CurrentValue {
    /// The member's epoch; -2 = a static member that is away.
    pub epoch: i32,
    /// The one before.
    pub previous_epoch: i32,
    /// What it may hold.
    pub assigned: Vec<OwnedSince>,
    /// What it was asked to give up and may still hold.
    pub revoking: Vec<OwnedSince>,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetValue {
    /// Of the next record to process.
    pub offset: u64,
    /// Of the last record processed; -1 = unknown.
    pub leader_epoch: i32,
    /// When it was committed, milliseconds since 1970.
    pub commit_time_ms: i64,
    /// The consumer's own words.
    pub metadata: String,
}

/// One record: what it is about, and the new value, `None` = gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The group as a whole.
    Group(Option<GroupValue>),
    /// What a member said about itself.
    Member(String, Option<MemberValue>),
    /// What a member is going to have.
    Target(String, Option<Vec<Partition>>),
    /// What a member may hold.
    Current(String, Option<CurrentValue>),
    /// A committed offset.
    Offset(Partition, Option<OffsetValue>),
}

/// A record of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// The group.
    pub group: String,
    /// What changed.
    pub fact: Fact,
}

/// Why bytes are no record of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupRecordError {
    /// Written by a newer broker.
    #[error("version {0} of a group record is unknown: a newer broker wrote it")]
    UnknownVersion(u8),
    /// Written by a newer broker.
    #[error("kind {0} of a group record is unknown: a newer broker wrote it")]
    UnknownKind(u8),
    /// The record ends too early, or goes on after its end.
    #[error("a group record has another length than its fields")]
    WrongLength,
    /// A text is not UTF-8.
    #[error("a text of a group record is not UTF-8")]
    NotText,
}

impl GroupRecord {
    /// The key's bytes.
    ///
    /// # Panics
    /// If a text is longer than 65 535 bytes: whoever makes records has checked them.
    pub fn key(&self) -> Vec<u8> {
        let mut out = Writer(vec![VERSION]);
        let kind = match &self.fact {
            Fact::Group(_) => 1,
            Fact::Member(..) => 2,
            Fact::Target(..) => 3,
            Fact::Current(..) => 4,
            Fact::Offset(..) => 5,
        };
        out.0.push(kind);
        out.text(&self.group);
        match &self.fact {
            Fact::Group(_) => {}
            Fact::Member(member, _) | Fact::Target(member, _) | Fact::Current(member, _) => out.text(member),
            Fact::Offset(partition, _) => out.partition(*partition),
        }
        out.0
    }

    /// The value's bytes; `None` = a tombstone.
    ///
    /// # Panics
    /// As [`GroupRecord::key`].
    pub fn value(&self) -> Option<Vec<u8>> {
        let mut out = Writer(vec![VERSION]);
        match &self.fact {
            Fact::Group(value) => {
                let value = value.as_ref()?;
                out.i32(value.epoch);
                out.i64(value.empty_since_ms);
            }
            Fact::Member(_, value) => {
                let value = value.as_ref()?;
                match &value.instance_id {
                    None => out.0.push(0),
                    Some(instance) => {
                        out.0.push(1);
                        out.text(instance);
                    }
                }
                out.text(&value.rack);
                out.text(&value.client_id);
                out.u32(value.rebalance_timeout_ms);
                out.u32(value.session_timeout_ms);
                out.u32(value.topics.len() as u32);
                value.topics.iter().for_each(|topic| out.text(topic));
                out.text(&value.pattern);
                out.text(&value.assignor);
            }
            Fact::Target(_, value) => {
                let runs: Vec<_> = value.as_ref()?.chunk_by(|one, next| one.0 == next.0).collect();
                out.u32(runs.len() as u32);
                for run in runs {
                    out.0.extend(run[0].0.to_le_bytes());
                    out.u32(run.len() as u32);
                    run.iter().for_each(|(_, partition)| out.u32(*partition));
                }
            }
            Fact::Current(_, value) => {
                let value = value.as_ref()?;
                out.i32(value.epoch);
                out.i32(value.previous_epoch);
                out.owned(&value.assigned);
                out.owned(&value.revoking);
            }
            Fact::Offset(_, value) => {
                let value = value.as_ref()?;
                out.0.extend(value.offset.to_le_bytes());
                out.i32(value.leader_epoch);
                out.i64(value.commit_time_ms);
                out.text(&value.metadata);
            }
        }
        Some(out.0)
    }

    /// The record of a key and a value.
    pub fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Self, GroupRecordError> {
        let mut key = Reader(key);
        key.version()?;
        let kind = key.u8()?;
        let group = key.text()?;
        let fact = match kind {
            1 => Fact::Group(read(value, Reader::group)?),
            2 => Fact::Member(key.text()?, read(value, Reader::member)?),
            3 => Fact::Target(key.text()?, read(value, Reader::target)?),
            4 => Fact::Current(key.text()?, read(value, Reader::current)?),
            5 => Fact::Offset(key.partition()?, read(value, Reader::offset)?),
            other => return Err(GroupRecordError::UnknownKind(other)),
        };
        key.end()?;
        Ok(Self { group, fact })
    }
}

/// Reads a whole value, if there is one.
fn read<'a, T>(
    value: Option<&'a [u8]>,
    fields: impl FnOnce(&mut Reader<'a>) -> Result<T, GroupRecordError>,
) -> Result<Option<T>, GroupRecordError> {
    let Some(value) = value else { return Ok(None) };
    let mut reader = Reader(value);
    reader.version()?;
    let read = fields(&mut reader)?;
    reader.end()?;
    Ok(Some(read))
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }
    fn i32(&mut self, value: i32) {
        self.0.extend(value.to_le_bytes());
    }
    fn i64(&mut self, value: i64) {
        self.0.extend(value.to_le_bytes());
    }
    fn text(&mut self, text: &str) {
        let bytes = u16::try_from(text.len()).expect("texts of group records are at most 65 535 bytes");
        self.0.extend(bytes.to_le_bytes());
        self.0.extend(text.as_bytes());
    }
    fn partition(&mut self, (topic, partition): Partition) {
        self.0.extend(topic.to_le_bytes());
        self.u32(partition);
    }
    fn owned(&mut self, owned: &[OwnedSince]) {
        self.u32(owned.len() as u32);
        for one in owned {
            self.partition(one.partition);
            self.i32(one.since_epoch);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], GroupRecordError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(GroupRecordError::WrongLength)?;
        self.0 = rest;
        Ok(*taken)
    }
    fn u8(&mut self) -> Result<u8, GroupRecordError> {
        self.take().map(u8::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, GroupRecordError> {
        self.take().map(u32::from_le_bytes)
    }
    fn i32(&mut self) -> Result<i32, GroupRecordError> {
        self.take().map(i32::from_le_bytes)
    }
    fn i64(&mut self) -> Result<i64, GroupRecordError> {
        self.take().map(i64::from_le_bytes)
    }
    fn text(&mut self) -> Result<String, GroupRecordError> {
        let bytes = usize::from(self.take().map(u16::from_le_bytes)?);
        let (text, rest) = self.0.split_at_checked(bytes).ok_or(GroupRecordError::WrongLength)?;
        self.0 = rest;
        std::str::from_utf8(text).map(str::to_owned).map_err(|_| GroupRecordError::NotText)
    }
    fn partition(&mut self) -> Result<Partition, GroupRecordError> {
        Ok((self.take().map(u128::from_le_bytes)?, self.u32()?))
    }
    fn version(&mut self) -> Result<(), GroupRecordError> {
        match self.u8()? {
            VERSION => Ok(()),
            other => Err(GroupRecordError::UnknownVersion(other)),
        }
    }
    fn end(&self) -> Result<(), GroupRecordError> {
        if self.0.is_empty() { Ok(()) } else { Err(GroupRecordError::WrongLength) }
    }
    /// As many as a length says; the vector grows only with what is really there.
    fn list<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, GroupRecordError>,
    ) -> Result<Vec<T>, GroupRecordError> {
        let count = self.u32()?;
        (0..count).map(|_| one(self)).collect()
    }
    fn owned(&mut self) -> Result<Vec<OwnedSince>, GroupRecordError> {
        self.list(|reader| Ok(OwnedSince { partition: reader.partition()?, since_epoch: reader.i32()? }))
    }

    fn group(&mut self) -> Result<GroupValue, GroupRecordError> {
        Ok(GroupValue { epoch: self.i32()?, empty_since_ms: self.i64()? })
    }
    fn member(&mut self) -> Result<MemberValue, GroupRecordError> {
        Ok(MemberValue {
            instance_id: if self.u8()? == 0 { None } else { Some(self.text()?) },
            rack: self.text()?,
            client_id: self.text()?,
            rebalance_timeout_ms: self.u32()?,
            session_timeout_ms: self.u32()?,
            topics: self.list(Self::text)?,
            pattern: self.text()?,
            assignor: self.text()?,
        })
    }
    fn target(&mut self) -> Result<Vec<Partition>, GroupRecordError> {
        let mut partitions = Vec::new();
        for _ in 0..self.u32()? {
            let topic = self.take().map(u128::from_le_bytes)?;
            for _ in 0..self.u32()? {
                partitions.push((topic, self.u32()?));
            }
        }
        Ok(partitions)
    }
    fn current(&mut self) -> Result<CurrentValue, GroupRecordError> {
        Ok(CurrentValue {
            epoch: self.i32()?,
            previous_epoch: self.i32()?,
            assigned: self.owned()?,
            revoking: self.owned()?,
        })
    }
    fn offset(&mut self) -> Result<OffsetValue, GroupRecordError> {
        Ok(OffsetValue {
            offset: self.take().map(u64::from_le_bytes)?,
            leader_epoch: self.i32()?,
            commit_time_ms: self.i64()?,
            metadata: self.text()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn rows() -> Vec<(Fact, &'static str, &'static str)> {
        let owned = |topic, partition, since_epoch| OwnedSince { partition: (topic, partition), since_epoch };
        vec![
            (
                Fact::Group(Some(GroupValue { epoch: 3, empty_since_ms: -1 })),
                "0101010067",
                "0103000000ffffffffffffffff",
            ),
            (
                Fact::Member(
                    "m".into(),
                    Some(MemberValue {
                        instance_id: Some("i".into()),
                        rack: "r".into(),
                        client_id: "c".into(),
                        rebalance_timeout_ms: 1,
                        session_timeout_ms: 2,
                        topics: vec!["t".into(), "u".into()],
                        pattern: "p.*".into(),
                        assignor: "range".into(),
                    }),
                ),
                "010201006701006d",
                "01010100690100720100630100000002000000020000000100740100750300702e2a050072616e6765",
            ),
            (
                Fact::Target("m".into(), Some(vec![(1, 0), (1, 2), (2, 5)])),
                "010301006701006d",
                "0102000000010000000000000000000000000000000200000000000000020000000200000000000000000000000000\
                 00000100000005000000",
            ),
            (
                Fact::Current(
                    "m".into(),
                    Some(CurrentValue {
                        epoch: 4,
                        previous_epoch: 3,
                        assigned: vec![owned(1, 0, 2)],
                        revoking: vec![owned(1, 2, 3)],
                    }),
                ),
                "010401006701006d",
                "010400000003000000010000000100000000000000000000000000000000000000020000000100000001000000000000\
                 0000000000000000000200000003000000",
            ),
            (
                Fact::Offset(
                    (1, 7),
                    Some(OffsetValue {
                        offset: 42,
                        leader_epoch: -1,
                        commit_time_ms: 9,
                        metadata: "é".into(),
                    }),
                ),
                "01050100670100000000000000000000000000000007000000",
                "012a00000000000000ffffffff09000000000000000200c3a9",
            ),
        ]
    }

    #[test]
    fn golden_bytes() {
        for (fact, key, value) in rows() {
            let record = GroupRecord { group: "g".into(), fact };
            let value: String = value.chars().filter(|c| !c.is_whitespace()).collect();
            let (made_key, made_value) = (record.key(), record.value().expect("rows have values"));
            assert_eq!(hex(&made_key), key, "{record:?}");
            assert_eq!(hex(&made_value), value, "{record:?}");
            assert_eq!(GroupRecord::decode(&made_key, Some(&made_value)), Ok(record));
        }
    }

    #[test]
    fn tombstones_and_damage() {
        for (fact, _, _) in rows() {
            let record = GroupRecord { group: "g".into(), fact };
            let (key, value) = (record.key(), record.value().expect("rows have values"));
            let gone = GroupRecord::decode(&key, None).expect("a tombstone is a record");
            assert_eq!(gone.value(), None);
            assert_eq!(gone.key(), key);
            for cut in 0..value.len() {
                assert!(GroupRecord::decode(&key, Some(&value[..cut])).is_err(), "cut at {cut}: {record:?}");
            }
            for cut in 0..key.len() {
                assert!(GroupRecord::decode(&key[..cut], None).is_err(), "key cut at {cut}: {record:?}");
            }
            let newer = GroupRecord::decode(&[&[2], &key[1..]].concat(), None);
            assert_eq!(newer, Err(GroupRecordError::UnknownVersion(2)));
            assert_eq!(
                GroupRecord::decode(&[&key[..], &[0]].concat(), None),
                Err(GroupRecordError::WrongLength)
            );
        }
        assert_eq!(GroupRecord::decode(&[1, 9, 0, 0], None), Err(GroupRecordError::UnknownKind(9)));
        // A length that lies takes no memory.
        let lie = [1, 255, 255, 255, 255];
        assert_eq!(
            GroupRecord::decode(&[1, 3, 0, 0, 1, 0, b'm'], Some(&lie)),
            Err(GroupRecordError::WrongLength)
        );
    }
}
