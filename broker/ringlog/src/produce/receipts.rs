//! `ringlog produce --receipts`: each acknowledgement as it comes, in the order of the lines.
//!
//! Owner: the collecting side of one `ringlog produce`. Stateless but for the heading, which is printed once.
//! For people the columns have fixed widths, because the widest cell is not known before the end; with
//! `--explain` the parts of the time follow. For programs each is `{"receipt": {...}}`, which the summary at the end
//! is not. Absent on purpose: receipts of what failed; the summary and the exit status have that.

use super::tally::{PARTS, durability, parts};
use crate::failure::Failure;
use crate::output::{Output, duration_us};
use ringlog_client::Receipt;
use serde_json::json;

/// See the module.
#[derive(Debug, Default)]
pub struct Receipts {
    heading_printed: bool,
}

impl Receipts {
    /// Writes the receipt of the line `line`, counted from 1.
    pub fn print(
        &mut self,
        topic: &str,
        line: u64,
        receipt: &Receipt,
        output: &mut Output,
    ) -> Result<(), Failure> {
        if output.is_json() {
            return output.json(&json!({ "receipt": object(topic, line, receipt) }));
        }
        if !self.heading_printed {
            self.heading_printed = true;
            let mut names = ["LINE", "PARTITION", "OFFSET", "DURABLE END", "DURABILITY", "DUPLICATE"]
                .map(str::to_owned)
                .to_vec();
            if receipt.anatomy.is_some() {
                names.extend(PARTS.iter().map(|part| part.to_uppercase()));
            }
            output.line(&row(&names))?;
        }
        let known = |offset: u64| if told(receipt) { offset.to_string() } else { "-".to_owned() };
        let mut cells = vec![
            line.to_string(),
            receipt.partition.to_string(),
            known(receipt.offset),
            known(receipt.durable_end),
            durability(receipt.durability).to_owned(),
            if receipt.duplicate { "yes" } else { "no" }.to_owned(),
        ];
        if let Some(anatomy) = &receipt.anatomy {
            cells.extend(parts(anatomy).map(|ns| duration_us(ns as f64 / 1e3)));
        }
        output.line(&row(&cells))
    }
}

/// Whether the broker said anything: with `acks` none it does not.
fn told(receipt: &Receipt) -> bool {
    receipt.offset != Receipt::OFFSET_UNKNOWN
}

fn object(topic: &str, line: u64, receipt: &Receipt) -> serde_json::Value {
    let mut object = json!({
        "topic": topic, "line": line, "partition": receipt.partition,
        "offset": told(receipt).then_some(receipt.offset),
        "durability": durability(receipt.durability),
        "durable_end": told(receipt).then_some(receipt.durable_end),
        "duplicate": receipt.duplicate, "timestamp_ms": receipt.timestamp_ms,
        "append_time_ms": told(receipt).then_some(receipt.append_time_ms),
    });
    if let Some(anatomy) = &receipt.anatomy {
        let named = PARTS.iter().zip(parts(anatomy));
        let anatomy: serde_json::Map<_, _> =
            named.map(|(name, ns)| (format!("{}_ns", name.replace(' ', "_")), ns.into())).collect();
        object["anatomy"] = anatomy.into();
    }
    object
}

/// Numbers to the right but for the two words.
fn row(cells: &[String]) -> String {
    let mut line = String::new();
    for (at, cell) in cells.iter().enumerate() {
        line.push_str(&match at {
            0 => format!("{cell:>9}"),
            4 => format!("  {cell:<18}"),
            5 => format!("  {cell:<9}"),
            _ => format!("  {cell:>12}"),
        });
    }
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlog_client::{Anatomy, Durability};

    const RECEIPT: Receipt = Receipt {
        partition: 3,
        offset: 41,
        timestamp_ms: 7,
        durability: Durability::LeaderDevice,
        durable_end: 64,
        append_time_ms: 8,
        duplicate: true,
        anatomy: None,
    };

    #[test]
    fn an_object_per_receipt() {
        let silent = Receipt {
            offset: Receipt::OFFSET_UNKNOWN,
            durability: Durability::None,
            duplicate: false,
            append_time_ms: -1,
            ..RECEIPT
        };
        let explained =
            Receipt { anatomy: Some(Anatomy { client_queue_ns: 5, ..Anatomy::default() }), ..RECEIPT };
        let rows = [
            (RECEIPT, "offset", json!(41)),
            (RECEIPT, "durable_end", json!(64)),
            (RECEIPT, "duplicate", json!(true)),
            (RECEIPT, "anatomy", json!(null)),
            (silent, "offset", json!(null)),
            (silent, "durable_end", json!(null)),
            (silent, "append_time_ms", json!(null)),
            (silent, "durability", json!("none")),
        ];
        for (receipt, field, expect) in rows {
            assert_eq!(object("t", 1, &receipt)[field], expect, "{field} of {receipt:?}");
        }
        let anatomy = &object("t", 1, &explained)["anatomy"];
        assert_eq!(anatomy["client_queue_ns"], json!(5));
        assert_eq!(anatomy.as_object().map(serde_json::Map::len), Some(PARTS.len()));
    }
}
