//! Rotary position embedding: pairs (j, j + D/2) of a head turn by position · frequency j.

use candle_core::{Device, Result, Tensor};

/// How the angles are made.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base: frequency j is theta^(-2j/D).
    pub theta: f64,
    /// What stretches the frequencies for long contexts.
    pub scaling: RopeScaling,
    /// With several position axes, how many frequencies height and width get; time has the rest.
    pub sections: Option<MropeSections>,
}

/// What stretches the frequencies for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// Llama 3: long waves slow down by `factor`, short ones stay, those between are blended.
    Llama3 {
        /// How much slower.
        factor: f64,
        /// Waves longer than `original / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Waves shorter than `original / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Tokens of context the model was first trained for.
        original_context: f64,
    },
}

/// Frequencies of each position axis; their sum is D/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MropeSections {
    /// Time.
    pub time: usize,
    /// Height.
    pub height: usize,
    /// Width.
    pub width: usize,
}

/// The frequencies, each in the row of the position axis it belongs to and zero in the others: angles are then one product.
#[derive(Debug)]
pub struct Rotary {
    frequencies: Tensor, // [3, D/2] f32
}

/// Cosines and sines of one step's angles, shared by all layers.
#[derive(Debug)]
pub struct RotaryTable {
    cos: Tensor, // [T, D/2] f32
    sin: Tensor, // [T, D/2] f32
}

impl Rotary {
    /// For heads of width `head_dim`.
    pub fn new(config: &RopeConfig, head_dim: usize, device: &Device) -> Result<Self> {
        let inverse = inverse_frequencies(config, head_dim);
        let mut frequencies = vec![0f32; 3 * inverse.len()];
        for (j, frequency) in inverse.iter().enumerate() {
            frequencies[config.axis(j) * inverse.len() + j] = *frequency;
        }
        Ok(Self { frequencies: Tensor::from_vec(frequencies, (3, inverse.len()), device)? })
    }

    /// The table for `positions` `[3, T]` u32: time, height, width.
    pub fn table(&self, positions: &Tensor) -> Result<RotaryTable> {
        let (cos, sin) = neuron_kernels::rotary_table(positions, &self.frequencies)?;
        Ok(RotaryTable { cos, sin })
    }
}

impl RotaryTable {
    /// Turns the heads of `x` `[T, heads, D]`.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        neuron_kernels::rotary(x, &self.cos, &self.sin)
    }

    /// The cosines, `[T, D/2]`.
    pub fn cos(&self) -> &Tensor {
        &self.cos
    }

    /// The sines, `[T, D/2]`.
    pub fn sin(&self) -> &Tensor {
        &self.sin
    }
}

impl RopeConfig {
    /// The position axis of frequency `j`. The axes interleave T H W T H W … until height and width have had their share.
    fn axis(&self, j: usize) -> usize {
        match (self.sections, j % 3) {
            (Some(sections), 1) if j < 3 * sections.height => 1,
            (Some(sections), 2) if j < 3 * sections.width => 2,
            _ => 0,
        }
    }
}

fn inverse_frequencies(config: &RopeConfig, head_dim: usize) -> Vec<f32> {
    let plain = (0..head_dim / 2).map(|j| 1. / config.theta.powf(2. * j as f64 / head_dim as f64) as f32);
    plain.map(|frequency| config.scaling.apply(f64::from(frequency)) as f32).collect()
}

impl RopeScaling {
    fn apply(&self, frequency: f64) -> f64 {
        let Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = *self else { return frequency };
        let waves = original_context * frequency / std::f64::consts::TAU; // that fit into the original context
        let stretched = frequency / factor;
        if waves < low_freq_factor {
            stretched
        } else if waves > high_freq_factor {
            frequency
        } else {
            let share = (waves - low_freq_factor) / (high_freq_factor - low_freq_factor);
            (1. - share) * stretched + share * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axes_interleave_until_their_share_is_used_up() {
        let sections = |time, height, width| Some(MropeSections { time, height, width });
        let cases = [
            (None, 6, "000000"),
            (sections(6, 5, 5), 16, "0120120120120120"),
            (sections(4, 2, 2), 8, "01201200"),
            (sections(5, 2, 1), 8, "01201000"),
        ];
        for (sections, count, axes) in cases {
            let config = RopeConfig { theta: 1e4, scaling: RopeScaling::None, sections };
            assert_eq!((0..count).map(|j| config.axis(j).to_string()).collect::<String>(), axes, "{sections:?}");
        }
    }

    #[test]
    fn long_waves_slow_down_and_short_ones_stay() {
        let scaling = RopeScaling::Llama3 { factor: 8., low_freq_factor: 1., high_freq_factor: 4., original_context: 64. };
        let fit = |waves: f64| waves * std::f64::consts::TAU / 64.;
        for (waves, factor) in [(0.5, 1. / 8.), (10., 1.), (2.5, 0.5 / 8. + 0.5)] {
            let frequency = fit(waves);
            assert!((scaling.apply(frequency) / frequency - factor).abs() < 1e-12, "{waves} waves");
        }
    }
}
