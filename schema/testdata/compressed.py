#!/usr/bin/env python3
"""Compressed record batches, ours against another implementation's (kafka-python).

`compressed.py make` writes `compressed_<codec>.bin` beside this file: batches of `RECORDS` that kafka-python has
compressed, which `schema/src/compression.rs` unpacks in its tests. `compressed.py check DIR` decodes with
kafka-python what our tests write into DIR when RINGLOG_COMPRESSED_OUT names it. To run it:

    python3 -m venv /tmp/golden
    /tmp/golden/bin/pip install kafka-python==3.0.12 crc32c lz4 python-snappy zstandard
    /tmp/golden/bin/python schema/testdata/compressed.py make
    RINGLOG_COMPRESSED_OUT=/tmp/ours cargo test -p ringlog-client --lib compression
    /tmp/golden/bin/python schema/testdata/compressed.py check /tmp/ours
"""

import pathlib
import sys

import kafka.record.default_records as kp

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
# Enough for several blocks of Snappy.
RECORDS = [(1_700_000_000_000 + n, b"key-%d" % n, b"a value that repeats, %d; " % n * 9, [("h", b"v")]) for n in range(500)]


def make(directory):
    for name, codec in CODECS.items():
        builder = kp.DefaultRecordBatchBuilder(
            magic=2, compression_type=codec, is_transactional=False, producer_id=-1, producer_epoch=-1,
            base_sequence=-1, batch_size=1 << 30)
        for offset, (timestamp, key, value, headers) in enumerate(RECORDS):
            builder.append(offset, timestamp=timestamp, key=key, value=value, headers=headers)
        (directory / f"compressed_{name}.bin").write_bytes(bytes(builder.build()))


def check(directory):
    for name, codec in CODECS.items():
        batch = kp.DefaultRecordBatch((directory / f"compressed_{name}.bin").read_bytes())
        assert batch.validate_crc() and batch.compression_type == codec, name
        found = [(r.timestamp, r.key, r.value, [(k, v) for k, v in r.headers]) for r in batch]
        assert found == RECORDS, name
        print(f"{name}: {len(found)} records, the same")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make"]:
            make(pathlib.Path(__file__).parent)
        case ["check", directory]:
            check(pathlib.Path(directory))
        case _:
            sys.exit(__doc__)
