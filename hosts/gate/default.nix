# The gateway. Which nodes there are comes from the other folders here, which models from models.ncl.
{
  imports = [ ./hardware.nix ];

  services.cortex = {
    enable = true;
    openFirewall = true;
    # The same file as on the GPU hosts, which answer to nobody else.
    nodeTokenFile = "/var/lib/secrets/node-token";
  };

  services.openssh.enable = true;
  system.stateVersion = "26.05";
}
