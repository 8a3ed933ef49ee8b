//! Tables of answers and what they say, each cut into pieces in every way that matters.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::ToolForm::{BareJson, TaggedJson, TaggedXml};
use super::*;

fn tools() -> Vec<Value> {
    let properties = json!({
        "path": {"type": "string"}, "lines": {"type": "integer"}, "deep": {"type": "boolean"}, "ratio": {"type": ["number", "null"]},
        "options": {"type": "object"}, "name": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "any": {}
    });
    vec![
        json!({"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": properties}}}),
        json!({"name": "flat"}),
    ]
}

fn parser(calls: Option<ToolForm>, rendered: &str) -> AnswerParser {
    let prompt = ChatPrompt { tools: Some(tools()), ..Default::default() };
    AnswerParser::new(Markup { thinks: true, calls }, &prompt, rendered)
}

/// What an answer says: neighbours of a kind are one.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said(Vec<Piece>);

impl Said {
    fn add(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match (self.0.last_mut(), piece) {
                (_, Piece::Text(text) | Piece::Reasoning(text) | Piece::Arguments(text)) if text.is_empty() => panic!("an empty piece"),
                (Some(Piece::Text(before)), Piece::Text(more))
                | (Some(Piece::Reasoning(before)), Piece::Reasoning(more))
                | (Some(Piece::Arguments(before)), Piece::Arguments(more)) => before.push_str(&more),
                (before, Piece::Arguments(more)) if !matches!(before, Some(Piece::Call(_))) => panic!("{more:?} belongs to no call"),
                (_, piece) => self.0.push(piece),
            }
        }
    }
}

fn said<'a>(mut parser: AnswerParser, cut: impl IntoIterator<Item = &'a str>) -> Said {
    let mut said = Said::default();
    cut.into_iter().for_each(|text| said.add(parser.push(text)));
    said.add(parser.finish());
    said
}

fn characters(text: &str) -> impl Iterator<Item = &str> {
    text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()])
}

/// `r:` a thought, `t:` text, `c:` a call, each ended by `|`.
fn expected(short: &str) -> Said {
    let pieces = |part: &str| match part.split_once(':').unwrap() {
        ("r", text) => vec![Piece::Reasoning(text.into())],
        ("t", text) => vec![Piece::Text(text.into())],
        ("c", call) => {
            let (name, arguments) = call.split_once(' ').unwrap();
            vec![Piece::Call(name.into()), Piece::Arguments(arguments.into())]
        }
        other => panic!("{other:?}"),
    };
    Said(short.split_terminator('|').flat_map(pieces).collect())
}

fn check(form: Option<ToolForm>, rendered: &str, cases: &[(&str, &str)]) {
    for (answer, short) in cases {
        let expected = expected(short);
        assert_eq!(said(parser(form, rendered), [*answer]), expected, "{answer:?}, whole");
        assert_eq!(said(parser(form, rendered), characters(answer)), expected, "{answer:?}, character by character");
    }
}

#[test]
fn thoughts_come_before_the_answer_only() {
    let fresh = [
        ("Hello", "t:Hello|"),
        ("", ""),
        (" \n", "t: \n|"),
        ("<think>\nHm.\n</think>\n\nYes.", "r:Hm.|t:Yes.|"),
        ("\n<think>a\n\nb</think>c\n", "r:a\n\nb|t:c\n|"),
        ("<think>\n\n</think>\n\nYes.", "t:Yes.|"),
        ("<think>\nHm.\n", "r:Hm.\n|"),
        ("<think>a </thin", "r:a </thin|"),
        ("<think>a<think>b</think>c</think>d", "r:a<think>b|t:c</think>d|"),
        ("<thin", "t:<thin|"),
        (" <thing>", "t: <thing>|"),
        ("The tag <think> opens, </think> closes.", "t:The tag <think> opens, </think> closes.|"),
        ("a</think>b", "t:a</think>b|"),
        ("<think>x</think>\n\n", "r:x|"),
    ];
    check(None, "<|im_start|>assistant\n", &fresh);
    check(None, "assistant\n<think>\n\n</think>\n\n", &fresh);
    let thinking =
        [("Hm.\n</think>\n\nYes.", "r:Hm.|t:Yes.|"), ("Hm.", "r:Hm.|"), ("\n\n</think>\n\nYes", "t:Yes|"), ("", ""), ("\n", "r:\n|")];
    check(None, "<|im_start|>assistant\n<think>\n", &thinking[..3]);
    check(None, "<think>", &thinking[..3]);
    check(None, "<think>", &[("", ""), ("\n", "")]);
}

