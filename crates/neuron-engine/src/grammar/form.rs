//! What a request asks of its answer's form, as the text of a grammar (llguidance's Lark).

use cortex_core::harness::{AnswerFormat, ToolChoice};
use cortex_core::{ChatPrompt, HarnessError};
use serde_json::{Map, Value, json};

use crate::text::parser::ToolForm;

/// The grammar of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The grammar.
    pub(super) lark: String,
    /// Absent: the whole answer is held to it. Present: text is free, and each time behind this the grammar holds, until it is complete.
    pub(super) trigger: Option<&'static str>,
}

/// What a request asks, beside what its model can write.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    prompt: &'a ChatPrompt,
    calls: Option<ToolForm>,
}

/// Between and behind JSON's values: nothing, a space, or a new line and its indent. Without a bound, white space could go on for ever.
const WHITESPACE: &str = r"[ ]|\n[ ]{0,40}";
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

impl<'a> Rules<'a> {
    /// `calls` is how the model writes calls, if it does.
    pub fn new(prompt: &'a ChatPrompt, calls: Option<ToolForm>) -> Self {
        Self { prompt, calls }
    }

    /// The form; `None` where the answer is free.
    ///
    /// # Errors
    /// When the model cannot be held to what is asked.
    pub fn form(self) -> Result<Option<Form>, HarnessError> {
        let answer = match &self.prompt.format {
            AnswerFormat::Text => None,
            AnswerFormat::JsonObject => Some(json!({ "type": "object" })),
            AnswerFormat::JsonSchema(schema) => Some(schema.clone()),
        };
        let tools: Vec<Tool> = self.prompt.tools.iter().flatten().filter_map(Tool::read).collect();
        let calls = |names: &[String]| {
            let chosen = tools.iter().filter(|tool| names.is_empty() || names.contains(&tool.name));
            self.calls.map(|form| Calls { form, tools: chosen.collect() })
        };
        match (&self.prompt.tool_choice, answer) {
            (ToolChoice::Required(names), _) => {
                let calls = calls(names).ok_or_else(|| {
                    HarnessError::invalid(
                        "tool_choice",
                        "this model's chat template knows no tool calls, so none can be forced; leave it out",
                    )
                })?;
                Ok(Some(calls.whole(None, self.prompt.one_call_at_most)))
            }
            (ToolChoice::Auto, Some(schema)) => Ok(Some(match calls(&[]).filter(|calls| !calls.tools.is_empty()) {
                Some(calls) => calls.whole(Some(schema), self.prompt.one_call_at_most),
                None => Form { lark: format!("start: {}\n", inline(schema)), trigger: None },
            })),
            (ToolChoice::Auto, None) => Ok(calls(&[]).filter(|_| tools.iter().any(|tool| tool.strict)).and_then(Calls::when_they_come)),
        }
    }
}

/// A function that may be called.
struct Tool {
    name: String,
    parameters: Value,
    strict: bool,
}

impl Tool {
    fn read(tool: &Value) -> Option<Self> {
        let function = tool.get("function").unwrap_or(tool);
        let parameters = function.get("parameters").filter(|schema| schema.is_object()).cloned();
        Some(Self {
            name: function.get("name")?.as_str()?.to_owned(),
            parameters: parameters.unwrap_or_else(|| json!({ "type": "object" })),
            strict: function.get("strict") == Some(&Value::Bool(true)),
        })
    }
}

/// Calls of some of the tools, as one model writes them.
struct Calls<'a> {
    form: ToolForm,
    tools: Vec<&'a Tool>,
}

impl Calls<'_> {
    /// The answer is calls and nothing else, or, where there is a `schema`, JSON of that schema.
    fn whole(&self, schema: Option<Value>, one_at_most: bool) -> Form {
        let (open, close) = self.tags();
        let mut lark = Lark::default();
        let more = if one_at_most || self.form == ToolForm::BareJson { "" } else { " (\"\\n\" call)*" };
        let answer = if schema.is_some() { " | answer" } else { "" };
        lark.rule("start", &format!("calls{answer}"));
        lark.rule("calls", &format!("call{more}"));
        if let Some(schema) = schema {
            lark.rule("answer", &inline(schema));
        }
        let tagged = format!("{} body {}", literal(&format!("{open}\n")), literal(&format!("\n{close}")));
        lark.rule("call", if open.is_empty() { "body" } else { &tagged });
        self.bodies(&mut lark);
        Form { lark: lark.0, trigger: None }
    }

    /// Text is free; behind the opening tag stands a call. `None` where no tag says that a call begins.
    fn when_they_come(self) -> Option<Form> {
        let (OPEN, close) = self.tags() else { return None };
        let mut lark = Lark::default();
        lark.rule("start", &format!("{} body {}", literal("\n"), literal(&format!("\n{close}"))));
        self.bodies(&mut lark);
        Some(Form { lark: lark.0, trigger: Some(OPEN) })
    }

    fn tags(&self) -> (&'static str, &'static str) {
        match self.form {
            ToolForm::TaggedJson | ToolForm::TaggedXml => (OPEN, CLOSE),
            ToolForm::BareJson => ("", ""),
        }
    }

    fn bodies(&self, lark: &mut Lark) {
        let names: Vec<String> = (0..self.tools.len()).map(|i| format!("body_{i}")).collect();
        lark.rule("body", &names.join(" | "));
        for (i, (name, tool)) in names.iter().zip(&self.tools).enumerate() {
            match self.form {
                ToolForm::TaggedJson => lark.json_body(name, tool, "arguments"),
                ToolForm::BareJson => lark.json_body(name, tool, "parameters"),
                ToolForm::TaggedXml => lark.xml_body(name, i, tool),
            }
        }
        if self.form == ToolForm::TaggedXml {
            lark.0.push_str("text[suffix=\"\\n</parameter>\\n\"]: /(.|\\n)*/\n");
        }
    }
}

