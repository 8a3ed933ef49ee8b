//! A layer that may block, moved to a thread of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Dispatch, Event, Metadata};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::line::{Line, Told};

/// When the program ends, what is left is waited for so long: its reader may have stopped for good.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Hands events over to a thread and never waits. When the queue is full, an event is left out and counted; once the thread has caught up,
/// it tells how many.
#[derive(Debug)]
pub struct Aside {
    queue: SyncSender<Order>,
    dropped: &'static AtomicU64,
}

/// The thread's end. Dropping it waits, but not for long, until what is left is written.
#[must_use]
#[derive(Debug)]
pub struct Drain {
    queue: SyncSender<Order>,
    over: Receiver<()>,
}

#[derive(Debug)]
enum Order {
    Write(Box<Line>),
    End,
}

impl Aside {
    /// `layer` writes on a thread of its own; up to `lines_max` events wait for it, and `dropped` counts those that found no room.
    ///
    /// # Panics
    /// The system has no thread left.
    pub fn new(layer: impl Layer<Registry> + Send + Sync + 'static, lines_max: usize, dropped: &'static AtomicU64) -> (Self, Drain) {
        let (queue, orders) = sync_channel(lines_max);
        let (alive, over) = sync_channel(0);
        let writer = Dispatch::new(Registry::default().with(layer).with(Wishless));
        // Read before the thread begins: what is lost until then is told, too.
        let told = dropped.load(Ordering::Relaxed);
        let work = move || {
            write(&orders, &writer, dropped, told);
            drop(alive);
        };
        thread::Builder::new().name("log".into()).spawn(work).expect("a thread at the start of the program");
        (Self { queue: queue.clone(), dropped }, Drain { queue, over })
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Aside {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Told::span(attributes));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id);
        span.iter().for_each(|span| span.extensions_mut().get_mut::<Told>().into_iter().for_each(|told| told.also(values)));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let line = Box::new(Line::of(event, &context));
        if self.queue.try_send(Order::Write(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Asks for nothing by itself: what is worth a line is decided before the queue, and where nobody else wants it, it is not even looked at.
struct Wishless;

impl<S: Subscriber> Layer<S> for Wishless {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::never()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::OFF)
    }
}

/// Until told to end. So many lost lines were `told` already.
fn write(orders: &Receiver<Order>, writer: &Dispatch, dropped: &AtomicU64, mut told: u64) {
    while let Ok(Order::Write(line)) = orders.recv() {
        line.tell(writer);
        let mut next = orders.try_recv();
        while let Ok(Order::Write(line)) = next {
            line.tell(writer);
            next = orders.try_recv();
        }
        if !matches!(next, Err(TryRecvError::Empty)) {
            return;
        }
        let lines = dropped.load(Ordering::Relaxed);
        if lines > told {
            let tell = || tracing::warn!(lines = lines - told, "log lines were left out: their reader took no more");
            tracing::dispatcher::with_default(writer, tell);
            told = lines;
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        match self.queue.try_send(Order::End) {
            // A full queue has nobody who empties it.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            Ok(()) => match self.over.recv_timeout(LAST_WORDS_MAX) {
                Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            },
        }
    }
}
