# The gateway. Which nodes there are comes from the other folders here, which models from models.ncl.
{
  imports = [ ./hardware.nix ];

  services.cortex = {
    enable = true;
    openFirewall = true;
  };

  services.openssh.enable = true;
  system.stateVersion = "26.05";
}
