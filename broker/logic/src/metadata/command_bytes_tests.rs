//! Golden bytes of every command, and what is not one.

use super::*;
use proptest::prelude::*;
use std::num::NonZeroU64;

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
const PARTITION: TopicPartition = TopicPartition { topic: ID, partition: PartitionIndex::new(3) };

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
        Command::RegisterBroker {
            registration: BrokerRegistration {
                broker: BrokerId::new(1),
                host: "localhost".into(),
                port: 9644,
                shards: 2,
                storage_uuid: 7,
                rack: String::new(),
            },
            suspects: vec![],
            starts_fenced: false,
        },
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
fn golden_bytes_of_the_cluster() {
    check(
        Command::RegisterBroker {
            registration: BrokerRegistration {
                broker: BrokerId::new(2),
                host: "localhost".into(),
                port: 9644,
                shards: 2,
                storage_uuid: 7,
                rack: "r1".into(),
            },
            suspects: vec![Suspect {
                partition: PARTITION,
                generation: ReplicaGeneration::new(4),
                last_epoch: LeaderEpoch::new(5),
                end: Offset::new(6),
            }],
            starts_fenced: true,
        },
        "14000000524c4d310000000008000c0007000800080000000000000518000000140030000c00100008000a00 \
         140028002c0007001400000000000001ac250200020000005400000000000000000000000700000000000000 \
         000000003400000004000000010000007766554433221100ffeeddccbbaa9988030000000400000005000000 \
         0000000006000000000000000200000072310000090000006c6f63616c686f7374000000",
    );
    check(
        Command::InitializeCluster { id: ID.get() },
        "10000000524c4d3108000e000700080008000000000000070c00000000000600140004000600000077665544 \
         33221100ffeeddccbbaa9988",
    );
    check(
        Command::FenceBroker { broker: BrokerId::new(2), epoch: BrokerEpoch::new(9) },
        "14000000524c4d310000000008000c000700080008000000000000080c000000080010000400080008000000 \
         020000000900000000000000",
    );
    check(
        Command::UnfenceBroker { broker: BrokerId::new(2), epoch: BrokerEpoch::new(9) },
        "14000000524c4d310000000008000c000700080008000000000000090c000000080010000400080008000000 \
         020000000900000000000000",
    );
    check(
        Command::DrainBroker { broker: BrokerId::new(2), draining: true },
        "10000000524c4d3108000c0007000800080000000000000a0c00000008000c00080007000800000000000001 \
         02000000",
    );
    check(
        Command::LimitCatchUp { bytes_per_second: NonZeroU64::new(50_000_000) },
        "10000000524c4d3108000e000700080008000000000000110c000000000006000c0004000600000080f0fa0200000000",
    );
    check(
        Command::RemoveBroker { broker: BrokerId::new(2) },
        "10000000524c4d3108000e0007000800080000000000000b0c00000000000600080004000600000002000000",
    );
    check(
        Command::AlterPartition(AlterPartition {
            partition: PARTITION,
            sender: BrokerId::new(2),
            leader_epoch: LeaderEpoch::new(5),
            partition_epoch: PartitionEpoch::new(6),
            in_sync: vec![InSyncMember {
                broker: BrokerId::new(2),
                epoch: BrokerEpoch::new(9),
                generation: ReplicaGeneration::new(4),
            }],
            transfer_to: Some(BrokerId::new(0)),
        }),
        "14000000524c4d310000000008000e0007000800080000000000000c18000000000012003000040018001c00 \
         2000240028002c00120000007766554433221100ffeeddccbbaa998800000000030000000200000005000000 \
         0600000008000000000000000100000002000000040000000900000000000000",
    );
    check(
        Command::MarkClean {
            partition: PARTITION,
            generation: ReplicaGeneration::new(4),
            broker: BrokerId::new(2),
            broker_epoch: BrokerEpoch::new(9),
            leader_epoch: LeaderEpoch::new(5),
        },
        "10000000524c4d3108000c0007000800080000000000000d1400000010002c000400140018001c0024002000 \
         100000007766554433221100ffeeddccbbaa9988030000000400000002000000050000000900000000000000",
    );
    check(
        Command::ReassignPartitions {
            partitions: vec![
                Reassignment { partition: PARTITION, replicas: vec![BrokerId::new(2), BrokerId::new(1)] },
                Reassignment { partition: PARTITION, replicas: vec![] },
            ],
        },
        "14000000524c4d310000000008000c0007000800080000000000000e0c00000008000c000400080008000000 \
         080000003c000000020000007766554433221100ffeeddccbbaa998803000000020000007766554433221100 \
         ffeeddccbbaa9988030000000000000000000000020000000200000001000000",
    );
    check(
        Command::ElectLeaders { elections: vec![(PARTITION, BrokerId::new(2))], unclean: true },
        "14000000524c4d310000000008000c0007000800080000000000000f0c00000008000c000800070008000000 \
         0000000104000000010000007766554433221100ffeeddccbbaa99880300000002000000",
    );
    check(
        Command::MoveHome { partition: PARTITION, broker: BrokerId::new(2), shard: ShardId::new(1) },
        "10000000524c4d3108000c00070008000800000000000010100000000c002000080018001c0006000c000000 \
         000001007766554433221100ffeeddccbbaa99880300000002000000",
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
