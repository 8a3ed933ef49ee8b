//! Calls between tags, anywhere in the answer.

use super::marker::{first_marker, undecided};
use super::tool_call::{ToolForm, Verdict};
use super::tools::Tools;
use super::{Call, Piece, text_piece, xml_call};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Tells calls from the text around them. Space before and behind a call belongs to it, unless text follows.
#[derive(Debug)]
pub(super) struct TaggedParser {
    form: ToolForm,
    tools: Tools,
    /// Not handed out yet: space, the beginning of a marker, or a call.
    held: String,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In text.
    Text,
    /// Behind a call, and nothing but space since. `unpaired`: the outer tag was left out before it, but may still come behind it.
    Behind { unpaired: bool },
    /// In what may be a call.
    Call(Opened),
}

/// A call that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opened {
    /// Where its text starts in what is held; space and tag stand before it.
    start: usize,
    /// Where no closing tag starts before.
    searched: usize,
    /// Without the outer tags.
    bare: bool,
}

impl TaggedParser {
    pub(super) fn new(form: ToolForm, tools: Tools) -> Self {
        Self { form, tools, held: String::new(), place: Place::Text }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// The end. A call that lacks nothing but its closing tag counts.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while let Place::Call(opened) = self.place {
            match self.form.read(&self.held[opened.start..], &self.tools) {
                Verdict::Call(call) => self.accept(call, self.held.len(), false, &mut pieces),
                Verdict::Unfinished | Verdict::Malformed => self.refuse(opened, &mut pieces),
            }
            while self.step(&mut pieces) {}
        }
        let rest = std::mem::take(&mut self.held);
        let only_space = matches!(self.place, Place::Behind { .. }) && rest.trim().is_empty();
        pieces.extend(text_piece(if only_space { String::new() } else { rest }));
        pieces
    }

    /// False when more text is needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.place {
            Place::Call(opened) => self.step_in_call(opened, pieces),
            Place::Behind { unpaired: true } => self.step_to_pair(),
            Place::Text | Place::Behind { unpaired: false } => self.step_in_text(pieces),
        }
    }

    fn step_in_text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let markers: &[&str] = if self.form == ToolForm::TaggedXml { &[OPEN, xml_call::OPEN] } else { &[OPEN] };
        let found = first_marker(&self.held, markers);
        let end = found.map_or_else(|| undecided(&self.held, markers), |(at, _)| at);
        let certain = self.held[..end].trim_end().len();
        self.hand_out(certain, pieces);
        let Some((at, marker)) = found else { return false };
        let bare = marker == xml_call::OPEN;
        let start = at - certain + if bare { 0 } else { marker.len() };
        self.place = Place::Call(Opened { start, searched: start, bare });
        true
    }

    fn step_in_call(&mut self, opened: Opened, pieces: &mut Vec<Piece>) -> bool {
        let Opened { start, searched, bare } = opened;
        if !self.form.may_begin(self.held[start..].trim_start()) {
            self.refuse(opened, pieces);
            return true;
        }
        let close = if bare { xml_call::CLOSE } else { CLOSE };
        let Some(at) = self.held[searched..].find(close).map(|at| searched + at) else {
            let searched = searched + undecided(&self.held[searched..], &[close]);
            self.place = Place::Call(Opened { searched, ..opened });
            return false;
        };
        let behind = at + close.len();
        match self.form.read(&self.held[start..if bare { behind } else { at }], &self.tools) {
            Verdict::Call(call) => self.accept(call, behind, bare, pieces),
            Verdict::Unfinished => self.place = Place::Call(Opened { searched: behind, ..opened }),
            Verdict::Malformed => self.refuse(opened, pieces),
        }
        true
    }

    fn step_to_pair(&mut self) -> bool {
        let behind = self.held.trim_start();
        if let Some(rest) = behind.strip_prefix(CLOSE) {
            self.held = rest.to_owned();
        } else if CLOSE.starts_with(behind) {
            return false;
        }
        self.place = Place::Behind { unpaired: false };
        true
    }

    fn accept(&mut self, call: Call, end: usize, unpaired: bool, pieces: &mut Vec<Piece>) {
        self.held.drain(..end);
        self.place = Place::Behind { unpaired };
        pieces.push(Piece::Call(call));
    }

    /// The tag was only text; what stands behind it may still hold a call.
    fn refuse(&mut self, opened: Opened, pieces: &mut Vec<Piece>) {
        self.place = Place::Text;
        self.hand_out(opened.start + if opened.bare { xml_call::OPEN.len() } else { 0 }, pieces);
    }

    fn hand_out(&mut self, end: usize, pieces: &mut Vec<Piece>) {
        let rest = self.held.split_off(end);
        let text = std::mem::replace(&mut self.held, rest);
        if !text.is_empty() {
            self.place = Place::Text;
        }
        pieces.extend(text_piece(text));
    }
}
