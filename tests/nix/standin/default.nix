# `import nixpkgs { system, config, overlays }`.
{
  lib ? import ./lib.nix,
  system ? "x86_64-linux",
  config ? { },
  overlays ? [ ],
}:
let
  final = builtins.foldl' (pkgs: overlay: pkgs // overlay final pkgs) (import ./pkgs.nix {
    inherit lib system config;
    final = final;
  }) overlays;
in
final
