//! Placement: which models a fleet serves and where, the proof that it can, and what to do next.
//!
//! Everything here is a function from values to values: no I/O, no clock, no Nickel. [`Placement`] is what `models.ncl` comes to;
//! [`decide`] turns it and what is observed into actions.

mod action;
mod certificate;
mod check;
mod decide;
mod declared;
mod desired;
mod moment;
mod observed;
mod placement;
mod policy;
mod problem;
mod profile;
mod prove;
mod settle;
mod simulate;
mod verify;
mod words;

pub use action::{Action, Step};
pub use certificate::{Assignment, Certificate, Survival, Witness};
pub use check::{check, nearest};
pub use decide::decide;
pub use declared::{Declared, DeclaredGpu, DeclaredHost, DeclaredModel, DeclaredReplicas};
pub use desired::Desired;
pub use moment::Moment;
pub use observed::{Demand, ModelDemand, ModelState, Observed, ObservedDevice, ObservedModel, ObservedNode, Reach};
pub use placement::{HostDevice, HostPlacement, Placement, PlacementError, Routing, VERSION};
pub use policy::{Eviction, Policy};
pub use problem::Problem;
pub use profile::{ComputeCapability, Footprint, FootprintOrigin, Mode, ModelProfile, Replicas, Requires, Residency, Spot};
pub use prove::prove;
pub use settle::settle;
pub use simulate::{Outcome, Simulation, Spread, simulate};
pub use words::gib;
