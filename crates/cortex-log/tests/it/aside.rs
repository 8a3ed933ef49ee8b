use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use cortex_log::{Aside, Drain};
use tracing::field::{Field, Visit};
use tracing::span::Attributes;
use tracing::{Dispatch, Event, Id, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// Longer than anything takes; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that an event says, and its spans.
type Seen = BTreeMap<String, String>;

/// Writes when it is let.
struct Gated {
    gate: Mutex<Receiver<()>>,
    seen: Mutex<Sender<Seen>>,
}

#[derive(Default)]
struct Fields(Seen);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), format!("text {value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), format!("f64 {value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), format!("u64 {value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}"));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Gated {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        context.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // Whoever holds the gate has gone: it stands open.
        let _ = self.gate.lock().unwrap().recv();
        let mut seen = Fields::default();
        event.record(&mut seen);
        seen.0.insert("level".into(), event.metadata().level().to_string());
        for span in context.lookup_current().into_iter().flat_map(|span| span.scope().from_root()) {
            let extensions = span.extensions();
            for (name, value) in &extensions.get::<Fields>().unwrap().0 {
                seen.0.insert(format!("{}.{name}", span.name()), value.clone());
            }
        }
        self.seen.lock().unwrap().send(seen.0).unwrap();
    }
}

struct Scene {
    /// Lives as long as the scene, as a program's lives as long as the program: what nobody wants is not even said.
    subscriber: Dispatch,
    drain: Drain,
    gate: Sender<()>,
    seen: Receiver<Seen>,
    dropped: &'static AtomicU64,
}

fn scene(lines_max: usize) -> Scene {
    let ((gate, closed), (tell, seen)) = (channel(), channel());
    let dropped: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
    let (aside, drain) = Aside::new(Gated { gate: Mutex::new(closed), seen: Mutex::new(tell) }, lines_max, dropped);
    Scene { subscriber: Dispatch::new(Registry::default().with(aside)), drain, gate, seen, dropped }
}

impl Scene {
    fn says(&self, speak: impl FnOnce()) {
        tracing::dispatcher::with_default(&self.subscriber, speak);
    }

    fn next(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).expect("it is written")
    }
}

#[test]
fn an_event_arrives_as_it_was_with_the_spans_around_it() {
    let scene = scene(8);
    drop(scene.gate.clone());
    (0..3).for_each(|_| scene.gate.send(()).unwrap());
    scene.says(|| {
        let outer = tracing::info_span!("http", id = %"abc", late = tracing::field::Empty).entered();
        let inner = tracing::info_span!("inside", depth = 2_u64).entered();
        outer.record("late", "yes");
        tracing::warn!(count = 7_u64, share = 0.5, key = "k", absent = None::<u64>, shown = ?Some(1), "both of {}", 2);
        drop((inner, outer));
        tracing::info!("alone");
        tracing::info!("again");
    });
    let expected = [
        ("message", "both of 2"),
        ("level", "WARN"),
        ("count", "u64 7"),
        ("share", "f64 0.5"),
        ("key", "text k"),
        ("shown", "Some(1)"),
        ("http.id", "abc"),
        ("http.late", "text yes"),
        ("inside.depth", "u64 2"),
    ];
    assert_eq!(scene.next(), expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(scene.next(), [("message", "alone"), ("level", "INFO")].map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(scene.next()["message"], "again");
}

#[test]
fn a_reader_that_takes_no_more_keeps_nobody_waiting_and_what_is_lost_is_counted_and_said_once() {
    const LINES_MAX: usize = 16;
    const SAID: u64 = 1_000;
    let scene = scene(LINES_MAX);
    // Nothing opens the gate: if anybody waited for it, this would never end.
    scene.says(|| (0..SAID).for_each(|number| tracing::info!(number, "request")));
    let dropped = scene.dropped.load(Ordering::Relaxed);
    let kept = SAID - dropped;
    assert!((LINES_MAX as u64..=LINES_MAX as u64 + 1).contains(&kept), "{kept} kept, {dropped} left out");
    (0..kept).for_each(|_| scene.gate.send(()).unwrap());
    let written: Vec<u64> = (0..kept).map(|_| scene.next()["number"].strip_prefix("u64 ").unwrap().parse().unwrap()).collect();
    assert!(written.is_sorted_by(|earlier, later| earlier < later), "{written:?}");
    // One more for the word about the rest, and then for what comes after it.
    (0..2).for_each(|_| scene.gate.send(()).unwrap());
    let word = scene.next();
    assert_eq!((&*word["level"], &*word["lines"]), ("WARN", &*format!("u64 {dropped}")), "{word:?}");
    scene.says(|| tracing::info!("after it"));
    assert_eq!(scene.next()["message"], "after it");
    assert_eq!(scene.dropped.load(Ordering::Relaxed), dropped);
}

#[test]
fn what_is_left_is_written_at_the_end_but_not_waited_for_for_ever() {
    let Scene { subscriber, drain, gate, seen, dropped } = scene(8);
    tracing::dispatcher::with_default(&subscriber, || (0..3).for_each(|_| tracing::info!("said at last")));
    drop(gate);
    drop(drain);
    assert_eq!(seen.try_iter().count(), 3);

    let Scene { subscriber, drain, gate, seen, .. } = scene(8);
    tracing::dispatcher::with_default(&subscriber, || (0..3).for_each(|_| tracing::info!("never read")));
    drop(drain); // returns, although nobody opens the gate
    assert_eq!((seen.try_iter().count(), dropped.load(Ordering::Relaxed)), (0, 0));
    drop(gate);
}

/// Sends as the journal's layer does: to a socket, blocking.
struct ToSocket(UnixDatagram);

impl<S: Subscriber> Layer<S> for ToSocket {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.send(event.metadata().name().as_bytes()).unwrap();
    }
}

#[test]
fn a_socket_that_nobody_reads_fills_and_stops_only_the_thread_that_writes_to_it() {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let dropped: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
    let (aside, drain) = Aside::new(ToSocket(ours), 64, dropped);
    let subscriber = Registry::default().with(aside);
    tracing::subscriber::with_default(subscriber, || {
        let mut said = 0_u64;
        while dropped.load(Ordering::Relaxed) == 0 {
            tracing::info!(said, "request");
            said += 1;
            assert!(said < 10_000_000, "the socket never filled");
        }
    });
    drop(drain);
    drop(theirs);
}
