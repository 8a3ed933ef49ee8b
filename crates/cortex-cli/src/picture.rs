//! A picture as a message carries it.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::{CliError, Result};

const PICTURE_BYTES_MAX: u64 = 20 << 20;

/// The bytes of a picture file and their type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    mime: &'static str,
    bytes: Vec<u8>,
}

impl Picture {
    /// Reads a picture file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let size = std::fs::metadata(path).map_err(|error| CliError::new(format!("cannot read the picture {shown}: {error}")))?.len();
        if size > PICTURE_BYTES_MAX {
            return Err(CliError::new(format!("the picture {shown} is larger than {} MiB", PICTURE_BYTES_MAX >> 20)));
        }
        let bytes = std::fs::read(path).map_err(|error| CliError::new(format!("cannot read the picture {shown}: {error}")))?;
        Self::from_bytes(bytes)
            .ok_or_else(|| CliError::new(format!("{shown} is not a picture")).note("PNG, JPEG, WebP and GIF are understood"))
    }

    /// Recognises the type by the first bytes, whatever the file is called.
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        let mime = match bytes.as_slice() {
            [0x89, b'P', b'N', b'G', ..] => "image/png",
            [0xFF, 0xD8, 0xFF, ..] => "image/jpeg",
            [b'G', b'I', b'F', b'8', ..] => "image/gif",
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
            _ => return None,
        };
        Some(Self { mime, bytes })
    }

    /// `data:image/png;base64,…`
    pub(crate) fn data_url(&self) -> String {
        format!("data:{};base64,{}", self.mime, STANDARD.encode(&self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_known_by_its_bytes() {
        let cases: [(&[u8], Option<&str>); 6] = [
            (b"\x89PNG\r\n\x1a\nrest", Some("data:image/png;base64,iVBORw0KGgpyZXN0")),
            (b"\xff\xd8\xff\xe0", Some("data:image/jpeg;base64,/9j/4A==")),
            (b"GIF89a", Some("data:image/gif;base64,R0lGODlh")),
            (b"RIFF\x00\x00\x00\x00WEBP", Some("data:image/webp;base64,UklGRgAAAABXRUJQ")),
            (b"RIFF\x00\x00\x00\x00WAVE", None),
            (b"", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Picture::from_bytes(bytes.to_vec()).map(|picture| picture.data_url()).as_deref(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_picture_is_refused_with_its_name() {
        let error = Picture::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))).unwrap_err().to_string();
        assert!(error.contains("Cargo.toml is not a picture"), "{error}");
        let error = Picture::read(Path::new("no/such/file.png")).unwrap_err().to_string();
        assert!(error.contains("cannot read the picture no/such/file.png"), "{error}");
    }
}
