//! The head of a GGUF file, as far as it sizes memory. The weights take what the file takes: they keep its quantization.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Take};
use std::path::Path;

/// What is believed of a head. Together these bound the memory that reading one takes.
const HEAD_BYTES_MAX: u64 = 256 << 20;
const FIELDS_MAX: u64 = 1 << 16;
const KEY_BYTES_MAX: u64 = 1 << 10;
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// The number of the kind that is a list.
const LIST: u32 = 9;

/// What a file says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Of the whole file.
    pub(crate) bytes: u64,
    architecture: String,
    /// Whole numbers by key; of a list the largest.
    numbers: BTreeMap<String, u64>,
}

/// Why a head is not believed, as it follows the file's name in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    Unreadable,
    NoGguf,
    Version(u32),
    /// Or longer than [`HEAD_BYTES_MAX`].
    Ends,
    Fields(u64),
    Text(u64),
    Kind(u32),
    Part,
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable => write!(f, "cannot be read"),
            Self::NoGguf => write!(f, "does not begin as a GGUF file does"),
            Self::Version(version) => write!(f, "has version {version} of GGUF; 2 and 3 are known"),
            Self::Ends => write!(f, "ends within its header, or has one of more than {} MiB", HEAD_BYTES_MAX >> 20),
            Self::Fields(count) => write!(f, "claims {count} fields in its header; {FIELDS_MAX} are the most"),
            Self::Text(bytes) => write!(f, "claims a text of {bytes} bytes in its header"),
            Self::Kind(kind) => write!(f, "has a value of the unknown kind {kind} in its header"),
            Self::Part => write!(f, "is one of several parts, which do not tell what all of them take"),
        }
    }
}

impl Head {
    pub(crate) fn read(path: &Path) -> Result<Self, Flaw> {
        let file = File::open(path).map_err(|_| Flaw::Unreadable)?;
        let bytes = file.metadata().map_err(|_| Flaw::Unreadable)?.len();
        let mut head = Self { bytes, ..Self::default() };
        let mut source = Source(BufReader::new(file).take(HEAD_BYTES_MAX));
        if source.bytes().ok() != Some(*b"GGUF") {
            return Err(Flaw::NoGguf);
        }
        let version = source.u32()?;
        if !(2..=3).contains(&version) {
            return Err(Flaw::Version(version));
        }
        let _tensors = source.u64()?;
        let fields = source.u64()?;
        if fields > FIELDS_MAX {
            return Err(Flaw::Fields(fields));
        }
        for _ in 0..fields {
            let key = source.text(KEY_BYTES_MAX)?;
            let kind = source.u32()?;
            match source.value(kind)? {
                Value::Text(text) if key == "general.architecture" => head.architecture = text,
                Value::Number(number) => drop(head.numbers.insert(key, number)),
                Value::Text(_) | Value::Other => {}
            }
        }
        if head.numbers.get("split.count").is_some_and(|parts| *parts > 1) { Err(Flaw::Part) } else { Ok(head) }
    }

    /// A number of the model, such as `attention.head_count`.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.numbers.get(&format!("{}.{name}", self.architecture)).copied()
    }
}

enum Value {
    Number(u64),
    Text(String),
    Other,
}

/// Reads in the file's order.
struct Source<R>(Take<R>);

impl<R: Read> Source<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).map_err(|_| Flaw::Ends)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Flaw> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Flaw> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self, bytes_max: u64) -> Result<String, Flaw> {
        let length = self.u64()?;
        if length > bytes_max {
            return Err(Flaw::Text(length));
        }
        let mut text = vec![0; length as usize];
        self.0.read_exact(&mut text).map_err(|_| Flaw::Ends)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The numbers of kinds are the format's. A list is as long as the file has bytes for, whatever it claims.
    fn value(&mut self, kind: u32) -> Result<Value, Flaw> {
        match kind {
            8 => self.text(TEXT_BYTES_MAX).map(Value::Text),
            LIST => {
                let kind = self.u32()?;
                if kind == LIST {
                    return Err(Flaw::Kind(kind));
                }
                let mut largest = None;
                for _ in 0..self.u64()? {
                    if let Value::Number(number) = self.value(kind)? {
                        largest = largest.max(Some(number));
                    }
                }
                Ok(largest.map_or(Value::Other, Value::Number))
            }
            _ => self.number(kind),
        }
    }

