//! What may be asked of the metadata, and its bytes in the log.
//!
//! A command says everything that its effect depends on: ids are chosen and replicas are placed by whoever
//! makes it, so that applying it needs neither randomness nor a policy that a later version might change.
//! [`Image::create_topic`](super::Image::create_topic) and its sibling make the placed ones.
//!
//! Bytes: `schema/definitions/metadata.fbs`, root `Command`, file identifier `RLM1`. Decoding verifies and
//! never panics; whether a command makes sense is [`Image::apply`](super::Image::apply)'s business.

use crate::ids::{BrokerId, TopicId};
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, VerifierOptions, WIPOffset};
use schema::metadata as fb;

/// The longest encoded command, bytes: the largest topic with the largest replica sets fits.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;

/// A change of the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A new topic with its first partitions.
    CreateTopic {
        /// Never used before; random.
        id: TopicId,
        /// 1 to 249 of `a-z A-Z 0-9 . _ -`.
        name: String,
        /// One replica set per partition.
        placement: Placement,
        /// Settings that differ from the default, by name.
        configs: Vec<(String, String)>,
    },
    /// The topic goes, and its data with it.
    DeleteTopic {
        /// Which one.
        id: TopicId,
    },
    /// Settings of a topic change; they are checked as a whole.
    AlterTopicConfigs {
        /// Which one.
        id: TopicId,
        /// Names and new values.
        set: Vec<(String, String)>,
        /// Names that go back to the default.
        unset: Vec<String>,
    },
    /// More partitions for a topic.
    CreatePartitions {
        /// Which one.
        id: TopicId,
        /// The new total: what there is now plus what `placement` adds. A command made from an older
        /// image is refused by it.
        count: u32,
        /// Replica sets of the added partitions only.
        placement: Placement,
    },
    /// A broker joins, or comes back with another address or another number of shards.
    RegisterBroker(BrokerRegistration),
    /// The next producer ids are a broker's to give out. It may lose some of them in a crash; nobody else
    /// gets them.
    AllocateProducerIds {
        /// Whose they become.
        broker: BrokerId,
        /// How many, 1 to [`PRODUCER_IDS_PER_BLOCK_MAX`](crate::limits::PRODUCER_IDS_PER_BLOCK_MAX).
        count: u32,
    },
}

/// What a broker says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerRegistration {
    /// Its number.
    pub broker: BrokerId,
    /// Where clients find it.
    pub host: String,
    /// The one port.
    pub port: u16,
    /// How many shards serve its partitions.
    pub shards: u16,
    /// The identity of its disk.
    pub storage_uuid: u128,
}

/// Replica sets of consecutive partitions, all of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Replicas per partition, at least 1.
    pub replication_factor: u32,
    /// `replication_factor` brokers per partition, the first of them its leader.
    pub brokers: Vec<BrokerId>,
}

impl Placement {
    /// All `partitions` on one broker.
    pub fn single(broker: BrokerId, partitions: u32) -> Self {
        Self { replication_factor: 1, brokers: vec![broker; partitions as usize] }
    }

    /// How many partitions are placed; `None` where the sets are not all of one size, or empty.
    pub fn partitions(&self) -> Option<usize> {
        let size = self.replication_factor as usize;
        if size == 0 || !self.brokers.len().is_multiple_of(size) {
            return None;
        }
        Some(self.brokers.len() / size)
    }

    /// The replica sets, in the order of their partitions.
    pub fn replica_sets(&self) -> impl Iterator<Item = &[BrokerId]> {
        self.brokers.chunks_exact((self.replication_factor as usize).max(1))
    }
}

/// Why bytes are not a command or an image of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The file identifier differs: another format, or a newer one.
    #[error("not a {expected} buffer")]
    WrongIdentifier {
        /// `RLM1` or `RLI1`.
        expected: &'static str,
    },
    /// The FlatBuffers verifier refused it.
    #[error("not a valid FlatBuffer: {0}")]
    Invalid(String),
    /// A member of the union that this version does not know.
    #[error("command kind {0} is unknown: it was written by a newer version")]
    UnknownKind(u8),
    /// Well-formed, and contradicts itself.
    #[error("{0}")]
    Inconsistent(String),
}

