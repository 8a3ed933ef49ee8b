//! From what the operator declared to a proven placement: everything that only the whole file can tell.

use std::collections::{BTreeMap, BTreeSet};

use cortex_core::{ModelId, ModelSpec, NodeId};

use crate::certificate::Certificate;
use crate::declared::{Declared, DeclaredModel};
use crate::placement::{Placement, Routing};
use crate::problem::Problem;
use crate::profile::{Footprint, ModelProfile};
use crate::prove::{Fleet, Hosts, Models, device_mb, prove};
use crate::words::{count, gib, names};

/// Proves that what is declared can work. `footprints` are those computed from checkpoints, where the file names no `vram_mb`.
///
/// # Errors
/// Every mistake that can be told apart; feasibility is judged only once names and hosts are right.
pub fn check(declared: &Declared, footprints: &BTreeMap<ModelId, Footprint>, survive_one: bool) -> Result<Placement, Vec<Problem>> {
    let mut problems = Vec::new();
    let aliases = resolve_aliases(declared, &mut problems);
    let models: Models = declared
        .models
        .iter()
        .map(|(id, model)| {
            let fallbacks = resolve_fallbacks(declared, &aliases, id, model, &mut problems);
            (id.clone(), model.profile(id, footprints.get(id).copied(), fallbacks))
        })
        .collect();
    let mut hosts: Hosts = declared.hosts.iter().map(|(name, host)| (name.clone(), host.place())).collect();
    check_order(declared, &mut problems);
    check_places(&hosts, &models, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    let certificate = prove(&hosts, &models, survive_one)?;
    fill_hosts(declared, &mut hosts, &models, &certificate);
    let nodes =
        models.iter().map(|(id, profile)| (id.clone(), hosts.keys().filter(|host| profile.spot(host).is_some()).cloned().collect()));
    let routing = Routing { aliases, nodes: nodes.collect() };
    Ok(Placement::new(hosts, models, routing, certificate))
}

/// Ids and aliases share one name space.
fn resolve_aliases(declared: &Declared, problems: &mut Vec<Problem>) -> BTreeMap<String, ModelId> {
    let mut aliases: BTreeMap<String, ModelId> = BTreeMap::new();
    for (id, model) in &declared.models {
        for (at, alias) in model.aliases.iter().enumerate() {
            let at = at.to_string();
            let path = ["models", id.as_str(), "aliases", &at];
            if let Some(other) = declared.models.get(alias.as_str()) {
                problems.extend(alias_of_a_model(declared, id, alias, other, &path));
            } else if let Some(first) = aliases.get(alias) {
                let problem = Problem::at(&path, format!("the name `{alias}` is used twice"));
                problems.push(
                    problem
                        .label(format!("already an alias of `{first}`"))
                        .note("a name stands for one model; ids and aliases share one name space"),
                );
            } else {
                aliases.insert(alias.clone(), id.clone());
            }
        }
    }
    aliases
}

/// `None` for a round that is told of at another of its models.
fn alias_of_a_model(declared: &Declared, id: &ModelId, alias: &str, other: &DeclaredModel, path: &[&str]) -> Option<Problem> {
    if alias == id.as_str() {
        return Some(Problem::at(path, format!("`{alias}` is its own alias")).label("the model's id already").note("leave it out"));
    }
    // Follow the aliases that are models themselves.
    let (mut chain, mut at) = (vec![id.to_string(), alias.to_owned()], other);
    while let Some(next) = at.aliases.iter().find(|next| declared.models.contains_key(next.as_str())) {
        if chain.contains(next) {
            if next == id.as_str() && chain.iter().min() != Some(next) {
                return None;
            }
            chain.push(next.clone());
            let way = chain.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" -> ");
            let problem = Problem::at(path, format!("the aliases go round: {way}"));
            let problem = problem.label("a model itself");
            return Some(problem.note("an alias is another name of the model that lists it, never the id of a model"));
        }
        chain.push(next.clone());
        at = &declared.models[next.as_str()];
    }
    let problem = Problem::at(path, format!("the name `{alias}` is used twice")).label("a model itself");
    Some(problem.note("ids and aliases share one name space; to send requests on when it fails, use `fallbacks`"))
}

