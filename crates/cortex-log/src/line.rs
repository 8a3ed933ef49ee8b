//! An event with the spans around it, kept until a thread has time to write it, and told again there.

use std::fmt;

use tracing::field::{Field, Visit, display};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Subscriber;
use tracing::{Dispatch, Event, Metadata, Value};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Fields of one event or span; more are left out.
const FIELDS_MAX: usize = 64;

/// One event.
#[derive(Debug)]
pub(crate) struct Line {
    event: Told,
    /// From the outermost to the innermost.
    spans: Vec<Told>,
}

/// What an event or a span says.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    metadata: &'static Metadata<'static>,
    fields: Fields,
}

#[derive(Clone, Debug, Default)]
struct Fields(Vec<(Field, Kept)>);

/// A value as it came, or what it would have shown.
#[derive(Clone, Debug)]
enum Kept {
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    Shown(String),
}

impl Line {
    pub(crate) fn of<S: Subscriber + for<'a> LookupSpan<'a>>(event: &Event<'_>, context: &Context<'_, S>) -> Self {
        let mut told = Told { metadata: event.metadata(), fields: Fields::default() };
        event.record(&mut told.fields);
        let scope = context.event_scope(event).into_iter().flat_map(tracing_subscriber::registry::Scope::from_root);
        let spans = scope.filter_map(|span| span.extensions().get::<Told>().cloned()).collect();
        Self { event: told, spans }
    }

    /// The same event in the same spans, for `to`.
    pub(crate) fn tell(&self, to: &Dispatch) {
        if self.spans.is_empty() {
            return self.event.with_values(|values| to.event(&Event::new(self.event.metadata, values)));
        }
        // What closes a span's parent asks for the current subscriber.
        tracing::dispatcher::with_default(to, || {
            let open = |span: &Told| {
                let id = span.with_values(|values| to.new_span(&Attributes::new(span.metadata, values)));
                to.enter(&id);
                id
            };
            let ids: Vec<Id> = self.spans.iter().map(open).collect();
            self.event.with_values(|values| to.event(&Event::new(self.event.metadata, values)));
            for id in ids.into_iter().rev() {
                to.exit(&id);
                to.try_close(id);
            }
        });
    }
}

impl Told {
    pub(crate) fn span(attributes: &Attributes<'_>) -> Self {
        let mut told = Self { metadata: attributes.metadata(), fields: Fields::default() };
        attributes.record(&mut told.fields);
        told
    }

    pub(crate) fn also(&mut self, values: &Record<'_>) {
        values.record(&mut self.fields);
    }

    fn with_values<T>(&self, tell: impl FnOnce(&tracing::field::ValueSet<'_>) -> T) -> T {
        let Fields(fields) = &self.fields;
        let Some((first, _)) = fields.first() else { return tell(&self.metadata.fields().value_set::<[_; 0]>(&[])) };
        let shown: Vec<_> = fields.iter().map(|(_, kept)| if let Kept::Shown(text) = kept { Some(display(text)) } else { None }).collect();
        let mut values: [(&Field, Option<&dyn Value>); FIELDS_MAX] = [(first, None); FIELDS_MAX];
        for (((field, kept), shown), value) in fields.iter().zip(&shown).zip(&mut values) {
            let kept: &dyn Value = match kept {
                Kept::Bool(kept) => kept,
                Kept::Signed(kept) => kept,
                Kept::Unsigned(kept) => kept,
                Kept::Float(kept) => kept,
                Kept::Text(kept) => kept,
                Kept::Shown(_) => shown,
            };
            *value = (field, Some(kept));
        }
        tell(&self.metadata.fields().value_set(&values))
    }
}

impl Fields {
    fn keep(&mut self, field: &Field, kept: Kept) {
        self.0.push((field.clone(), kept));
    }
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, Kept::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, Kept::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, Kept::Unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.keep(field, Kept::Float(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.keep(field, Kept::Text(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.keep(field, Kept::Shown(format!("{value:?}")));
    }
}