    /// Negative numbers and fractions size nothing.
    fn number(&mut self, kind: u32) -> Result<Value, Flaw> {
        let signed = |number: i64| u64::try_from(number).map_or(Value::Other, Value::Number);
        Ok(match kind {
            0 | 7 => Value::Number(self.bytes().map(u8::from_le_bytes)?.into()),
            1 => signed(self.bytes().map(i8::from_le_bytes)?.into()),
            2 => Value::Number(self.bytes().map(u16::from_le_bytes)?.into()),
            3 => signed(self.bytes().map(i16::from_le_bytes)?.into()),
            4 => Value::Number(self.u32()?.into()),
            5 => signed(self.bytes().map(i32::from_le_bytes)?.into()),
            6 => self.bytes::<4>().map(|_| Value::Other)?,
            10 => Value::Number(self.u64()?),
            11 => signed(self.bytes().map(i64::from_le_bytes)?),
            12 => self.bytes::<8>().map(|_| Value::Other)?,
            _ => return Err(Flaw::Kind(kind)),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// A file with these numbers of a `qwen3`, a list of texts, and `weights` bytes behind.
    pub(crate) fn file(numbers: &[(&str, u32)], weights: usize) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend((numbers.len() as u64 + 2).to_le_bytes());
        bytes.extend([text("general.architecture"), 8_u32.to_le_bytes().to_vec(), text("qwen3")].concat());
        let list = [text("tokenizer.ggml.tokens"), 9_u32.to_le_bytes().to_vec(), 8_u32.to_le_bytes().to_vec()].concat();
        bytes.extend([list, 2_u64.to_le_bytes().to_vec(), text("a"), text("b")].concat());
        for (key, number) in numbers {
            bytes.extend([text(key), 4_u32.to_le_bytes().to_vec(), number.to_le_bytes().to_vec()].concat());
        }
        bytes.resize(bytes.len() + weights, 0);
        bytes
    }

    #[test]
    fn a_head_is_read_and_a_broken_one_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Head::read(&path)
        };
        let whole = file(&[("qwen3.block_count", 28)], 100);
        let head = read(&whole).unwrap();
        assert_eq!((head.bytes, head.number("block_count"), head.number("context_length")), (whole.len() as u64, Some(28), None));
        let huge = u64::MAX.to_le_bytes();
        // The first key begins at byte 24; it has 20 bytes after its length, and then comes the kind of its value.
        let list = whole.windows(8).position(|bytes| bytes == 2_u64.to_le_bytes()).unwrap();
        for (bytes, flaw) in [
            (b"GG".to_vec(), Flaw::NoGguf),
            ([b"GGML", &whole[4..]].concat(), Flaw::NoGguf),
            ([&whole[..4], &9_u32.to_le_bytes(), &whole[8..]].concat(), Flaw::Version(9)),
            (whole[..60].to_vec(), Flaw::Ends),
            ([&whole[..16], &huge, &whole[24..]].concat(), Flaw::Fields(u64::MAX)),
            ([&whole[..24], &huge, &whole[32..]].concat(), Flaw::Text(u64::MAX)),
            ([&whole[..52], &77_u32.to_le_bytes(), &whole[56..]].concat(), Flaw::Kind(77)),
            (file(&[("split.count", 2)], 0), Flaw::Part),
        ] {
            assert_eq!(read(&bytes), Err(flaw), "{flaw}");
        }
        // A list that claims too many items runs into what follows it, and into the end.
        let endless = read(&[&whole[..list], &huge, &whole[list + 8..]].concat());
        assert!(matches!(endless, Err(Flaw::Text(_) | Flaw::Ends)), "{endless:?}");
    }
}
