#!/usr/bin/env python3
"""Writes record_batch_*.bin and record_batch.json: batches made by independent implementations.

Every batch is encoded by kafka-python and by aiokafka; both must agree byte for byte, and each must
decode what the other made to the contents given here. What only a broker does to a batch (offset,
leader epoch, log-append time, control flag) is patched into the encoded bytes with `struct`, after
which both decoders are asked again. See README.md beside this file for how to run it.
"""

import json
import pathlib
import struct

import aiokafka.record.default_records as aio
import crc32c
import kafka.record.default_records as kp

DIRECTORY = pathlib.Path(__file__).parent
ATTRIBUTES_AT, MAX_TIMESTAMP_AT, HEADER_BYTES = 21, 35, 61
NO_PRODUCER = (-1, -1, -1)
GZIP = 1
T0 = 1_700_000_000_000


def builder(module, compression, transactional, producer):
    """A batch builder of one of the two implementations."""
    return module.DefaultRecordBatchBuilder(
        magic=2,
        compression_type=compression,
        is_transactional=transactional,
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
        batch_size=1 << 30,
    )


def encode(module, records, compression, transactional, producer):
    made = builder(module, compression, transactional, producer)
    for offset, timestamp, key, value, headers in records:
        assert made.append(offset, timestamp=timestamp, key=key, value=value, headers=headers) is not None
    return bytearray(made.build())


def decode(cls, data):
    batch = cls(bytes(data))
    assert batch.validate_crc(), cls
    return batch, [
        (r.offset, r.timestamp, r.key, r.value, [(k, v) for k, v in r.headers]) for r in batch
    ]


def text(data):
    """Bytes for JSON: null, hexadecimal, or one byte repeated."""
    if data is None:
        return None
    if len(data) > 64 and len(set(data)) == 1:
        return {"hex": data[:1].hex(), "times": len(data)}
    return data.hex()


GOLDEN = []


def golden(name, records, *, compression=0, transactional=False, producer=NO_PRODUCER,
           base_offset=0, leader_epoch=0, append_time=None, control=False, reencodes=True):
    data = encode(kp, records, compression, transactional, producer)
    if compression == 0:
        other = encode(aio, records, compression, transactional, producer)
        # They differ only in what a producer writes as leader epoch (0 and -1), which is patched below.
        assert data[:12] == other[:12] and data[16:] == other[16:], name
    struct.pack_into(">q", data, 0, base_offset)
    struct.pack_into(">i", data, 12, leader_epoch)
    if compression == GZIP:
        struct.pack_into("<I", data, HEADER_BYTES + 4, 0)  # the time that gzip was run
    if append_time is not None or control or compression == GZIP:
        attributes, = struct.unpack_from(">h", data, ATTRIBUTES_AT)
        attributes |= 0x20 if control else 0
        if append_time is not None:
            attributes |= 0x08
            struct.pack_into(">q", data, MAX_TIMESTAMP_AT, append_time)
        struct.pack_into(">h", data, ATTRIBUTES_AT, attributes)
        struct.pack_into(">I", data, 17, crc32c.crc32c(bytes(data[ATTRIBUTES_AT:])))

    expected = [
        (base_offset + offset, timestamp if append_time is None else append_time, key, value, headers)
        for offset, timestamp, key, value, headers in records
    ]
    for cls in (kp.DefaultRecordBatch, aio.DefaultRecordBatch, aio._DefaultRecordBatchPy):
        batch, decoded = decode(cls, data)
        assert decoded == expected, (name, cls)
    batch = kp.DefaultRecordBatch(bytes(data))
    file = f"record_batch_{name}.bin"
    (DIRECTORY / file).write_bytes(data)
    GOLDEN.append({
        "file": file,
        "reencodes": reencodes,
        "base_offset": batch.base_offset,
        "batch_bytes": batch.size_in_bytes,
        "leader_epoch": batch.leader_epoch,
        "crc": batch.crc,
        "attributes": batch.attributes,
        "last_offset_delta": batch.last_offset_delta,
        "base_timestamp_ms": batch.first_timestamp,
        "max_timestamp_ms": batch.max_timestamp,
        "producer_id": batch.producer_id,
        "producer_epoch": batch.producer_epoch,
        "base_sequence": batch.base_sequence,
        "record_count": batch.records_count,
        "records": [
            {
                "offset": offset,
                "timestamp_ms": timestamp,
                "created_ms": created,
                "key": text(key),
                "value": text(value),
                "headers": [[k, text(v)] for k, v in headers],
            }
            for (offset, timestamp, key, value, headers), (_, created, *_) in zip(expected, records)
        ],
    })


def main():
    golden("one", [(0, T0, b"key", b"value", [])])
    golden("nulls_and_empties", [
        (0, T0, None, b"no key", []),
        (1, T0, b"tombstone", None, []),
        (2, T0, b"", b"", []),
        (3, T0, None, None, []),
    ])
    golden("headers", [
        (0, T0, b"k", b"v", [("a", b"1"), ("a", b"2"), ("null", None), ("empty", b""), ("", b"no name")]),
        (1, T0, None, None, [("schlüssel-鍵", bytes(range(256)))]),
        (2, T0, b"k", b"v", [(f"header-{n}", b"x" * n) for n in range(70)]),
    ])
    golden("many", [
        (n, T0 + n * 7, b"key-%d" % (n % 97), b"value-%d" % n, []) for n in range(300)
    ])
    # Lengths and deltas on both sides of each step of the varint.
    golden("varint_steps", [
        (n, T0 + delta, b"k" * length, b"v" * length, [])
        for n, (length, delta) in enumerate([
            (0, 0), (1, 63), (63, 64), (64, 8191), (127, 8192), (128, 1 << 20), (8191, (1 << 31) - 1),
            (8192, 1 << 31), (16384, 1 << 40), (1, (1 << 62)),
        ])
    ])
    golden("timestamps", [
        (0, T0, b"", b"base", []),
        (1, T0 - 1, b"", b"before it", []),
        (2, T0 - 100_000, b"", b"long before it", []),
        (3, T0 + 5, b"", b"the greatest", []),
        (4, -1, b"", b"none", []),
        (5, 0, b"", b"1970", []),
    ])
    golden("producer", [(n, T0 + n, b"%d" % n, b"", []) for n in range(3)],
           producer=(0x0123_4567_89ab, 7, 2_147_483_600), base_offset=1 << 40, leader_epoch=12)
    golden("log_append_time", [(n, T0 + n, b"k", b"v", []) for n in range(3)],
           append_time=T0 - 5000, base_offset=99, leader_epoch=3)
    golden("transactional", [(0, T0, b"k", b"v", [])], transactional=True, producer=(5, 0, 0), reencodes=False)
    golden("control", [(0, T0, struct.pack(">hh", 0, 1), struct.pack(">hi", 0, 3), [])],
           control=True, transactional=True, producer=(5, 0, -1), base_offset=41, reencodes=False)
    # What compaction leaves: offsets with gaps, a last offset delta that does not follow from the count.
    golden("compacted", [(n, T0 + n, b"k%d" % n, b"v", []) for n in (2, 5, 130)],
           base_offset=1000, reencodes=False)
    golden("gzip", [(n, T0, b"key", b"the same value", []) for n in range(50)],
           compression=GZIP, reencodes=False)
    (DIRECTORY / "record_batch.json").write_text(json.dumps(GOLDEN, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
