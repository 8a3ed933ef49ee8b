//! `cortex chat`: a conversation in the terminal, or one answer for a script.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use cortex_core::Capability;
use cortex_core::openai::ModelList;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::client::Gateway;
use crate::conversation::{Conversation, Piece};
use crate::error::{CliError, Result, Status};
use crate::picture::Picture;
use crate::style::{Ink, Style};

const STDIN_BYTES_MAX: u64 = 4 << 20;

/// What the command line asks for.
#[derive(Debug, clap::Args)]
pub(crate) struct ChatArgs {
    /// The model to ask [default: the first loaded one that can chat]
    #[arg(short, long)]
    model: Option<String>,
    /// What the model is told before the conversation
    #[arg(short, long)]
    system: Option<String>,
    /// A picture to send with the first message (PNG, JPEG, WebP, GIF); may be given several times
    #[arg(short, long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// 0 gives the same answer each time [default: the model's own]
    #[arg(short, long)]
    temperature: Option<f32>,
    /// Longest answer in tokens
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<u32>,
    /// One question; without it, a conversation, or the question is read from a pipe
    message: Vec<String>,
}

/// Answers one question, or talks until the end of input.
pub(crate) async fn run(gateway: &Gateway, args: ChatArgs) -> Result<()> {
    let pictures = args.image.iter().map(|path| Picture::read(path)).collect::<Result<Vec<_>>>()?;
    let question = question(&args.message)?;
    let model = match args.model {
        Some(model) => model,
        None => first_model(gateway, !pictures.is_empty()).await?,
    };
    let mut talk = Conversation::new(model, args.system, args.temperature, args.max_tokens);
    talk.attach(pictures);
    match question {
        Some(question) => one_answer(gateway, talk, &question).await,
        None => converse(gateway, talk).await,
    }
}

/// The question from the command line, or else from a pipe.
fn question(words: &[String]) -> Result<Option<String>> {
    if !words.is_empty() {
        return Ok(Some(words.join(" ")));
    }
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut text = String::new();
    let read = std::io::stdin().take(STDIN_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| CliError::new(format!("cannot read the question from standard input: {error}")))?;
    match text.trim() {
        "" => Err(CliError::new("the question is empty").note("write it after `cortex chat`, or send it through a pipe")),
        text => Ok(Some(text.into())),
    }
}

async fn first_model(gateway: &Gateway, needs_vision: bool) -> Result<String> {
    let (list, _): (ModelList, _) = gateway.get("/v1/models").await?;
    pick(&list, needs_vision).ok_or_else(|| {
        CliError::new("no model of this fleet can chat right now").note("`cortex models` lists what there is; name one with --model")
    })
}

/// A loaded model that can chat, or else one that could be loaded; one that sees, if that is needed and there is one.
fn pick(list: &ModelList, needs_vision: bool) -> Option<String> {
    let can = |capability| move |model: &&&cortex_core::openai::ModelEntry| model.capabilities.contains(&capability);
    let chat: Vec<_> = list.data.iter().filter(|model| model.capabilities.contains(&Capability::Chat)).collect();
    let rank = |state: &str| ["loaded", "loading", "available"].iter().position(|known| *known == state);
    let usable = chat.iter().filter(|model| rank(&model.state).is_some());
    let best = usable.min_by_key(|model| (needs_vision && !can(Capability::Vision)(model), rank(&model.state)))?;
    Some(best.id.clone())
}

async fn one_answer(gateway: &Gateway, mut talk: Conversation, question: &str) -> Result<()> {
    talk.ask(question);
    match answer(gateway, &mut talk).await? {
        Ended::Whole => Ok(()),
        Ended::Stopped => Err(CliError::new("stopped").with_status(Status::Interrupted)),
    }
}

/// Reads lines and answers them. A failed answer is shown and the conversation goes on.
async fn converse(gateway: &Gateway, mut talk: Conversation) -> Result<()> {
    let style = Style::of_stdout();
    let mut editor = DefaultEditor::new().map_err(|error| CliError::new(format!("cannot read from this terminal: {error}")))?;
    println!("{}", style.paint(Ink::Dim, &format!("{} · /help lists commands, Ctrl-D leaves", talk.model())));
    loop {
        // Reading blocks this thread; nothing else runs on it between two answers.
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(CliError::new(format!("cannot read from this terminal: {error}"))),
        };
        // A history that cannot grow is no reason to stop talking.
        let _ = editor.add_history_entry(line.trim());
        let outcome = match Input::parse(&line) {
            Input::Nothing => Ok(()),
            Input::Leave => return Ok(()),
            Input::Help => help(),
            Input::Forget => forget(&mut talk),
            Input::Image(path) => Picture::read(path.as_ref()).map(|picture| talk.attach(vec![picture])),
            Input::Unknown(command) => Err(CliError::new(format!("there is no command `{command}`")).note("/help lists the commands")),
            Input::Question(question) => {
                talk.ask(question);
                answer(gateway, &mut talk).await.map(drop)
            }
        };
        if let Err(error) = outcome {
            eprintln!("{error}");
        }
    }
}

