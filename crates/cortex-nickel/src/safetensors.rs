//! The header of a safetensors file, as far as it sizes memory. It is read as a stream, so that what a hostile one claims is not held.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The longest header that is believed, as the format has it.
const HEADER_BYTES_MAX: u64 = 100 << 20;

/// Dimensions that a tensor may have; more are not held.
const DIMENSIONS_MAX: usize = 16;

/// One tensor, without its data.
#[derive(Debug, Deserialize)]
pub(crate) struct Tensor {
    /// Such as `BF16`.
    pub(crate) dtype: String,
    #[serde(deserialize_with = "dimensions")]
    pub(crate) shape: Vec<u64>,
}

/// Why a file is not believed, as it follows the file's name in a message.
#[derive(Debug)]
pub(crate) enum Flaw {
    Unreadable(std::io::Error),
    NoFile,
    /// Of so many bytes.
    Long(u64),
    Ends,
    Header(serde_json::Error),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Self::NoFile => write!(f, "is no file"),
            Self::Long(bytes) => {
                write!(
                    f,
                    "does not begin as a safetensors file does: its header would have {bytes} bytes, and {HEADER_BYTES_MAX} are the most"
                )
            }
            Self::Ends => write!(f, "ends within its header"),
            Self::Header(error) => write!(f, "has a header that is none of a safetensors file: {error}"),
        }
    }
}

/// The sum of what `bytes` says of each tensor of the file.
pub(crate) fn sum(path: &Path, bytes: impl Fn(&Tensor) -> u64) -> Result<u64, Flaw> {
    let about = std::fs::metadata(path).map_err(Flaw::Unreadable)?;
    if !about.is_file() {
        return Err(Flaw::NoFile);
    }
    let mut file = BufReader::new(File::open(path).map_err(Flaw::Unreadable)?);
    let mut length = [0; 8];
    if about.len() < length.len() as u64 {
        return Err(Flaw::Ends);
    }
    file.read_exact(&mut length).map_err(Flaw::Unreadable)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX {
        return Err(Flaw::Long(length));
    }
    if about.len() - 8 < length {
        return Err(Flaw::Ends);
    }
    let mut header = serde_json::Deserializer::from_reader(file.take(length));
    let total = header.deserialize_map(Sum(&bytes)).map_err(Flaw::Header)?;
    header.end().map_err(Flaw::Header)?;
    Ok(total)
}

/// Adds up while it reads.
struct Sum<F>(F);

impl<'de, F: Fn(&Tensor) -> u64> Visitor<'de> for Sum<F> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record of tensors")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<u64, M::Error> {
        let mut total = 0u64;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let tensor: Tensor = map.next_value_seed(Named(&name))?;
            total = total.saturating_add((self.0)(&tensor));
        }
        Ok(total)
    }
}

/// A tensor whose mistakes are told with its name.
struct Named<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = Tensor;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tensor, D::Error> {
        let name: String = self.0.chars().take(80).collect();
        Tensor::deserialize(deserializer).map_err(|error| D::Error::custom(format!("tensor `{name}`: {error}")))
    }
}

fn dimensions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    deserializer.deserialize_seq(Dimensions)
}

struct Dimensions;

impl<'de> Visitor<'de> for Dimensions {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a shape of at most {DIMENSIONS_MAX} whole numbers")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Vec<u64>, S::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = seq.next_element()? {
            if shape.len() == DIMENSIONS_MAX {
                return Err(S::Error::invalid_length(DIMENSIONS_MAX + 1, &self));
            }
            shape.push(dimension);
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with this header, of which it says that it has `length` bytes.
    fn told(header: &[u8], length: u64) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [&length.to_le_bytes()[..], header].concat()).unwrap();
        let elements = |tensor: &Tensor| tensor.shape.iter().product();
        sum(file.path(), elements).map_or_else(|flaw| flaw.to_string(), |sum| sum.to_string())
    }

    #[test]
    fn a_header_is_added_up_or_told_what_is_wrong_with_it() {
        let none_of = "has a header that is none of a safetensors file: ";
        let cases = [
            (
                r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[4,5],"data_offsets":[0,40]},"s":{"dtype":"F32","shape":[]}}"#,
                "21",
            ),
            ("{}   ", "0"),
            ("[]", "invalid type: sequence, expected a record of tensors"),
            ("", "EOF while parsing a value"),
            (r#"{"w":{"dtype":"BF16","shape":[4,"#, "tensor `w`: EOF while parsing a value"),
            (r#"{"w":{"shape":[4]}}"#, "tensor `w`: missing field `dtype`"),
            (r#"{"w":{"dtype":"BF16","shape":[-4]}}"#, "tensor `w`: invalid value: integer `-4`, expected u64"),
            (r#"{"w":{"dtype":"BF16","shape":[4]}} more"#, "trailing characters"),
        ];
        for (header, expected) in cases {
            let told = told(header.as_bytes(), header.len() as u64);
            // Where in the header is the parser's to say.
            match expected.parse::<u64>() {
                Ok(_) => assert_eq!(told, expected, "{header}"),
                Err(_) => assert!(told.starts_with(&format!("{none_of}{expected}")), "{header}: {told}"),
            }
        }
        assert_eq!(told(b"{}", 3), "ends within its header");
        assert_eq!(
            told(b"<html>", u64::from_le_bytes(*b"<!DOCTYP")),
            "does not begin as a safetensors file does: its header would have 5789751444030890300 bytes, and 104857600 are the most"
        );
        let many = format!(r#"{{"w":{{"dtype":"BF16","shape":[{}1]}}}}"#, "1,".repeat(1 << 20));
        assert!(told(many.as_bytes(), many.len() as u64).contains("invalid length 17, expected a shape of at most 16 whole numbers"));
        let deep = format!(r#"{{"w":{}"#, r#"{"x":"#.repeat(1 << 20));
        assert!(told(deep.as_bytes(), deep.len() as u64).starts_with(none_of));
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let elements = |tensor: &Tensor| tensor.shape.iter().product();
        assert_eq!(sum(folder.path(), elements).unwrap_err().to_string(), "is no file");
        assert!(sum(&folder.path().join("none"), elements).unwrap_err().to_string().starts_with("cannot be read: "));
    }
}
