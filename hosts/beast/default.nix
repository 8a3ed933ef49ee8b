# Two GPUs of 32 GB.
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
        name = "RTX 5090";
        vramMb = 32607;
        computeCapability = "12.0";
      }
      {
        name = "RTX 5090";
        vramMb = 32607;
        computeCapability = "12.0";
      }
    ];
  };

  services.openssh.enable = true;
  system.stateVersion = "26.05";
}
