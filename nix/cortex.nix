# services.cortex: the gateway.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.cortex;
  toml = pkgs.formats.toml { };

  configFile = toml.generate "cortex.toml" cfg.settings;

  # The program itself reads what it will find on the host, while the system is built: an unknown key fails here.
  checked =
    let
      command = [
        "cortex"
        "serve"
        "--check"
        "--config"
        configFile
      ]
      ++ lib.optionals (cfg.placementFile != null) [
        "--placement"
        "${cfg.placementFile}"
      ];
    in
    pkgs.runCommand "cortex-configuration-checked" { nativeBuildInputs = [ cfg.package ]; } ''
      ${lib.escapeShellArgs command} > "$out"
    '';

  address =
    what: port:
    {
      address = mkOption {
        type = types.nonEmptyStr;
        default = "0.0.0.0";
        example = "10.1.0.1";
        description = "The address for ${what}.";
      };
      port = mkOption {
        type = types.port;
        default = port;
        description = "The port for ${what}.";
      };
    };

  at = listen: "${listen.address}:${toString listen.port}";
in
{
  options.services.cortex = {
    enable = lib.mkEnableOption "cortex, the gateway in front of a fleet of neurons";
    package = lib.mkPackageOption pkgs "cortex" { };

    listen = address "clients" 31313;
    metrics = address "Prometheus" 31314;

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to let other machines reach the port for clients. Metrics are not opened.";
    };

    neurons = mkOption {
      default = { };
      example.beast.endpoint = "http://beast:13131";
      description = "The nodes, by the names that logs and metrics give them.";
      type = types.attrsOf (
        types.submodule {
          options.endpoint = mkOption {
            type = types.strMatching "https?://[^/]+:[0-9]+";
            description = "Where the node listens.";
          };
        }
      );
    };

    placementFile = mkOption {
      type = types.nullOr types.pathInStore;
      default = null;
      example = lib.literalExpression "inputs.cortex.lib.placement { inherit pkgs; hosts = self.nixosConfigurations; models = ./models.ncl; }";
      description = ''
        models.ncl, rendered: which models there are, where each may be, and what is kept in memory. When it changes, the service is
        reloaded, and open answers go on. Without it the gateway serves what the nodes have.
      '';
    };

    nodeTokenFile = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/node-token";
      description = ''
        A file with the token that this gateway shows to its nodes (`services.neuron.nodeTokenFile` of theirs), outside the Nix store.
        Restart the service when it changes.
      '';
    };

    credentials = mkOption {
      type = types.attrsOf types.externalPath;
      default = { };
      example.fleet-token = "/run/secrets/fleet-token";
      description = ''
        Files with secrets, outside the Nix store, which everybody can read. The service finds each under its name in
        `$CREDENTIALS_DIRECTORY`, so that the files may belong to root. Restart the service when one changes.
      '';
    };

    environmentFile = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/cortex.env";
      description = "A file with `CORTEX_*` variables, which win over the settings. Prefer credentials for secrets.";
    };

    log = mkOption {
      type = types.nonEmptyStr;
      default = "info";
      example = "info,cortex_gateway=debug";
      description = "What goes to the journal.";
    };

    settings = mkOption {
      default = { };
      example.timeouts.drain_ms_max = 60000;
      description = "cortex.toml; every key that the gateway knows. They are checked when the configuration is built.";
      type = types.submodule {
        freeformType = toml.type;
        options.timeouts.drain_ms_max = mkOption {
          type = types.ints.positive;
          default = 30000;
          description = "How long open answers may go on after a stop, in milliseconds.";
        };
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.neurons != { };
        message = ''
          services.cortex.neurons is empty, and a gateway without nodes serves nothing.
          Name one: services.cortex.neurons.beast.endpoint = "http://beast:13131";
        '';
      }
      {
        assertion = at cfg.listen != at cfg.metrics;
        message = "services.cortex.listen and services.cortex.metrics are both ${at cfg.listen}: give metrics another port.";
      }
      {
        assertion = !(cfg.settings ? gateway.listen && cfg.settings.gateway.listen != at cfg.listen);
        message = "services.cortex.settings.gateway.listen is set by services.cortex.listen: set that instead.";
      }
      {
        assertion = cfg.placementFile != null || !(cfg.settings ? gateway.placement_file);
        message = "services.cortex.settings.gateway.placement_file is set by services.cortex.placementFile: set that instead.";
      }
    ];

    services.cortex.credentials = lib.mkIf (cfg.nodeTokenFile != null) { node-token = cfg.nodeTokenFile; };

    services.cortex.settings = {
      gateway.listen = lib.mkDefault (at cfg.listen);
      gateway.metrics_listen = lib.mkDefault (at cfg.metrics);
      gateway.placement_file = lib.mkIf (cfg.placementFile != null) "/etc/cortex/placement.json";
      neurons = lib.mapAttrsToList (name: neuron: { inherit name; inherit (neuron) endpoint; }) cfg.neurons;
    };

    environment.etc = {
      "cortex/cortex.toml".source = configFile;
      "cortex/placement.json" = lib.mkIf (cfg.placementFile != null) { source = cfg.placementFile; };
    };
    environment.systemPackages = [ cfg.package ];

    system.checks = [ checked ];
    networking.firewall.allowedTCPPorts = lib.optional cfg.openFirewall cfg.listen.port;

    systemd.services.cortex = {
      description = "cortex, the gateway of a fleet of neurons";
      documentation = [ "https://github.com/helexa/cortex" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      reloadTriggers = [ configFile ] ++ lib.optional (cfg.placementFile != null) cfg.placementFile;
      startLimitIntervalSec = 300;
      startLimitBurst = 5;
      environment.CORTEX_LOG = cfg.log;
      serviceConfig = lib.mkMerge [
        (import ./hardening.nix)
        {
          Type = "notify";
          ExecStart = "${lib.getExe' cfg.package "cortex"} serve --config /etc/cortex/cortex.toml";
          ExecReload = "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID";
          StateDirectory = "cortex";
          RuntimeDirectory = "cortex";
          WorkingDirectory = "/var/lib/cortex";
          LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") cfg.credentials;
          EnvironmentFile = lib.mkIf (cfg.environmentFile != null) cfg.environmentFile;

          TimeoutStartSec = 60;
          # Fed only by the threads that serve.
          WatchdogSec = 30;
          Restart = "on-failure";
          RestartSec = 1;
          TimeoutStopSec = cfg.settings.timeouts.drain_ms_max / 1000 + 15;
          # Each open stream is two of them.
          LimitNOFILE = 65536;

          PrivateDevices = true;
          DevicePolicy = "closed";
          MemoryDenyWriteExecute = true;
          ProcSubset = "pid";
          SystemCallFilter = [ "~@resources" ];
        }
      ];
    };
  };
}
