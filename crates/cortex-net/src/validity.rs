//! From when to when a certificate counts: the one field of it that an operator asks about, read without a library for the rest.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Not before it.
    pub from: SystemTime,
    /// Not after it.
    pub until: SystemTime,
}

impl Validity {
    /// Reads a certificate in DER; `None` for one that is not understood.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (whole, _) = take(certificate, SEQUENCE)?;
        let (mut fields, _) = take(whole, SEQUENCE)?;
        if let Some((_, rest)) = take(fields, VERSION) {
            fields = rest;
        }
        // Before the validity: serial number, signature algorithm, issuer.
        for tag in [INTEGER, SEQUENCE, SEQUENCE] {
            (_, fields) = take(fields, tag)?;
        }
        let (validity, _) = take(fields, SEQUENCE)?;
        let (from, rest) = time(validity)?;
        let (until, _) = time(rest)?;
        Some(Self { from, until })
    }
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// The content of the first element, if it has this tag, and what follows it.
fn take(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| (length << 8) | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length))?
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`, as RFC 5280 has them.
fn time(bytes: &[u8]) -> Option<(SystemTime, &[u8])> {
    let short = take(bytes, UTC_TIME).map(|(text, rest)| (text, rest, 2));
    let (text, rest, year_digits) = short.or_else(|| take(bytes, GENERALIZED_TIME).map(|(text, rest)| (text, rest, 4)))?;
    let digits = std::str::from_utf8(text.strip_suffix(b"Z")?).ok()?;
    if digits.len() != year_digits + 10 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (year, others) = digits.split_at(year_digits);
    let year: i64 = year.parse().ok()?;
    let year = match year_digits {
        2 if year >= 50 => 1900 + year,
        2 => 2000 + year,
        _ => year,
    };
    let number = |place: usize| others[2 * place..2 * place + 2].parse::<i64>().ok();
    let [month, day, hour, minute, second] = [number(0)?, number(1)?, number(2)?, number(3)?, number(4)?];
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    let moment = match u64::try_from(seconds) {
        Ok(after) => UNIX_EPOCH.checked_add(Duration::from_secs(after))?,
        Err(_) => UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs()))?,
    };
    Some((moment, rest))
}

/// Years begin in March here, so that the day that some of them have more is their last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_as_a_calendar_does() {
        let cases = [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2000, 3, 1), 11_017), ((1969, 12, 31), -1), ((2100, 3, 1), 47_541)];
        for ((year, month, day), days) in cases {
            assert_eq!(days_since_1970(year, month, day), days, "{year}-{month}-{day}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_validity() {
        for bytes in [&b""[..], b"\x30", b"\x30\x84\xff\xff\xff\xff", b"\x30\x03\x30\x01\x02", b"\x30\x80"] {
            assert_eq!(Validity::of(bytes), None);
        }
    }
}
