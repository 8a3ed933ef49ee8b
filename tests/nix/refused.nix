# Hosts with one mistake each, and the words that must tell of it.
{
  box,
  cortex,
  pkgs,
}:
let
  neuron = settings: { services.neuron = { enable = true; package = pkgs.neuron-cpu; } // settings; };
  gateway = settings: {
    services.cortex = {
      enable = true;
      neurons.a.endpoint = "http://a:13131";
    }
    // settings;
  };
  gpu = {
    name = "RTX 4090";
    vramMb = 24564;
    computeCapability = "8.9";
  };
in
{
  a-port-that-is-text = {
    module = neuron { port = "13131"; };
    says = "A definition for option `services.neuron.port' is not of type `16 bit unsigned integer; between 0 and 65535 (both inclusive)'";
  };
  a-port-that-no-machine-has = {
    module = neuron { port = 70000; };
    says = "A definition for option `services.neuron.port' is not of type `16 bit unsigned integer; between 0 and 65535 (both inclusive)'";
  };
  a-misspelt-option = {
    module = gateway { neuron.a.endpoint = "http://a:13131"; };
    says = "The option `services.cortex.neuron' does not exist.";
  };
  an-endpoint-without-a-scheme = {
    module = gateway { neurons.a.endpoint = "a:13131"; };
    says = "A definition for option `services.cortex.neurons.a.endpoint' is not of type `string matching the pattern https?://[^/]+:[0-9]+'";
  };
  a-gpu-without-memory = {
    modules = [
      cortex.nixosModules.gpu-host
      (neuron { gpus = [ (gpu // { vramMb = 0; }) ]; })
    ];
    says = "positive integer, meaning >0";
  };
  a-gpu-that-is-all-reserved = {
    modules = [
      cortex.nixosModules.gpu-host
      (neuron {
        gpus = [ gpu ];
        reservedMb = 32768;
      })
    ];
    says = "services.neuron.reservedMb keeps 32768 MiB of each GPU from models";
  };
  a-secret-in-the-store = {
    module = neuron { hfTokenFile = "${builtins.toFile "token" "hf_secret"}"; };
    says = "A definition for option `services.neuron.hfTokenFile' is not of type `null or absolute path not in the Nix store'";
  };
  a-gateway-without-nodes = {
    module.services.cortex.enable = true;
    says = "Name one: services.cortex.neurons.beast.endpoint";
  };
  two-listeners-on-one-port = {
    module = gateway { metrics.port = 31313; };
    says = "services.cortex.listen and services.cortex.metrics are both 0.0.0.0:31313: give metrics another port.";
  };
  models-in-a-home-folder = {
    module = neuron { modelDir = "/home/me/models"; };
    says = "the service sees no home folders. Move the checkpoints, to /srv/models for example.";
  };
  gpus-without-a-driver = {
    module = neuron { gpus = [ gpu ]; };
    says = "services.neuron.gpus names GPUs, but this host has no driver for them.";
  };
  a-gpu-host-without-gpus = {
    modules = [
      cortex.nixosModules.gpu-host
      (neuron { })
    ];
    says = "runs neuron, but services.neuron.gpus is empty";
  };
  # These are found by the programs themselves, while the host is built.
  a-setting-that-the-node-does-not-know = {
    module = neuron { settings.limits.waiting_sequences = 8; };
    says = "unknown field `waiting_sequences`, expected one of `waiting_sequences_max`";
  };
  a-setting-that-the-gateway-does-not-know = {
    module = gateway { settings.timeouts.drain_ms = 8; };
    says = "unknown field `drain_ms`";
  };
  a-placement-of-the-gateway-named-twice = {
    module = gateway { settings.gateway.placement_file = "/srv/placement.json"; };
    says = "services.cortex.settings.gateway.placement_file is set by services.cortex.placementFile: set that instead.";
  };
  a-placement-without-this-host = {
    module = (neuron { placementFile = ./placement/before.json; }) // {
      networking.hostName = "gpu-7";
    };
    says = "`placement.node` is `gpu-7`, and the placement has box, other: name one of them";
  };
  models-that-do-not-fit = {
    system = box ./models/too-large.ncl;
    says = "demo-two";
  };
  a-misspelt-field-in-models-ncl = {
    system = box ./models/misspelt.ncl;
    says = "residence";
  };
}
