# services.neuron: the daemon of a host with accelerators.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.neuron;
  hasGpus = cfg.gpus != [ ];
  toml = pkgs.formats.toml { };

  configFile = toml.generate "neuron.toml" cfg.settings;

  # The program itself reads what it will find on the host, while the system is built: an unknown key or a placement that does not
  # know this host fails here. The CPU build reads the same and needs no CUDA.
  checked =
    let
      command = [
        "neuron"
        "--check"
        "--config"
        configFile
      ]
      ++ lib.optionals (cfg.placementFile != null) [
        "--placement"
        "${cfg.placementFile}"
      ];
    in
    pkgs.runCommand "neuron-configuration-checked" { nativeBuildInputs = [ pkgs.neuron-cpu ]; } ''
      ${lib.escapeShellArgs command} > "$out"
    '';

  gpu = types.submodule {
    options = {
      name = mkOption {
        type = types.nonEmptyStr;
        example = "RTX 5090";
        description = "The product, as messages about placement name it.";
      };
      vramMb = mkOption {
        type = types.ints.positive;
        example = 32607;
        description = "Its memory in MiB, as `nvidia-smi` tells it.";
      };
      computeCapability = mkOption {
        type = types.strMatching "[0-9]+\\.[0-9]";
        example = "12.0";
        description = "Its CUDA compute capability.";
      };
    };
  };
