# What the hosts of a fleet tell each other, read from their own options.
{ lib }:
let
  nodes = lib.filterAttrs (_: host: host.config.services.neuron.enable);
in
{
  # For `services.cortex.neurons`.
  neurons = hosts: lib.mapAttrs (_: host: { inherit (host.config.services.neuron) endpoint; }) (nodes hosts);
}
