//! Times as `to_jsonb` writes a `timestamptz`: RFC 3339 with any offset.

use std::time::{Duration, SystemTime};

use serde_json::Value;

/// `None`: it is no time from 1970 on.
pub(super) fn parse(value: &Value) -> Option<SystemTime> {
    let (date, rest) = value.as_str()?.split_once(['T', ' '])?;
    let (clock, zone) = rest.split_at(rest.find(['Z', '+', '-'])?);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(clock, ':')?;
    let valid = (1_970..=9_999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    let seconds = u64::try_from(seconds - offset_secs(zone)?).ok().filter(|_| valid)?;
    let digits = format!("{fraction:0<9}");
    let [nanos] = numbers(digits.get(..9)?, '.')?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, u32::try_from(nanos).ok()?))
}

/// `Z`, `+02` or `+02:00`.
fn offset_secs(zone: &str) -> Option<i64> {
    let (sign, offset) = match zone.split_at_checked(1)? {
        ("Z", "") => return Some(0),
        ("+", offset) => (1, offset),
        ("-", offset) => (-1, offset),
        _ => return None,
    };
    let [hours, minutes] = match offset.split_once(':') {
        None => [numbers::<1>(offset, ':')?[0], 0],
        Some(_) => numbers(offset, ':')?,
    };
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes) * 60)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, whose years begin in March here, so that
/// the leap day is the last.
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

fn numbers<const N: usize>(text: &str, between: char) -> Option<[i64; N]> {
    let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse());
    let numbers = text.split(between).map(|part| number(part)?.ok());
    numbers.collect::<Option<Vec<i64>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(text: &str) -> Option<u128> {
        let since = parse(&Value::from(text))?.duration_since(SystemTime::UNIX_EPOCH);
        Some(since.unwrap().as_micros())
    }

    #[test]
    fn every_form_that_postgres_writes_is_read() {
        let expected = Some(1_795_979_729_123_456);
        for text in [
            "2026-11-29T19:15:29.123456+00:00",
            "2026-11-29T20:45:29.123456+01:30",
            "2026-11-29 14:15:29.123456-05",
            "2026-11-29T19:15:29.123456Z",
        ] {
            assert_eq!(micros(text), expected, "{text}");
        }
        assert_eq!(micros("2000-02-29T00:00:00Z"), Some(951_782_400_000_000));
        assert_eq!(micros("1970-01-01T00:00:00.5Z"), Some(500_000));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2026-11-29",
            "2026-11-29T19:15:29",
            "2026-13-01T00:00:00Z",
            "2026-11-29T24:00:00Z",
            "2026-11-29T19:15Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
            "2026-11-29T19:15:29+0200",
            "2026-11-29T19:15:29Zulu",
            "infinity",
        ] {
            assert_eq!(micros(text), None, "{text}");
        }
    }
}
