//! Conversations render to the same text, and tokenize to the same ids, as under HF transformers.

use std::fs;
use std::path::Path;

use cortex_core::harness::ChatPrompt;
use neuron_engine::error::LoadError;
use neuron_engine::text::{ChatTemplate, TemplateError, Tokenizer};
use serde_json::{Map, Value, json};

use crate::fixtures::{self, ids, read_json};

/// A case as the fixtures write it.
fn prompt(case: &Value) -> ChatPrompt {
    let mut template_kwargs = case["kwargs"].as_object().cloned().unwrap_or_default();
    let continue_final_message = template_kwargs.remove("continue_final_message").is_some_and(|flag| flag == true);
    ChatPrompt {
        messages: case["messages"].as_array().unwrap().iter().map(|message| message.as_object().unwrap().clone()).collect(),
        tools: case["tools"].as_array().cloned(),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        continue_final_message,
        template_kwargs,
        ..ChatPrompt::default()
    }
}

fn template(folder: &Path) -> ChatTemplate {
    ChatTemplate::from_folder(folder).unwrap().unwrap_or_else(|| panic!("no chat template in {}", folder.display()))
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    folder
}

fn render(source: &str, case: &Value) -> Result<String, TemplateError> {
    template(folder(&[("chat_template.jinja", source)]).path()).render(&prompt(case))
}

#[test]
fn conversations_render_and_tokenize_as_in_transformers() {
    for set in fixtures::sets() {
        for name in set.checkpoints() {
            let folder = set.checkpoint(&name);
            let Some(template) = ChatTemplate::from_folder(&folder).unwrap() else { continue };
            let tokenizer = Tokenizer::from_folder(&folder).unwrap();
            let refs = if name.contains("vl") { "chat/vl" } else { "chat/text" };
            let cases = set.refs(refs);
            assert!(!cases.as_array().unwrap().is_empty(), "{refs} is empty");
            for case in cases.as_array().unwrap() {
                let rendered = template.render(&prompt(case)).unwrap_or_else(|e| panic!("{name}, {}: {e}", case["name"]));
                assert_eq!(rendered, case["rendered"].as_str().unwrap(), "{name}, {}", case["name"]);
                assert_eq!(tokenizer.encode(&rendered, false).unwrap(), ids(&case["ids"]), "{name}, {}", case["name"]);
            }
        }
    }
}

#[test]
fn every_decoder_of_the_fixtures_has_a_template_and_the_encoder_has_none() {
    for set in fixtures::sets() {
        for name in set.checkpoints() {
            let found = ChatTemplate::from_folder(&set.checkpoint(&name)).unwrap();
            assert_eq!(found.is_some(), !name.contains("bert"), "{name}");
        }
    }
}

#[test]
fn the_demo_models_template_renders_as_under_jinja2() {
    let template = template(&fixtures::demo_checkpoint());
    let cases = read_json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/chat/demo_template.json"));
    for case in cases.as_array().unwrap() {
        assert_eq!(template.render(&prompt(case)).unwrap(), case["rendered"].as_str().unwrap(), "{}", case["name"]);
    }
}

