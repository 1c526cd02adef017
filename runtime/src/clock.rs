//! Times as text: moments in RFC 3339 and UTC, durations as Go writes them.

use std::time::{Duration, SystemTime};

/// How much of a second is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    Seconds,
    Nanoseconds,
}

/// Now, for instance `2026-11-23T19:25:37.000000001Z`.
pub(crate) fn now(precision: Precision) -> String {
    // A clock before 1970 reads as 1970.
    rfc3339(
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
        precision,
    )
}

/// The time that lies `since` after 1970-01-01T00:00:00Z.
fn rfc3339(since: Duration, precision: Precision) -> String {
    let (days, second) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = match precision {
        Precision::Seconds => String::new(),
        Precision::Nanoseconds => format!(".{:09}", since.subsec_nanos()),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Year, month and day of a day counted from 1970-01-01 (proleptic Gregorian calendar).
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, leap days come last in their year, and each 400 years have the same 146097 days.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// A duration as Go's time.ParseDuration reads it, for instance `1m30s` or `0.5s`; not negative.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("invalid duration {text:?}");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut sum = Duration::ZERO;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = rest.split_at(end.ok_or_else(invalid)?);
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, next) = unit.split_at(end.unwrap_or(unit.len()));
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(invalid()),
        };
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| invalid())?;
        sum = sum.checked_add(part).ok_or_else(invalid)?;
        rest = next;
        if rest.is_empty() {
            return Ok(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_461_937, "2026-11-23T19:25:37Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(
                rfc3339(Duration::from_secs(seconds), Precision::Seconds),
                text
            );
        }
        let text = rfc3339(Duration::new(1, 5), Precision::Nanoseconds);
        assert_eq!(text, "1970-01-01T00:00:01.000000005Z");
    }

    #[test]
    fn durations_are_gos() {
        for (text, milliseconds) in [
            ("5s", Some(5000)),
            ("1m30s", Some(90_000)),
            ("0.5s", Some(500)),
            ("1h0m0.25s", Some(3_600_250)),
            ("100ms", Some(100)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-5s", None),
            ("1x", None),
            ("1.2.3s", None),
            ("99999999999999999999999h", None),
        ] {
            let found = duration(text).ok().map(|found| found.as_millis());
            assert_eq!(found, milliseconds, "{text:?}");
        }
    }
}
