//! Figures and lists as messages show them.

/// MiB as GiB with one decimal: `21.4 GiB`.
pub fn gib(mib: u64) -> String {
    format!("{:.1} GiB", mib as f64 / 1024.0)
}

/// `a`, `b` and `c`, each in back-quotes.
pub(crate) fn names<T: std::fmt::Display>(all: &[T]) -> String {
    match all {
        [] => "nothing".to_owned(),
        [one] => format!("`{one}`"),
        [first @ .., last] => format!("{} and `{last}`", first.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// `1 replica`, `2 replicas`.
pub(crate) fn count(n: usize, one: &str) -> String {
    format!("{n} {one}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_counts_read_as_people_write_them() {
        assert_eq!(names(&["a"]), "`a`");
        assert_eq!(names(&["a", "b", "c"]), "`a`, `b` and `c`");
        assert_eq!(names::<&str>(&[]), "nothing");
        assert_eq!(count(1, "replica"), "1 replica");
        assert_eq!(count(0, "replica"), "0 replicas");
        assert_eq!(gib(21_914), "21.4 GiB");
    }
}
