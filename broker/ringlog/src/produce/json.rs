//! A record from a JSON object, one per line: what `ringlog consume --format json` prints, or a part of it.
//!
//! Owner: one `ringlog produce --input json`. A name with `_base64` holds bytes that are not text. What is absent or null is
//! null: a key without a value is a tombstone. `topic`, `offset` and `timestamp` of what was printed are passed over, so
//! that the records of one topic can be sent to another as they are. Invariant: any other name is an error, because it is
//! probably a slip. Absent on purpose: JSON over several lines.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ringlog_client::ProducerRecord;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Why a line is not a record.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not an object with these fields.
    #[error(
        "{0}; write an object as {{\"key\":\"k\",\"value\":\"v\",\"headers\":[{{\"name\":\"n\",\"value\":\"v\"}}]}}"
    )]
    Json(#[from] serde_json::Error),
    /// A field that is not what its name says.
    #[error("{name}: not base64: {error}")]
    Base64 {
        /// Which.
        name: String,
        /// Why not.
        error: base64::DecodeError,
    },
    /// The same twice.
    #[error("{0} and {0}_base64 are the same field; give one of them")]
    Twice(String),
    /// Before 1970.
    #[error("timestamp_ms: milliseconds since 1970 are needed")]
    Timestamp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, rename = "topic")]
    _topic: IgnoredAny,
    #[serde(default, rename = "offset")]
    _offset: IgnoredAny,
    #[serde(default, rename = "timestamp")]
    _timestamp: IgnoredAny,
    partition: Option<u32>,
    timestamp_ms: Option<i64>,
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    #[serde(default)]
    headers: Vec<Header>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    value: Option<String>,
    value_base64: Option<String>,
}

/// The record of a line, without its topic.
pub fn record(line: &[u8]) -> Result<ProducerRecord, JsonError> {
    let line: Line = serde_json::from_slice(line)?;
    if line.timestamp_ms.is_some_and(|ms| ms < 0) {
        return Err(JsonError::Timestamp);
    }
    let header = |header: Header| {
        let value = bytes(&format!("header {}", header.name), header.value, header.value_base64)?;
        Ok((header.name, value))
    };
    Ok(ProducerRecord {
        partition: line.partition,
        timestamp_ms: line.timestamp_ms,
        key: bytes("key", line.key, line.key_base64)?,
        value: bytes("value", line.value, line.value_base64)?,
        headers: line.headers.into_iter().map(header).collect::<Result<_, JsonError>>()?,
        ..ProducerRecord::default()
    })
}

fn bytes(name: &str, text: Option<String>, encoded: Option<String>) -> Result<Option<Bytes>, JsonError> {
    match (text, encoded) {
        (Some(_), Some(_)) => Err(JsonError::Twice(name.to_owned())),
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(encoded)) => {
            let decoded = STANDARD.decode(encoded);
            decoded
                .map(|bytes| Some(bytes.into()))
                .map_err(|error| JsonError::Base64 { name: format!("{name}_base64"), error })
        }
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        // As `Debug` shows it.
        let rows: [(&str, Result<&str, &str>); 16] = [
            (r#"{"key":"k","value":"v"}"#, Ok(r#"key: Some(b"k"), value: Some(b"v"), headers: []"#)),
            (r#"{"key":"k"}"#, Ok(r#"key: Some(b"k"), value: None"#)),
            (r#"{"key":null,"value":""}"#, Ok(r#"key: None, value: Some(b"")"#)),
            (r#"{"value_base64":"/w=="}"#, Ok(r#"value: Some(b"\xff")"#)),
            (r#"{"value":"a\u00e9"}"#, Ok(r#"value: Some(b"a\xc3\xa9")"#)),
            (r#"{"partition":3,"value":"v"}"#, Ok("partition: Some(3)")),
            (r#"{"timestamp_ms":1357034400000}"#, Ok("timestamp_ms: Some(1357034400000)")),
            (
                r#"{"headers":[{"name":"h","value":"1"},{"name":"h","value":null},{"name":"b","value_base64":"AA=="}]}"#,
                Ok(r#"headers: [("h", Some(b"1")), ("h", None), ("b", Some(b"\0"))]"#),
            ),
            (r#"{"topic":"t","offset":7,"timestamp":"2013-01-01T10:00:00Z"}"#, Ok("timestamp_ms: None")),
            (r#"{"vaule":"v"}"#, Err("unknown field `vaule`")),
            (r#"{"value":"v","value_base64":"AA=="}"#, Err("value and value_base64")),
            (r#"{"value_base64":"?"}"#, Err("value_base64: not base64")),
            (r#"{"timestamp_ms":-1}"#, Err("since 1970")),
            (r#"{"value":7}"#, Err("expected a string")),
            ("hello", Err("write an object as")),
            ("", Err("write an object as")),
        ];
        for (line, expect) in rows {
            match (record(line.as_bytes()).map(|record| format!("{record:?}")), expect) {
                (Ok(record), Ok(expect)) => assert!(record.contains(expect), "{line}: {record}"),
                (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{line}: {error}"),
                (got, expect) => panic!("{line}: {got:?}, expected {expect:?}"),
            }
        }
    }
}