/// The text of a grammar, rule by rule.
#[derive(Default)]
struct Lark(String);

impl Lark {
    fn rule(&mut self, name: &str, body: &str) {
        self.0.push_str(&format!("{name}: {body}\n"));
    }

    fn json_body(&mut self, rule: &str, tool: &Tool, key: &str) {
        let name = Value::from(tool.name.as_str());
        let head = literal(&format!("{{\"name\": {name}, \"{key}\": "));
        self.rule(rule, &format!("{head} {rule}_arguments {}", literal("}")));
        self.rule(&format!("{rule}_arguments"), &inline(tool.parameters.clone()));
    }

    /// Parameters in the schema's order; those that are not required may be left out. A text ends at the closing tag, so it cannot hold one.
    fn xml_body(&mut self, rule: &str, place: usize, tool: &Tool) {
        let none = Map::new();
        let properties = tool.parameters.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let required: Vec<&str> =
            tool.parameters.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let mut body = literal(&format!("<function={}>\n", tool.name));
        for (i, (name, schema)) in properties.iter().enumerate() {
            let parameter = format!("parameter_{place}_{i}");
            body.push_str(&format!(" {parameter}{}", if required.contains(&name.as_str()) { "" } else { "?" }));
            let value = match text_values(schema) {
                Some(values) if values.is_empty() => "text".to_owned(),
                Some(values) => {
                    let values: Vec<String> = values.into_iter().map(literal).collect();
                    format!("({}) {}", values.join(" | "), literal("\n</parameter>\n"))
                }
                None => {
                    let value = format!("value_{place}_{i}");
                    self.rule(&value, &inline(with_definitions(schema, &tool.parameters)));
                    format!("{value} {}", literal("\n</parameter>\n"))
                }
            };
            self.rule(&parameter, &format!("{} {value}", literal(&format!("<parameter={name}>\n"))));
        }
        self.rule(rule, &format!("{body} {}", literal("</function>")));
    }
}

/// For a parameter that is text: the texts that it may be, none for any. `None` where it is something else.
fn text_values(schema: &Value) -> Option<Vec<&str>> {
    let is_text = schema.get("type").and_then(Value::as_str) == Some("string");
    is_text.then(|| schema.get("enum").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect())
}

/// A part of a schema may name the whole one's definitions.
fn with_definitions(part: &Value, whole: &Value) -> Value {
    let Value::Object(mut part) = part.clone() else { return part.clone() };
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = whole.get(key) {
            part.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    Value::Object(part)
}

/// A schema inside a grammar.
fn inline(mut schema: Value) -> String {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Value::Object(schema) = &mut schema {
        schema.insert("x-guidance".into(), json!({ "whitespace_flexible": true, "whitespace_pattern": WHITESPACE }));
    }
    format!("%json {schema}")
}

fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(strict: bool) -> Value {
        json!({"type": "function", "function": {"name": "add", "strict": strict, "parameters": {"type": "object"}}})
    }

    fn form(prompt: &ChatPrompt, calls: Option<ToolForm>) -> Result<Option<Form>, HarnessError> {
        Rules::new(prompt, calls).form()
    }

    #[test]
    fn an_answer_is_free_unless_something_is_asked_of_it() {
        let tools = |strict| ChatPrompt { tools: Some(vec![tool(strict)]), ..Default::default() };
        assert_eq!(form(&ChatPrompt::default(), None), Ok(None));
        assert_eq!(form(&tools(false), Some(ToolForm::TaggedJson)), Ok(None));
        let strict = form(&tools(true), Some(ToolForm::TaggedJson)).unwrap().unwrap();
        assert_eq!(strict.trigger, Some("<tool_call>"));
        assert_eq!(form(&tools(true), Some(ToolForm::BareJson)), Ok(None), "nothing says where a call begins");
    }

    #[test]
    fn a_call_is_forced_only_where_the_model_can_write_one() {
        let forced = |calls| {
            let prompt = ChatPrompt { tools: Some(vec![tool(false)]), tool_choice: ToolChoice::Required(vec![]), ..Default::default() };
            form(&prompt, calls)
        };
        assert!(matches!(forced(None), Err(HarnessError::InvalidRequest { param: Some(param), .. }) if param == "tool_choice"));
        let Form { lark, trigger } = forced(Some(ToolForm::TaggedJson)).unwrap().unwrap();
        assert_eq!(trigger, None);
        assert!(
            lark.starts_with("start: calls\ncalls: call (\"\\n\" call)*\ncall: \"<tool_call>\\n\" body \"\\n</tool_call>\"\n"),
            "{lark}"
        );
        let Form { lark, .. } = forced(Some(ToolForm::BareJson)).unwrap().unwrap();
        assert!(lark.starts_with("start: calls\ncalls: call\ncall: body\nbody: body_0\nbody_0: \"{\\\"name\\\": \\\"add\\\","), "{lark}");
    }
}