in
{
  options.services.neuron = {
    enable = lib.mkEnableOption "neuron, which runs language models on this host for a cortex gateway";

    package = lib.mkPackageOption pkgs "neuron" {
      extraDescription = "`pkgs.neuron-cpu` is the one without CUDA.";
    };

    listenAddress = mkOption {
      type = types.nonEmptyStr;
      default = "0.0.0.0";
      example = "10.1.0.2";
      description = "The address that the API listens on. It should be one that only the gateway reaches.";
    };

    port = mkOption {
      type = types.port;
      default = 13131;
      description = "The port that the API listens on.";
    };

    endpoint = mkOption {
      type = types.strMatching "https?://[^/]+:[0-9]+";
      default = "http://${config.networking.hostName}:${toString cfg.port}";
      defaultText = lib.literalExpression ''"http://''${config.networking.hostName}:''${toString config.services.neuron.port}"'';
      description = "Where the gateway finds this node.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to let other machines reach the port.";
    };

    gpus = mkOption {
      type = types.listOf gpu;
      default = [ ];
      description = ''
        The GPUs of this host in the driver's order: facts that placement is proven with before anything is deployed. None means
        that models run on the CPU.
      '';
    };

    reservedMb = mkOption {
      type = types.ints.unsigned;
      default = 1024;
      description = "Memory of each GPU, in MiB, that no model may have: the driver's own, and room for what was not foreseen.";
    };

    memoryMb = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      example = 65536;
      description = "On a host without GPUs: memory in MiB that models may have, for placement.";
    };

    placementFile = mkOption {
      type = types.nullOr types.pathInStore;
      default = null;
      example = lib.literalExpression "inputs.cortex.lib.placement { inherit pkgs; hosts = self.nixosConfigurations; models = ./models.ncl; }";
      description = ''
        models.ncl, rendered: what this host loads at start, in which order. When it changes, the service is reloaded and loads or
        unloads what differs; everything else stays in memory.
      '';
    };

    modelDir = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/srv/models";
      description = "A folder with checkpoints that models may be loaded from, readable for everybody.";
    };

    hfTokenFile = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/hf-token";
      description = ''
        A file with the hub's token, outside the Nix store, which everybody can read. The service gets it as a systemd credential,
        so that it may belong to root. Restart the service when it changes.
      '';
    };

    nodeTokenFile = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/node-token";
      description = ''
        A file with the token that gateways must show (`node_token_file` of theirs), outside the Nix store. Without it whoever reaches
        the port may use and command the node. Restart the service when it changes.
      '';
    };

    log = mkOption {
      type = types.nonEmptyStr;
      default = "info";
      example = "info,neuron_engine=debug";
      description = "What goes to the journal.";
    };

    settings = mkOption {
      default = { };
      example = {
        drain_s_max = 60;
        limits.running_sequences_max = 256;
      };
      description = "neuron.toml; every key that the daemon knows. They are checked when the configuration is built.";
      type = types.submodule {
        freeformType = toml.type;
        options.drain_s_max = mkOption {
          type = types.ints.unsigned;
          default = 30;
          description = "How long running answers may go on after a stop, in seconds.";
        };
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.modelDir == null || !(lib.any (home: lib.hasPrefix home (toString cfg.modelDir)) [ "/home/" "/root/" ]);
        message = ''
          services.neuron.modelDir is ${toString cfg.modelDir}, and the service sees no home folders.
          Move the checkpoints, to /srv/models for example.
        '';
      }
      {
        assertion = lib.length (lib.splitString ":" cfg.listenAddress) == 1 || lib.hasPrefix "[" cfg.listenAddress;
        message = ''services.neuron.listenAddress: write an IPv6 address in brackets, "[${cfg.listenAddress}]", and the port as services.neuron.port.'';
      }
      {
        assertion = cfg.placementFile != null || !(cfg.settings ? placement);
        message = "services.neuron.settings.placement is set by services.neuron.placementFile: set that instead.";
      }
      {
        assertion = lib.all (gpu: gpu.vramMb > cfg.reservedMb) cfg.gpus;
        message = "services.neuron.reservedMb keeps ${toString cfg.reservedMb} MiB of each GPU from models, and one of services.neuron.gpus has no more than that.";
      }
      {
        assertion = !hasGpus || config.hardware.graphics.enable || config.boot.isContainer;
        message = ''
          services.neuron.gpus names GPUs, but this host has no driver for them.
          Import the profile `gpu-host` of this flake, or set hardware.graphics.enable and services.xserver.videoDrivers = [ "nvidia" ].
        '';
      }
    ];

    services.neuron.settings = {
      listen = "${cfg.listenAddress}:${toString cfg.port}";
      hub.cache_dir = lib.mkDefault "/var/cache/neuron/hub";
      placement = lib.mkIf (cfg.placementFile != null) {
        file = "/etc/neuron/placement.json";
        node = lib.mkDefault config.networking.hostName;
      };
    };

    environment.etc = {
      "neuron/neuron.toml".source = configFile;
      "neuron/placement.json" = lib.mkIf (cfg.placementFile != null) { source = cfg.placementFile; };
    };

    system.checks = [ checked ];
    networking.firewall.allowedTCPPorts = lib.optional cfg.openFirewall cfg.port;
    users.groups = lib.mkIf hasGpus { render = { }; };

    systemd.services.neuron = {
      description = "neuron, language models on this host";
      documentation = [ "https://github.com/helexa/cortex" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      restartTriggers = [ configFile ];
      # A restart would drop tens of gigabytes of weights for one changed line.
      reloadTriggers = lib.optional (cfg.placementFile != null) cfg.placementFile;
      startLimitIntervalSec = 300;
      startLimitBurst = 5;
      environment = {
        NEURON_LOG = cfg.log;
        HF_HOME = "/var/cache/neuron";
      };
      serviceConfig = lib.mkMerge [
        (import ./hardening.nix)
        {
          Type = "notify";
          ExecStart = "${lib.getExe' cfg.package "neuron"} --config /etc/neuron/neuron.toml";
          ExecReload = "${lib.getExe' pkgs.coreutils "kill"} -HUP $MAINPID";
          CacheDirectory = "neuron";
          StateDirectory = "neuron";
          RuntimeDirectory = "neuron";
          WorkingDirectory = "/var/lib/neuron";
          LoadCredential =
            lib.optional (cfg.hfTokenFile != null) "hf-token:${cfg.hfTokenFile}"
            ++ lib.optional (cfg.nodeTokenFile != null) "node-token:${cfg.nodeTokenFile}";
          BindReadOnlyPaths = lib.optional (cfg.modelDir != null) (toString cfg.modelDir);

          # READY comes when the API answers, which it does before weights are read.
          TimeoutStartSec = 120;
          # Fed only while the API answers.
          WatchdogSec = 30;
          Restart = "on-failure";
          RestartSec = 2;
          TimeoutStopSec = cfg.settings.drain_s_max + 30;
          LimitNOFILE = 65536;
          # Reads memory sizes and processor names from /proc.
          ProcSubset = "all";
        }
        (
          if hasGpus then
            import ./gpu-access.nix { inherit lib; }
          else
            {
              PrivateDevices = true;
              DevicePolicy = "closed";
              MemoryDenyWriteExecute = lib.mkDefault true;
            }
        )
      ];
    };
  };
}
