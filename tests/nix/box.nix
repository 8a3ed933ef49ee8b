# A machine with a gateway and a CPU node, which takes its models from a placement.
{ pkgs, placement }:
{
  networking.hostName = "box";
  services.cortex = {
    enable = true;
    listen.address = "127.0.0.1";
    metrics.address = "127.0.0.1";
    neurons.box.endpoint = "http://127.0.0.1:13131";
  };
  services.neuron = {
    enable = true;
    package = pkgs.neuron-cpu;
    listenAddress = "127.0.0.1";
    modelDir = "/srv/models";
    placementFile = placement;
    hfTokenFile = "/run/secrets/hf-token";
  };
}
