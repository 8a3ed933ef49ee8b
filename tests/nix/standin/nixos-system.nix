# `lib.nixosSystem`: modules over the options that ./nixos.nix knows.
{ lib }:
{
  modules,
  # Given by a VM test: then the machine's own overlays would count for nothing, and are refused as the real one refuses them.
  pkgs ? null,
}:
lib.evalModules {
  modules = modules ++ [
    ./nixos.nix
    (
      { config, ... }:
      {
        _module.args.pkgs =
          if pkgs == null then
            import ./. {
              inherit lib;
              system = config.nixpkgs.hostPlatform;
              inherit (config.nixpkgs) config overlays;
            }
          else if config.nixpkgs.overlays != [ ] then
            throw "nixpkgs.overlays is read-only: the packages of this machine are given"
          else
            pkgs;
      }
    )
  ];
}
