# A profile for hosts with NVIDIA GPUs: the driver without a desktop, and where CUDA packages come from ready-built.
{ config, lib, ... }:
{
  hardware.graphics.enable = true;
  services.xserver.videoDrivers = [ "nvidia" ];
  hardware.nvidia = {
    open = lib.mkDefault true;
    # The driver stays initialised while nobody uses it, so that a first load does not wait for it.
    nvidiaPersistenced = lib.mkDefault true;
  };

  # CUDA would have it loaded when first used, which the service has no right to.
  boot.kernelModules = [ "nvidia_uvm" ];

  # The driver is unfree, and CUDA is: see ./cuda.nix for what is accepted.
  nix.settings = {
    extra-substituters = [ "https://cache.nixos-cuda.org" ];
    extra-trusted-public-keys = [ "cache.nixos-cuda.org:74DUi4Ye579gUqzH4ziL9IyiJBlDpMRn9MBN8oNan9M=" ];
  };

  # Weights are read once and then live on the GPU: swapping them in between helps nobody.
  boot.kernel.sysctl."vm.swappiness" = lib.mkDefault 10;

  assertions = [
    {
      assertion = config.services.neuron.enable -> config.services.neuron.gpus != [ ];
      message = ''
        This host has the profile `gpu-host` and runs neuron, but services.neuron.gpus is empty.
        Name them: services.neuron.gpus = [ { name = "RTX 4090"; vramMb = 24564; computeCapability = "8.9"; } ];
      '';
    }
  ];
}
