//! What `cortex up` says once it serves: where, on what, with which model, and what to try.

use std::fmt::Write;
use std::net::SocketAddr;

use cortex_core::{Capability, DeviceInfo, DeviceKind, Discovery, ModelReport};

use crate::models::capability_name;
use crate::style::{Ink, Style};
use crate::units;

/// Everything the banner tells.
pub(crate) struct Banner<'a> {
    /// Clients connect here.
    pub(crate) gateway: SocketAddr,
    /// Prometheus connects here.
    pub(crate) metrics: SocketAddr,
    /// The node's own address.
    pub(crate) neuron: SocketAddr,
    /// Threads that the CPU kernels run on.
    pub(crate) threads: usize,
    /// The node about itself.
    pub(crate) discovery: &'a Discovery,
    /// The models that were loaded; at least one.
    pub(crate) models: &'a [ModelReport],
}

impl Banner<'_> {
    /// The text, ending in a line feed.
    pub(crate) fn render(&self, style: Style) -> String {
        let mut out = String::new();
        let address =
            |address: SocketAddr| if address.ip() == self.gateway.ip() { format!(":{}", address.port()) } else { address.to_string() };
        let url = format!("http://{}", reachable(self.gateway));
        let title = style.paint(Ink::Bold, concat!("cortex ", env!("CARGO_PKG_VERSION")));
        let (metrics, neuron) = (address(self.metrics), address(self.neuron));
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{title} · gateway {url} · metrics {metrics} · neuron {neuron}");
        let names = self.discovery.devices.iter().map(|device| device.name.len()).max().unwrap_or(0).max(8);
        for (at, device) in self.discovery.devices.iter().enumerate() {
            let note = if at == 0 { self.discovery.gpu_note.as_deref().unwrap_or_default() } else { "" };
            let line = format!("  {:<names$} {:<26} {}", device.name, self.device(device), style.paint(Ink::Dim, note));
            let _ = writeln!(out, "{}", line.trim_end());
        }
        for model in self.models {
            let _ = writeln!(out, "  {:<names$} {}", "model", model_line(model, style));
        }
        let _ = write!(out, "{}\n{}", style.paint(Ink::Bold, "try it"), self.hints(&url));
        let _ = writeln!(out, "serving; Ctrl-C drains and stops");
        out
    }

    fn device(&self, device: &DeviceInfo) -> String {
        let memory = units::bytes(device.memory_total_bytes);
        match device.kind {
            DeviceKind::Cpu => format!("{} threads, {memory}", self.threads),
            DeviceKind::Cuda => format!("{}, {memory}", device.product),
        }
    }

    /// What to try with the first model.
    fn hints(&self, url: &str) -> String {
        let Some(model) = self.models.first() else { return String::new() };
        let id = &model.id;
        let can = |capability| model.capabilities.contains(&capability);
        if can(Capability::Embeddings) && !can(Capability::Chat) {
            let body = format!(r#"{{"model":"{id}","input":"Hello!"}}"#);
            return format!("  curl {url}/v1/embeddings -H 'content-type: application/json' \\\n       -d '{body}'\n");
        }
        if can(Capability::Rerank) {
            let body = format!(r#"{{"model":"{id}","query":"Who was she?","documents":["A poet.","A river."]}}"#);
            return format!("  curl {url}/v1/rerank -H 'content-type: application/json' \\\n       -d '{body}'\n");
        }
        let body = format!(r#"{{"model":"{id}","messages":[{{"role":"user","content":"Hello!"}}]}}"#);
        let elsewhere = if self.gateway.port() == 31313 && reachable(self.gateway).ip().is_loopback() {
            String::new()
        } else {
            format!(" --gateway {url}")
        };
        let picture = if can(Capability::Vision) { format!("        cortex chat{elsewhere} --image FILE") } else { String::new() };
        format!(
            "  curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n       -d '{body}'\n  cortex chat{elsewhere}{picture}\n"
        )
    }
}

/// `cortex-demo  Qwen3-VL 7M  chat, vision   loaded in 70 ms, 22 MiB`
fn model_line(model: &ModelReport, style: Style) -> String {
    let parameters = model.parameters.map(|count| units::count(count as f64));
    let kind: Vec<String> = model.architecture.as_deref().map(family).into_iter().chain(parameters).collect();
    let can: Vec<&str> = model.capabilities.iter().map(|capability| capability_name(*capability)).collect();
    let took = model.load_s.map_or_else(|| "loaded".into(), |seconds| format!("loaded in {}", units::seconds(seconds)));
    let memory = format!("{took}, {} with its KV cache", units::bytes(model.memory_used_bytes));
    let name = style.paint(Ink::Bold, model.id.as_str());
    [name, kind.join(" "), can.join(", "), memory].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ")
}

/// An address that a client on this machine can use: the unspecified address is every address, also the loopback one.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (std::net::Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

/// The family as its makers write it, from what `config.json` names as its type or its class; another one as it is.
fn family(architecture: &str) -> String {
    match architecture {
        "qwen3" | "Qwen3ForCausalLM" => "Qwen3",
        "qwen3_moe" | "Qwen3MoeForCausalLM" => "Qwen3-MoE",
        "qwen3_vl" | "Qwen3VLForConditionalGeneration" => "Qwen3-VL",
        "qwen3_vl_moe" | "Qwen3VLMoeForConditionalGeneration" => "Qwen3-VL-MoE",
        "llama" | "LlamaForCausalLM" => "Llama",
        "bert" | "BertModel" => "BERT",
        other => other,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use cortex_core::ModelStatus;

    use super::*;

    fn discovery(devices: Vec<DeviceInfo>, gpu_note: Option<&str>) -> Discovery {
        Discovery {
            hostname: "here".into(),
            os: "Linux".into(),
            version: "0.1.0".into(),
            boot_id: "b".into(),
            driver_version: None,
            cuda_version: None,
            gpu_note: gpu_note.map(Into::into),
            devices,
            harnesses: vec!["candle".into()],
        }
    }

    fn device(name: &str, kind: DeviceKind, product: &str, memory_total_bytes: u64) -> DeviceInfo {
        DeviceInfo { index: 0, name: name.into(), kind, product: product.into(), memory_total_bytes, compute_capability: None }
    }

    fn model(id: &str, capabilities: &[Capability]) -> ModelReport {
        ModelReport {
            id: id.into(),
            status: ModelStatus::Loaded,
            capabilities: capabilities.to_vec(),
            architecture: Some("Qwen3VLForConditionalGeneration".into()),
            parameters: Some(7_065_728),
            context: Some(4096),
            devices: vec!["cpu-0".into()],
            memory_used_bytes: 22 << 20,
            generation: 0,
            load_s: Some(0.07),
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_machine_without_gpu_is_told_why() {
        let note = "no NVIDIA driver found (libcuda.so.1): serving on the CPU";
        let discovery = discovery(vec![device("cpu-0", DeviceKind::Cpu, "Some CPU", 31 << 30)], Some(note));
        let model = model("cortex-demo", &[Capability::Chat, Capability::Vision]);
        let banner = Banner {
            gateway: address("127.0.0.1:31313"),
            metrics: address("127.0.0.1:31314"),
            neuron: address("127.0.0.1:13131"),
            threads: 16,
            discovery: &discovery,
            models: &[model],
        };
        insta::assert_snapshot!(banner.render(Style::PLAIN), @r#"
        cortex 0.1.0 · gateway http://127.0.0.1:31313 · metrics :31314 · neuron :13131
          cpu-0    16 threads, 31 GiB         no NVIDIA driver found (libcuda.so.1): serving on the CPU
          model    cortex-demo  Qwen3-VL 7.1M  chat, vision  loaded in 70 ms, 22 MiB with its KV cache
        try it
          curl http://127.0.0.1:31313/v1/chat/completions -H 'content-type: application/json' \
               -d '{"model":"cortex-demo","messages":[{"role":"user","content":"Hello!"}]}'
          cortex chat        cortex chat --image FILE
        serving; Ctrl-C drains and stops
        "#);
        let coloured = banner.render(Style { colour: true, width: None });
        assert!(coloured.contains("\x1b[1mcortex-demo\x1b[0m"), "{coloured}");
    }

    #[test]
    fn other_addresses_and_other_models_get_other_hints() {
        let gpu = |at| device(&format!("cuda-dev-{at}"), DeviceKind::Cuda, "NVIDIA H100", 80 << 30);
        let discovery = discovery(vec![gpu(0), gpu(1)], None);
        let text = [model("Qwen/Qwen3-8B", &[Capability::Chat])];
        let embedder = [ModelReport { parameters: None, architecture: None, load_s: None, ..model("e", &[Capability::Embeddings]) }];
        let banner = |models| Banner {
            gateway: address("0.0.0.0:8080"),
            metrics: address("127.0.0.1:31314"),
            neuron: address("127.0.0.1:13131"),
            threads: 16,
            discovery: &discovery,
            models,
        };
        insta::assert_snapshot!(banner(&text).render(Style::PLAIN), @r#"
        cortex 0.1.0 · gateway http://127.0.0.1:8080 · metrics 127.0.0.1:31314 · neuron 127.0.0.1:13131
          cuda-dev-0 NVIDIA H100, 80 GiB
          cuda-dev-1 NVIDIA H100, 80 GiB
          model      Qwen/Qwen3-8B  Qwen3-VL 7.1M  chat  loaded in 70 ms, 22 MiB with its KV cache
        try it
          curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \
               -d '{"model":"Qwen/Qwen3-8B","messages":[{"role":"user","content":"Hello!"}]}'
          cortex chat --gateway http://127.0.0.1:8080
        serving; Ctrl-C drains and stops
        "#);
        insta::assert_snapshot!(banner(&embedder).render(Style::PLAIN), @r#"
        cortex 0.1.0 · gateway http://127.0.0.1:8080 · metrics 127.0.0.1:31314 · neuron 127.0.0.1:13131
          cuda-dev-0 NVIDIA H100, 80 GiB
          cuda-dev-1 NVIDIA H100, 80 GiB
          model      e  embeddings  loaded, 22 MiB with its KV cache
        try it
          curl http://127.0.0.1:8080/v1/embeddings -H 'content-type: application/json' \
               -d '{"model":"e","input":"Hello!"}'
        serving; Ctrl-C drains and stops
        "#);
    }
}
