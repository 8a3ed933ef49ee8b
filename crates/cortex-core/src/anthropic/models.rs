//! `GET /v1/models` for clients that send `anthropic-version`.

use serde::{Deserialize, Serialize};

/// The list; it has one page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelPage {
    /// The models.
    pub data: Vec<ModelInfo>,
    /// Always false.
    pub has_more: bool,
    /// The first model's id.
    pub first_id: Option<String>,
    /// The last model's id.
    pub last_id: Option<String>,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Always `model`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What to write into `model`.
    pub id: String,
    /// For people; the id again.
    pub display_name: String,
    /// RFC 3339.
    pub created_at: String,
    /// Always `active`; newer clients want it.
    #[serde(default)]
    pub lifecycle: Lifecycle,
}

/// The word in `lifecycle`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// The only one: what cannot be asked for is not listed.
    #[default]
    Active,
}

impl ModelPage {
    /// All of `data`, in its order.
    pub fn new(data: Vec<ModelInfo>) -> Self {
        let id = |model: Option<&ModelInfo>| model.map(|model| model.id.clone());
        Self { has_more: false, first_id: id(data.first()), last_id: id(data.last()), data }
    }
}

impl ModelInfo {
    /// `created` is in seconds since 1970.
    pub fn new(id: String, created: u64) -> Self {
        Self { kind: "model".into(), display_name: id.clone(), id, created_at: rfc3339(created), lifecycle: Lifecycle::Active }
    }
}

/// Days to civil date by eras of 400 years, which all have the same length; a year begins in March, so that leap days come last.
fn rfc3339(unix_s: u64) -> String {
    const ERA_DAYS: u64 = 146_097;
    let (days, second) = (unix_s / 86_400 + 719_468, unix_s % 86_400);
    let (era, day) = (days / ERA_DAYS, days % ERA_DAYS);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_dates() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, date) in cases {
            assert_eq!(rfc3339(seconds), date);
        }
    }
}
