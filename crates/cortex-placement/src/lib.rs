//! Placement: which models a fleet serves and where, the proof that it can, and what to do next.
//!
//! Everything here is a function from values to values: no I/O, no clock, no Nickel. [`Placement`] is what `models.ncl` comes to;
//! [`decide`] turns it and what is observed into actions.

mod action;
mod certificate;
mod decide;
mod desired;
mod moment;
mod observed;
mod placement;
mod policy;
mod profile;
mod words;

pub use action::{Action, Step};
pub use certificate::{Assignment, Certificate, Survival, Witness};
pub use decide::decide;
pub use desired::Desired;
pub use moment::Moment;
pub use observed::{Demand, ModelDemand, ModelState, Observed, ObservedDevice, ObservedModel, ObservedNode, Reach};
pub use placement::{HostDevice, HostPlacement, Placement, PlacementError, Routing, VERSION};
pub use policy::{Eviction, Policy};
pub use profile::{ComputeCapability, Footprint, FootprintOrigin, Mode, ModelProfile, Replicas, Requires, Residency, Spot};
pub use words::gib;
