//! `CORTEX_<SECTION>_<KEY>` over the file: containers and tests change one setting without writing a file.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{ConfigError, Endpoint, GatewayConfig, NeuronEntry, Place};
use crate::node::NodeId;

impl GatewayConfig {
    /// Applies `CORTEX_GATEWAY_*`, `CORTEX_LIMITS_*`, `CORTEX_TIMEOUTS_*`, `CORTEX_EVICTION_*`, `CORTEX_TELEMETRY_*` (any key of
    /// that section, in capitals) and `CORTEX_NEURONS` (`name=http://host:port`, several with commas, instead of the file's list). Other variables are not ours.
    ///
    /// # Errors
    /// An unknown key of those sections, or a value that does not fit; the error names the variable.
    pub fn with_overrides(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        for (name, value) in variables {
            self.apply(&name, &value).map_err(|message| ConfigError { place: Place::Variable(name), message })?;
        }
        Ok(self)
    }

    fn apply(&mut self, name: &str, value: &str) -> Result<(), String> {
        let Some(name) = name.strip_prefix("CORTEX_") else { return Ok(()) };
        if name == "NEURONS" {
            self.neurons = neurons(value)?;
            return Ok(());
        }
        match name.split_once('_') {
            Some(("GATEWAY", key)) => set(&mut self.gateway, key, value),
            Some(("LIMITS", key)) => set(&mut self.limits, key, value),
            Some(("TIMEOUTS", key)) => set(&mut self.timeouts, key, value),
            Some(("EVICTION", key)) => set(&mut self.eviction, key, value),
            Some(("TELEMETRY", key)) => set(&mut self.telemetry, key, value),
            _ => Ok(()),
        }
    }
}

/// Sets one key through the section's own serde rules, so that a variable is checked like the file.
fn set<T: Serialize + DeserializeOwned>(section: &mut T, key: &str, value: &str) -> Result<(), String> {
    let mut table = Table::try_from(&*section).map_err(|error| error.to_string())?;
    let number = || value.parse().map(Value::Integer).ok();
    let flag = || value.parse().map(Value::Boolean).ok();
    table.insert(key.to_ascii_lowercase(), number().or_else(flag).unwrap_or_else(|| Value::String(value.into())));
    *section = table.try_into().map_err(|error| error.message().trim().to_owned())?;
    Ok(())
}

fn neurons(value: &str) -> Result<Vec<NeuronEntry>, String> {
    let mut entries: Vec<NeuronEntry> = Vec::new();
    for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (name, endpoint) = item.split_once('=').ok_or_else(|| format!("`{item}` must be name=http://host:port"))?;
        let entry = NeuronEntry { name: NodeId::from(name.trim()), endpoint: Endpoint::parse(endpoint)?, ca: None };
        if let Some(other) = entries.iter().find(|other| other.name == entry.name || other.endpoint == entry.endpoint) {
            return Err(format!("`{item}` has the name or the endpoint of `{}={}`", other.name, other.endpoint));
        }
        entries.push(entry);
    }
    Ok(entries)
}