impl Command {
    /// The bytes for the log.
    pub fn encode(&self) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::with_capacity(256);
        let b = &mut builder;
        let (kind_type, kind) = match self {
            Self::CreateTopic { id, name, placement, configs } => {
                let name = b.create_string(name);
                let placement = encode_placement(b, placement);
                let configs = encode_configs(b, configs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
                let id = fb::Id::from_u128(id.get());
                let args = fb::CreateTopicArgs {
                    id: Some(&id),
                    name: Some(name),
                    placement: Some(placement),
                    configs: Some(configs),
                };
                (fb::CommandKind::CreateTopic, fb::CreateTopic::create(b, &args).as_union_value())
            }
            Self::DeleteTopic { id } => {
                let id = fb::Id::from_u128(id.get());
                let args = fb::DeleteTopicArgs { id: Some(&id) };
                (fb::CommandKind::DeleteTopic, fb::DeleteTopic::create(b, &args).as_union_value())
            }
            Self::AlterTopicConfigs { id, set, unset } => {
                let set = encode_configs(b, set.iter().map(|(n, v)| (n.as_str(), v.as_str())));
                let unset: Vec<_> = unset.iter().map(|name| b.create_string(name)).collect();
                let unset = b.create_vector(&unset);
                let id = fb::Id::from_u128(id.get());
                let args = fb::AlterTopicConfigsArgs { id: Some(&id), set: Some(set), unset: Some(unset) };
                let table = fb::AlterTopicConfigs::create(b, &args);
                (fb::CommandKind::AlterTopicConfigs, table.as_union_value())
            }
            Self::CreatePartitions { id, count, placement } => {
                let placement = encode_placement(b, placement);
                let id = fb::Id::from_u128(id.get());
                let args =
                    fb::CreatePartitionsArgs { id: Some(&id), count: *count, placement: Some(placement) };
                (fb::CommandKind::CreatePartitions, fb::CreatePartitions::create(b, &args).as_union_value())
            }
            Self::RegisterBroker(registration) => {
                let host = b.create_string(&registration.host);
                let storage_uuid = fb::Id::from_u128(registration.storage_uuid);
                let args = fb::RegisterBrokerArgs {
                    broker: registration.broker.get(),
                    host: Some(host),
                    port: registration.port,
                    shards: registration.shards,
                    storage_uuid: Some(&storage_uuid),
                };
                (fb::CommandKind::RegisterBroker, fb::RegisterBroker::create(b, &args).as_union_value())
            }
            Self::AllocateProducerIds { broker, count } => {
                let args = fb::AllocateProducerIdsArgs { broker: broker.get(), count: *count };
                let table = fb::AllocateProducerIds::create(b, &args);
                (fb::CommandKind::AllocateProducerIds, table.as_union_value())
            }
        };
        let root = fb::Command::create(b, &fb::CommandArgs { kind_type, kind: Some(kind) });
        b.finish(root, Some(fb::COMMAND_IDENTIFIER));
        b.finished_data().to_vec()
    }

