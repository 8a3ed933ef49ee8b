# One program of the workspace. `cortex` brings `cortex-placement`, which it starts for models.ncl.
{
  lib,
  rustPlatform,
  pkg-config,
  autoPatchelfHook,
  autoAddDriverRunpath,
  cudaPackages,
  config,
  program,
  cudaSupport ? (config.cudaSupport or false),
}:
let
  withCuda = program == "neuron" && cudaSupport;
  crates = {
    cortex = [
      "cortex-cli"
      "cortex-nickel"
    ];
    neuron = [ "neuron" ];
  };
  root = ../.;
  # Only what cargo reads: editing a host or models.ncl rebuilds no program.
  sources = lib.fileset.unions [
    (root + "/Cargo.toml")
    (root + "/Cargo.lock")
    (root + "/crates")
    (root + "/models")
  ];
in
rustPlatform.buildRustPackage {
  pname = if withCuda || program != "neuron" then program else "neuron-cpu";
  version = (builtins.fromTOML (builtins.readFile (root + "/Cargo.toml"))).workspace.package.version;
  src = lib.fileset.toSource {
    inherit root;
    fileset = sources;
  };
  cargoLock.lockFile = root + "/Cargo.lock";

  __structuredAttrs = true;
  strictDeps = true;

  cargoBuildFlags = lib.concatMap (crate: [
    "--package"
    crate
  ]) crates.${program};
  buildFeatures = lib.optional withCuda "cuda";
  # Tests are what CI does, for the whole workspace at once; they read the documents too, which are not part of this source.
  doCheck = false;

  nativeBuildInputs = [
    pkg-config
  ]
  ++ lib.optionals withCuda [
    # In this order: autoPatchelfHook would take the driver's folder away again.
    autoPatchelfHook
    autoAddDriverRunpath
    cudaPackages.cuda_nvcc
  ];
  buildInputs = lib.optionals withCuda (
    with cudaPackages;
    [
      cccl
      cuda_cudart
      libcublas
      libcurand
      nccl
    ]
  );
  # The program opens CUDA's libraries when it first uses them, so that it starts on machines without a GPU, too.
  runtimeDependencies = lib.optionals withCuda (
    map lib.getLib (
      with cudaPackages;
      [
        libcublas
        libcurand
        nccl
      ]
    )
  );
  env = lib.optionalAttrs withCuda {
    # candle compiles its own kernels for one capability, the oldest; ours are compiled for each.
    CUDA_COMPUTE_CAP = lib.replaceStrings [ "." ] [ "" ] (lib.head cudaPackages.flags.cudaCapabilities);
    NEURON_CUDA_ARCHS = lib.concatMapStringsSep "," (lib.replaceStrings [ "." ] [ "" ]) cudaPackages.flags.cudaCapabilities;
  };

  meta = {
    description =
      if program == "cortex" then
        "Gateway and fleet manager for language models on GPU hosts"
      else
        "Daemon that runs language models on one host";
    homepage = "https://github.com/helexa/cortex";
    license = lib.licenses.gpl3Only;
    mainProgram = program;
    platforms = [ "x86_64-linux" ];
  };
}