#[test]
fn a_thought_is_known_from_tag_to_tag() {
    // Each piece, and whether the parser is in a thought behind it.
    let cases: [(&str, &[(&str, bool)]); 3] = [
        ("", &[("<thi", false), ("nk>", true), ("\n", true), ("Hm.", true), ("</think>", false), ("\n\n", false), ("<think>", false)]),
        ("<think>\n", &[("", true), ("Hm", true), ("</th", true), ("ink>Yes", false)]),
        ("", &[("Yes <think>", false), ("No", false)]),
    ];
    for (rendered, pieces) in cases {
        let mut parser = parser(None, rendered);
        for (piece, thinking) in pieces {
            parser.push(piece);
            assert_eq!(parser.is_thinking(), *thinking, "{piece:?} of {pieces:?}");
        }
    }
}

#[test]
fn a_continued_message_goes_on_where_it_was() {
    let cases = [
        ("<think>\nHm", "a</think>b", "r:a|t:b|"),
        ("<think>\nHm</think>Yes", "<think>b", "t:<think>b|"),
        ("Yes", "<think>b", "t:<think>b|"),
        ("", "<think>a</think>b", "r:a|t:b|"),
    ];
    for (content, answer, short) in cases {
        let message = json!({"role": "assistant", "content": content});
        let prompt =
            ChatPrompt { messages: vec![message.as_object().unwrap().clone()], continue_final_message: true, ..Default::default() };
        let parser = AnswerParser::new(Markup { thinks: true, calls: None }, &prompt, &format!("assistant\n{content}"));
        assert_eq!(said(parser, [answer]), expected(short), "{content:?}");
    }
}

#[test]
fn tagged_json_calls_are_read_and_anything_else_is_text() {
    check(
        Some(TaggedJson),
        "",
        &[
            ("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", "c:f {\"a\": 1}|"),
            ("Wait.\n\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n", "t:Wait.|c:f {}|"),
            (
                "<tool_call>\n{\"name\": \"f\"}\n</tool_call>\n<tool_call>\n{\"arguments\": null, \"name\": \"g\"}\n</tool_call>",
                "c:f {}|c:g {}|",
            ),
            ("<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}</tool_call> done ", "c:f {\"a\":1}|t: done |"),
            // The end of the tag inside an argument, and an escaped quote before it.
            (
                "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"\\\"</tool_call>\"}}</tool_call>x",
                "c:f {\"a\":\"\\\"</tool_call>\"}|t:x|",
            ),
            // Only the closing tag is missing.
            ("a <tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n", "t:a|c:f {}|"),
            (
                "<think>\n<tool_call>{}</tool_call>\n</think>\n\n<tool_call>{\"name\":\"f\"}</tool_call>",
                "r:<tool_call>{}</tool_call>|c:f {}|",
            ),
            // Fields before and behind the arguments do not matter, nor does a brace too many or too few.
            (
                "<tool_call>{\"id\": 7, \"name\": \"f\", \"arguments\": {\"a\": [{}]}, \"x\": {\"y\": \"</tool_call>\"}}</tool_call>x",
                "c:f {\"a\": [{}]}|t:x|",
            ),
            ("<tool_call>{\"name\":\"f\",\"arguments\":{}}}\n}</tool_call>\n", "c:f {}|"),
            ("<tool_call>{\"name\":\"f\",\"arguments\":{}</tool_call> done", "c:f {}|t: done|"),
            ("<tool_call>{\"name\":\"f\",\"arguments\":{}}<tool_call>{\"name\":\"g\",\"arguments\":{}}", "c:f {}|c:g {}|"),
            // Broken from the first argument on: the words as far as they go, and the next call is one.
            ("a\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\"", "t:a|c:f {\"a\"|"),
            ("<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"b</tool_call>", "c:f {\"a\":\"b</tool_call>|"),
            (
                "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1</tool_call><tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>",
                "c:f {\"a\":1|c:g {}|",
            ),
            (
                "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"b\n}}</tool_call>\n<tool_call>{\"name\":\"g\"}</tool_call>",
                "c:f {\"a\":\"b\n}}|c:g {}|",
            ),
            ("<tool_call>{\"name\":\"f\",\"arguments\":{a: <b>}}</tool_call> c", "c:f {a: <b>}|t: c|"),
            // Not calls.
            ("Use <tool_call> like so", "t:Use <tool_call> like so|"),
            ("a\n<tool_call>\n{\"name\": \"f\", \"arguments\":", "t:a\n<tool_call>\n{\"name\": \"f\", \"arguments\":|"),
            ("<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>", "t:<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>|"),
            ("<tool_call>{\"name\":\"\"}</tool_call>", "t:<tool_call>{\"name\":\"\"}</tool_call>|"),
            ("<tool_call>{\"name\":\"f\"}}</tool_call>\n", "t:<tool_call>{\"name\":\"f\"}}</tool_call>\n|"),
            ("<tool_call", "t:<tool_call|"),
            ("a < b \n", "t:a < b \n|"),
            // A call behind something that is none.
            ("<tool_call>no\n<tool_call>{\"name\":\"f\"}</tool_call>", "t:<tool_call>no|c:f {}|"),
            ("<tool_call>{\"x\n<tool_call>{\"name\":\"f\"}</tool_call>", "t:<tool_call>{\"x|c:f {}|"),
            ("<tool_call>{\"name\":\"f\"}</tool_call></tool_call>", "c:f {}|t:</tool_call>|"),
        ],
    );
}

