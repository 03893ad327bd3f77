//! Unix time and RFC 3339 text, both ways, without a time zone database: UTC only.

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const SECONDS_PER_DAY: u64 = 86_400;
const DAYS_PER_ERA: u64 = 146_097;
/// Days from 0000-03-01, where eras of 400 years begin, to 1970-01-01.
const DAYS_BEFORE_UNIX: u64 = 719_468;
/// Nanoseconds since 1970 fit into 64 bits until the year 2554; later starts are refused.
const YEAR_MAX: u64 = 2_500;

/// The civil date of a count of days since 1970-01-01, as (year, month, day).
///
/// Years are counted from March, so that the leap day is the last of its year and month lengths follow one formula.
fn civil(days_since_unix: u64) -> (u64, u64, u64) {
    let days = days_since_unix + DAYS_BEFORE_UNIX;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let leaps = day_of_era / 1_460 + day_of_era / 146_096 - day_of_era / 36_524;
    let year_of_era = (day_of_era - leaps) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// Days since 1970-01-01 of a date not before it.
fn days_since_unix(year: u64, month: u64, day: u64) -> u64 {
    let year_from_march = year - u64::from(month <= 2);
    let (era, year_of_era) = (year_from_march / 400, year_from_march % 400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * DAYS_PER_ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - DAYS_BEFORE_UNIX
}

/// Appends `number` as exactly `width` decimal digits, with leading zeros; higher digits are cut off.
pub fn push_digits(out: &mut Vec<u8>, number: u64, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    let mut rest = number;
    for digit in out[start..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// Appends Unix nanoseconds as RFC 3339 in UTC with nine decimals: `2026-11-23T12:00:00.000000000Z`.
pub fn push_rfc3339(out: &mut Vec<u8>, unix_ns: u64) {
    let seconds = unix_ns / NANOS_PER_SECOND;
    let (year, month, day) = civil(seconds / SECONDS_PER_DAY);
    let second_of_day = seconds % SECONDS_PER_DAY;
    push_digits(out, year, 4);
    for (separator, number) in [(b'-', month), (b'-', day), (b'T', second_of_day / 3_600)] {
        out.push(separator);
        push_digits(out, number, 2);
    }
    for number in [second_of_day / 60 % 60, second_of_day % 60] {
        out.push(b':');
        push_digits(out, number, 2);
    }
    out.push(b'.');
    push_digits(out, unix_ns % NANOS_PER_SECOND, 9);
    out.push(b'Z');
}

/// Unix milliseconds as RFC 3339 in UTC, for people: `2026-11-23T12:00:00.000Z`.
pub fn rfc3339_ms(unix_ms: u64) -> String {
    let mut text = Vec::new();
    push_rfc3339(&mut text, unix_ms.saturating_mul(1_000_000));
    // The last six of nine decimals, and the Z.
    text.truncate(text.len() - 7);
    text.push(b'Z');
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads RFC 3339 in UTC (`2026-11-23T12:00:00Z`, decimals allowed) or whole Unix seconds, as Unix nanoseconds.
pub fn parse(text: &str) -> Result<u64, String> {
    let refused =
        || format!("`{text}` is neither RFC 3339 in UTC (2026-11-23T12:00:00Z, from 1970 to {YEAR_MAX}) nor Unix seconds");
    if let Ok(seconds) = text.parse::<u64>() {
        let day_max = days_since_unix(YEAR_MAX, 1, 1);
        return if seconds < day_max * SECONDS_PER_DAY { Ok(seconds * NANOS_PER_SECOND) } else { Err(refused()) };
    }
    parse_rfc3339(text.as_bytes()).ok_or_else(refused)
}

fn parse_rfc3339(text: &[u8]) -> Option<u64> {
    let (whole, fraction) = text.strip_suffix(b"Z")?.split_at_checked(19)?;
    let shape_holds = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')].iter().all(|&(at, mark)| whole[at] == mark);
    if !shape_holds {
        return None;
    }
    let (year, month, day) = (number(&whole[..4])?, number(&whole[5..7])?, number(&whole[8..10])?);
    let (hour, minute, second) = (number(&whole[11..13])?, number(&whole[14..16])?, number(&whole[17..])?);
    let in_range =
        (1970..YEAR_MAX).contains(&year) && (1..=12).contains(&month) && day >= 1 && hour < 24 && minute < 60 && second < 60;
    if !in_range {
        return None;
    }
    let days = days_since_unix(year, month, day);
    // A day past the end of its month comes back as another date.
    if civil(days) != (year, month, day) {
        return None;
    }
    let seconds = days * SECONDS_PER_DAY + hour * 3_600 + minute * 60 + second;
    Some(seconds * NANOS_PER_SECOND + nanos(fraction)?)
}

/// The nanoseconds of `.5` or of an empty fraction.
fn nanos(fraction: &[u8]) -> Option<u64> {
    let Some(digits) = fraction.strip_prefix(b".") else {
        return fraction.is_empty().then_some(0);
    };
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    Some(number(digits)? * 10u64.pow(9 - digits.len() as u32))
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(unix_ns: u64) -> String {
        let mut out = Vec::new();
        push_rfc3339(&mut out, unix_ns);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_times_are_written_and_read_back() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
            (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
            (4_107_542_399_999_999_999, "2100-02-28T23:59:59.999999999Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
        ];
        for (unix_ns, text) in cases {
            assert_eq!(written(unix_ns), text);
            assert_eq!(parse(text), Ok(unix_ns), "{text}");
        }
        assert_eq!(parse("2023-11-14T22:13:20Z"), Ok(1_700_000_000_000_000_000));
        assert_eq!(parse("2023-11-14T22:13:20.5Z"), Ok(1_700_000_000_500_000_000));
        assert_eq!(parse("1700000000"), Ok(1_700_000_000_000_000_000));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        let refused = [
            "",
            "now",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-02-29T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-00-01T00:00:00Z",
            "2023-01-00T00:00:00Z",
            "2023-01-01T24:00:00Z",
            "2023-01-01T00:00:00.Z",
            "2023-01-01T00:00:00.1234567890Z",
            "1969-12-31T23:59:59Z",
            "2600-01-01T00:00:00Z",
            "99999999999999",
            "2023-01-01T00:00:0éZ",
            "-5",
        ];
        for text in refused {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_time_reads_back_as_written(unix_ns in 0u64..16_000_000_000_000_000_000) {
            proptest::prop_assert_eq!(parse(&written(unix_ns)), Ok(unix_ns));
        }
    }
}