fn resolve_fallbacks(
    declared: &Declared,
    aliases: &BTreeMap<String, ModelId>,
    id: &ModelId,
    model: &DeclaredModel,
    problems: &mut Vec<Problem>,
) -> Vec<ModelId> {
    let mut fallbacks = Vec::new();
    for (at, name) in model.fallbacks.iter().enumerate() {
        let at = at.to_string();
        let path = ["models", id.as_str(), "fallbacks", &at];
        let target = declared.models.get_key_value(name.as_str()).map(|(id, _)| id).or_else(|| aliases.get(name));
        match target {
            Some(target) if target == id => {
                problems.push(Problem::at(&path, format!("`{id}` falls back to itself")).label("the same model").note("leave it out"));
            }
            Some(target) => fallbacks.push(target.clone()),
            None => {
                let known = declared.models.keys().map(ModelId::as_str).chain(aliases.keys().map(String::as_str));
                let problem = Problem::at(&path, format!("`{name}` is neither a model nor an alias")).label("unknown");
                problems.push(match nearest(name, known) {
                    Some(near) => problem.note(format!("did you mean `{near}`?")),
                    None => problem.note("fallbacks name models of this file"),
                });
            }
        }
    }
    fallbacks
}

fn check_order(declared: &Declared, problems: &mut Vec<Problem>) {
    for (host, facts) in &declared.hosts {
        for (at, model) in facts.preload_order.iter().enumerate() {
            if !declared.models.contains_key(model) {
                let at = at.to_string();
                let problem =
                    Problem::at(&["hosts", host.as_str(), "preload_order", &at], format!("there is no model `{model}`")).label("unknown");
                problems.push(match nearest(model.as_str(), declared.models.keys().map(ModelId::as_str)) {
                    Some(near) => problem.note(format!("did you mean `{near}`?")),
                    None => problem.note("preload_order names models of this file"),
                });
            }
        }
    }
}

/// What is wrong with a model and a host by themselves.
fn check_places(hosts: &Hosts, models: &Models, problems: &mut Vec<Problem>) {
    let fleet = Fleet::new(hosts, models, None);
    for (id, profile) in models {
        let before = problems.len();
        for (host, spot) in &profile.placement {
            let path = ["models", id.as_str(), "placement", host.as_str()];
            let Some(facts) = hosts.get(host) else {
                let problem = Problem::at(&path, format!("there is no host `{host}`")).label("unknown");
                problems.push(match nearest(host.as_str(), hosts.keys().map(NodeId::as_str)) {
                    Some(near) => problem.note(format!("did you mean `{near}`?")),
                    None => problem.note("hosts are declared in `hosts`"),
                });
                continue;
            };
            let have = facts.devices.len();
            if have == 0 {
                problems.push(
                    Problem::at(&path, format!("`{host}` has nothing that could hold a model")).label("neither `gpus` nor `memory_mb`"),
                );
            } else if profile.tensor_parallel() > have {
                let tp = profile.tensor_parallel();
                let problem = Problem::at(
                    &["models", id.as_str(), "tensor_parallel"],
                    format!("`{id}` is split over {tp} devices, and `{host}` has {have}"),
                );
                problems.push(
                    problem
                        .label(format!("{host} has {}", count(have, "device")))
                        .note(format!("tensor_parallel = {have} at most, or leave `{host}` out of its placement")),
                );
            } else if let Some(devices) = &spot.devices
                && let Some(problem) = check_devices(&path, host, have, profile, devices)
            {
                problems.push(problem);
            } else if let Some(at) = hosts.keys().position(|name| name == host)
                && !fleet.fits_alone(profile, at)
            {
                problems.push(too_large(&fleet, hosts, id, profile, host, at));
            }
        }
        if problems.len() == before {
            check_anywhere(&fleet, hosts, id, profile, problems);
        }
    }
}

fn check_devices(path: &[&str], host: &NodeId, have: usize, profile: &ModelProfile, devices: &[usize]) -> Option<Problem> {
    let distinct: BTreeSet<&usize> = devices.iter().collect();
    let path: Vec<&str> = path.iter().copied().chain(["devices"]).collect();
    if let Some(index) = devices.iter().find(|index| **index >= have) {
        let problem = Problem::at(&path, format!("`{host}` has no device {index}"));
        return Some(problem.label(format!("{host} has {}, counted from 0", count(have, "device"))));
    }
    if distinct.len() < profile.tensor_parallel() {
        let problem = Problem::at(&path, format!("`{}` is split over more devices than it may use", profile.spec.model_id));
        return Some(problem.label(format!("{} named, tensor_parallel is {}", count(distinct.len(), "device"), profile.tensor_parallel())));
    }
    None
}

