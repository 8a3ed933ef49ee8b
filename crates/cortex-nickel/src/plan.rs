//! What a running fleet would do to become what the file says, and why a model goes where it goes.

use std::fmt::Write;

use cortex_core::{FleetReport, ModelId};
use cortex_placement::{Action, Desired, ModelProfile, Moment, Observed, Placement, Policy, gib, settle};

/// The steps from the reported fleet to the placement.
pub(crate) fn plan(placement: &Placement, fleet: &FleetReport) -> Vec<Action> {
    let now = Moment(u64::from(u32::MAX));
    let policy = Policy { unload_undeclared: true, ..Policy::default() };
    settle(&Desired::new(placement.clone(), policy), Observed::of(fleet, now), now)
}

/// One line a step, with its reason.
pub(crate) fn words(placement: &Placement, actions: &[Action]) -> String {
    if actions.is_empty() {
        return format!("nothing to do: the fleet is what generation {} says\n", placement.generation);
    }
    let steps: Vec<String> = actions.iter().map(Action::to_string).collect();
    let width = steps.iter().map(|step| step.chars().count()).max().unwrap_or(0);
    let mut out = format!(
        "{} to generation {}\n",
        if steps.len() == 1 { "1 step".to_owned() } else { format!("{} steps", steps.len()) },
        placement.generation
    );
    for (step, action) in steps.iter().zip(actions) {
        let _ = writeln!(out, "  {step:<width$}   {}", action.reason);
    }
    out
}

/// What each loaded model was measured to take beside what is counted for it; nothing where nodes do not tell.
pub(crate) fn memory(placement: &Placement, fleet: &FleetReport) -> String {
    let mut out = String::new();
    for node in &fleet.nodes {
        for model in node.models.iter().filter(|model| model.is_loaded() && model.memory_used_bytes > 0) {
            let Some(profile) = placement.models.get(&model.id) else { continue };
            let measured_mb = model.memory_used_bytes.div_ceil(model.devices.len().max(1) as u64).div_ceil(1 << 20);
            let counted = beside(profile, measured_mb);
            let _ = writeln!(out, "  {} on {}: {} measured on a device, {counted}", model.id, node.name, gib(measured_mb));
        }
    }
    if out.is_empty() { out } else { format!("memory\n{out}") }
}

/// What is counted for a model of which so much was measured on a device.
fn beside(profile: &ModelProfile, measured_mb: u64) -> String {
    match profile.footprint {
        None => "nothing is counted for it: say vram_mb".to_owned(),
        Some(footprint) if footprint.device_mb < measured_mb => {
            format!("{} counted: vram_mb should be {} or more", gib(footprint.device_mb), measured_mb * footprint.devices as u64)
        }
        Some(footprint) => format!("{} counted", gib(footprint.device_mb)),
    }
}

/// Where `model` goes and why, and what the running `fleet` has measured of it; `None` when there is none of that name.
pub(crate) fn explain(placement: &Placement, name: &str, fleet: Option<&FleetReport>) -> Option<String> {
    let id: ModelId = placement.routing.aliases.get(name).cloned().unwrap_or_else(|| name.into());
    let profile = placement.models.get(&id)?;
    let mut out = format!("{id}\n");
    let mut line = |what: &str, text: String| {
        let _ = writeln!(out, "  {what:<10} {text}");
    };
    let devices = profile.tensor_parallel();
    let memory = match profile.footprint {
        Some(footprint) => {
            let origin = match footprint.origin {
                cortex_placement::FootprintOrigin::Declared => "as vram_mb says",
                cortex_placement::FootprintOrigin::Checkpoint => "computed from its checkpoint",
            };
            let each = if devices == 1 { "on one device".to_owned() } else { format!("on each of {devices} devices") };
            format!("{} {each}, {origin}", gib(footprint.device_mb))
        }
        None => "not known: no vram_mb, and its checkpoint is not at hand; it counts as nothing until a node has loaded it".to_owned(),
    };
    line("memory", memory);
    if let Some(fleet) = fleet {
        let measured_mb = fleet.memory.iter().find(|memory| memory.model == id).and_then(|memory| memory.measured_mb);
        let measured = match measured_mb {
            Some(mb) => format!("{} on a device at most, {}", gib(mb), beside(profile, mb)),
            None => "not yet: no node has had it in memory since the gateway started".to_owned(),
        };
        line("measured", measured);
    }
    line("priority", profile.priority.to_string());
    for resident in placement.certificate.residents.iter().filter(|resident| resident.model == id) {
        let slack = &placement.certificate.slack_mb[&resident.host];
        let places: Vec<String> =
            resident.devices.iter().map(|index| format!("{}:{index} ({} to spare)", resident.host, gib(slack[*index]))).collect();
        line("resident", places.join(", "));
    }
    for witness in placement.certificate.witnesses.iter().filter(|witness| witness.model == id) {
        let devices: Vec<String> = witness.devices.iter().map(|index| format!("{}:{index}", witness.host)).collect();
        let displaced: Vec<String> =
            witness.displaces.iter().map(|model| format!("`{model}` (priority {})", placement.models[model].priority)).collect();
        let room = if displaced.is_empty() { "beside the residents".to_owned() } else { format!("displacing {}", displaced.join(", ")) };
        line("on demand", format!("{}, {room}", devices.join(", ")));
    }
    let hosts: Vec<&str> = placement.routing.nodes[&id].iter().map(cortex_core::NodeId::as_str).collect();
    line("hosts", hosts.join(", "));
    if !profile.fallbacks.is_empty() {
        line("fallbacks", profile.fallbacks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    }
    Some(out)
}
