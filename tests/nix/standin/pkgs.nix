# The packages that flake.nix, nix/ and hosts/ use. Derivations are built by this machine's own bash and tools, so the sandbox must
# be off; a Rust package is what cargo has built before (./programs, which the checks put there).
{
  lib,
  system,
  config,
  final,
}:
let
  build =
    {
      name,
      script,
      nativeBuildInputs ? [ ],
      passthru ? { },
      meta ? { },
      ...
    }@arguments:
    derivation (
      removeAttrs arguments [
        "meta"
        "nativeBuildInputs"
        "passthru"
        "script"
      ]
      // {
        inherit system;
        builder = "/bin/bash";
        # Ends with `exit`: Nix ends a builder that has closed its output, which bash does when its last command replaces it.
        args = [
          "-euc"
          ''
            ${script}
            exit 0''
        ];
        PATH = lib.concatStringsSep ":" (map (package: "${package}/bin") nativeBuildInputs ++ [ "/usr/local/bin:/usr/bin:/bin" ]);
      }
    )
    // passthru
    // {
      inherit meta;
    };

  # A package of which only the name matters here.
  named =
    name:
    build {
      inherit name;
      pname = name;
      meta.mainProgram = name;
      script = ''mkdir "$out"'';
    };

  # A program that is a bash script.
  script =
    name: program: text:
    build {
      inherit name text;
      pname = name;
      meta.mainProgram = program;
      passAsFile = [ "text" ];
      script = ''mkdir -p "$out/bin"; cp "$textPath" "$out/bin/${program}"; chmod +x "$out/bin/${program}"'';
    };

  tomlType =
    let
      inherit (lib) types;
      value = types.oneOf [
        types.bool
        types.int
        types.float
        types.str
        (types.attrsOf value)
        (types.listOf value)
      ];
    in
    types.attrsOf value;
in
{
  inherit lib system config;

  callPackage =
    file: overrides:
    let
      function = import file;
      given = builtins.intersectAttrs (builtins.functionArgs function) final;
    in
    function (given // overrides);

  runCommand =
    name: environment: script:
    build (environment // { inherit name script; });
  writeText =
    name: text:
    build {
      inherit name text;
      passAsFile = [ "text" ];
      script = ''cp "$textPath" "$out"'';
    };

  formats.toml = { }: {
    type = tomlType;
    generate =
      name: value:
      build {
        inherit name;
        json = builtins.toJSON value;
        passAsFile = [ "json" ];
        script = ''python3 ${./toml.py} "$jsonPath" > "$out"'';
      };
  };

  rustPlatform.buildRustPackage =
    package:
    build {
      name = "${package.pname}-${package.version}";
      inherit (package) pname version meta;
      # Everything that goes into the real one goes into the hash of this one.
      inherit (package) src;
      lock = builtins.hashFile "sha256" package.cargoLock.lockFile;
      features = package.buildFeatures;
      inputs = map (input: "${input}") (package.nativeBuildInputs ++ package.buildInputs);
      script = ''
        mkdir -p "$out/bin"
        cp ${./programs}/${package.meta.mainProgram}* "$out/bin/"
      '';
    };

  cudaPackages =
    lib.genAttrs [
      "cccl"
      "cuda_cudart"
      "cuda_nvcc"
      "libcublas"
      "libcurand"
      "nccl"
    ] named
    // {
      flags = { inherit (config) cudaCapabilities; };
    };

  # The machine that boots has no kill but bash's.
  coreutils = script "coreutils" "kill" "#!/bin/bash\nkill \"$@\"\n";
  nixfmt-tree = named "nixfmt-tree";
  mkShell = { packages }: build {
    name = "shell";
    inputs = map (package: "${package}") packages;
    script = ''mkdir "$out"'';
  };

  # Evaluates the machines of a VM test with all their assertions and builds what they would run. The test itself needs a NixOS.
  testers.runNixOSTest =
    file:
    let
      test = import file;
      inherit (test) name nodes;
      machines = lib.mapAttrs (host: module: (import ./nixos-system.nix { inherit lib; } {
        pkgs = final;
        modules = [
          module
          {
            networking.hostName = host;
            nixpkgs.hostPlatform = system;
          }
        ];
      }).config.system.build.toplevel) nodes;
    in
    assert builtins.isString test.testScript || builtins.isFunction test.testScript;
    build {
      name = "vm-test-${name}-evaluated";
      machines = lib.mapAttrsToList (_: machine: "${machine}") machines;
      script = ''echo "evaluated, not run: $machines" > "$out"'';
    };
}
// lib.genAttrs [
  "autoAddDriverRunpath"
  "autoPatchelfHook"
  "cargo"
  "clippy"
  "just"
  "pkg-config"
  "rustc"
  "rustfmt"
] named
