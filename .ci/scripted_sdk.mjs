// The JavaScript half of scripted_sdk.py: the official SDKs of OpenAI and Anthropic in front of scripted nodes.
//
// usage: node scripted_sdk.mjs http://127.0.0.1:PORT        (with `openai` and `@anthropic-ai/sdk` beside it in node_modules)
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [root] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: root + "/v1", apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: root, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What do the notes say?" }];
const parameters = { type: "object", properties: { path: { type: "string" }, lines: { type: "array", items: { type: "integer" } } } };
const read = { name: "read", description: "Reads lines of a file.", parameters };
// What `actor` says, as in scripted_sdk.py.
const inputs = [{ path: "notes.txt", lines: [1, 2] }, { path: 'a "b"\n</tool_call>', lines: [] }];

async function drained(stream) {
  const seen = [];
  const read = async () => {
    for await (const event of await stream) seen.push(event);
  };
  return [seen, read];
}

const cases = {
  async "chat streams fragments of calls"() {
    const stream = openai.chat.completions.stream({ model: "actor", messages, tools: [{ type: "function", function: read }] });
    let fragments = 0;
    stream.on("tool_calls.function.arguments.delta", () => (fragments += 1));
    const message = (await stream.finalChatCompletion()).choices[0].message;
    assert.deepEqual(message.tool_calls.map((call) => JSON.parse(call.function.arguments)), inputs);
    assert.equal(message.content, "Reading.");
    assert.ok(fragments > 4, `${fragments} fragments`);
  },
  async "responses stream fragments of calls"() {
    const stream = openai.responses.stream({ model: "actor", input: "What do the notes say?", tools: [{ type: "function", strict: false, ...read }] });
    let fragments = 0;
    stream.on("response.function_call_arguments.delta", () => (fragments += 1));
    const final = await stream.finalResponse();
    assert.deepEqual(final.output.map((item) => item.type), ["reasoning", "message", "function_call", "function_call"]);
    assert.deepEqual(final.output.slice(2).map((item) => JSON.parse(item.arguments)), inputs);
    assert.equal(final.usage.output_tokens_details.reasoning_tokens, 2);
    assert.ok(fragments > 4, `${fragments} fragments`);
  },
  async "messages stream fragments of calls"() {
    const tools = [{ name: "read", description: read.description, input_schema: parameters }];
    const stream = anthropic.messages.stream({ model: "actor", max_tokens: 100, messages, tools });
    let fragments = 0;
    stream.on("inputJson", () => (fragments += 1));
    const final = await stream.finalMessage();
    assert.deepEqual(final.content.map((block) => block.type), ["thinking", "text", "tool_use", "tool_use"]);
    assert.deepEqual(final.content.slice(2).map((block) => block.input), inputs);
    assert.equal(final.stop_reason, "tool_use");
    assert.ok(fragments > 4, `${fragments} fragments`);
  },
  async "an answer that breaks off is an error and never an end"() {
    await assert.rejects(openai.chat.completions.create({ model: "dying", messages }), OpenAI.InternalServerError);
    const [chunks, chat] = await drained(openai.chat.completions.create({ model: "dying", messages, stream: true }));
    await assert.rejects(chat(), OpenAI.APIError);
    assert.ok(chunks.length > 0 && chunks.every((chunk) => chunk.choices.every((choice) => choice.finish_reason === null)));
    const [events, responses] = await drained(openai.responses.create({ model: "dying", input: "Hi", stream: true }));
    await responses();
    assert.equal(events.at(-1).type, "response.failed");
    await assert.rejects(anthropic.messages.create({ model: "dying", max_tokens: 9, messages }), Anthropic.InternalServerError);
    await assert.rejects(anthropic.messages.stream({ model: "dying", max_tokens: 9, messages }).finalMessage(), Anthropic.APIError);
  },
  async "a node without a place is overloaded"() {
    await assert.rejects(openai.chat.completions.create({ model: "busy", messages }), OpenAI.RateLimitError);
    await assert.rejects(openai.responses.create({ model: "busy", input: "Hi" }), OpenAI.RateLimitError);
    await assert.rejects(anthropic.messages.create({ model: "busy", max_tokens: 9, messages }), (error) => error.status === 529);
  },
};

let failed = 0;
for (const [name, run] of Object.entries(cases)) {
  try {
    await run();
    console.log(`sdk ${name} ... ok`);
  } catch (error) {
    failed += 1;
    console.error(error);
    console.log(`sdk ${name} ... FAILED`);
  }
}
console.log(`sdk result: ${Object.keys(cases).length - failed} passed; ${failed} failed (scripted nodes; openai and @anthropic-ai/sdk for JavaScript)`);
process.exit(failed ? 1 : 0);
