//! Text to token ids and back, as `tokenizer.json` says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tokenizers::DecoderWrapper;

use crate::error::LoadError;

/// A model's tokenizer. Cheap to share behind an `Arc`; every method takes `&self`.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    spelling: Spelling,
    bytes: TokenBytes,
    special: BTreeSet<u32>,
    eos: Vec<u32>,
}

/// Text that cannot be turned into tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot tokenize the text: {0}")]
pub struct TokenizeError(String);

/// How a token's name in the vocabulary spells its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Each byte is one printable character (GPT-2's table). Decoding is concatenation.
    ByteLevel,
    /// Words and `##` continuations (BERT).
    WordPiece,
    /// `▁` for a space, `<0xE4>` for a byte (SentencePiece).
    Metaspace,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and the ids that end an answer from the files beside it.
    pub fn from_folder(folder: &Path) -> Result<Self, LoadError> {
        let file = folder.join("tokenizer.json");
        if !file.is_file() {
            let hint = "neuron reads HF's fast tokenizers; convert the model's tokenizer with `AutoTokenizer.save_pretrained`";
            return Err(LoadError::Missing { file, hint: hint.into() });
        }
        let json = fs::read(&file).map_err(|source| LoadError::Unreadable { file: file.clone(), source })?;
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| LoadError::Malformed { file, what: e.to_string() })?;
        Self::new(inner, folder)
    }

    fn new(mut inner: tokenizers::Tokenizer, folder: &Path) -> Result<Self, LoadError> {
        // Files of sentence encoders often carry a padding to the training length; the engine batches by itself.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| LoadError::Unsupported(e.to_string()))?;
        let spelling = Spelling::of(inner.get_decoder());
        let special = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        let bytes = TokenBytes::new(&inner, spelling);
        let eos = eos_ids(folder, &inner)?;
        Ok(Self { inner, spelling, bytes, special, eos })
    }

    /// Ids of `text`. Special tokens written in the text become their ids; `add_special` adds what the model expects around every
    /// input (`[CLS]`, `<s>`).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizeError> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|e| TokenizeError(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of two texts that the model reads as a pair, and how many of them are the first one's.
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<(Vec<u32>, usize), TokenizeError> {
        let encoding = self.inner.encode_fast((first, second), true).map_err(|e| TokenizeError(e.to_string()))?;
        let first = encoding.get_type_ids().iter().take_while(|kind| **kind == 0).count();
        Ok((encoding.get_ids().to_vec(), first))
    }

    /// Text of `ids`; unknown ids are skipped, bytes that are no UTF-8 are replaced by U+FFFD. `skip_special` leaves out
    /// end-of-turn and the like, but keeps `<think>` and `<tool_call>`, which are part of an answer.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        if self.spelling != Spelling::ByteLevel {
            return self.inner.decode(ids, skip_special).unwrap_or_default();
        }
        let shown = ids.iter().filter(|&&id| !(skip_special && self.is_special(id)));
        let bytes: Vec<u8> = shown.flat_map(|&id| self.bytes.of(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that a token stands for, in the middle of a text; empty for an unknown id.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.bytes(id).to_vec()
    }

    /// Size of the vocabulary, added tokens included. The model's own `vocab_size` is often larger.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token by its name in the vocabulary (`<|image_pad|>`).
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The name of a token in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the token is left out of an answer's text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Every id that is left out of an answer's text, ascending.
    pub fn special_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.special.iter().copied()
    }

    /// Ids that end an answer: from `generation_config.json`, else `config.json`, else `tokenizer_config.json`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.of(id)
    }

    pub(crate) fn spelling(&self) -> Spelling {
        self.spelling
    }
}