#[test]
fn tagged_xml_calls_are_read_by_their_schema() {
    let whole = "I look.\n\n<tool_call>\n<function=read>\n<parameter=path>\n/tmp/a b\n</parameter>\n<parameter=lines>\n12\n</parameter>\n\
        <parameter=deep>\nTrue\n</parameter>\n<parameter=ratio>\nnull\n</parameter>\n<parameter=options>\n{\"A\": [1]}\n</parameter>\n\
        <parameter=any>\n5\n</parameter>\n<parameter=name>\nNone\n</parameter>\n</function>\n</tool_call>";
    let arguments = "{\"path\":\"/tmp/a b\",\"lines\":12,\"deep\":true,\"ratio\":null,\"options\":{\"A\":[1]},\"any\":\"5\",\"name\":null}";
    let both = format!("t:I look.|c:read {arguments}|");
    check(
        Some(TaggedXml),
        "",
        &[
            (whole, &both),
            ("<tool_call><function=flat></function></tool_call>", "c:flat {}|"),
            // Without one or both of the outer tags.
            ("ok\n<function=flat>\n</function>\n</tool_call>\n<function=flat></function>\n", "t:ok|c:flat {}|c:flat {}|"),
            ("<function=flat>\n</function>\nbye", "c:flat {}|t:\nbye|"),
            ("<tool_call>\n<function=flat>\n</function>", "c:flat {}|"),
            // Tags and line breaks inside a value.
            (
                "<tool_call>\n<function=read>\n<parameter=path>\n\na</parameter>b</tool_call></function>\n\n</parameter>\n</function>\n</tool_call>",
                "c:read {\"path\":\"\\na</parameter>b</tool_call></function>\\n\"}|",
            ),
            // Text where the schema does not fit, and for functions that nobody offered.
            ("<function=read><parameter=lines>many</parameter></function>", "c:read {\"lines\":\"many\"}|"),
            ("<function=other><parameter=x>1</parameter></function>", "c:other {\"x\":\"1\"}|"),
            // Not calls.
            ("<tool_call>{\"name\":\"f\"}</tool_call>", "t:<tool_call>{\"name\":\"f\"}</tool_call>|"),
            ("<function=>x</function>", "t:<function=>x</function>|"),
            ("Write <function=read> and then <tool_call>", "t:Write <function=read> and then <tool_call>|"),
            ("<function=read\n><parameter=path>", "t:<function=read\n><parameter=path>|"),
            ("<tool_call>\n<function=read>\n<param", "t:<tool_call>\n<function=read>\n<param|"),
            // Broken from the first parameter on: the words as far as they go, never closed.
            ("<tool_call>\n<function=read>\n<parameter=path>\na", "c:read {\"path\":\"a|"),
            ("<function=read><parameter=path>\n\"a\n</parameter>\n</func", "c:read {\"path\":\"\\\"a\"|"),
            ("<function=read><parameter=path>a</parameter><parameter=li", "c:read {\"path\":\"a\",\"li|"),
            ("<function=read><parameter=lines>1", "c:read {\"lines\":\"1|"),
            ("<function=read><parameter=lines>1</parameter>", "c:read {\"lines\":1|"),
            ("<function=read><parameter=path>a</parameter> and so on</function>", "c:read {\"path\":\"a</parameter> and so on</function>|"),
        ],
    );
}

