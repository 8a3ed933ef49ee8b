//! `cortex status --watch` in a terminal: the fleet as it changes, on a screen of its own.

use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use cortex_core::node::{FleetReport, NodeReport, NodeState};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline, Wrap};
use tokio::sync::mpsc;

use super::{Mark, device_words, load_words, loading, memory_of, state, troubles};
use crate::client::Gateway;
use crate::error::{CliError, Result, Status};
use crate::style::Ink;
use crate::units;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Rates that are kept: those of the last minutes, as many as a wide terminal shows.
const RATES_MAX: usize = 300;
/// Keys that were pressed and not read yet; more than these wait in the terminal.
const KEYS_MAX: usize = 16;
const BAR_MAX: usize = 40;

/// What is shown.
#[derive(Debug, Default)]
pub(super) struct State {
    fleet: Option<FleetReport>,
    /// Why the last look failed.
    error: Option<String>,
    /// Tokens per second of the whole fleet, the newest last.
    rates: VecDeque<u64>,
    /// Lines that are scrolled out at the top.
    scrolled: u16,
}

impl State {
    pub(super) fn looked(&mut self, outcome: std::result::Result<FleetReport, String>) {
        match outcome {
            Ok(fleet) => {
                if self.rates.len() == RATES_MAX {
                    self.rates.pop_front();
                }
                self.rates.push_back(rate(&fleet).round() as u64);
                (self.fleet, self.error) = (Some(fleet), None);
            }
            Err(error) => self.error = Some(error),
        }
    }

    /// False when the person at the keyboard has seen enough.
    fn pressed(&mut self, key: KeyEvent) -> bool {
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Down | KeyCode::Char('j') => self.scrolled = self.scrolled.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
            _ => {}
        }
        true
    }
}

/// Takes the screen until `q`, and gives it back as it was.
pub(super) async fn run(gateway: &Gateway) -> Result<Option<Status>> {
    let broken =
        |error: std::io::Error| CliError::new(format!("cannot draw on this terminal: {error}")).note("`cortex status` writes plain text");
    let mut terminal = ratatui::try_init().map_err(broken)?;
    let mut keys = keys();
    let mut state = State::default();
    let mut look = Box::pin(look(gateway, Duration::ZERO));
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| view(&state, frame)) {
            break Err(broken(error));
        }
        tokio::select! {
            outcome = &mut look => {
                state.looked(outcome);
                look.set(self::look(gateway, LOOK_EVERY));
            }
            event = keys.recv() => match event {
                Some(Event::Key(key)) if !state.pressed(key) => break Ok(None),
                Some(_) => {} // a resize, above all: it is drawn anew
                None => break Ok(None),
            },
        }
    };
    ratatui::restore();
    ended
}

async fn look(gateway: &Gateway, pause: Duration) -> std::result::Result<FleetReport, String> {
    tokio::time::sleep(pause).await;
    gateway.get::<FleetReport>("/admin/fleet").await.map(|(fleet, _)| fleet).map_err(|error| error.to_string())
}

/// What the terminal tells. The thread ends with the process: reading a key cannot be given up.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, keys) = mpsc::channel(KEYS_MAX);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}

/// Tokens per second of all nodes.
fn rate(fleet: &FleetReport) -> f64 {
    fleet.nodes.iter().filter_map(|node| node.tokens_per_second).sum()
}

/// The whole screen.
pub(super) fn view(state: &State, frame: &mut Frame<'_>) {
    let [head, rates, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(3), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(head_line(state), head);
    let shown: Vec<u64> = state.rates.iter().rev().take(usize::from(rates.width)).rev().copied().collect();
    frame.render_widget(Sparkline::default().data(shown).style(style(Ink::Good)), rates);
    let lines = body_lines(state, usize::from(body.width));
    let scrolled = state.scrolled.min(u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(1));
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).scroll((scrolled, 0)), body);
    frame.render_widget(foot_line(), foot);
}

fn head_line(state: &State) -> Line<'static> {
    let Some(fleet) = &state.fleet else { return Line::from("cortex") };
    let gateway = &fleet.gateway;
    let ready = fleet.nodes.iter().filter(|node| node.state == NodeState::Ready).count();
    let rest = format!(
        "  up {}  {ready} of {} nodes ready  {} requests open  {} tok/s",
        units::seconds(gateway.uptime_s),
        fleet.nodes.len(),
        gateway.requests_in_flight,
        units::count(rate(fleet)),
    );
    Line::from(vec![inked(Ink::Bold, format!("cortex {}", gateway.version)), Span::raw(rest)])
}

fn foot_line() -> Line<'static> {
    let mut spans = Vec::new();
    for mark in Mark::ALL {
        let (sign, ink, meaning) = mark.shown();
        spans.extend([inked(ink, sign.to_string()), Span::raw(format!(" {meaning}  "))]);
    }
    spans.push(inked(Ink::Dim, "q quits".to_owned()));
    Line::from(spans)
}

fn body_lines(state: &State, width: usize) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'static>> = Vec::new();
    if let Some(error) = &state.error {
        lines.extend(error.lines().map(|line| Line::from(inked(Ink::Bad, line.to_owned()))));
    }
    match &state.fleet {
        None => {}
        Some(fleet) if fleet.nodes.is_empty() => lines.push(Line::from("no nodes: add a [[neurons]] entry to the gateway's configuration")),
        Some(fleet) => fleet.nodes.iter().for_each(|node| lines.extend(node_lines(node, width))),
    }
    lines
}

