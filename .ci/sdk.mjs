// Drives a running `cortex up` with the official JavaScript SDKs of OpenAI and Anthropic.
//
// usage: node sdk.mjs http://127.0.0.1:PORT MODEL        (with `openai` and `@anthropic-ai/sdk` beside it in node_modules)
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [root, model] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: root + "/v1", apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: root, apiKey: "none", maxRetries: 0 });
const hello = [{ role: "user", content: "Hello!" }];
const greeting = "Hello! How can I help you?";
const parameters = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"], additionalProperties: false };
const weather = { name: "get_weather", description: "Get the current weather of a city.", parameters, strict: true };
const question = [{ role: "user", content: "What is the weather in Paris?" }];

const cases = {
  async "chat, whole and streamed"() {
    const whole = await openai.chat.completions.create({ model, messages: hello, temperature: 0 });
    assert.equal(whole.choices[0].message.content, greeting);
    const final = await openai.chat.completions.stream({ model, messages: hello, temperature: 0 }).finalChatCompletion();
    assert.equal(final.choices[0].message.content, greeting);
  },
  async "chat calls a tool"() {
    const tools = [{ type: "function", function: weather }];
    const final = await openai.chat.completions.stream({ model, messages: question, tools, temperature: 0 }).finalChatCompletion();
    assert.equal(final.choices[0].finish_reason, "tool_calls");
    assert.deepEqual(JSON.parse(final.choices[0].message.tool_calls[0].function.arguments), { city: "Paris" });
  },
  async "chat answers in JSON of a schema"() {
    const format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: parameters } };
    const said = await openai.chat.completions.create({ model, messages: hello, response_format: format, temperature: 1, seed: 1 });
    assert.equal(typeof JSON.parse(said.choices[0].message.content).city, "string");
  },
  async "responses, whole and streamed"() {
    const request = { model, instructions: "You are a helpful assistant.", input: "What is 17 + 25?", temperature: 0 };
    const whole = await openai.responses.create(request);
    assert.equal(whole.output_text, "17 + 25 = 42.");
    const final = await openai.responses.stream(request).finalResponse();
    assert.equal(final.output_text, whole.output_text);
    assert.equal(final.status, "completed");
  },
  async "responses call a tool and read its result"() {
    const tools = [{ type: "function", ...weather }];
    const first = await openai.responses.stream({ model, input: question, tools, temperature: 0 }).finalResponse();
    const call = first.output.find((item) => item.type === "function_call");
    assert.deepEqual(JSON.parse(call.arguments), { city: "Paris" });
    const output = JSON.stringify({ temperature: 21, condition: "sunny" });
    const input = [...question, ...first.output, { type: "function_call_output", call_id: call.call_id, output }];
    assert.match((await openai.responses.create({ model, input, tools, temperature: 0 })).output_text, /sunny/);
  },
  async "messages, whole and streamed"() {
    const request = { model, max_tokens: 100, messages: hello, temperature: 0 };
    assert.equal((await anthropic.messages.create(request)).content[0].text, greeting);
    assert.equal(await anthropic.messages.stream(request).finalText(), greeting);
  },
  async "messages call a tool"() {
    const tools = [{ name: weather.name, description: weather.description, input_schema: parameters }];
    const final = await anthropic.messages.stream({ model, max_tokens: 100, messages: question, tools, temperature: 0 }).finalMessage();
    assert.equal(final.stop_reason, "tool_use");
    assert.deepEqual(final.content.at(-1).input, { city: "Paris" });
  },
  async "mistakes become the SDKs' own errors"() {
    await assert.rejects(openai.chat.completions.create({ model: "no/such", messages: hello }), OpenAI.NotFoundError);
    await assert.rejects(openai.responses.create({ model, input: "Hi", previous_response_id: "resp_1" }), OpenAI.BadRequestError);
    await assert.rejects(anthropic.messages.create({ model: "no/such", max_tokens: 1, messages: hello }), Anthropic.NotFoundError);
    await assert.rejects(anthropic.messages.create({ model, max_tokens: 1, messages: [] }), Anthropic.BadRequestError);
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
console.log(`sdk result: ${Object.keys(cases).length - failed} passed; ${failed} failed (openai and @anthropic-ai/sdk for JavaScript)`);
process.exit(failed ? 1 : 0);
