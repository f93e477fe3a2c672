//! A record as a JSON object.
//!
//! Bytes that are UTF-8 stand under their plain name; others under the name with `_base64`, so that no byte
//! is lost and no reader has to guess. Null is null, and an empty value is an empty string.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringlog_client::Record;
use serde::ser::SerializeMap;

/// One record and where it stands.
pub struct Json<'a> {
    topic: &'a str,
    partition: u32,
    record: &'a Record<'a>,
}

impl<'a> Json<'a> {
    /// See the module.
    pub fn of(topic: &'a str, partition: u32, record: &'a Record<'a>) -> Self {
        Self { topic, partition, record }
    }
}

impl serde::Serialize for Json<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = self.record;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("topic", self.topic)?;
        map.serialize_entry("partition", &self.partition)?;
        map.serialize_entry("offset", &record.offset)?;
        map.serialize_entry("timestamp_ms", &record.timestamp_ms)?;
        let time = jiff::Timestamp::from_millisecond(record.timestamp_ms);
        map.serialize_entry("timestamp", &time.ok().map(|time| time.to_string()))?;
        entry(&mut map, "key", record.key)?;
        entry(&mut map, "value", record.value)?;
        let mut headers = Vec::new();
        for header in record.headers() {
            let (name, value) = header.map_err(serde::ser::Error::custom)?;
            headers.push(Header { name, value });
        }
        map.serialize_entry("headers", &headers)?;
        map.end()
    }
}

/// Headers are a list: their order counts and names may repeat.
struct Header<'a> {
    name: &'a str,
    value: Option<&'a [u8]>,
}

impl serde::Serialize for Header<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("name", self.name)?;
        entry(&mut map, "value", self.value)?;
        map.end()
    }
}

fn entry<M: SerializeMap>(map: &mut M, name: &str, bytes: Option<&[u8]>) -> Result<(), M::Error> {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => map.serialize_entry(name, &None::<&str>),
        Some((_, Ok(text))) => map.serialize_entry(name, text),
        Some((bytes, Err(_))) => map.serialize_entry(&format!("{name}_base64"), &STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::record_batch::{self, BatchBuilder};

    #[test]
    fn records() {
        type Row<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, &'a [(&'a str, Option<&'a [u8]>)], &'a str);
        let rows: [Row; 3] = [
            (Some(b"k"), Some(b"v"), &[], r#""key":"k","value":"v","headers":[]}"#),
            (
                None,
                Some(b""),
                &[("h", None)],
                r#""key":null,"value":"","headers":[{"name":"h","value":null}]}"#,
            ),
            (Some(b"\xff"), None, &[], r#""key_base64":"/w==","value":null,"headers":[]}"#),
        ];
        for (key, value, headers, expect) in rows {
            let mut builder = BatchBuilder::new();
            builder.append(1_357_034_400_000, key, value, headers);
            let batch = builder.finish();
            let record = record_batch::records(&batch).unwrap().next().unwrap().unwrap();
            let text = serde_json::to_string(&Json::of("t", 3, &record)).unwrap();
            let start = r#"{"topic":"t","partition":3,"offset":0,"timestamp_ms":1357034400000,"timestamp":"2013-01-01T10:00:00Z","#;
            assert_eq!(text, format!("{start}{expect}"));
        }
    }
}
