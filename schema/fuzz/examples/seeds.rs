//! Writes the first inputs of the targets to `corpus/`, so that the fuzzer starts behind the verifier
//! and the header checks: for `frame_request` one valid frame per kind of request that has vectors in
//! it, for `record_batch` the golden batches of `../testdata` that are short enough to mutate well, for
//! `replication_frame` the golden frame, whole and its metadata alone.

use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use schema::{frame, wire};
use std::path::{Path, PathBuf};

/// Longer golden batches stay out: the fuzzer is fast on short inputs.
const BATCH_BYTES_MAX: u64 = 8 << 10;

type Builder = FlatBufferBuilder<'static>;

fn write(name: &str, kind: wire::RequestApi, api: impl FnOnce(&mut Builder) -> WIPOffset<UnionWIPOffset>) {
    let mut builder = Builder::new();
    let client_id = Some(builder.create_string("seed"));
    let api = Some(api(&mut builder));
    let arguments = wire::RequestArgs { id: 1, deadline_ms: 1000, client_id, api_type: kind, api };
    let root = wire::Request::create(&mut builder, &arguments);
    let mut out = Vec::new();
    frame::finish_request(&mut out, &mut builder, root, 4);
    out.extend_from_slice(b"body");
    let directory = corpus("frame_request");
    // Both ways that the target takes its input: the frame, and the metadata alone.
    std::fs::write(directory.join(format!("{name}.frame")), &out).expect("a seed can be written");
    std::fs::write(directory.join(format!("{name}.metadata")), &out[frame::PREFIX_BYTES..])
        .expect("a seed can be written");
}

fn corpus(target: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&directory).expect("the corpus directory can be made");
    directory
}

fn copy_batches() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let directory = corpus("record_batch");
    for entry in std::fs::read_dir(golden).expect("the golden files are there") {
        let entry = entry.expect("the golden files can be listed");
        let name = entry.file_name().into_string().expect("a golden file has a plain name");
        let bytes = entry.metadata().expect("a golden file has a size").len();
        if name.starts_with("record_batch_") && name.ends_with(".bin") && bytes <= BATCH_BYTES_MAX {
            std::fs::copy(entry.path(), directory.join(name)).expect("a seed can be written");
        }
    }
}

fn copy_replication_frame() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/replication_frame.bin");
    let bytes = std::fs::read(golden).expect("the golden frame is there");
    let directory = corpus("replication_frame");
    std::fs::write(directory.join("golden.frame"), &bytes).expect("a seed can be written");
    std::fs::write(directory.join("golden.metadata"), &bytes[frame::PREFIX_BYTES..])
        .expect("a seed can be written");
}

fn main() {
    copy_batches();
    copy_replication_frame();
    let id = wire::TopicId::new(1, 2);
    write("hello", wire::RequestApi::HelloRequest, |builder| {
        let args = wire::HelloRequestArgs { shard: 1, protocol_version: 1, ..Default::default() };
        wire::HelloRequest::create(builder, &args)
            .as_union_value()
    });
    write("metadata", wire::RequestApi::MetadataRequest, |builder| {
        let names = [builder.create_string("a"), builder.create_string("topic")];
        let topics = Some(builder.create_vector(&names));
        wire::MetadataRequest::create(builder, &wire::MetadataRequestArgs { topics }).as_union_value()
    });
    write("produce", wire::RequestApi::ProduceRequest, |builder| {
        let entries = Some(
            builder
                .create_vector(&[wire::ProduceEntry::new(0, 4, 1, 0), wire::ProduceEntry::new(1, 0, 1, 0)]),
        );
        let topic = wire::ProduceTopic::create(builder, &wire::ProduceTopicArgs { id: Some(&id), entries });
        let topics = Some(builder.create_vector(&[topic]));
        wire::ProduceRequest::create(builder, &wire::ProduceRequestArgs { acks: 1, explain: true, topics })
            .as_union_value()
    });
    write("fetch", wire::RequestApi::FetchRequest, |builder| {
        let entries = Some(builder.create_vector(&[wire::FetchEntry::new(0, 1 << 20, 5, 1, 0)]));
        let topic = wire::FetchTopic::create(builder, &wire::FetchTopicArgs { id: Some(&id), entries });
        let topics = Some(builder.create_vector(&[topic]));
        let rack = Some(builder.create_string("r1"));
        let arguments =
            wire::FetchRequestArgs { max_wait_ms: 500, min_bytes: 1, max_bytes: 1 << 20, topics, rack };
        wire::FetchRequest::create(builder, &arguments).as_union_value()
    });
    write("create_topics", wire::RequestApi::CreateTopicsRequest, |builder| {
        let (name, value) = (Some(builder.create_string("retention.ms")), Some(builder.create_string("1")));
        let config = wire::ConfigEntry::create(builder, &wire::ConfigEntryArgs { name, value });
        let configs = Some(builder.create_vector(&[config]));
        let name = Some(builder.create_string("topic"));
        let arguments = wire::NewTopicArgs { name, partitions: 8, replication_factor: 1, configs };
        let topic = wire::NewTopic::create(builder, &arguments);
        let topics = Some(builder.create_vector(&[topic]));
        wire::CreateTopicsRequest::create(
            builder,
            &wire::CreateTopicsRequestArgs { topics, validate_only: false },
        )
        .as_union_value()
    });
}
