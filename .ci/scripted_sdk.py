"""Drives a gateway in front of scripted nodes with the official SDKs of OpenAI and Anthropic: what a real model says only sometimes, or not at all.

usage: scripted_sdk.py http://127.0.0.1:PORT        (`.ci/scripted` starts the nodes: `actor`, `dying`, `busy`, and one with `embedder`)
"""

import json
import sys
import traceback

import anthropic
import openai

ROOT = sys.argv[1]
OPENAI = openai.OpenAI(base_url=ROOT + "/v1", api_key="none", timeout=60, max_retries=0, _strict_response_validation=True)
ANTHROPIC = anthropic.Anthropic(base_url=ROOT, api_key="none", timeout=60, max_retries=0, _strict_response_validation=True)
ASKED = [{"role": "user", "content": "What do the notes say?"}]
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}, "lines": {"type": "array", "items": {"type": "integer"}}}}
FUNCTION = {"name": "read", "description": "Reads lines of a file.", "parameters": SCHEMA}
# What `actor` says: two thoughts, a word, and two calls; and when it has the results, the end.
CALLS = [("read", {"path": "notes.txt", "lines": [1, 2]}), ("read", {"path": 'a "b"\n</tool_call>', "lines": []})]
THOUGHTS, WORD, END = "I look. Twice.", "Reading.", "It says heron."
CASES = []


def case(function):
    CASES.append(function)
    return function


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def arguments(calls):
    return [(name, json.loads(text)) for name, text in calls]


@case
def chat_streams_thoughts_text_and_fragments_of_calls():
    tools = [{"type": "function", "function": FUNCTION}]
    request = dict(model="actor", messages=ASKED, tools=tools)
    whole = OPENAI.chat.completions.create(**request)
    message = whole.choices[0].message
    assert (message.reasoning_content, message.content) == (THOUGHTS, WORD), message
    assert arguments((call.function.name, call.function.arguments) for call in message.tool_calls) == CALLS
    assert whole.usage.completion_tokens_details.reasoning_tokens == 2, whole.usage
    assert whole.choices[0].finish_reason == "tool_calls"
    fragments = {0: [], 1: []}
    with OPENAI.chat.completions.stream(**request) as stream:
        for event in stream:
            if event.type == "chunk" and event.chunk.choices:
                for call in event.chunk.choices[0].delta.tool_calls or []:
                    fragments[call.index].append(call.function.arguments)
        final = stream.get_final_completion().choices[0].message
    for call, streamed, pieces in zip(message.tool_calls, final.tool_calls, fragments.values()):
        assert len(pieces) > 2 and "".join(pieces) == streamed.function.arguments == call.function.arguments, pieces
    results = [{"role": "tool", "tool_call_id": call.id, "content": "heron"} for call in message.tool_calls]
    again = OPENAI.chat.completions.create(**{**request, "messages": [*ASKED, message.model_dump(exclude_none=True), *results]})
    assert again.choices[0].message.content == END


@case
def responses_stream_the_same_as_items():
    request = dict(model="actor", input="What do the notes say?", tools=[{"type": "function", "strict": False, **FUNCTION}])
    deltas = {}
    with OPENAI.responses.stream(**request) as stream:
        for event in stream:
            if event.type == "response.function_call_arguments.delta":
                deltas.setdefault(event.output_index, []).append(event.delta)
        final = stream.get_final_response()
    whole = OPENAI.responses.create(**request)
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.type for item in final.output] == [item.type for item in whole.output]
    calls = [item for item in whole.output if item.type == "function_call"]
    assert arguments((call.name, call.arguments) for call in calls) == CALLS
    assert ["".join(pieces) for pieces in deltas.values()] == [call.arguments for call in calls]
    assert all(len(pieces) > 2 for pieces in deltas.values())
    assert whole.output[0].content[0].text == THOUGHTS and whole.output_text == WORD
    assert final.usage == whole.usage and whole.usage.output_tokens_details.reasoning_tokens == 2


