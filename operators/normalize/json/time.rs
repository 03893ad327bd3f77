//! Times in plain JSON: RFC 3339 texts, and numbers whose unit their size tells.
//!
//! ```text
//! seconds        1e8 ..< 1e11    1973-03-03 to 5138
//! milliseconds   1e11 ..< 1e14   the same
//! microseconds   1e14 ..< 1e17   the same
//! nanoseconds    1e17 ..         1973-03-03 to 2262
//! ```
//! Numbers below are no times: counters and uptimes must not become records of 1970. Nothing after 2262 fits an `i64` of nanoseconds.

use crate::normalize::json_text::Held;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Unix nanoseconds, if `value` is a time.
pub(super) fn nanos_of(value: &Held<'_>) -> Option<u64> {
    match value {
        Held::Integer(number) => nanos_of_number(u64::try_from(*number).ok()?),
        Held::Double(number) => nanos_of_double(*number),
        Held::Text(text) => nanos_of_text(text),
        Held::Bool(_) | Held::Unsigned(_) | Held::Nested(_) => None,
    }
}

fn nanos_of_text(text: &str) -> Option<u64> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return nanos_of_number(text.parse().ok()?);
    }
    nanos_of_rfc3339(text.as_bytes())
}

/// Nanoseconds per unit of a number of this size.
fn unit(number: u64) -> Option<u64> {
    match number {
        0..100_000_000 => None,
        100_000_000..100_000_000_000 => Some(1_000_000_000),
        100_000_000_000..100_000_000_000_000 => Some(1_000_000),
        100_000_000_000_000..100_000_000_000_000_000 => Some(1_000),
        _ => Some(1),
    }
}

fn nanos_of_number(number: u64) -> Option<u64> {
    number.checked_mul(unit(number)?).filter(|&nanos| nanos <= i64::MAX as u64)
}

/// A double tells a present time in seconds to about a quarter of a microsecond: digits below the microsecond are noise and rounded off.
fn nanos_of_double(number: f64) -> Option<u64> {
    if !(1e8..9.3e18).contains(&number) {
        return None;
    }
    nanos_of_units(number, unit(number as u64)?)
}

/// As above, of a number of `nanos_per_unit` nanoseconds each, which is at least 0.
pub(in crate::normalize) fn nanos_of_units(number: f64, nanos_per_unit: u64) -> Option<u64> {
    if !(0.0..9.3e18).contains(&number) {
        return None;
    }
    let whole = (number as u64).checked_mul(nanos_per_unit)?;
    let micros = (number.fract() * nanos_per_unit as f64 / 1e3).round() as u64;
    whole.checked_add(micros * 1_000).filter(|&nanos| nanos <= i64::MAX as u64)
}

/// `2026-11-23T12:01:02.5+01:00`, and what common loggers make of it: a space for `T`, a comma for the point, `+0100`, or no offset at
/// all, which is read as UTC. Digits after the ninth are dropped. Second 60 is the second after.
pub(in crate::normalize) fn nanos_of_rfc3339(text: &[u8]) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let (clock, rest) = rest.split_at_checked(9)?;
    let separated =
        date[4] == b'-' && date[7] == b'-' && matches!(clock[0], b'T' | b't' | b' ') && clock[3] == b':' && clock[6] == b':';
    if !separated {
        return None;
    }
    let (year, month, day) = (digits(&date[..4])?, digits(&date[5..7])?, digits(&date[8..])?);
    let (hour, minute, second) = (digits(&clock[1..3])?, digits(&clock[4..6])?, digits(&clock[7..])?);
    let valid = (1..=12).contains(&month) && (1..=days_in_month(year, month)).contains(&day);
    if !valid || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction, zone) = fraction(rest)?;
    let seconds = (days_before(year, month, day) * 24 + hour) * 3_600 + minute * 60 + second - offset_seconds(zone)?;
    let nanos = seconds.checked_mul(NANOS_PER_SECOND)?.checked_add(fraction)?;
    u64::try_from(nanos).ok()
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

/// Nanoseconds after a point or comma, and what follows them.
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    if !matches!(text.first(), Some(b'.' | b',')) {
        return Some((0, text));
    }
    let text = &text[1..];
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (decimals, zone) = text.split_at(count);
    let kept = &decimals[..count.min(9)];
    if kept.is_empty() {
        return None;
    }
    Some((digits(kept)? * 10i64.pow(9 - kept.len() as u32), zone))
}

