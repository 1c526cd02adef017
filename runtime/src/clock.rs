//! Wall clock times as RFC 3339 text in UTC.

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
}
