//! What a gateway is told: its configuration, and what `models.ncl` came to where there is one.

use std::sync::Arc;

use cortex_core::NodeId;
use cortex_core::config::{Endpoint, GatewayConfig, NeuronEntry, TlsSection};
use cortex_net::{CertificateFiles, Identity, TlsError, Trust};
use cortex_placement::Placement;

/// The configuration, with the routing of the placement laid over it.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    pub(crate) config: GatewayConfig,
    pub(crate) placement: Option<Arc<Placement>>,
}

/// Why a configuration and a placement do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// Models come from one place.
    #[error("the configuration has [[models]] or [aliases], and models come from the placement: write them in models.ncl")]
    Models,
    /// One node, two addresses.
    #[error("`{host}` is at {placed} in the placement and at {configured} in [[neurons]]: remove one")]
    Elsewhere {
        /// The node.
        host: NodeId,
        /// Where the placement has it.
        placed: String,
        /// Where the configuration has it.
        configured: String,
    },
    /// One address, two nodes.
    #[error("`{host}` and `{other}` are both at {endpoint}; one machine is one node")]
    Twice {
        /// A node.
        host: NodeId,
        /// Another one.
        other: NodeId,
        /// Where.
        endpoint: String,
    },
    /// Not an address.
    #[error("the endpoint of `{host}` cannot be used: {message}")]
    Endpoint {
        /// The node.
        host: NodeId,
        /// Why.
        message: String,
    },
}

impl From<GatewayConfig> for Setup {
    fn from(config: GatewayConfig) -> Self {
        Self { config, placement: None }
    }
}

impl Setup {
    /// The hosts of the placement join the nodes of the configuration; models, aliases and fallbacks are the placement's.
    ///
    /// # Errors
    /// The configuration says something else about the same nodes, or has models of its own.
    pub fn placed(mut config: GatewayConfig, placement: Placement) -> Result<Self, SetupError> {
        if config.placement.models().next().is_some() || !config.placement.aliases().is_empty() {
            return Err(SetupError::Models);
        }
        for (host, facts) in &placement.hosts {
            let endpoint = Endpoint::parse(&facts.endpoint).map_err(|message| SetupError::Endpoint { host: host.clone(), message })?;
            match config.neurons.iter().find(|entry| entry.name == *host || entry.endpoint == endpoint) {
                Some(entry) if entry.name == *host && entry.endpoint == endpoint => {}
                Some(entry) if entry.name == *host => {
                    let (placed, configured) = (endpoint.to_string(), entry.endpoint.to_string());
                    return Err(SetupError::Elsewhere { host: host.clone(), placed, configured });
                }
                Some(entry) => {
                    return Err(SetupError::Twice { host: host.clone(), other: entry.name.clone(), endpoint: endpoint.to_string() });
                }
                None => config.neurons.push(NeuronEntry { name: host.clone(), endpoint, ca: None }),
            }
        }
        config.placement = placement.declared();
        Ok(Self { config, placement: Some(Arc::new(placement)) })
    }

    /// What clients are shown under TLS, read from its files; absent where there is no `[gateway.tls]`.
    ///
    /// # Errors
    /// The file that cannot be used, and why.
    pub fn identity(&self) -> Result<Option<Identity>, TlsError> {
        let files = |TlsSection { certificate, key }: TlsSection| CertificateFiles { certificate, key };
        self.config.gateway.tls.clone().map(files).map(Identity::read).transpose()
    }

    /// Whose certificates nodes must show, read from `gateway.ca` and `neurons[].ca`.
    ///
    /// # Errors
    /// The file that cannot be used, and why.
    pub fn trust(&self) -> Result<Trust, TlsError> {
        let usual = self.config.gateway.ca.as_deref().map_or_else(|| Ok(Trust::public()), Trust::of_file)?;
        let own = self.config.neurons.iter().filter_map(|entry| Some((entry.endpoint.authority(), entry.ca.as_deref()?)));
        own.into_iter().try_fold(usual, |trust, (authority, file)| trust.with(authority, file))
    }

    /// The configuration, as it is with the placement.
    pub fn config(&self) -> &GatewayConfig {
        &self.config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cortex_placement::{Certificate, HostPlacement, Routing};

    fn placed(toml: &str, hosts: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let host =
            |endpoint: &str| HostPlacement { endpoint: endpoint.into(), devices: vec![], reserved_mb: 0, models: vec![], preload: vec![] };
        let hosts = hosts.iter().map(|(name, endpoint)| ((*name).into(), host(endpoint))).collect();
        let placement = Placement::new(hosts, [].into(), Routing::default(), Certificate::default());
        let setup = Setup::placed(GatewayConfig::parse(toml).unwrap(), placement).map_err(|error| error.to_string())?;
        Ok(setup.config().neurons.iter().map(|entry| entry.name.to_string()).collect())
    }

    #[test]
    fn hosts_join_the_nodes_unless_the_two_disagree() {
        let beast = "[[neurons]]\nname = \"beast\"\nendpoint = \"http://beast:13131\"\n";
        assert_eq!(placed(beast, &[("beast", "http://beast:13131"), ("benjy", "http://benjy:13131")]).unwrap(), ["beast", "benjy"]);
        let wrong = [
            (beast, ("beast", "http://beast:1"), "at http://beast:1 in the placement"),
            (beast, ("other", "http://beast:13131"), "are both at http://beast:13131"),
            (beast, ("other", "ftp://beast"), "the endpoint of `other` cannot be used"),
            ("[[models]]\nid = \"m\"\n", ("beast", "http://beast:13131"), "write them in models.ncl"),
        ];
        for (toml, host, says) in wrong {
            let error = placed(toml, &[host]).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