@case
def messages_stream_the_same_as_blocks():
    tools = [{"name": "read", "description": "Reads lines of a file.", "input_schema": SCHEMA}]
    request = dict(model="actor", max_tokens=100, messages=ASKED, tools=tools)
    whole = ANTHROPIC.messages.create(**request)
    fragments = {}
    with ANTHROPIC.messages.stream(**request) as stream:
        for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "input_json_delta":
                fragments.setdefault(event.index, []).append(event.delta.partial_json)
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"], final
    assert [(block.name, block.input) for block in final.content[2:]] == CALLS
    assert [(block.name, block.input) for block in whole.content[2:]] == CALLS
    assert arguments(("read", "".join(pieces)) for pieces in fragments.values()) == CALLS
    assert all(len(pieces) > 2 for pieces in fragments.values())
    assert (final.content[0].thinking, final.content[1].text, final.stop_reason) == (THOUGHTS, WORD, "tool_use")
    assert len({block.id for block in final.content[2:]}) == 2 and final.usage == whole.usage
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": "heron"} for block in final.content[2:]]
    answered = [*ASKED, {"role": "assistant", "content": [block.model_dump() for block in final.content]}, {"role": "user", "content": results}]
    assert ANTHROPIC.messages.create(**{**request, "messages": answered}).content[0].text == END


@case
def an_answer_that_breaks_off_is_an_error_and_never_an_end():
    ask = dict(model="dying", messages=ASKED)
    raises(openai.InternalServerError, lambda: OPENAI.chat.completions.create(**ask))
    seen = []
    raises(openai.APIError, lambda: seen.extend(OPENAI.chat.completions.create(**ask, stream=True)))
    assert seen and all(choice.finish_reason is None for chunk in seen for choice in chunk.choices)
    raises(openai.InternalServerError, lambda: OPENAI.responses.create(model="dying", input="Hi"))
    events = [event.type for event in OPENAI.responses.create(model="dying", input="Hi", stream=True)]
    assert events[-1] == "response.failed" and "response.completed" not in events, events
    raises(anthropic.InternalServerError, lambda: ANTHROPIC.messages.create(**ask, max_tokens=9))
    said = []

    def read():
        with ANTHROPIC.messages.stream(**ask, max_tokens=9) as stream:
            said.extend(stream)

    assert raises(anthropic.APIStatusError, read).body["error"]["type"] == "api_error"
    assert said and all(event.type != "message_stop" for event in said)


@case
def a_node_without_a_place_is_overloaded():
    ask = dict(model="busy", messages=ASKED)
    assert raises(openai.RateLimitError, lambda: OPENAI.chat.completions.create(**ask)).response.headers["retry-after"]
    raises(openai.RateLimitError, lambda: OPENAI.chat.completions.create(**ask, stream=True))
    raises(openai.RateLimitError, lambda: OPENAI.responses.create(model="busy", input="Hi"))
    error = raises(anthropic.APIStatusError, lambda: ANTHROPIC.messages.create(**ask, max_tokens=9))
    assert (error.status_code, error.body["error"]["type"]) == (529, "overloaded_error") and error.response.headers["retry-after"]


@case
def embeddings_come_as_numbers_or_bytes_and_as_short_as_asked():
    # Without `encoding_format` the SDK asks for bytes, and turns them into numbers after its own strict validation would have refused them.
    lenient = openai.OpenAI(base_url=ROOT + "/v1", api_key="none", timeout=60, max_retries=0)
    embed = lambda client=OPENAI, **more: client.embeddings.create(model="embedder", input=["a heron", [104, 105]], **more)
    plain, floats, short = embed(lenient), embed(encoding_format="float"), embed(encoding_format="float", dimensions=2)
    vectors = lambda answer: [entry.embedding for entry in answer.data]
    assert [entry.index for entry in plain.data] == [0, 1], plain
    for bytes_of, numbers_of in zip(vectors(plain), vectors(floats)):
        assert all(abs(a - b) < 1e-6 for a, b in zip(bytes_of, numbers_of, strict=True)), (bytes_of, numbers_of)
    assert [len(vector) for vector in vectors(short)] == [2, 2]
    for vector in [*vectors(plain), *vectors(short)]:
        assert abs(sum(x * x for x in vector) - 1) < 1e-5, vector
    assert plain.usage.prompt_tokens == len("a heron") + 2, plain.usage
    raises(openai.BadRequestError, lambda: embed(dimensions=5))
    assert lenient.embeddings.create(model="embedder", input="a heron").data[0].embedding == vectors(plain)[0]


def main():
    failed = []
    for function in CASES:
        try:
            function()
        except Exception:
            traceback.print_exc()
            failed.append(function.__name__)
        print(f"sdk {function.__name__} ... {'FAILED' if function.__name__ in failed else 'ok'}", flush=True)
    print(f"sdk result: {len(CASES) - len(failed)} passed; {len(failed)} failed (scripted nodes; openai {openai.__version__}, anthropic {anthropic.__version__})")
    sys.exit(1 if failed else 0)


main()
