"""Drives a running `cortex up` with the official Anthropic SDK, with strict validation of every answer.

usage: anthropic_sdk.py http://127.0.0.1:PORT MODEL
"""

import base64
import json
import sys
import traceback

import anthropic

ROOT, MODEL = sys.argv[1], sys.argv[2]
OPTIONS = dict(base_url=ROOT, timeout=60, max_retries=0, _strict_response_validation=True)
CLIENT = anthropic.Anthropic(api_key="none", **OPTIONS)
HELLO = [{"role": "user", "content": "Hello!"}]
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CASES = []


def case(function):
    CASES.append(function)
    return function


def request(messages, temperature=0, **more):
    # The SDK has no argument for the temperature any more; the dialect still does.
    return {"model": MODEL, "max_tokens": 150, "messages": messages, "extra_body": {"temperature": temperature}, **more}


def ask(messages=HELLO, **more):
    return CLIENT.messages.create(**request(messages, **more))


def streamed(messages=HELLO, **more):
    with CLIENT.messages.stream(**request(messages, **more)) as stream:
        text = "".join(stream.text_stream)
        return text, stream.get_final_message()


def raises(kind, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind, error
        assert error.body["type"] == "error" and error.body["error"]["message"] and error.request_id
        return error
    raise AssertionError(f"{kind.__name__} was expected")


@case
def a_stream_says_the_same_as_a_whole_answer():
    whole = ask()
    text, final = streamed()
    assert whole.content[0].text == text == "Hello! How can I help you?", text
    assert (whole.stop_reason, final.stop_reason) == ("end_turn", "end_turn")
    assert final.usage.output_tokens == whole.usage.output_tokens


def picture():
    with open("docs/pictures/row.png", "rb") as file:
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(file.read()).decode()}
    return {"type": "image", "source": source}


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def text(words, **more):
    return {"type": "text", "text": words, **more}


def called(result, thought=()):
    """A turn with a call, up to its result."""
    call = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Paris"}}
    back = {"type": "tool_result", "tool_use_id": "call_1", "content": result}
    return [user(text("What is the weather in Paris?")), {"role": "assistant", "content": [*thought, text("I look."), call]}, user(back)]