    /// The command of `bytes`, which must be 8-aligned in memory (as [`decode_aligned`] makes them).
    fn decode_in_place(bytes: &[u8]) -> Result<Self, DecodeError> {
        let options = VerifierOptions {
            max_depth: 8,
            max_tables: 4096,
            max_apparent_size: 2 * COMMAND_BYTES_MAX,
            ignore_missing_null_terminator: false,
        };
        let command = fb::root_as_command_with_opts(&options, bytes)
            .map_err(|error| DecodeError::Invalid(error.to_string()))?;
        if let Some(table) = command.kind_as_create_topic() {
            Ok(Self::CreateTopic {
                id: topic_id(table.id()),
                name: table.name().to_owned(),
                placement: decode_placement(&table.placement()),
                configs: decode_configs(table.configs()),
            })
        } else if let Some(table) = command.kind_as_delete_topic() {
            Ok(Self::DeleteTopic { id: topic_id(table.id()) })
        } else if let Some(table) = command.kind_as_alter_topic_configs() {
            let unset = table.unset().map(|names| names.iter().map(str::to_owned).collect());
            Ok(Self::AlterTopicConfigs {
                id: topic_id(table.id()),
                set: decode_configs(table.set()),
                unset: unset.unwrap_or_default(),
            })
        } else if let Some(table) = command.kind_as_create_partitions() {
            Ok(Self::CreatePartitions {
                id: topic_id(table.id()),
                count: table.count(),
                placement: decode_placement(&table.placement()),
            })
        } else if let Some(table) = command.kind_as_register_broker() {
            Ok(Self::RegisterBroker(BrokerRegistration {
                broker: BrokerId::new(table.broker()),
                host: table.host().to_owned(),
                port: table.port(),
                shards: table.shards(),
                storage_uuid: table.storage_uuid().as_u128(),
            }))
        } else if let Some(table) = command.kind_as_allocate_producer_ids() {
            let (broker, count) = (BrokerId::new(table.broker()), table.count());
            Ok(Self::AllocateProducerIds { broker, count })
        } else {
            Err(DecodeError::UnknownKind(command.kind_type().0))
        }
    }

    /// Verifies and decodes what [`Command::encode`] made.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_aligned(bytes, fb::COMMAND_IDENTIFIER, Self::decode_in_place)
    }
}

/// Checks the file identifier, then hands `bytes` on at the alignment that the verifier insists on.
pub(super) fn decode_aligned<T>(
    bytes: &[u8],
    identifier: &'static str,
    decode: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    if bytes.get(4..8) != Some(identifier.as_bytes()) {
        return Err(DecodeError::WrongIdentifier { expected: identifier });
    }
    decode(schema::frame::Aligned::default().align(bytes))
}

pub(super) fn topic_id(id: &fb::Id) -> TopicId {
    TopicId::new(id.as_u128())
}

pub(super) fn encode_configs<'b, 'a>(
    b: &mut FlatBufferBuilder<'b>,
    configs: impl Iterator<Item = (&'a str, &'a str)>,
) -> WIPOffset<Vector<'b, ForwardsUOffset<fb::ConfigEntry<'b>>>> {
    let entries: Vec<_> = configs
        .map(|(name, value)| {
            let name = b.create_string(name);
            let value = b.create_string(value);
            fb::ConfigEntry::create(b, &fb::ConfigEntryArgs { name: Some(name), value: Some(value) })
        })
        .collect();
    b.create_vector(&entries)
}

pub(super) fn decode_configs(
    configs: Option<Vector<'_, ForwardsUOffset<fb::ConfigEntry<'_>>>>,
) -> Vec<(String, String)> {
    let entries = configs.into_iter().flatten();
    entries.map(|entry| (entry.name().to_owned(), entry.value().to_owned())).collect()
}

fn encode_placement<'b>(
    b: &mut FlatBufferBuilder<'b>,
    placement: &Placement,
) -> WIPOffset<fb::Placement<'b>> {
    let brokers: Vec<u32> = placement.brokers.iter().map(|broker| broker.get()).collect();
    let brokers = b.create_vector(&brokers);
    let args = fb::PlacementArgs { replication_factor: placement.replication_factor, brokers: Some(brokers) };
    fb::Placement::create(b, &args)
}

