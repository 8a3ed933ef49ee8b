# What CUDA needs beyond ./hardening.nix. It costs 0.4 of the 10 points of `systemd-analyze security`: devices 0.2, the group 0.1,
# executable memory 0.1, netlink 0.1.
{ lib }:
{
  PrivateDevices = false;
  DevicePolicy = "closed";
  # By the names of the driver's character devices; it renamed `nvidia-frontend` to `nvidia`, and a host has one of them.
  DeviceAllow = map (device: "char-${device} rw") [
    "nvidia"
    "nvidia-frontend"
    "nvidiactl"
    "nvidia-uvm"
    "nvidia-caps"
  ];
  SupplementaryGroups = [ "render" ];
  # NCCL lists the network interfaces, for models that are split over GPUs.
  RestrictAddressFamilies = [ "AF_NETLINK" ];
  # Pinned buffers between host and GPU.
  LimitMEMLOCK = "infinity";
  # The driver compiles kernels into memory that it then executes.
  MemoryDenyWriteExecute = lib.mkDefault false;
}
