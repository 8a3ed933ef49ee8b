//! `cortex models`: what can be asked for.

use cortex_core::Capability;
use cortex_core::openai::{ModelEntry, ModelList};

use crate::client::Gateway;
use crate::error::Result;
use crate::output;
use crate::style::{Ink, Style};
use crate::table::{Cell, Table, Word};

/// Lists the models of the fleet.
pub(crate) async fn run(gateway: &Gateway, json: bool) -> Result<()> {
    let (list, raw): (ModelList, _) = gateway.get("/v1/models").await?;
    if json { output::json(&raw) } else { output::text(&render(&list, Style::of_stdout())) }
}

fn render(list: &ModelList, style: Style) -> String {
    if list.data.is_empty() {
        return "no models: no node of the fleet has answered yet, or none has a model\n".into();
    }
    let mut table = Table::new(&["MODEL", "STATE", "CONTEXT", "CAN", "NODES"]);
    for model in &list.data {
        table.row(row(model));
    }
    table.render(style)
}

fn row(model: &ModelEntry) -> Vec<Cell> {
    let ink = match model.state.as_str() {
        "loaded" => Ink::Good,
        "loading" => Ink::Warn,
        "unavailable" => Ink::Bad,
        _ => Ink::Dim,
    };
    let context = model.context_length.map_or_else(|| "-".into(), |tokens| tokens.to_string());
    vec![
        Cell::solid(Ink::Plain, &model.id),
        Cell::solid(ink, &model.state),
        Cell::solid(Ink::Plain, context),
        words(model.capabilities.iter().map(|capability| capability_name(*capability))),
        words(model.nodes.iter().map(String::as_str)),
    ]
}

fn words<'a>(words: impl Iterator<Item = &'a str>) -> Cell {
    let words: Vec<Word> = words.map(|word| Word::new(Ink::Plain, word)).collect();
    if words.is_empty() { Cell::solid(Ink::Dim, "-") } else { Cell::list(words) }
}

/// The word that the API uses.
pub(crate) fn capability_name(capability: Capability) -> &'static str {
    match capability {
        Capability::Chat => "chat",
        Capability::Embeddings => "embeddings",
        Capability::Rerank => "rerank",
        Capability::Vision => "vision",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, state: &str, context_length: Option<usize>, capabilities: &[Capability], nodes: &[&str]) -> ModelEntry {
        ModelEntry {
            id: id.into(),
            object: "model".into(),
            created: 0,
            owned_by: "cortex".into(),
            state: state.into(),
            nodes: nodes.iter().map(|node| (*node).into()).collect(),
            context_length,
            capabilities: capabilities.to_vec(),
        }
    }

    #[test]
    fn models_are_listed_with_what_they_can_do() {
        let list = ModelList::new(vec![
            entry("cortex-demo", "loaded", Some(4096), &[Capability::Chat, Capability::Vision], &["local"]),
            entry("Qwen/Qwen3-Embedding-0.6B", "available", None, &[], &["beast", "benjy"]),
        ]);
        insta::assert_snapshot!(render(&list, Style::PLAIN), @r"
        MODEL                      STATE      CONTEXT  CAN           NODES
        Qwen/Qwen3-Embedding-0.6B  available  -        -             beast  benjy
        cortex-demo                loaded     4096     chat  vision  local
        ");
        insta::assert_snapshot!(render(&ModelList::new(vec![]), Style::PLAIN), @r"no models: no node of the fleet has answered yet, or none has a model");
    }
}
