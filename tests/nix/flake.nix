{
  description = "Hosts that must build, and hosts that must not; .ci/nix goes through them";

  inputs.cortex.url = "path:../..";
  inputs.nixpkgs.follows = "cortex/nixpkgs";

  outputs =
    { nixpkgs, cortex, ... }:
    let
      inherit (nixpkgs) lib;

      host =
        modules:
        lib.nixosSystem {
          modules = modules ++ [
            cortex.nixosModules.default
            {
              nixpkgs.hostPlatform = "x86_64-linux";
              system.stateVersion = "26.05";
              fileSystems."/" = {
                device = "/dev/disk/by-label/nixos";
                fsType = "ext4";
              };
              boot.loader.systemd-boot.enable = true;
            }
          ];
        };
      # With its placement proven and rendered from `models`, as a fleet of one.
      box =
        models:
        let
          machine = host [
            ./box.nix
            (
              { pkgs, ... }:
              let
                placementFile = cortex.lib.placement {
                  inherit pkgs models;
                  hosts.box = machine;
                };
              in
              {
                services.cortex = { inherit placementFile; };
                services.neuron = {
                  inherit placementFile;
                  package = pkgs.neuron-cpu;
                };
              }
            )
          ];
        in
        machine.config.system.build.toplevel;
      system = modules: (host modules).config.system.build.toplevel;
      pkgs = cortex.packages.x86_64-linux;
    in
    {
      # One machine with a gateway and a CPU node, before and after an edit of its models.ncl. It is booted.
      box = lib.mapAttrs (_: box) {
        before = ./models/before.ncl;
        after = ./models/after.ncl;
      };

      # Each is refused, and says why.
      refused = lib.mapAttrs (_: case: {
        inherit (case) says;
        system = case.system or (system (case.modules or [ case.module ]));
      }) (import ./refused.nix { inherit box cortex pkgs; });
    };
}
