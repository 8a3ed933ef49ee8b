{
  description = "cortex: one OpenAI- and Anthropic-compatible address in front of a fleet of GPU hosts";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      system = "x86_64-linux";
      pkgs = import nixpkgs {
        inherit system;
        config = import ./nix/cuda.nix { inherit lib; };
        overlays = [ self.overlays.default ];
      };
      fleet = import ./nix/fleet.nix { inherit lib; };
      folders = lib.filterAttrs (_: type: type == "directory") (builtins.readDir ./hosts);
    in
    {
      # `neuron` hides the simulator of nervous systems that nixpkgs calls so.
      overlays.default = final: _: {
        cortex = final.callPackage ./nix/package.nix { program = "cortex"; };
        neuron = final.callPackage ./nix/package.nix { program = "neuron"; };
        neuron-cpu = final.callPackage ./nix/package.nix {
          program = "neuron";
          cudaSupport = false;
        };
      };

      packages.${system} = {
        inherit (pkgs) cortex neuron neuron-cpu;
        default = pkgs.cortex;
        # models.ncl, proven and rendered.
        placement = fleet.placement {
          inherit pkgs;
          hosts = self.nixosConfigurations;
          models = ./models.ncl;
        };
        # What models.ncl imports as hosts.json, for editors and for `cortex placement` by hand.
        hosts = pkgs.writeText "hosts.json" (builtins.toJSON (fleet.facts self.nixosConfigurations));
        # The unit files of packaging/, for other distributions: the same modules, with /usr/bin in front.
        units = import ./nix/units.nix {
          inherit lib pkgs;
          inherit (lib) nixosSystem;
          modules = [ self.nixosModules.default ];
        };
      };

      apps.${system} = {
        default = self.apps.${system}.cortex;
        cortex = {
          type = "app";
          program = lib.getExe pkgs.cortex;
          meta.description = "The gateway, and `up`: gateway, node and demo model in one process";
        };
        neuron = {
          type = "app";
          program = lib.getExe pkgs.neuron-cpu;
          meta.description = "The node daemon, on the CPU";
        };
      };

      nixosModules = {
        cortex = ./nix/cortex.nix;
        neuron = ./nix/neuron.nix;
        gpu-host = ./nix/gpu-host.nix;
        default = {
          imports = [
            ./nix/cortex.nix
            ./nix/neuron.nix
          ];
          nixpkgs.overlays = [ self.overlays.default ];
        };
      };

      # For a fleet that is described in another flake.
      lib = fleet;

      nixosConfigurations = lib.mapAttrs (
        name: _:
        lib.nixosSystem {
          modules = [
            self.nixosModules.default
            (./hosts + "/${name}")
            {
              networking.hostName = name;
              nixpkgs.config = import ./nix/cuda.nix { inherit lib; };
              services.cortex.neurons = fleet.neurons self.nixosConfigurations;
              services.cortex.placementFile = self.packages.${system}.placement;
              services.neuron.placementFile = self.packages.${system}.placement;
            }
          ];
        }
      ) folders;

      checks.${system} = {
        inherit (self.packages.${system}) placement units;
        vm = pkgs.testers.runNixOSTest ./nix/vm-test.nix;
      }
      // lib.mapAttrs' (
        name: host: lib.nameValuePair "host-${name}" host.config.system.build.toplevel
      ) self.nixosConfigurations;

      formatter.${system} = pkgs.nixfmt-tree;

      devShells.${system}.default = pkgs.mkShell {
        packages = with pkgs; [
          cargo
          clippy
          rustc
          rustfmt
          just
        ];
      };
    };
}