#[test]
fn bare_json_calls_are_the_whole_answer() {
    check(
        Some(BareJson),
        "",
        &[
            ("{\"name\": \"read\", \"parameters\": {\"path\": \"a\"}}", "c:read {\"path\": \"a\"}|"),
            ("\n{\"type\":\"function\",\"name\":\"flat\",\"parameters\":{}} ", "c:flat {}|"),
            ("{\"name\":\"flat\",\"parameters\":{}}; {\"name\":\"read\",\"arguments\":{}}\n", "c:flat {}|c:read {}|"),
            ("{\"name\": \"Anna\", \"parameters\": {}}", "t:{\"name\": \"Anna\", \"parameters\": {}}|"),
            ("{\"name\": \"read\", \"parameters\": {}} is a call", "c:read {}|t: is a call|"),
            ("{\"name\": \"read\", \"parameters\": null} is a call", "t:{\"name\": \"read\", \"parameters\": null} is a call|"),
            ("{\"parameters\": {\"path\": \"a\"}, \"name\": \"read\"}", "c:read {\"path\": \"a\"}|"),
            ("{\"name\": \"read\", \"parameters\": {\"path\": \"a", "c:read {\"path\": \"a|"),
            ("{\"name\": \"read\", \"parameters\": {}} , \n", "c:read {}|"),
            (", {\"name\": \"read\", \"parameters\": {}}", "t:, {\"name\": \"read\", \"parameters\": {}}|"),
            ("{\"name\": \"read\", \"param", "t:{\"name\": \"read\", \"param|"),
            ("See {\"name\": \"read\"}", "t:See {\"name\": \"read\"}|"),
            ("{\"city\": 1}", "t:{\"city\": 1}|"),
            (" \n", "t: \n|"),
        ],
    );
}

#[test]
fn only_what_may_become_a_marker_waits() {
    let out = |form, answer: &str| {
        let mut parser = parser(form, "");
        let shown: String = characters(answer)
            .flat_map(|text| parser.push(text))
            .map(|piece| match piece {
                Piece::Text(text) | Piece::Reasoning(text) => text,
                call => panic!("{call:?}"),
            })
            .collect();
        shown
    };
    let cases = [
        (None, "a \n", "a \n"),
        (None, "<think", ""),
        (None, "<think>a</thi", "a"),
        (None, "<think>a\n", "a"),
        (Some(TaggedJson), "a b \n", "a b"),
        (Some(TaggedJson), "1 < 2 <t", "1 < 2"),
        (Some(TaggedJson), "a <tool_call> b", "a <tool_call> b"),
        (Some(TaggedJson), "a <function=f>", "a <function=f>"),
        (Some(TaggedXml), "a <func", "a"),
        (Some(TaggedXml), "<tool_call>\n{", "<tool_call>\n{"),
        (Some(BareJson), "{\"nam", ""),
        (Some(BareJson), "{\"names", "{\"names"),
    ];
    for (form, answer, shown) in cases {
        assert_eq!(out(form, answer), shown, "{answer:?}");
    }
}

#[test]
fn arguments_come_while_they_are_written() {
    let fragments = |form, answer: &str| {
        let mut parser = parser(Some(form), "");
        let mut fragments = Vec::new();
        for piece in characters(answer).flat_map(|text| parser.push(text)) {
            match piece {
                Piece::Call(name) => fragments.push(name),
                Piece::Arguments(text) => fragments.push(text),
                other => panic!("{other:?}"),
            }
        }
        fragments.join("·")
    };
    let cases = [
        (TaggedJson, "<tool_call>{\"name\": \"f\", \"arguments\":", ""),
        (TaggedJson, "<tool_call>{\"name\": \"f\", \"arguments\": {", "f·{"),
        (TaggedJson, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": </", "f·{·\"·a·\"·:· "),
        (BareJson, "{\"name\": \"read\", \"parameters\": {\"p", "read·{·\"·p"),
        (TaggedXml, "<function=read>\n<parameter=", "read"),
        (TaggedXml, "<function=read>\n<parameter=path>", "read·{\"path\":\""),
        (TaggedXml, "<function=read>\n<parameter=path>\na\"b\n", "read·{\"path\":\"·a·\\\"·b"),
        (TaggedXml, "<function=read>\n<parameter=path>\na\n\n</param", "read·{\"path\":\"·a·\\n"),
        (TaggedXml, "<function=read><parameter=path>a</parameter>\n</function", "read·{\"path\":\"·a"),
        (
            TaggedXml,
            "<function=read><parameter=path>a</parameter>\n<parameter=lines>\n12\n</parameter>",
            "read·{\"path\":\"·a·\"·,\"lines\":",
        ),
        (TaggedXml, "<function=read><parameter=lines>12</parameter></function>", "read·{\"lines\":·12·}"),
    ];
    for (form, answer, expected) in cases {
        assert_eq!(fragments(form, answer), expected, "{answer:?}");
    }
}

