//! Which part of a line is its key.
//!
//! Owner: one `ringlog produce`. Slices of the line, nothing is copied unless a quoted CSV field must be
//! unescaped. Absent on purpose: CSV fields that contain line ends; a line is a record.

use bytes::Bytes;

/// How a line becomes key and value.
pub enum KeyRule {
    /// No key; the line is the value.
    None,
    /// Position of a CSV field, from 0; the whole line is the value.
    Field(usize),
    /// Before and after the first of these.
    Separator(Vec<u8>),
}

/// Why a line has no key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// Too few fields.
    #[error("{fields} fields, the key is field {wanted}; --header skips a heading")]
    NoField {
        /// Counted from 1.
        wanted: usize,
        /// How many there are.
        fields: usize,
    },
    /// The separator is not there.
    #[error("'{separator}' is not in it; it separates the key from the value")]
    NoSeparator {
        /// What was looked for.
        separator: String,
    },
}

impl KeyRule {
    /// `field` counts from 1. At most one of the two is given.
    pub fn new(field: Option<u32>, separator: Option<&str>) -> Self {
        match (field, separator) {
            (Some(field), _) => KeyRule::Field(field as usize - 1),
            (None, Some(separator)) => KeyRule::Separator(separator.as_bytes().to_vec()),
            (None, None) => KeyRule::None,
        }
    }

    /// Key and value of `line`.
    pub fn split(&mut self, line: Bytes) -> Result<(Option<Bytes>, Bytes), KeyError> {
        match self {
            KeyRule::None => Ok((None, line)),
            KeyRule::Field(index) => Ok((Some(field(&line, *index)?), line)),
            KeyRule::Separator(separator) => {
                let at = line.windows(separator.len()).position(|window| window == separator.as_slice());
                let at = at.ok_or_else(|| KeyError::NoSeparator {
                    separator: String::from_utf8_lossy(separator).into_owned(),
                })?;
                Ok((Some(line.slice(..at)), line.slice(at + separator.len()..)))
            }
        }
    }
}

/// Field `index` of a CSV line.
fn field(line: &Bytes, index: usize) -> Result<Bytes, KeyError> {
    if !line.contains(&b'"') {
        let mut fields = line.split(|byte| *byte == b',');
        return match fields.nth(index) {
            Some(field) => Ok(line.slice_ref(field)),
            None => Err(too_few(line.split(|byte| *byte == b',').count(), index)),
        };
    }
    // Unescaped fields are never longer than the line; a line has at most one end more than it has bytes.
    let (mut output, mut ends) = (vec![0; line.len()], vec![0; line.len() + 1]);
    let mut reader = csv_core::Reader::new();
    let (_, read, written, mut fields) = reader.read_record(line, &mut output, &mut ends);
    // The line's end is not in the line; telling the reader that nothing follows closes the last field.
    let (_, _, _, more) = reader.read_record(&line[read..], &mut output[written..], &mut ends[fields..]);
    fields += more;
    if index >= fields {
        return Err(too_few(fields, index));
    }
    let start = if index == 0 { 0 } else { ends[index - 1] };
    output.truncate(ends[index]);
    Ok(Bytes::from(output).slice(start..))
}

fn too_few(fields: usize, index: usize) -> KeyError {
    KeyError::NoField { wanted: index + 1, fields }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let field = |n| KeyRule::new(Some(n), None);
        let separator = |s| KeyRule::new(None, Some(s));
        // (rule, line, key and value, or the error)
        type Expect = Result<(Option<&'static str>, &'static str), &'static str>;
        let rows: [(KeyRule, &'static str, Expect); 14] = [
            (KeyRule::new(None, None), "a,b", Ok((None, "a,b"))),
            (field(1), "a,b", Ok((Some("a"), "a,b"))),
            (field(2), "a,b", Ok((Some("b"), "a,b"))),
            (field(2), "a,,c", Ok((Some(""), "a,,c"))),
            (field(1), "", Ok((Some(""), ""))),
            (field(3), "a,b", Err("2 fields")),
            (field(2), r#"a,"b,c",d"#, Ok((Some("b,c"), r#"a,"b,c",d"#))),
            (field(3), r#"a,"b,c",d"#, Ok((Some("d"), r#"a,"b,c",d"#))),
            (field(1), r#""say ""hi""",b"#, Ok((Some(r#"say "hi""#), r#""say ""hi""",b"#))),
            (field(4), r#"a,"b,c",d"#, Err("3 fields")),
            (separator(":"), "k:v:w", Ok((Some("k"), "v:w"))),
            (separator("=>"), "k=>v", Ok((Some("k"), "v"))),
            (separator(":"), ":v", Ok((Some(""), "v"))),
            (separator(":"), "none", Err("':' is not in it")),
        ];
        for (mut rule, line, expect) in rows {
            let got = rule.split(Bytes::from_static(line.as_bytes()));
            match (got, expect) {
                (Ok((key, value)), Ok(expect)) => {
                    let key = key.map(|key| String::from_utf8(key.to_vec()).unwrap());
                    assert_eq!((key.as_deref(), &value[..]), (expect.0, expect.1.as_bytes()), "{line}");
                }
                (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{line}: {error}"),
                (got, expect) => panic!("{line}: {got:?}, expected {expect:?}"),
            }
        }
    }
}