fn help() -> Result<()> {
    crate::output::text(
        "/image FILE  send a picture with the next message\n/new         forget the conversation\n/exit        leave (or Ctrl-D)\nCtrl-C stops an answer.\n",
    )
}

fn forget(talk: &mut Conversation) -> Result<()> {
    talk.forget();
    Ok(())
}

/// A line of the conversation.
#[derive(Debug, PartialEq, Eq)]
enum Input<'a> {
    Nothing,
    Question(&'a str),
    Image(&'a str),
    Forget,
    Help,
    Leave,
    Unknown(&'a str),
}

impl<'a> Input<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "" => Self::Nothing,
            "/image" if !rest.is_empty() => Self::Image(rest.trim()),
            "/new" => Self::Forget,
            "/help" | "/?" => Self::Help,
            "/exit" | "/quit" => Self::Leave,
            _ if command.starts_with('/') && !command[1..].contains('/') => Self::Unknown(command),
            _ => Self::Question(line),
        }
    }
}

/// How an answer ended.
enum Ended {
    Whole,
    /// By Ctrl-C: what was said stays part of the conversation.
    Stopped,
}

/// Asks, writes the answer as it comes, and keeps it. A question that was not answered at all is taken back.
async fn answer(gateway: &Gateway, talk: &mut Conversation) -> Result<Ended> {
    let mut said = String::new();
    let ended = tokio::select! {
        ended = stream(gateway, talk, &mut said) => ended,
        _ = tokio::signal::ctrl_c() => Ok(Ended::Stopped),
    };
    if !said.ends_with('\n') && (!said.is_empty() || matches!(ended, Ok(Ended::Stopped))) {
        crate::output::text("\n")?;
    }
    if said.is_empty() {
        talk.take_back();
    } else {
        talk.keep(&said);
    }
    ended
}

async fn stream(gateway: &Gateway, talk: &Conversation, said: &mut String) -> Result<Ended> {
    let mut events = gateway.stream("/v1/chat/completions", &talk.request()).await?;
    let mut out = std::io::stdout();
    while let Some(event) = events.next().await? {
        match Piece::parse(&event.data)? {
            Piece::Text(text) => {
                said.push_str(&text);
                // A closed pipe shows in the next write of the caller.
                let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
            Piece::Nothing => {}
            Piece::CutAtLimit => eprintln!("\n(the answer reached its longest length; --max-tokens sets it)"),
            Piece::Done => return Ok(Ended::Whole),
        }
    }
    Err(CliError::new("the answer was cut: the gateway closed the stream before its end"))
}

#[cfg(test)]
mod tests {
    use cortex_core::openai::ModelEntry;

    use super::*;

    #[test]
    fn a_line_is_a_question_or_a_command() {
        let cases = [
            ("  ", Input::Nothing),
            ("Hello there", Input::Question("Hello there")),
            ("/image a b.png", Input::Image("a b.png")),
            ("/new", Input::Forget),
            ("/help", Input::Help),
            (" /exit ", Input::Leave),
            ("/imag x", Input::Unknown("/imag")),
            ("/image", Input::Unknown("/image")),
            ("/etc/passwd is what?", Input::Question("/etc/passwd is what?")),
        ];
        for (line, expected) in cases {
            assert_eq!(Input::parse(line), expected, "{line}");
        }
    }

    #[test]
    fn the_model_asked_is_loaded_can_chat_and_sees_if_need_be() {
        let entry = |id: &str, state: &str, capabilities: &[Capability]| ModelEntry {
            id: id.into(),
            object: "model".into(),
            created: 0,
            owned_by: "cortex".into(),
            state: state.into(),
            nodes: vec![],
            context_length: None,
            capabilities: capabilities.to_vec(),
        };
        use Capability::{Chat, Embeddings, Vision};
        let list = ModelList::new(vec![
            entry("a", "loaded", &[Embeddings]),
            entry("b", "available", &[Chat, Vision]),
            entry("c", "loaded", &[Chat]),
            entry("d", "unavailable", &[Chat]),
        ]);
        assert_eq!(pick(&list, false).as_deref(), Some("c"));
        assert_eq!(pick(&list, true).as_deref(), Some("b"));
        assert_eq!(pick(&ModelList::new(vec![entry("d", "unavailable", &[Chat])]), false), None);
    }
}
