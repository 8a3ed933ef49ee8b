//! Calls between tags, anywhere in the answer.

use super::json_call::{self, JsonCall};
use super::marker::{first_marker, undecided};
use super::tool_call::{Head, Progress, ToolForm, Verdict};
use super::tools::Tools;
use super::xml_call::{self, XmlCall};
use super::{Piece, text_piece};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Tells calls from the text around them. Space before and behind a call belongs to it, unless text follows.
#[derive(Debug)]
pub(super) struct TaggedParser {
    form: ToolForm,
    tools: Tools,
    /// Not handed out yet: space, the beginning of a marker, or the beginning of a call.
    held: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// In text.
    Text,
    /// Behind a call, and nothing but space since. `unpaired`: the outer tag may still come behind it.
    Behind { unpaired: bool },
    /// In what may be a call.
    Opened(Opened),
    /// In a call.
    Json(JsonCall),
    /// In a call.
    Xml(XmlCall),
}

/// What may be a call.
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
        while let Place::Opened(opened) = self.place {
            match json_call::read(&self.held[opened.start..]) {
                Verdict::Call(call) if self.form == ToolForm::TaggedJson => {
                    pieces.extend(call.pieces());
                    self.end_call(self.held.len(), false);
                }
                _ => self.refuse(opened, &mut pieces),
            }
            while self.step(&mut pieces) {}
        }
        match &self.place {
            Place::Json(call) => pieces.extend(call.finish(&mut self.held)),
            Place::Xml(call) => pieces.extend(call.finish(&mut self.held, &self.tools)),
            _ => {}
        }
        let rest = std::mem::take(&mut self.held);
        let only_space = matches!(self.place, Place::Behind { .. }) && rest.trim().is_empty();
        pieces.extend(text_piece(if only_space { String::new() } else { rest }));
        pieces
    }

    /// False when more text is needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let progress = match &mut self.place {
            Place::Json(call) => call.read(&mut self.held, pieces),
            Place::Xml(call) => call.read(&mut self.held, &self.tools, pieces),
            &mut Place::Opened(opened) if self.form == ToolForm::TaggedXml => return self.step_at_xml(opened, pieces),
            &mut Place::Opened(opened) => return self.step_at_json(opened, pieces),
            Place::Behind { unpaired: true } => return self.step_to_pair(),
            Place::Text | Place::Behind { unpaired: false } => return self.step_in_text(pieces),
        };
        if let Progress::Over { closed } = progress {
            self.end_call(0, !closed);
        }
        progress != Progress::More
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
        self.place = Place::Opened(Opened { start, searched: start, bare });
        true
    }

    fn step_at_xml(&mut self, opened: Opened, pieces: &mut Vec<Piece>) -> bool {
        match xml_call::head(&self.held[opened.start..]) {
            Head::Undecided => return false,
            Head::Named { name, arguments } => {
                pieces.push(Piece::Call(name.clone()));
                self.held.drain(..opened.start + arguments);
                self.place = Place::Xml(XmlCall::new(name));
            }
            Head::Whole | Head::Never => self.refuse(opened, pieces),
        }
        true
    }

    fn step_at_json(&mut self, opened: Opened, pieces: &mut Vec<Piece>) -> bool {
        let Opened { start, searched, .. } = opened;
        let begun = self.held[start..].trim_start();
        if !(begun.is_empty() || begun.starts_with('{')) {
            self.refuse(opened, pieces);
            return true;
        }
        let close = self.held[searched..].find(CLOSE).map(|at| searched + at);
        let text = &self.held[start..close.unwrap_or(self.held.len())];
        if let Head::Named { name, arguments } = json_call::head(text) {
            pieces.push(Piece::Call(name));
            self.held.drain(..start + arguments);
            self.place = Place::Json(JsonCall::new(Some(CLOSE)));
            return true;
        }
        let Some(at) = close else {
            let searched = searched + undecided(&self.held[searched..], &[CLOSE]);
            self.place = Place::Opened(Opened { searched, ..opened });
            return false;
        };
        let behind = at + CLOSE.len();
        match json_call::read(text) {
            Verdict::Call(call) => {
                pieces.extend(call.pieces());
                self.end_call(behind, false);
            }
            Verdict::Unfinished => self.place = Place::Opened(Opened { searched: behind, ..opened }),
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

    fn end_call(&mut self, end: usize, unpaired: bool) {
        self.held.drain(..end);
        self.place = Place::Behind { unpaired };
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