/// Alone on an empty host, and still too large, or not met in what it requires.
fn too_large(fleet: &Fleet<'_>, hosts: &Hosts, id: &ModelId, profile: &ModelProfile, host: &NodeId, at: usize) -> Problem {
    let path = ["models", id.as_str(), "placement", host.as_str()];
    let meets = fleet.eligible(profile, at).len() >= profile.tensor_parallel();
    let problem = match meets {
        true => {
            let each = if profile.tensor_parallel() > 1 { "on each device" } else { "on one device" };
            Problem::at(&path, format!("`{id}` does not fit `{host}`, even alone"))
                .label(format!("needs {} {each}", gib(device_mb(profile))))
        }
        false => Problem::at(&path, format!("`{host}` is not what `{id}` requires")).label(required(profile)),
    };
    let problem = fleet.devices_in_words(at).into_iter().fold(problem, Problem::note);
    let elsewhere: Vec<&NodeId> =
        hosts.keys().enumerate().filter(|(other, _)| fleet.fits_alone(profile, *other)).map(|(_, name)| name).collect();
    match elsewhere.is_empty() {
        true => problem.note("no host of this file has room for it: less context or parallel, fewer bits (quant), or tensor_parallel"),
        false => problem.note(format!("it fits {}", names(&elsewhere))),
    }
}

fn required(profile: &ModelProfile) -> String {
    let requires = &profile.requires;
    let devices = requires.devices_min.map(|min| format!("min_devices = {min}"));
    let memory = requires.device_memory_mb_min.map(|min| format!("min_device_vram_mb = {min}"));
    let capability = requires.compute_capability_min.map(|min| format!("min_compute_capability = \"{min}\""));
    [devices, memory, capability].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A model that names no host must fit some, and there must be as many as it wants replicas.
fn check_anywhere(fleet: &Fleet<'_>, hosts: &Hosts, id: &ModelId, profile: &ModelProfile, problems: &mut Vec<Problem>) {
    let fits = hosts.keys().enumerate().filter(|(at, host)| profile.spot(host).is_some() && fleet.fits_alone(profile, *at)).count();
    if fits == 0 {
        let problem = Problem::at(&["models", id.as_str()], format!("no host can hold `{id}`"));
        let each = if profile.tensor_parallel() > 1 { "on each device" } else { "on one device" };
        let problem = problem.label(format!("needs {} {each} {}", gib(device_mb(profile)), required(profile)).trim_end().to_owned());
        problems.push((0..hosts.len()).flat_map(|at| fleet.devices_in_words(at)).take(8).fold(problem, Problem::note));
    } else if fits < profile.replicas.min {
        let problem = Problem::at(&["models", id.as_str(), "replicas"], format!("`{id}` wants {} replicas", profile.replicas.min));
        problems.push(problem.label(format!("only {} can hold it", count(fits, "host"))).note("a host holds one replica of a model"));
    }
}

/// What each host may load, and what it loads at start.
fn fill_hosts(declared: &Declared, hosts: &mut Hosts, models: &Models, certificate: &Certificate) {
    for (name, host) in hosts {
        let spec = |profile: &ModelProfile| -> Option<ModelSpec> {
            let spot = profile.spot(name)?;
            let id = &profile.spec.model_id;
            let proven = certificate.residents.iter().find(|resident| resident.model == *id && resident.host == *name);
            let devices = proven.map(|resident| resident.devices.clone()).or(spot.devices);
            Some(ModelSpec { devices, ..profile.spec.clone() })
        };
        host.models = models.values().filter_map(spec).collect();
        let order = &declared.hosts[name].preload_order;
        let mut preload: Vec<&ModelId> =
            certificate.residents.iter().filter(|resident| resident.host == *name).map(|resident| &resident.model).collect();
        preload.sort_by_key(|id| {
            let named = order.iter().position(|first| first == *id).unwrap_or(usize::MAX);
            (named, -i64::from(models[*id].priority), (*id).clone())
        });
        host.preload = preload.into_iter().cloned().collect();
    }
}

/// The known name that `name` was probably meant to be: at most a third of it differs.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).max(1);
    let distances = known.map(|other| (distance(name, other), other)).filter(|(distance, _)| *distance <= allowed);
    distances.min().map(|(_, other)| other)
}

/// Letters to add, drop, change or swap.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let step = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { step.min(rows[i - 2][j - 2] + 1) } else { step }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_a_near_one() {
        let known = ["context", "priority", "placement"];
        let cases = [("contxt", Some("context")), ("prioritiy", Some("priority")), ("placemnet", Some("placement")), ("banana", None)];
        for (name, expected) in cases {
            assert_eq!(nearest(name, known.into_iter()), expected, "{name}");
        }
    }
}