impl Spelling {
    fn of(decoder: Option<&DecoderWrapper>) -> Self {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Self::ByteLevel,
            Some(DecoderWrapper::Sequence(steps)) if matches!(steps.get_decoders(), [DecoderWrapper::ByteLevel(_)]) => Self::ByteLevel,
            Some(DecoderWrapper::WordPiece(_)) => Self::WordPiece,
            _ => Self::Metaspace,
        }
    }

    fn bytes_of(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => byte_level(token),
            Self::WordPiece => match token.strip_prefix("##") {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {token}").into_bytes(),
            },
            Self::Metaspace => match byte_token(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// `<0xE4>` is one byte.
pub(crate) fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// Undoes GPT-2's table; a name with a character outside the table (an added token) stands for itself.
fn byte_level(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Printable Latin-1 stands for itself; the other 68 bytes, in order, are U+0100 to U+0143.
fn byte_of_char(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The bytes of every token, back to back.
#[derive(Debug)]
struct TokenBytes {
    arena: Vec<u8>,
    /// `ends[id]` is where the bytes of `id` end; they start where those of `id - 1` end.
    ends: Vec<u32>,
}

impl TokenBytes {
    fn new(tokenizer: &tokenizers::Tokenizer, spelling: Spelling) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let names = tokenizer.get_vocab(true);
        let mut by_id: Vec<(u32, &str)> = names.iter().map(|(name, &id)| (id, name.as_str())).collect();
        by_id.sort_unstable();
        let (mut arena, mut ends) = (Vec::new(), Vec::new());
        for (id, name) in by_id {
            ends.resize(id as usize, arena.len() as u32);
            match added.get(&id) {
                Some(token) if spelling != Spelling::ByteLevel => arena.extend_from_slice(token.content.as_bytes()),
                _ => arena.extend(spelling.bytes_of(name)),
            }
            ends.push(arena.len() as u32);
        }
        Self { arena, ends }
    }

    fn of(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.arena[start as usize..end as usize]
    }
}

fn eos_ids(folder: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>, LoadError> {
    for (name, pointer) in
        [("generation_config.json", "/eos_token_id"), ("config.json", "/eos_token_id"), ("config.json", "/text_config/eos_token_id")]
    {
        if let Some(found) = read_json(&folder.join(name))?.and_then(|json| json.pointer(pointer).cloned()).filter(|v| !v.is_null()) {
            return one_or_many(&found).ok_or_else(|| LoadError::Malformed {
                file: folder.join(name),
                what: format!("`{}` must be a token id or a list of them, but is {found}", pointer[1..].replace('/', ".")),
            });
        }
    }
    let config = read_json(&folder.join("tokenizer_config.json"))?;
    let name = config.as_ref().and_then(|json| token_text(&json["eos_token"]));
    Ok(name.and_then(|name| tokenizer.token_to_id(name)).into_iter().collect())
}

fn one_or_many(json: &Value) -> Option<Vec<u32>> {
    let id = |json: &Value| json.as_u64().and_then(|id| u32::try_from(id).ok());
    match json {
        Value::Array(ids) => ids.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    }
}

/// A special token in a configuration: its text, or an object that holds it.
pub(crate) fn token_text(json: &Value) -> Option<&str> {
    json.as_str().or_else(|| json.get("content")?.as_str())
}

/// A JSON file of a checkpoint; `None` when there is no such file.
pub(crate) fn read_json(file: &Path) -> Result<Option<Value>, LoadError> {
    match read_text(file)? {
        None => Ok(None),
        Some(text) => match serde_json::from_str(&text) {
            Ok(json) => Ok(Some(json)),
            Err(e) => Err(LoadError::Malformed { file: file.to_owned(), what: format!("it is not valid JSON: {e}") }),
        },
    }
}

/// A text file of a checkpoint; `None` when there is no such file.
pub(crate) fn read_text(file: &Path) -> Result<Option<String>, LoadError> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::Unreadable { file: file.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::decoders::byte_level::ByteLevel;
    use tokenizers::tokenizer::Decoder;

    use super::*;

    #[test]
    fn every_byte_is_spelled_by_one_character_and_none_by_two() {
        let found: Vec<_> = (0..=0x2ff).filter_map(char::from_u32).filter_map(byte_of_char).collect();
        assert_eq!(found.len(), 256);
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>().len(), 256);
    }

    #[test]
    fn the_byte_table_is_the_tokenizers_crates_own() {
        for code in 0..=0x2ff {
            let Some(c) = char::from_u32(code) else { continue };
            // One byte of a longer character is replaced when decoded alone, so only whole characters can be compared.
            if byte_of_char(c).is_none_or(|byte| byte.is_ascii()) {
                let theirs = ByteLevel::default().decode_chain(vec![c.to_string()]).unwrap().concat();
                assert_eq!(byte_level(&c.to_string()), theirs.into_bytes(), "{code:#x}");
            }
        }
    }

    #[test]
    fn bytes_are_spelled_in_three_ways() {
        let cases: [(Spelling, &str, &[u8]); 9] = [
            (Spelling::ByteLevel, "Ġa", b" a"),
            (Spelling::ByteLevel, "Ã©", "é".as_bytes()),
            (Spelling::ByteLevel, "<|im_end|>", b"<|im_end|>"),
            (Spelling::ByteLevel, "two words", b"two words"),
            (Spelling::WordPiece, "mill", b" mill"),
            (Spelling::WordPiece, "##er", b"er"),
            (Spelling::Metaspace, "▁old", b" old"),
            (Spelling::Metaspace, "<0xE4>", b"\xe4"),
            (Spelling::Metaspace, "<0xE4", b"<0xE4"),
        ];
        for (spelling, token, bytes) in cases {
            assert_eq!(spelling.bytes_of(token), bytes, "{token}");
        }
    }
}
