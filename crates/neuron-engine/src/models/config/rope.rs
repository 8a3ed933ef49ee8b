//! The rotary part of `config.json`: `rope_theta` beside `rope_scaling` in files of the 4.x form, one `rope_parameters` in the 5.x form.

use super::fields::Fields;
use crate::error::LoadError;
use crate::layers::rotary::{MropeSections, RopeConfig, RopeScaling};

/// Reads either form. `theta` is the family's default base.
pub fn read(fields: &Fields, head_dim: usize, theta: f64) -> Result<RopeConfig, LoadError> {
    let section = match fields.optional_section("rope_parameters")? {
        Some(section) => Some(("rope_parameters", section)),
        None => fields.optional_section("rope_scaling")?.map(|section| ("rope_scaling", section)),
    };
    let theta_at = fields.optional_positive("rope_theta")?;
    let Some((name, section)) = section else {
        return Ok(RopeConfig { theta: theta_at.unwrap_or(theta), scaling: RopeScaling::None, sections: None });
    };
    let partial = section.optional_positive("partial_rotary_factor")?.or(fields.optional_positive("partial_rotary_factor")?);
    if let Some(factor) = partial.filter(|factor| *factor != 1.) {
        return Err(fields.unsupported("partial_rotary_factor", factor, "only heads that are rotated whole (1.0) can be served"));
    }
    Ok(RopeConfig {
        theta: section.optional_positive("rope_theta")?.or(theta_at).unwrap_or(theta),
        scaling: scaling(fields, name, &section)?,
        sections: sections(&section, head_dim)?,
    })
}

fn scaling(fields: &Fields, name: &str, section: &Fields) -> Result<RopeScaling, LoadError> {
    // `type` is the older spelling.
    let kind = section.optional_text("rope_type")?.or(section.optional_text("type")?);
    match kind.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("llama3") => llama3(section),
        Some(other) => Err(fields.unsupported(name, format!("of type `{other}`"), "only `default` and `llama3` can be served")),
    }
}

fn llama3(section: &Fields) -> Result<RopeScaling, LoadError> {
    let (low_freq_factor, high_freq_factor) = (section.positive("low_freq_factor")?, section.positive("high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        let what = format!("must be above low_freq_factor ({low_freq_factor}), but is {high_freq_factor}");
        return Err(section.error("high_freq_factor", what));
    }
    Ok(RopeScaling::Llama3 {
        factor: section.positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_context: section.positive("original_max_position_embeddings")?,
    })
}

fn sections(section: &Fields, head_dim: usize) -> Result<Option<MropeSections>, LoadError> {
    let Some(counts) = section.optional_counts("mrope_section")? else { return Ok(None) };
    let &[time, height, width] = counts.as_slice() else {
        return Err(section.error("mrope_section", format!("must have three entries, but has {}", counts.len())));
    };
    if time + height + width != head_dim / 2 {
        let what = format!("must add up to half of head_dim ({}), but adds up to {}", head_dim / 2, time + height + width);
        return Err(section.error("mrope_section", what));
    }
    if !section.flag_or("mrope_interleaved", true)? {
        return Err(section.unsupported("mrope_interleaved", false, "only interleaved sections can be served"));
    }
    Ok(Some(MropeSections { time, height, width }))
}
