# The NixOS options that this project's modules and hosts touch, with systemd units rendered as NixOS renders them, and a system
# that is a folder: etc/, and units that point into it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;

  option = default: type: mkOption { inherit default type; };
  strings = option [ ] (types.listOf types.str);
  # Options whose values nothing here looks at.
  opaque = option { } (types.attrsOf types.anything);

  scalar = types.oneOf [
    types.bool
    types.int
    types.str
    types.path
  ];
  # A list when one of its definitions is one.
  directive = {
    name = "systemd option";
    check = value: scalar.check value || builtins.isList value;
    merge =
      at: defs:
      if lib.any (def: builtins.isList def.value) defs then lib.concatMap (def: lib.toList def.value) defs else scalar.merge at defs;
  };
  section = types.attrsOf directive;

  service = types.submodule {
    options = {
      enable = option true types.bool;
      description = option "" types.str;
      documentation = strings;
      wantedBy = strings;
      wants = strings;
      after = strings;
      startLimitIntervalSec = option null (types.nullOr types.int);
      startLimitBurst = option null (types.nullOr types.int);
      restartTriggers = option [ ] (types.listOf types.path);
      reloadTriggers = option [ ] (types.listOf types.path);
      environment = option { } (types.attrsOf types.str);
      unitConfig = option { } section;
      serviceConfig = option { } section;
    };
  };

  text = value: if value == true then "true" else if value == false then "false" else toString value;
  ini = lib.concatMapStrings (line: line + "\n");
  lines = set: lib.concatLists (lib.mapAttrsToList (name: value: map (item: "${name}=${text item}") (lib.toList value)) set);
  given = name: value: lib.optional (value != null && value != "" && value != [ ]) "${name}=${toString value}";
  trigger = kind: name: files: given "X-${kind}-Triggers" (lib.optionals (files != [ ]) "${pkgs.writeText "X-${kind}-Triggers-${name}" (toString files)}");

  unit =
    name: service:
    pkgs.writeText "${name}.service" (
      ini (
        [ "[Unit]" ]
        ++ lines service.unitConfig
        ++ given "Description" service.description
        ++ given "Documentation" service.documentation
        ++ given "Wants" service.wants
        ++ given "After" service.after
        ++ given "StartLimitIntervalSec" service.startLimitIntervalSec
        ++ given "StartLimitBurst" service.startLimitBurst
        ++ trigger "Restart" name service.restartTriggers
        ++ trigger "Reload" name service.reloadTriggers
        ++ [ "" "[Service]" ]
        ++ lib.mapAttrsToList (variable: value: "Environment=${builtins.toJSON "${variable}=${value}"}") service.environment
        ++ lines service.serviceConfig
        ++ [ "" "[Install]" ]
        ++ given "WantedBy" service.wantedBy
      )
    );

  failed = lib.filter (assertion: !assertion.assertion) config.assertions;
in
{
  options = {
    assertions = option [ ] (types.listOf types.raw);

    boot = {
      isContainer = option false types.bool;
      loader.systemd-boot.enable = option false types.bool;
      loader.efi.canTouchEfiVariables = option false types.bool;
      kernel.sysctl = opaque;
      kernelModules = strings;
    };
    environment.systemPackages = option [ ] (types.listOf types.package);
    environment.etc = option { } (
      types.attrsOf (types.submodule { options.source = mkOption { type = types.path; }; })
    );
    fileSystems = option { } (
      types.attrsOf (
        types.submodule {
          options.device = mkOption { type = types.str; };
          options.fsType = mkOption { type = types.str; };
        }
      )
    );
    hardware.graphics.enable = option false types.bool;
    hardware.nvidia.open = option false types.bool;
    hardware.nvidia.nvidiaPersistenced = option false types.bool;
    networking.hostName = option "nixos" (types.strMatching "[a-z0-9-]+");
    networking.firewall.allowedTCPPorts = option [ ] (types.listOf types.port);
    nix.settings = opaque;
    nixpkgs.config = option { } types.raw;
    nixpkgs.overlays = option [ ] (types.listOf types.raw);
    nixpkgs.hostPlatform = mkOption { type = types.enum [ "x86_64-linux" ]; };
    services.openssh.enable = option false types.bool;
    services.xserver.videoDrivers = strings;
    system.build = option { } (types.attrsOf types.raw);
    system.checks = option [ ] (types.listOf types.package);
    system.stateVersion = option "26.05" (types.enum [ "26.05" ]);
    systemd.services = option { } (types.attrsOf service);
    users.groups = opaque;
    users.users = opaque;
    virtualisation = opaque;
  };

  config.system.build.toplevel =
    if failed != [ ] then
      throw "Failed assertions:\n${lib.concatMapStringsSep "\n" (assertion: "- ${assertion.message}") failed}"
    else
      pkgs.runCommand "nixos-system-${config.networking.hostName}" {
        # Built before the system is, so that a check that fails leaves no system.
        checks = map (check: "${check}") config.system.checks;
        packages = map (package: "${package}") config.environment.systemPackages;
      } ''
        mkdir -p "$out/etc/systemd/system"
        ${lib.concatMapStrings (line: line + "\n") (
          lib.mapAttrsToList (name: service: ''ln -s ${unit name service} "$out/etc/systemd/system/${name}.service"'') config.systemd.services
          ++ lib.mapAttrsToList (path: file: ''mkdir -p "$(dirname "$out/etc/${path}")"; ln -s ${file.source} "$out/etc/${path}"'') config.environment.etc
        )}'';
}
