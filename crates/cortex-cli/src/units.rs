//! Figures as people write them.

const GIB: f64 = (1u64 << 30) as f64;

#[cfg_attr(not(feature = "local"), expect(dead_code, reason = "only the banner of `up` tells bytes"))]
/// `14 MiB`, `8.2 GiB`, `31 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1000.0 {
            return format!("{} {unit}", short(value));
        }
        value /= 1024.0;
    }
    if value < 1000.0 { format!("{} GiB", short(value)) } else { format!("{} TiB", short(value / 1024.0)) }
}

/// Whole gibibytes for a narrow column: `54`; below ten with one digit: `6.1`.
pub(crate) fn gib(count: u64) -> String {
    short(count as f64 / GIB)
}

/// `820`, `7.1M`, `8.2B`: parameters, tokens.
pub(crate) fn count(count: f64) -> String {
    let (value, unit) = match count {
        c if c < 1e3 => (c, ""),
        c if c < 1e6 => (c / 1e3, "k"),
        c if c < 1e9 => (c / 1e6, "M"),
        c => (c / 1e9, "B"),
    };
    format!("{}{unit}", short(value))
}

/// `70 ms`, `0.4 s`, `4 s`, `38 s`, `12 min`, `3 h`, `5 d`.
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.095 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{} s", short(s)),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// One digit after the point below ten, unless it is zero; none above.
fn short(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}").trim_end_matches(".0").to_owned() } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let cases = [
            (bytes(0), "0 B"),
            (bytes(14_150_472), "13 MiB"),
            (bytes(22 << 20), "22 MiB"),
            (bytes(31 << 30), "31 GiB"),
            (bytes(6_549_825_126), "6.1 GiB"),
            (bytes(2 << 40), "2 TiB"),
            (gib(6_549_825_126), "6.1"),
            (gib(54 << 30), "54"),
            (count(7_065_728.0), "7.1M"),
            (count(8.19e9), "8.2B"),
            (count(0.0), "0"),
            (count(999.0), "999"),
            (count(1_912.4), "1.9k"),
            (seconds(0.0), "0 ms"),
            (seconds(0.07), "70 ms"),
            (seconds(0.1), "0.1 s"),
            (seconds(4.0), "4 s"),
            (seconds(61.0), "61 s"),
            (seconds(600.0), "10 min"),
            (seconds(36_000.0), "10 h"),
            (seconds(432_000.0), "5 d"),
        ];
        for (written, expected) in cases {
            assert_eq!(written, expected);
        }
    }
}