fn offset_seconds(zone: &[u8]) -> Option<i64> {
    let (sign, hours, minutes) = match zone {
        [] | b"Z" | b"z" => return Some(0),
        [sign @ (b'+' | b'-'), hours @ .., b':', minute1, minute2] if hours.len() == 2 => (sign, hours, [*minute1, *minute2]),
        [sign @ (b'+' | b'-'), hours @ .., minute1, minute2] if hours.len() == 2 => (sign, hours, [*minute1, *minute2]),
        _ => return None,
    };
    let (hours, minutes) = (digits(hours)?, digits(&minutes)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let seconds = hours * 3_600 + minutes * 60;
    Some(if *sign == b'-' { -seconds } else { seconds })
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    // Days before each month in a year that is not a leap year.
    const BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leap_day = i64::from(month > 2 && is_leap(year));
    let years = year - 1;
    let days_before_year = years * 365 + years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400);
    // 719,162 days lie between 0001-01-01 and 1970-01-01.
    days_before_year - 719_162 + BEFORE_MONTH[month as usize - 1] + leap_day + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_loggers_are_read_as_the_instants_they_name() {
        // Each beside what `date -u -d @seconds` says.
        let cases = [
            ("2026-11-23T12:01:02Z", Some(1_795_435_262_000_000_000)),
            ("2026-11-23T12:01:02.5+01:00", Some(1_795_431_662_500_000_000)),
            ("2026-11-23 12:01:02,123", Some(1_795_435_262_123_000_000)),
            ("2026-11-23t12:01:02.1234567899z", Some(1_795_435_262_123_456_789)),
            ("2026-11-23T12:01:02-0730", Some(1_795_462_262_000_000_000)),
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T23:59:60Z", Some(951_868_800_000_000_000)),
            ("1760000000", Some(1_760_000_000_000_000_000)),
            ("1760000000123", Some(1_760_000_000_123_000_000)),
            ("2262-04-11T23:47:16.854775807Z", Some(i64::MAX as u64)),
            ("2262-04-11T23:47:16.854775808Z", None),
            ("1969-12-31T23:59:59Z", None),
            ("2023-02-29T00:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-23T24:00:00Z", None),
            ("2026-11-23T12:01:02.Z", None),
            ("2026-11-23T12:01:02+1:00", None),
            ("2026-11-23", None),
            ("yesterday", None),
            ("2026-11-23T12:01:0\u{e9}", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(nanos_of(&Held::Text(text.into())), expected, "{text}");
        }
    }

    #[test]
    fn numbers_tell_their_unit_by_their_size() {
        let cases = [
            (Held::Integer(1_760_000_000), Some(1_760_000_000_000_000_000)),
            (Held::Integer(1_760_000_000_123), Some(1_760_000_000_123_000_000)),
            (Held::Integer(1_760_000_000_123_456), Some(1_760_000_000_123_456_000)),
            (Held::Integer(1_760_000_000_123_456_789), Some(1_760_000_000_123_456_789)),
            (Held::Double(1_760_000_000.123_456), Some(1_760_000_000_123_456_000)),
            (Held::Double(1_760_000_000_123.25), Some(1_760_000_000_123_250_000)),
            (Held::Double(9.25e18), None),
            (Held::Double(f64::NAN), None),
            (Held::Double(12.5), None),
            (Held::Integer(99_999_999), None),
            (Held::Integer(-1_760_000_000), None),
            // The year 5000 in seconds: no i64 of nanoseconds.
            (Held::Integer(95_617_584_000), None),
            (Held::Unsigned(u64::MAX), None),
            (Held::Bool(true), None),
        ];
        for (value, expected) in cases {
            assert_eq!(nanos_of(&value), expected, "{value:?}");
        }
    }

    #[test]
    fn days_follow_the_calendar() {
        let mut expected = days_before(1600, 1, 1);
        for year in 1600..2400 {
            for month in 1..=12 {
                for day in 1..=days_in_month(year, month) {
                    assert_eq!(days_before(year, month, day), expected);
                    expected += 1;
                }
            }
        }
        assert_eq!(days_before(1970, 1, 1), 0);
    }
}
