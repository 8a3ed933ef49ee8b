# Two virtual machines, a gateway and a CPU node with the demo model: a chat completion through both, and a reload that
# keeps the process. Needs a machine that runs NixOS tests (KVM and nixpkgs); `nix build .#checks.x86_64-linux.vm`.
let
  # Without the overlay of `nixosModules.default`: the machines of a test share the packages of the flake, which have it.
  modules = [
    ./cortex.nix
    ./neuron.nix
  ];
in
{
  name = "cortex";

  nodes = {
    gate = {
      imports = modules;
      services.cortex = {
        enable = true;
        openFirewall = true;
        neurons.box.endpoint = "http://box:13131";
      };
    };

    box =
      { pkgs, ... }:
      {
        imports = modules;
        virtualisation.memorySize = 2048;
        services.neuron = {
          enable = true;
          package = pkgs.neuron-cpu;
          openFirewall = true;
          settings = {
            models = [
              {
                model_id = "cortex-demo";
                source = "${../models/cortex-demo}";
              }
            ];
            preload = [ "cortex-demo" ];
          };
        };
      };
  };

  testScript = ''
    start_all()
    box.wait_for_unit("neuron.service")
    gate.wait_for_unit("cortex.service")
    gate.wait_until_succeeds("curl -sSf 'http://127.0.0.1:31313/ready?model=cortex-demo'", timeout=120)

    answer = gate.succeed(
        "curl -sSf http://127.0.0.1:31313/v1/chat/completions -H 'content-type: application/json' "
        "-d '{\"model\":\"cortex-demo\",\"messages\":[{\"role\":\"user\",\"content\":\"What is 17 + 25?\"}],\"temperature\":0}'"
    )
    assert "17 + 25 = 42" in answer, answer

    before = box.succeed("systemctl show --property MainPID neuron.service")
    box.succeed("systemctl reload neuron.service")
    assert before == box.succeed("systemctl show --property MainPID neuron.service")

    gate.succeed("systemd-analyze security --threshold=25 cortex.service")
    box.succeed("systemd-analyze security --threshold=25 neuron.service")
  '';
}