fn decode_placement(placement: &fb::Placement<'_>) -> Placement {
    Placement {
        replication_factor: placement.replication_factor(),
        brokers: placement.brokers().iter().map(BrokerId::new).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The bytes never change: they are in the logs of running brokers.
    fn check(command: Command, golden: &str) {
        let golden: String = golden.chars().filter(|c| !c.is_whitespace()).collect();
        assert_eq!(hex(&command.encode()), golden, "{command:?}");
        assert_eq!(Command::decode(&unhex(&golden)), Ok(command));
    }

    const ID: TopicId = TopicId::new(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

    #[test]
    fn golden_bytes() {
        check(
            Command::CreateTopic {
                id: ID,
                name: "flights".into(),
                placement: Placement::single(BrokerId::new(1), 2),
                configs: vec![("retention.ms".into(), "604800000".into())],
            },
            "14000000524c4d310000000008000c00070008000800000000000001100000000c00200004001400 \
             18001c000c0000007766554433221100ffeeddccbbaa998864000000480000000400000001000000 \
             04000000d0ffffff1800000004000000090000003630343830303030300000000c00000072657465 \
             6e74696f6e2e6d730000000008000c00040008000800000001000000040000000200000001000000 \
             0100000007000000666c696768747300",
        );
        check(
            Command::DeleteTopic { id: ID },
            "10000000524c4d3108000e000700080008000000000000020c000000000006001400040006000000 \
             7766554433221100ffeeddccbbaa9988",
        );
        check(
            Command::AlterTopicConfigs {
                id: ID,
                set: vec![("segment.ms".into(), "1".into())],
                unset: vec!["retention.ms".into()],
            },
            "14000000524c4d310000000008000e000700080008000000000000031000000000000a001c000400 \
             140018000a0000007766554433221100ffeeddccbbaa998824000000040000000100000004000000 \
             0c000000726574656e74696f6e2e6d7300000000010000000c00000008000c000400080008000000 \
             100000000400000001000000310000000a0000007365676d656e742e6d730000",
        );
        check(
            Command::CreatePartitions { id: ID, count: 3, placement: Placement::single(BrokerId::new(1), 1) },
            "14000000524c4d310000000008000e000700080008000000000000041000000000000a0020000400 \
             18001c000a0000007766554433221100ffeeddccbbaa998800000000030000000c00000008000c00 \
             040008000800000001000000040000000100000001000000",
        );
        check(
            Command::RegisterBroker(BrokerRegistration {
                broker: BrokerId::new(1),
                host: "localhost".into(),
                port: 9644,
                shards: 2,
                storage_uuid: 7,
            }),
            "14000000524c4d310000000008000e000700080008000000000000051400000000000e0020000800 \
             0c000400060010000e000000ac250200010000001400000000000000000000000700000000000000 \
             090000006c6f63616c686f7374000000",
        );
        check(
            Command::AllocateProducerIds { broker: BrokerId::new(1), count: 1000 },
            "10000000524c4d3108000c000700080008000000000000060c00000008000c00040008000800000001000000 \
             e8030000",
        );
    }

    #[test]
    fn what_is_not_a_command() {
        let good = Command::DeleteTopic { id: ID }.encode();
        let mut unknown = good.clone();
        let kind = unknown.iter().position(|&byte| byte == fb::CommandKind::DeleteTopic.0).unwrap();
        unknown[kind] = 200;
        let wrong = DecodeError::WrongIdentifier { expected: "RLM1" };
        let rows: [(&[u8], Option<DecodeError>); 4] = [
            (b"", Some(wrong.clone())),
            (b"\x08\0\0\0RLI1\0\0\0\0\0\0\0\0", Some(wrong)),
            (&good[..good.len() - 20], None),
            (&unknown, Some(DecodeError::UnknownKind(200))),
        ];
        for (bytes, expect) in rows {
            let error = Command::decode(bytes).unwrap_err();
            assert!(expect.is_none_or(|expect| expect == error), "{bytes:02x?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0usize..400, with in any::<u8>(), cut in 0usize..400) {
            let command = Command::CreateTopic {
                id: ID,
                name: "flights".into(),
                placement: Placement::single(BrokerId::new(1), 8),
                configs: vec![("retention.ms".into(), "1".into()), ("segment.ms".into(), "2".into())],
            };
            let mut bytes = command.encode();
            let length = bytes.len();
            bytes[at % length] = with;
            let _ = Command::decode(&bytes);
            let _ = Command::decode(&bytes[..cut % length]);
        }

        #[test]
        fn encoding_is_reversible(name in ".{0,20}", id in any::<u128>(), sizes in (0u32..4, 0usize..40),
                                  configs in proptest::collection::vec((".{0,8}", ".{0,8}"), 0..4)) {
            let (replication_factor, brokers) = sizes;
            let brokers = (0..brokers as u32).map(BrokerId::new).collect();
            let command = Command::CreateTopic {
                id: TopicId::new(id),
                name,
                placement: Placement { replication_factor, brokers },
                configs,
            };
            prop_assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
    }
}
