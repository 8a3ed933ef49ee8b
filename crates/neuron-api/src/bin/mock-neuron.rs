//! `mock-neuron`: a node without an engine, for trying a gateway by hand.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use cortex_core::Capability;
use neuron_api::mock::{Answer, Faults, MockConfig, MockModel, MockNeuron, Said};

/// Serves neuron's API with scripted answers.
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:13131")]
    listen: SocketAddr,
    /// The name it gives itself.
    #[arg(long, default_value = "mock")]
    hostname: String,
    /// Models that are loaded from the start.
    #[arg(long, value_delimiter = ',', default_value = "mock-model")]
    models: Vec<String>,
    /// Models that must be loaded first.
    #[arg(long, value_delimiter = ',')]
    available: Vec<String>,
    /// Models that give embeddings, loaded from the start.
    #[arg(long, value_delimiter = ',')]
    embeddings: Vec<String>,
    /// Models that put texts in order, loaded from the start.
    #[arg(long, value_delimiter = ',')]
    rerankers: Vec<String>,
    /// What to answer, word by word; without it the last message comes back.
    #[arg(long)]
    answer: Option<String>,
    /// What to answer to a client that works with tools, turn by turn: `[[{"call": "Bash", "arguments": {..}}], [{"text": ".."}]]`.
    #[arg(long, value_parser = turns, conflicts_with = "answer")]
    turns: Option<Turns>,
    /// Before each token, in milliseconds.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Before the first token, in milliseconds.
    #[arg(long, default_value_t = 0)]
    prefill_ms: u64,
    /// For a load, in milliseconds.
    #[arg(long, default_value_t = 500)]
    load_ms: u64,
    /// The memory of the node, in GiB; each model takes one.
    #[arg(long, default_value_t = 16)]
    memory_gib: u64,
    /// Generations at once.
    #[arg(long, default_value_t = 256)]
    active_max: usize,
    /// End each generation with an error after so many tokens.
    #[arg(long)]
    die_after: Option<usize>,
}

impl Args {
    fn config(&self) -> MockConfig {
        let loaded = self.models.iter().map(|id| MockModel::loaded(id));
        let available = self.available.iter().map(|id| MockModel::available(id));
        let made_for = |capability| move |id: &String| MockModel { capabilities: vec![capability], ..MockModel::loaded(id) };
        let embeddings = self.embeddings.iter().map(made_for(Capability::Embeddings));
        let rerankers = self.rerankers.iter().map(made_for(Capability::Rerank));
        let models = loaded.chain(available).chain(embeddings).chain(rerankers).map(|model| self.script(model));
        let config = MockConfig::new(models).named(&self.hostname);
        MockConfig { memory_total_bytes: self.memory_gib << 30, active_max: self.active_max, ..config }
    }

    fn script(&self, model: MockModel) -> MockModel {
        let model = MockModel {
            load_time: Duration::from_millis(self.load_ms),
            prefill_time: Duration::from_millis(self.prefill_ms),
            token_time: Duration::from_millis(self.delay_ms),
            faults: Faults { die_after: self.die_after, ..Faults::default() },
            ..model
        };
        match (&self.answer, &self.turns) {
            (Some(answer), _) => model.saying(answer.split_inclusive(' ')),
            (None, Some(Turns(turns))) => MockModel { answer: Answer::Turns(turns.clone()), context: 1 << 20, ..model },
            (None, None) => model,
        }
    }
}

#[derive(Clone, Debug)]
struct Turns(Vec<Vec<Said>>);

fn turns(text: &str) -> Result<Turns, String> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Written {
        Call { call: String, arguments: serde_json::Value },
        Thought { thought: String },
        Text { text: String },
    }
    let said = |written| match written {
        Written::Call { call, arguments } => Said::ToolCall { name: call, arguments: arguments.to_string() },
        Written::Thought { thought } => Said::Reasoning(thought),
        Written::Text { text } => Said::Text(text),
    };
    let turns: Vec<Vec<Written>> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(Turns(turns.into_iter().map(|turn| turn.into_iter().map(said).collect()).collect()))
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let server = MockNeuron::new(args.config()).serve_on(args.listen).await?;
    println!("mock neuron listens on {}", server.endpoint());
    tokio::signal::ctrl_c().await
}
