# What nixpkgs must be told before it evaluates CUDA and NVIDIA's driver, which are unfree: these and nothing else, and code for these GPUs.
{ lib }:
let
  licences = [ "CUDA EULA" ];
  packages = [
    "nvidia-x11"
    "nvidia-settings"
  ];
in
{
  cudaSupport = true;
  # The oldest first: what is compiled only once is compiled for that one.
  cudaCapabilities = [
    "8.0"
    "8.6"
    "8.9"
    "9.0"
    "10.0"
    "12.0"
  ];
  allowUnfreePredicate =
    package:
    let
      isAccepted = licence: (licence.free or false) || lib.elem (licence.shortName or "") licences;
    in
    lib.elem (lib.getName package) packages || lib.all isAccepted (lib.toList (package.meta.license or [ ]));
}
