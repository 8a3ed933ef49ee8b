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
      system = modules: (host modules).config.system.build.toplevel;
      pkgs = cortex.packages.x86_64-linux;
    in
    {
      # One machine with a gateway and a CPU node, before and after a placement with one more model. It is booted.
      box = lib.mapAttrs (_: placement: system [ (import ./box.nix { inherit pkgs placement; }) ]) {
        before = ./placement/before.json;
        after = ./placement/after.json;
      };

      # Each is refused, and says why.
      refused = lib.mapAttrs (_: case: {
        inherit (case) says;
        system = system (case.modules or [ case.module ]);
      }) (import ./refused.nix { inherit cortex pkgs; });
    };
}
