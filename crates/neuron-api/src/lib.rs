//! neuron-api