#[test]
fn without_tools_or_template_nothing_is_a_call() {
    let answer = "<tool_call>{\"name\":\"f\"}</tool_call>";
    for tools in [None, Some(vec![])] {
        let prompt = ChatPrompt { tools, ..Default::default() };
        let parser = AnswerParser::new(Markup { thinks: true, calls: Some(TaggedJson) }, &prompt, "");
        assert_eq!(said(parser, [answer]), Said(vec![Piece::Text(answer.into())]));
    }
    assert_eq!(said(AnswerParser::default(), ["<think>a</think>"]), Said(vec![Piece::Text("<think>a</think>".into())]));
}

#[test]
fn a_template_tells_how_its_model_writes_calls() {
    let cases = [
        ("…<tool_call>\\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\\n</tool_call>…<think>", Some(TaggedJson), true),
        ("…<tool_call>\\n<function=example>\\n<parameter=x>\\n…", Some(TaggedXml), false),
        (
            "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}.",
            Some(BareJson),
            false,
        ),
        ("{{ message.content.split('</think>')[-1] }}", None, true),
        ("{{ messages }}", None, false),
    ];
    for (source, calls, thinks) in cases {
        assert_eq!(Markup::of_template(source), Markup { thinks, calls }, "{source}");
    }
}

/// Words that answers are made of: markers, their parts, and what stands between.
fn words() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<function=read>",
        "<function=read><parameter=lines>",
        "</parameter>\n</function>",
        "</function>",
        "<parameter=path>",
        "</parameter>",
        "{\"name\": \"read\", \"arguments\": {\"a\": 1}}",
        "{\"name\":\"flat\",\"parameters\":{}}",
        "<tool_call>{\"name\": \"read\", \"arguments\": {",
        "{\"name\": \"",
        "\"",
        "\\",
        "}",
        "{",
        "\n",
        " ",
        ";",
        "<",
        "</",
        "<tool",
        "text",
        "é",
        "🦀",
        ">",
        "=",
    ]);
    prop::collection::vec(word, 0..24).prop_map(|words| words.concat())
}

/// The text and nothing but it, without space and markers, which may belong to a form.
fn bones(text: &str) -> String {
    let without = ["<think>", "</think>"].iter().fold(text.to_owned(), |text, marker| text.replace(marker, ""));
    without.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Texts that an argument may hold: markers, quotes, line breaks.
fn arguments() -> impl Strategy<Value = Value> {
    let value =
        prop_oneof![words().prop_map(Value::from), any::<i32>().prop_map(Value::from), words().prop_map(|text| json!([{ "x": text }]))];
    prop::collection::vec(("[a-z]{1,3}", value), 0..4).prop_map(|fields| fields.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_call_in_json_has_exactly_the_models_words(
        arguments in arguments(),
        form in prop::sample::select(vec![TaggedJson, BareJson]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let arguments = arguments.to_string();
        let call = format!("{{\"name\": \"read\", \"arguments\": {arguments}}}");
        let answer = if form == TaggedJson { format!("<tool_call>\n{call}\n</tool_call>") } else { call };
        let places: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&places)).chain([0, answer.len()]).collect();
        cuts.sort_unstable();
        let said = said(parser(Some(form), ""), cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]));
        prop_assert_eq!(said, Said(vec![Piece::Call("read".into()), Piece::Arguments(arguments)]));
    }

    #[test]
    fn any_cut_says_the_same_and_nothing_is_lost(
        answer in words(),
        form in prop::sample::select(vec![None, Some(TaggedJson), Some(TaggedXml), Some(BareJson)]),
        rendered in prop::sample::select(vec!["", "<think>\n"]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let whole = said(parser(form, rendered), [answer.as_str()]);
        prop_assert_eq!(&said(parser(form, rendered), characters(&answer)), &whole);
        let places: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&places)).chain([0, answer.len()]).collect();
        cuts.sort_unstable();
        prop_assert_eq!(&said(parser(form, rendered), cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]])), &whole);
        if !whole.0.iter().any(|piece| matches!(piece, Piece::Call(_))) {
            let shown: String = whole.0.iter().map(|piece| match piece {
                Piece::Text(text) | Piece::Reasoning(text) => text.as_str(),
                Piece::Call(_) | Piece::Arguments(_) => "",
            }).collect();
            prop_assert_eq!(bones(&shown), bones(&answer));
        }
    }
}
