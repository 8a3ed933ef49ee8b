//! `strftime_now`, which templates use to tell the model today's date. Always UTC: a node's time zone is no part of a prompt.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in calendar fields.
struct Civil {
    year: i64,
    /// 1..=12
    month: u32,
    /// 1..=31
    day: u32,
    /// 1..=366
    day_of_year: u32,
    /// 0 is Sunday.
    weekday: usize,
    hour: u32,
    minute: u32,
    second: u32,
}

/// Formats `now` as Python's `datetime.strftime` does; an unknown directive stays as it is.
pub(super) fn strftime(now: SystemTime, format: &str) -> String {
    let civil = Civil::from_unix(now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let tail = rest.as_str();
        let unpadded = tail.starts_with('-');
        let mut directive = tail.chars().skip(usize::from(unpadded));
        match directive.next().and_then(|c| civil.field(c)) {
            Some(field) => {
                let trimmed = field.trim_start_matches(['0', ' ']);
                text.push_str(if !unpadded {
                    &field
                } else if trimmed.is_empty() {
                    "0"
                } else {
                    trimmed
                });
                rest.nth(usize::from(unpadded));
            }
            None => text.push('%'),
        }
    }
    text
}

impl Civil {
    fn from_unix(seconds: u64) -> Self {
        let (days, second_of_day) = ((seconds / 86_400) as i64, (seconds % 86_400) as u32);
        // Years are counted from March, so that the leap day comes last, in eras of 400 years.
        let from_era_start = days + 719_468;
        let (era, day_of_era) = (from_era_start.div_euclid(146_097), from_era_start.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let march_first = 59 + i64::from(leap);
        let day_of_year = if month > 2 { day_from_march + march_first } else { day_from_march - 306 };
        Self {
            year,
            month: month as u32,
            day: (day_from_march - (153 * month_from_march + 2) / 5 + 1) as u32,
            day_of_year: day_of_year as u32 + 1,
            weekday: (days + 4).rem_euclid(7) as usize,
            hour: second_of_day / 3_600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    fn field(&self, directive: char) -> Option<String> {
        let month = MONTHS[self.month as usize - 1];
        let day = DAYS[self.weekday];
        let hour_12 = (self.hour + 11) % 12 + 1;
        let mut text = String::new();
        let written = match directive {
            'Y' => write!(text, "{}", self.year),
            'y' => write!(text, "{:02}", self.year % 100),
            'm' => write!(text, "{:02}", self.month),
            'd' => write!(text, "{:02}", self.day),
            'e' => write!(text, "{:2}", self.day),
            'j' => write!(text, "{:03}", self.day_of_year),
            'H' => write!(text, "{:02}", self.hour),
            'I' => write!(text, "{hour_12:02}"),
            'M' => write!(text, "{:02}", self.minute),
            'S' => write!(text, "{:02}", self.second),
            'f' => write!(text, "000000"),
            'p' => write!(text, "{}", if self.hour < 12 { "AM" } else { "PM" }),
            'B' => write!(text, "{month}"),
            'b' | 'h' => write!(text, "{}", &month[..3]),
            'A' => write!(text, "{day}"),
            'a' => write!(text, "{}", &day[..3]),
            'w' => write!(text, "{}", self.weekday),
            'F' => write!(text, "{}-{:02}-{:02}", self.year, self.month, self.day),
            'D' => write!(text, "{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'T' => write!(text, "{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'R' => write!(text, "{:02}:{:02}", self.hour, self.minute),
            'n' => text.write_char('\n'),
            't' => text.write_char('\t'),
            // A naive datetime has no zone.
            'z' | 'Z' => Ok(()),
            '%' => write!(text, "%"),
            _ => return None,
        };
        written.ok().map(|()| text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_read_as_in_python() {
        let cases = [
            (0, "%Y-%m-%d %H:%M:%S %a", "1970-01-01 00:00:00 Thu"),
            (951_782_400, "%d %B %Y, day %j", "29 February 2000, day 060"),
            (951_868_800, "%d %b %Y, day %j", "01 Mar 2000, day 061"),
            (1_735_689_599, "%A %e %F %T %j", "Tuesday 31 2024-12-31 23:59:59 366"),
            (1_740_830_645, "%-d/%-m/%y %I:%M %p", "1/3/25 12:04 PM"),
            (4_107_542_400, "%D %j %a", "03/01/00 060 Mon"),
            (0, "100%% %q %-q %", "100% %q %-q %"),
            (0, "%-H:%-M [%Z]", "0:0 []"),
        ];
        for (seconds, format, expected) in cases {
            assert_eq!(strftime(UNIX_EPOCH + Duration::from_secs(seconds), format), expected);
        }
    }
}
