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


@case
def the_count_is_that_of_the_prompt():
    counted = CLIENT.messages.count_tokens(model=MODEL, messages=HELLO, system="Be brief.")
    assert counted.input_tokens == ask(system="Be brief.").usage.input_tokens


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
    with open("docs/pictures/row.png", "rb") as file:
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(file.read()).decode()}
    said = ask([{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "Describe the picture."}]}])
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