#[test]
fn the_template_is_found_where_transformers_looks() {
    let tokenizer_config = r#"{"chat_template": "config"}"#;
    let named = r#"{"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}"#;
    let cases: &[(&[(&str, &str)], [&str; 2])] = &[
        (&[("tokenizer_config.json", tokenizer_config)], ["config", "config"]),
        (&[("tokenizer_config.json", tokenizer_config), ("chat_template.json", r#"{"chat_template": "json"}"#)], ["json", "json"]),
        (&[("tokenizer_config.json", tokenizer_config), ("chat_template.jinja", "jinja")], ["jinja", "jinja"]),
        (&[("chat_template.json", r#"{"chat_template": "json"}"#), ("chat_template.jinja", "jinja")], ["jinja", "jinja"]),
        (&[("tokenizer_config.json", named)], ["plain", "tools"]),
        (&[("chat_template.jinja", "plain"), ("additional_chat_templates/tool_use.jinja", "tools")], ["plain", "tools"]),
    ];
    for (files, [without_tools, with_tools]) in cases {
        let template = template(folder(files).path());
        let mut prompt = ChatPrompt::default();
        assert_eq!(template.render(&prompt).unwrap(), *without_tools, "{files:?}");
        prompt.tools = Some(vec![json!({})]);
        assert_eq!(template.render(&prompt).unwrap(), *with_tools, "{files:?}");
    }
    for files in [&[][..], &[("tokenizer_config.json", r#"{"chat_template": null}"#)][..]] {
        assert!(ChatTemplate::from_folder(folder(files).path()).unwrap().is_none(), "{files:?}");
    }
}

#[test]
fn a_broken_template_names_its_file_and_line() {
    let cases = [
        ("chat_template.jinja", "a\n{% if %}", "line 2"),
        ("tokenizer_config.json", r#"{"chat_template": 3}"#, "`chat_template` must be"),
        ("chat_template.json", r#"{"chat_template": [{"name": "rag", "template": ""}]}"#, "`default`"),
        ("tokenizer_config.json", "{", "not valid JSON"),
    ];
    for (name, text, what) in cases {
        let error = ChatTemplate::from_folder(folder(&[(name, text)]).path()).unwrap_err();
        let LoadError::Malformed { file, .. } = &error else { panic!("{error:?}") };
        assert!(file.ends_with(name) && error.to_string().contains(what), "{error}");
    }
}

#[test]
fn special_tokens_are_variables_and_a_request_can_override_them() {
    let files = [
        (
            "tokenizer_config.json",
            r#"{"chat_template": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}",
            "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "unk_token": null}"#,
        ),
        ("special_tokens_map.json", r#"{"eos_token": "older", "pad_token": "<pad>"}"#),
    ];
    let template = template(folder(&files).path());
    assert_eq!(template.render(&ChatPrompt::default()).unwrap(), "<s>|</s>|<pad>|");
    let template_kwargs = Map::from_iter([("bos_token".to_owned(), json!("!"))]);
    assert_eq!(template.render(&ChatPrompt { template_kwargs, ..Default::default() }).unwrap(), "!|</s>|<pad>|");
}

#[test]
fn what_the_template_refuses_reaches_the_user_in_its_words() {
    let case = json!({"messages": [{"role": "user", "content": "x"}], "tools": null, "add_generation_prompt": true});
    let source =
        "{% macro m() %}{{ raise_exception('roles must alternate') }}{% endmacro %}\n{% for m_ in messages %}{{ m() }}{% endfor %}";
    assert_eq!(render(source, &case), Err(TemplateError::Refused("roles must alternate".into())));
    let error = render("\n{{ messages[7].role }}", &case).unwrap_err();
    assert!(matches!(&error, TemplateError::Failed(what) if what.contains("line 2")), "{error}");
}

/// Calls as OpenAI's clients send them back, and as transformers does.
fn with_text_arguments(mut case: Value) -> Value {
    for call in case["messages"].as_array_mut().unwrap().iter_mut().filter_map(|message| message["tool_calls"].as_array_mut()).flatten() {
        let function = if call["function"].is_null() { call } else { &mut call["function"] };
        if !function["arguments"].is_string() {
            function["arguments"] = json!(json!(function["arguments"]).to_string());
        }
    }
    case
}

#[test]
fn arguments_sent_as_text_render_as_the_object_they_hold() {
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": {"b": [1, "é"], "a": {"q": "\""}}}});
    let case = json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": null, "tool_calls": [call]}],
        "tools": null, "add_generation_prompt": false});
    let each = |body: &str| {
        format!("{{% for m in messages %}}{{% for c in m.tool_calls or [] %}}{{% set f = c.function %}}{body}{{% endfor %}}{{% endfor %}}")
    };
    let dumps = r#"{"b": [1, "é"], "a": {"q": "\""}}"#;
    let compact = r#"{"b":[1,"é"],"a":{"q":"\""}}"#;
    let objects_only = [
        (each("{{ f.arguments | tojson }}"), dumps),
        (each("{% for k, v in f.arguments | items %}<{{ k }}>{{ v | tojson }}{% endfor %}"), r#"<b>[1, "é"]<a>{"q": "\""}"#),
        (each("{% set a = f.arguments %}{% for k, v in a.items() %}<{{ k }}>{{ v | tojson }}{% endfor %}"), r#"<b>[1, "é"]<a>{"q": "\""}"#),
    ];
    for (source, expected) in &objects_only {
        for case in [case.clone(), with_text_arguments(case.clone())] {
            assert_eq!(render(source, &case).unwrap(), *expected, "{source}");
        }
    }
    // Where a template takes text, it gets the client's own, so that the prompt repeats what the model said.
    let text_too = [each("{{ f.arguments if f.arguments is string else f.arguments | tojson }}"), each("{{ 'call ' + f.arguments }}")];
    for (source, expected) in text_too.iter().zip([compact.to_owned(), format!("call {compact}")]) {
        assert_eq!(render(source, &with_text_arguments(case.clone())).unwrap(), expected, "{source}");
    }
}

#[test]
fn arguments_that_are_no_object_stay_as_they_are() {
    let source = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}";
    for arguments in ["", "{", "[1]", "7"] {
        let call = json!({"function": {"name": "f", "arguments": arguments}});
        let case = json!({"messages": [{"role": "assistant", "tool_calls": [call, 5]}], "tools": null, "add_generation_prompt": false});
        let with_a_number = render(source, &case);
        assert!(with_a_number.is_err(), "{with_a_number:?}");
        let case = json!({"messages": [{"role": "assistant", "tool_calls": [call]}], "tools": null, "add_generation_prompt": false});
        assert_eq!(render(source, &case).unwrap(), json!(arguments).to_string());
    }
}

#[test]
fn parity_conversations_render_alike_with_arguments_as_text() {
    for set in fixtures::sets() {
        for name in set.checkpoints().into_iter().filter(|name| !name.contains("bert")) {
            let template = template(&set.checkpoint(&name));
            let cases = set.refs(if name.contains("vl") { "chat/vl" } else { "chat/text" });
            let calls = |case: &&Value| case["messages"].as_array().unwrap().iter().any(|message| !message["tool_calls"].is_null());
            let with_calls: Vec<_> = cases.as_array().unwrap().iter().filter(calls).collect();
            assert!(!with_calls.is_empty(), "{name}");
            for case in with_calls {
                // These templates print text as it comes: only the spaces that json.dumps writes are missing.
                let squeeze = |text: &str| text.replace(": ", ":").replace(", ", ",").replace("1e-07", "1e-7");
                let rendered = template.render(&prompt(&with_text_arguments(case.clone()))).unwrap();
                assert_eq!(squeeze(&rendered), squeeze(case["rendered"].as_str().unwrap()), "{name}, {}", case["name"]);
            }
        }
    }
}

#[test]
fn a_continued_message_ends_where_its_text_ends() {
    let keeps = "{% for m in messages %}<{{ m.content if m.content is string else m.content[-1].text }}>{% endfor %}";
    let trims = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}";
    let case = |content: Value| {
        json!({"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": content}],
            "tools": null, "add_generation_prompt": false, "kwargs": {"continue_final_message": true}})
    };
    let cases = [
        (keeps, json!("one "), "<one two><one "),
        (trims, json!("one "), "<one two><one"),
        (keeps, json!("  one"), "<one two><  one"),
        (keeps, json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b c"}]), "<one two><b c"),
    ];
    for (source, content, expected) in cases {
        assert_eq!(render(source, &case(content)).unwrap(), expected);
    }
    for (source, content) in [("nothing", json!("one")), (keeps, json!(null)), (keeps, json!([{"type": "image", "text": null}]))] {
        assert!(render(source, &case(content)).is_err());
    }
    let mut both = prompt(&case(json!("x")));
    both.add_generation_prompt = true;
    let template = template(folder(&[("chat_template.jinja", keeps)]).path());
    assert!(matches!(template.render(&both), Err(TemplateError::CannotContinue(_))));
}
