{
  description = "The part of nixpkgs that this project's flake uses, for machines where nixpkgs cannot be had; see ../README.md";

  outputs =
    { self }:
    let
      lib = import ./lib.nix;
      nixosSystem = import ./nixos-system.nix { inherit lib; };
    in
    {
      lib = lib // {
        inherit nixosSystem;
      };
    };
}