@case
def the_count_is_that_of_the_prompt():
    mark = {"cache_control": {"type": "ephemeral"}}
    thought = {"type": "thinking", "thinking": "A city.", "signature": "s"}
    billing = text("x-anthropic-billing-header: cc_version=1; cc_entrypoint=cli;")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    requests = {
        "one line": {"messages": HELLO},
        "words beyond ASCII": {"messages": [user(text("Grüße aus Pécs, 河 and \U0001f980."))]},
        "a system text": {"messages": HELLO, "system": "Be brief."},
        "system blocks": {"messages": HELLO, "system": [billing, text("Be brief.", **mark), text("Be kind.")]},
        "a conversation": {"messages": [*HELLO, {"role": "assistant", "content": "Hello! How can I help you?"}, user(text("Count"), text("to 3."))]},
        "an answer begun": {"messages": [*HELLO, {"role": "assistant", "content": "Hello! How"}]},
        "a picture": {"messages": [user(picture(), text("Describe the picture."))]},
        "two pictures": {"messages": [user(picture(), picture(), text("Which picture has more shapes, the first or the second?"))]},
        "a document": {"messages": [user({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Red boat."}}, text("Repeat."))]},
        "tools": {"messages": HELLO, "tools": [WEATHER, {**WEATHER, "name": "get_time", "description": "Get the time."}]},
        "no tool may be called": {"messages": HELLO, "tools": [WEATHER], "tool_choice": {"type": "none"}},
        "a tool that must be called": {"messages": HELLO, "tools": [WEATHER], "tool_choice": {"type": "any"}},
        "a server's tool": {"messages": HELLO, "tools": [WEATHER, {"type": "web_search_20250305", "name": "web_search"}]},
        "a result": {"messages": called("sunny"), "tools": [WEATHER]},
        "a result with a picture": {"messages": called([text("It is"), picture()]), "tools": [WEATHER]},
        "thinking": {"messages": HELLO, "thinking": thinking},
        "thinking, with tools and thoughts": {"messages": called("sunny", [thought]), "tools": [WEATHER], "thinking": thinking},
        "all of it, marked": {
            "messages": [*called([picture()], [thought]), {"role": "assistant", "content": "Sunny."}, user(picture(), text("And now?", **mark))],
            "system": [billing, text("Be brief.", **mark)],
            "tools": [{**WEATHER, **mark}],
            "thinking": thinking,
        },
    }
    assert len({CLIENT.messages.count_tokens(model=MODEL, **asked).input_tokens for asked in requests.values()}) > len(requests) / 2
    for name, asked in requests.items():
        counted = CLIENT.messages.count_tokens(model=MODEL, **asked).input_tokens
        for answer in (ask(**asked, max_tokens=2), streamed(**asked, max_tokens=2)[1]):
            # A client that marks what to cache reads the two as a sum.
            found = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens if "cache_control" in json.dumps(asked) else 0)
            assert found == counted, (name, counted, answer.usage)


@case
def both_kinds_of_key_are_taken():
    bearer = anthropic.Anthropic(auth_token="none", **OPTIONS)
    assert bearer.messages.create(model=MODEL, max_tokens=20, messages=HELLO).content


@case
def a_thought_is_a_block_of_its_own():
    messages = [{"role": "user", "content": "What is 8 + 5?"}]
    thinking = {"type": "enabled", "budget_tokens": 128}
    _, final = streamed(messages, thinking=thinking, max_tokens=300)
    assert [block.type for block in final.content] == ["thinking", "text"], final.content
    assert final.content[0].signature


@case
def a_tool_is_called_and_its_result_is_read():
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    _, final = streamed(messages, tools=[WEATHER])
    assert final.stop_reason == "tool_use" and final.content[-1].name == "get_weather", final
    assert final.content[-1].input == {"city": "Paris"}
    result = {"type": "tool_result", "tool_use_id": final.content[-1].id, "content": json.dumps({"temperature": 21, "condition": "sunny"})}
    messages += [{"role": "assistant", "content": [block.model_dump() for block in final.content]}, {"role": "user", "content": [result]}]
    assert "sunny" in ask(messages, tools=[WEATHER]).content[0].text


@case
def a_call_can_be_forced():
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        found = ask(tools=[WEATHER], tool_choice={**choice, "disable_parallel_tool_use": True})
        assert [block.type for block in found.content] == ["tool_use"] and isinstance(found.content[0].input["city"], str), found


@case
def a_stop_sequence_is_named():
    messages = [{"role": "user", "content": "Count from 5 to 12."}]
    for found in (ask(messages, stop_sequences=["never", ", 9"]), streamed(messages, stop_sequences=["never", ", 9"])[1]):
        assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", ", 9"), found
        assert found.content[0].text == "5, 6, 7, 8"


@case
def a_picture_is_seen():
    said = ask([user(picture(), text("Describe the picture."))])
    assert said.content[0].text == "A row of 3 shapes from left to right: yellow star, pink star, blue star.", said


@case
def models_are_listed():
    assert MODEL in [model.id for model in CLIENT.models.list()]
    assert CLIENT.models.retrieve(MODEL).id == MODEL


@case
def mistakes_become_the_sdks_own_exceptions():
    raises(anthropic.NotFoundError, lambda: ask(model="no/such-model"))
    raises(anthropic.BadRequestError, lambda: ask([]))
    raises(anthropic.BadRequestError, lambda: ask(temperature=-1))
    too_long = raises(anthropic.BadRequestError, lambda: ask([{"role": "user", "content": "river " * 6000}]))
    assert "prompt is too long" in too_long.message


def main():
    failed = []
    for function in CASES:
        try:
            function()
        except Exception:
            traceback.print_exc()
            failed.append(function.__name__)
        print(f"sdk {function.__name__} ... {'FAILED' if function.__name__ in failed else 'ok'}", flush=True)
    print(f"sdk result: {len(CASES) - len(failed)} passed; {len(failed)} failed (anthropic {anthropic.__version__})")
    sys.exit(1 if failed else 0)


main()
