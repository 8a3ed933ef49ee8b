# One GPU of 24 GB.
{
  imports = [
    ./hardware.nix
    ../../nix/gpu-host.nix
  ];

  services.neuron = {
    enable = true;
    openFirewall = true;
    nodeTokenFile = "/var/lib/secrets/node-token";
    gpus = [
      {
        name = "RTX 4090";
        vramMb = 24564;
        computeCapability = "8.9";
      }
    ];
  };

  services.openssh.enable = true;
  system.stateVersion = "26.05";
}
