# The unit files of packaging/systemd, for distributions that are not NixOS: what ./cortex.nix and ./neuron.nix say, with programs in
# /usr/bin and configurations that an operator writes.
{
  lib,
  pkgs,
  nixosSystem,
  modules,
}:
let
  # A package whose programs are in /usr/bin.
  ofSystem = name: {
    type = "derivation";
    inherit name;
    outPath = "/usr";
    meta.mainProgram = name;
  };

  host = nixosSystem {
    modules = modules ++ [
      {
        nixpkgs.hostPlatform = "x86_64-linux";
        boot.isContainer = true;
        system.stateVersion = "26.05";
        services.cortex = {
          enable = true;
          package = ofSystem "cortex";
          neurons.example.endpoint = "http://127.0.0.1:13131";
        };
        services.neuron = {
          enable = true;
          package = ofSystem "neuron";
          # Any: the unit gives access to GPUs and starts without.
          gpus = [
            {
              name = "any";
              vramMb = 1;
              computeCapability = "8.0";
            }
          ];
        };
      }
    ];
  };
  inherit (host.config.systemd) services;

  text = value: if value == true then "true" else if value == false then "false" else toString value;
  line =
    name: value:
    # The programs of the system that renders are not those of the system that runs.
    "${name}=${lib.replaceStrings [ "${pkgs.coreutils}/bin/" ] [ "/bin/" ] (text value)}\n";
  section = set: lib.concatStringsSep "" (lib.concatLists (lib.mapAttrsToList (name: value: map (line name) (lib.toList value)) set));

  unit = name: ''
    # Rendered from nix/${name}.nix, nix/hardening.nix and nix/gpu-access.nix; `nix build .#units` makes it anew.
    [Unit]
    ${line "Description" services.${name}.description}${line "Documentation" services.${name}.documentation}${line "Wants" services.${name}.wants}${line "After" services.${name}.after}${line "StartLimitIntervalSec" services.${name}.startLimitIntervalSec}${line "StartLimitBurst" services.${name}.startLimitBurst}
    [Service]
    ${section { Environment = lib.mapAttrsToList (key: value: "${key}=${value}") (own services.${name}.environment); }}${section services.${name}.serviceConfig}
    [Install]
    ${line "WantedBy" services.${name}.wantedBy}'';

  # NixOS adds its own to every service.
  own = lib.filterAttrs (
    key: _:
    !(lib.elem key [
      "LOCALE_ARCHIVE"
      "PATH"
      "TZDIR"
    ])
  );

  files = lib.genAttrs [
    "cortex"
    "neuron"
  ] (name: pkgs.writeText "${name}.service" (unit name));
in
pkgs.runCommand "units" { } ''
  mkdir "$out"
  cp ${files.cortex} "$out/cortex.service"
  cp ${files.neuron} "$out/neuron.service"
''