/// Name and load, memory, models, what is on its way and what is wrong.
fn node_lines(node: &NodeReport, width: usize) -> Vec<Line<'static>> {
    let (word, ink) = state(&node.state);
    let mut first = vec![inked(Ink::Bold, node.name.to_string()), Span::raw("  "), inked(ink, word.to_owned())];
    let mut lines = Vec::new();
    match &node.state {
        NodeState::Ejected { reason, for_s } => first.push(Span::raw(format!("  {reason} {} ago, probing", units::seconds(*for_s)))),
        NodeState::Unknown => first.push(Span::raw(format!("  no answer from {} yet", node.endpoint))),
        NodeState::Ready | NodeState::Draining => {
            first.push(Span::raw(format!("  {}  {}", device_words(node).join(", "), load_words(node).join(", "))));
            lines.extend(memory_line(node, width));
            lines.push(models_line(node));
            lines.extend(loading(node).into_iter().chain(troubles(node)).map(|(ink, text)| Line::from(inked(ink, format!("  {text}")))));
        }
    }
    lines.insert(0, Line::from(first));
    lines
}

fn memory_line(node: &NodeReport, width: usize) -> Option<Line<'static>> {
    let (used, total) = memory_of(node)?;
    let share = (used as f64 / total as f64).clamp(0.0, 1.0);
    let figures = format!(" {}/{}G", units::gib(used), units::gib(total));
    let bar = width.saturating_sub(figures.chars().count() + 2).min(BAR_MAX);
    let full = (share * bar as f64).round() as usize;
    let ink = if share < 0.9 { Ink::Good } else { Ink::Warn };
    Some(Line::from(vec![Span::raw("  "), inked(ink, "█".repeat(full)), inked(Ink::Dim, "░".repeat(bar - full)), Span::raw(figures)]))
}

fn models_line(node: &NodeReport) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    for (id, mark) in super::marked(node) {
        let (sign, ink, _) = mark.shown();
        spans.extend([Span::raw(format!(" {id} ")), inked(ink, sign.to_string()), Span::raw(" ")]);
    }
    Line::from(spans)
}

fn inked(ink: Ink, text: String) -> Span<'static> {
    Span::styled(text, style(ink))
}

fn style(ink: Ink) -> Style {
    let plain = Style::default();
    match ink {
        Ink::Plain => plain,
        Ink::Bold => plain.add_modifier(Modifier::BOLD),
        Ink::Dim => plain.add_modifier(Modifier::DIM),
        Ink::Good => plain.fg(Color::Green),
        Ink::Warn => plain.fg(Color::Yellow),
        Ink::Bad => plain.fg(Color::Red),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::tests::{busy, troubled};
    use super::*;

    /// What the screen shows, line by line.
    fn screen(state: &State, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view(state, frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(row).collect()
    }

    fn looked(fleets: impl IntoIterator<Item = FleetReport>) -> State {
        let mut state = State::default();
        fleets.into_iter().for_each(|fleet| state.looked(Ok(fleet)));
        state
    }

    #[test]
    fn a_busy_fleet_fills_the_screen() {
        let quiet = FleetReport { nodes: Vec::new(), ..busy() };
        let expected = [
            "cortex 0.1.0  up 60 s  2 of 3 nodes ready  0 requests open  1.9k tok/s",
            " █",
            " █",
            " █",
            "beast  ready  2 x RTX 5090  12 running, 0 waiting, 1.9k tok/s",
            "  ██████████████████████████████████░░░░░░ 54/64G",
            "  qwen3-vl-8b ●  qwen3-32b ●",
            "benjy  ready  1 x RTX 4090  0 running",
            "  ██████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░ 6/24G",
            "  qwen3-embedding ●  coder-14b ○",
            "quad  ejected  connection refused 4 s ago, probing",
            "",
            "● loaded  ◐ loading or unloading  ○ available  ✗ failed to load  q quits",
        ];
        assert_eq!(screen(&looked([quiet, busy()]), 80, 13), expected);
    }

    #[test]
    fn troubles_are_told_and_a_lost_gateway_leaves_the_last_picture() {
        let mut state = looked([troubled()]);
        state.looked(Err("error: cannot reach the gateway".into()));
        let expected = [
            "error: cannot reach the gateway",
            "one  draining  CPU  0 running",
            "  ████████████████████████████░ 31/32G",
            "  a/b ◐  c ✗  d ○",
            "  ◐ a/b is loading on one: 43 %",
            "  ✗ c cannot be loaded on one: no room",
        ];
        assert_eq!(screen(&state, 38, 11)[4..10], expected);
        assert!(screen(&looked([]), 38, 11)[0].starts_with("cortex"));
    }

    #[test]
    fn keys_scroll_and_quit() {
        let mut state = looked([busy()]);
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        assert!(state.pressed(key(KeyCode::Down)) && state.pressed(key(KeyCode::Char('x'))));
        assert_eq!(screen(&state, 80, 13)[4], "  ██████████████████████████████████░░░░░░ 54/64G");
        assert!(state.pressed(key(KeyCode::Up)) && state.pressed(key(KeyCode::Up)));
        assert!(screen(&state, 80, 13)[4].starts_with("beast"));
        assert!(!state.pressed(key(KeyCode::Char('q'))) && !state.pressed(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }
}
