# A machine with a gateway and a CPU node, which takes its models from a placement.
{
  networking.hostName = "box";
  services.cortex = {
    enable = true;
    listen.address = "127.0.0.1";
    metrics.address = "127.0.0.1";
    neurons.box.endpoint = "http://127.0.0.1:13131";
    nodeTokenFile = "/run/secrets/node-token";
  };
  services.neuron = {
    enable = true;
    listenAddress = "127.0.0.1";
    endpoint = "http://127.0.0.1:13131";
    memoryMb = 4096;
    modelDir = "/srv/models";
    hfTokenFile = "/run/secrets/hf-token";
    nodeTokenFile = "/run/secrets/node-token";
  };
}
