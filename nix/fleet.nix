# What the hosts of a fleet tell each other, read from their own options.
{ lib }:
let
  nodes = lib.filterAttrs (_: host: host.config.services.neuron.enable);
in
rec {
  # For `services.cortex.neurons`.
  neurons = hosts: lib.mapAttrs (_: host: { inherit (host.config.services.neuron) endpoint; }) (nodes hosts);

  # What models.ncl imports as hosts.json.
  facts =
    hosts:
    lib.mapAttrs (
      _: host:
      let
        inherit (host.config.services) neuron;
      in
      {
        inherit (neuron) endpoint;
        reserved_mb = neuron.reservedMb;
        gpus = map (gpu: {
          inherit (gpu) name;
          vram_mb = gpu.vramMb;
          compute_capability = gpu.computeCapability;
        }) neuron.gpus;
      }
      // lib.optionalAttrs (neuron.memoryMb != null) { memory_mb = neuron.memoryMb; }
    ) (nodes hosts);

  # models.ncl (a file, or a folder that has it), proven against the hosts and rendered to JSON. Only its path is used in
  # configurations, so that nothing is built during evaluation; a placement that cannot work fails the build of every host before one
  # of them is touched.
  placement =
    {
      pkgs,
      hosts,
      models,
    }:
    pkgs.runCommand "placement.json"
      {
        nativeBuildInputs = [ pkgs.cortex ];
        inherit models;
        facts = builtins.toJSON (facts hosts);
        passAsFile = [ "facts" ];
      }
      ''
        mkdir fleet
        if [ -d "$models" ]; then cp -r "$models"/. fleet; else cp "$models" fleet/models.ncl; fi
        cd fleet
        cp "$factsPath" hosts.json
        cortex-placement render --hosts hosts.json models.ncl > "$out"
      '';
}
