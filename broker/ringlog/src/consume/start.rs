//! Where to start reading, as the user writes it.

use ringlog_client::StartFrom;

/// `earliest`, `latest`, `N`, `@2013-01-01T00:00:00Z`, `@1357000000000`.
pub fn parse(text: &str) -> Result<StartFrom, String> {
    let expected = "write earliest, latest, an offset, or @TIME (RFC 3339, or milliseconds since 1970)";
    match text {
        "earliest" => return Ok(StartFrom::Earliest),
        "latest" => return Ok(StartFrom::Latest),
        _ => {}
    }
    match text.strip_prefix('@') {
        Some(time) => match (time.parse::<i64>(), time.parse::<jiff::Timestamp>()) {
            (Ok(ms), _) if ms >= 0 => Ok(StartFrom::Timestamp(ms)),
            (Err(_), Ok(time)) if time.as_millisecond() >= 0 => {
                Ok(StartFrom::Timestamp(time.as_millisecond()))
            }
            (Ok(_), _) | (_, Ok(_)) => Err("a time since 1970 is needed".to_owned()),
            (Err(_), Err(_)) => Err(format!("'{time}' is no time; {expected}")),
        },
        None => text.parse().map(StartFrom::Offset).map_err(|_| expected.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let rows: [(&str, Result<StartFrom, &str>); 13] = [
            ("earliest", Ok(StartFrom::Earliest)),
            ("latest", Ok(StartFrom::Latest)),
            ("0", Ok(StartFrom::Offset(0))),
            ("18446744073709551615", Ok(StartFrom::Offset(u64::MAX))),
            ("-1", Err("an offset")),
            ("first", Err("earliest")),
            ("", Err("earliest")),
            ("@0", Ok(StartFrom::Timestamp(0))),
            ("@1357034400000", Ok(StartFrom::Timestamp(1_357_034_400_000))),
            ("@2013-01-01T10:00:00Z", Ok(StartFrom::Timestamp(1_357_034_400_000))),
            ("@2013-01-01T05:00:00.250-05:00", Ok(StartFrom::Timestamp(1_357_034_400_250))),
            ("@-5", Err("since 1970")),
            ("@yesterday", Err("'yesterday' is no time")),
        ];
        for (text, expect) in rows {
            match (parse(text), expect) {
                (Ok(got), Ok(expect)) => assert_eq!(got, expect, "{text}"),
                (Err(error), Err(expect)) => assert!(error.contains(expect), "{text}: {error}"),
                (got, expect) => panic!("{text}: {got:?}, expected {expect:?}"),
            }
        }
    }
}
