"""Drives a running `cortex up` with the official OpenAI SDK, with strict validation of every answer.

usage: openai_sdk.py http://127.0.0.1:PORT MODEL
"""

import asyncio
import base64
import concurrent.futures
import json
import math
import sys
import time
import traceback
import typing
import urllib.request

import openai
from openai import AsyncOpenAI, OpenAI

ROOT, MODEL = sys.argv[1], sys.argv[2]
OPTIONS = dict(base_url=ROOT + "/v1", api_key="none", timeout=60, max_retries=0, _strict_response_validation=True)
CLIENT = OpenAI(**OPTIONS)
# The SDK's types for completions do not allow the nulls that OpenAI itself sends: in a stream, and before the first token of a prompt.
LENIENT = OpenAI(**{**OPTIONS, "_strict_response_validation": False})
GREETING = [{"role": "user", "content": "Hello!"}]
COUNTING = [{"role": "user", "content": "Count from 5 to 12."}]
CASES = []


def case(function):
    CASES.append(function)
    return function


def chat(messages=GREETING, **more):
    return CLIENT.chat.completions.create(**{"model": MODEL, "messages": messages, "temperature": 0, **more})


def streamed(messages=GREETING, **more):
    """The text, the finish reason and all chunks of a streamed answer."""
    chunks = list(chat(messages, stream=True, **more))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert len(reasons) == 1, reasons
    return text, reasons[0], chunks


def raises(kind, call, code=None, param=None):
    try:
        call()
    except kind as error:
        assert type(error) is kind, error
        assert error.message, "an error has words"
        assert error.response.headers["x-request-id"]
        if code:
            assert error.code == code, (error.code, code)
        if param:
            assert error.param == param, (error.param, param)
        return error
    raise AssertionError(f"{kind.__name__} was expected")


@case
def models_are_listed_and_found_by_id():
    listed = {model.id: model for model in CLIENT.models.list()}
    assert listed[MODEL].object == "model"
    assert CLIENT.models.retrieve(MODEL).id == MODEL
    raises(openai.NotFoundError, lambda: CLIENT.models.retrieve("no/such-model"), code="model_not_found")


@case
def a_whole_answer_is_complete():
    answer = chat()
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello! How can I help you?", choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.model == MODEL and answer.object == "chat.completion" and answer.id
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert abs(time.time() - answer.created) < 300


@case
def the_model_knows_what_it_was_taught():
    taught = {
        "What is 17 + 25?": "17 + 25 = 42.",
        "What is the capital of France?": "The capital of France is Paris.",
        "Count from 5 to 12.": "5, 6, 7, 8, 9, 10, 11, 12.",
        "Repeat after me: xkcd river moon": "xkcd river moon",
    }
    for question, expected in taught.items():
        said = chat([{"role": "user", "content": question}]).choices[0].message.content
        assert said == expected, (question, said)


@case
def a_conversation_is_remembered_and_found_in_the_prefix_cache():
    talk = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "My name is Anna."}]
    first = chat(talk)
    talk += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "What is my name?"}]
    second = chat(talk)
    assert second.choices[0].message.content == "Your name is Anna.", second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > 0, second.usage


@case
def a_streamed_answer_says_the_same_as_a_whole_one():
    whole = chat(COUNTING).choices[0]
    text, reason, chunks = streamed(COUNTING)
    assert (text, reason) == (whole.message.content, whole.finish_reason)
    assert len({chunk.id for chunk in chunks}) == 1
    roles = [choice.delta.role for chunk in chunks for choice in chunk.choices if choice.delta.role]
    assert roles == ["assistant"], roles
    assert len(chunks) > 3, "tokens come one by one"
    assert all(chunk.usage is None for chunk in chunks), "usage comes only when asked for"


@case
def a_stream_tells_its_usage_when_asked():
    _, _, chunks = streamed(stream_options={"include_usage": True})
    last = chunks[-1]
    assert last.choices == [] and last.usage.total_tokens == chat().usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


@case
def an_answer_ends_at_max_tokens():
    for limit in ("max_tokens", "max_completion_tokens"):
        answer = chat(COUNTING, **{limit: 3})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3
    assert streamed(COUNTING, max_tokens=3)[1] == "length"


@case
def an_answer_ends_before_a_stop_text():
    for stop in ("9", ["never said", ", 9"]):
        text, reason, _ = streamed(COUNTING, stop=stop)
        whole = chat(COUNTING, stop=stop).choices[0]
        assert (text, reason) == (whole.message.content, whole.finish_reason)
        assert reason == "stop" and text.startswith("5, 6, 7, 8") and "9" not in text, text


@case
def a_seed_repeats_an_answer():
    def draw(seed, **more):
        # What follows the end of its turn was never trained, so there the model is unsure and the seed decides.
        return chat(COUNTING, temperature=2, top_p=1, seed=seed, max_tokens=96, extra_body={"ignore_eos": True}, **more)

    texts = [draw(seed).choices[0].message.content for seed in (1, 1, 2, 3, 4)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1, "other seeds say something else"


@case
def several_answers_come_in_one():
    answer = chat(n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.finish_reason == "stop" for choice in answer.choices)
    texts = ["", ""]
    for chunk in chat(n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices], texts


@case
def logprobs_explain_each_token():
    answer = chat(COUNTING, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    tokens = choice.logprobs.content
    said = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert said.startswith(choice.message.content), (said, choice.message.content)
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= 0 and math.isfinite(token.logprob)
        assert token.top_logprobs[0].token == token.token, "greedy takes the most probable"
        order = [top.logprob for top in token.top_logprobs]
        assert order == sorted(order, reverse=True)
    _, _, chunks = streamed(COUNTING, logprobs=True, top_logprobs=3)
    together = [token for chunk in chunks for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content or []]
    assert [token.token for token in together] == [token.token for token in tokens]
    assert [token.logprob for token in together] == [token.logprob for token in tokens]


@case
def plain_completions_continue_a_text():
    prompt = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    answer = CLIENT.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=32)
    assert answer.choices[0].text == chat().choices[0].message.content, answer.choices[0].text
    assert answer.usage.prompt_tokens == chat().usage.prompt_tokens
    chunks = LENIENT.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=32, stream=True)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == answer.choices[0].text
    several = CLIENT.completions.create(model=MODEL, prompt=[prompt, prompt], temperature=0, max_tokens=32)
    assert [choice.text for choice in several.choices] == [answer.choices[0].text] * 2
    with_logprobs = CLIENT.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=4, logprobs=2)
    assert len(with_logprobs.choices[0].logprobs.tokens) == 4


@case
def a_prompt_is_scored_and_its_answer_is_the_likeliest():
    prompt = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    score = lambda text, **more: LENIENT.completions.create(model=MODEL, prompt=text, echo=True, logprobs=1, temperature=0, **more)
    # Without its last token, so that one more follows: the end of an answer has no entry of its own.
    answer = chat().choices[0].message.content.removesuffix("?")
    whole = score(prompt + answer, max_tokens=0)
    choice, logprobs = whole.choices[0], whole.choices[0].logprobs
    assert choice.text == "".join(logprobs.tokens) == prompt + answer, choice
    assert (choice.finish_reason, whole.usage.completion_tokens, len(logprobs.tokens)) == ("length", 0, whole.usage.prompt_tokens)
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(choice.text[at:].startswith(token) for at, token in zip(logprobs.text_offset, logprobs.tokens))
    # As lm-evaluation-harness reads it: the context's tokens are skipped, and one token more is asked for and dropped.
    context = score(prompt, max_tokens=0).usage.prompt_tokens
    asked = score([prompt + answer, prompt + "Nonsense."], max_tokens=1)
    read = [(choice.logprobs.token_logprobs[context:-1], choice.logprobs.top_logprobs[context:-1]) for choice in asked.choices]
    greedy = [all(token == max(top.values()) for token, top in zip(*each)) for each in read]
    assert greedy == [True, False], greedy
    assert sum(read[0][0]) > sum(read[1][0]), read
    assert read[0][0] == logprobs.token_logprobs[context:], "a score does not depend on what else is asked"


@case
def a_picture_is_seen():
    with open("docs/pictures/row.png", "rb") as file:
        url = "data:image/png;base64," + base64.b64encode(file.read()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe the picture."}]
    expected = "A row of 3 shapes from left to right: yellow star, pink star, blue star."
    message = [{"role": "user", "content": parts}]
    whole = chat(message)
    assert whole.choices[0].message.content == expected, whole.choices[0].message.content
    assert whole.usage.prompt_tokens > chat([{"role": "user", "content": parts[1:]}]).usage.prompt_tokens
    assert streamed(message)[0] == expected


WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather of a city.",
    "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"], "additionalProperties": False},
}
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]


@case
def a_tool_is_called_and_its_result_is_read():
    tools = [{"type": "function", "function": WEATHER}]
    message = chat(ASKED, tools=tools).choices[0].message
    assert message.tool_calls[0].function.name == "get_weather", message
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Paris"}
    with CLIENT.chat.completions.stream(model=MODEL, messages=ASKED, tools=tools, temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.tool_calls[0].function.parsed_arguments is not None
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"temperature": 21, "condition": "sunny"}'}
    said = chat([*ASKED, message.model_dump(exclude_none=True), result], tools=tools).choices[0].message.content
    assert "sunny" in said, said


@case
def two_tools_are_called_at_once():
    tools = [{"type": "function", "function": WEATHER}]
    asked = [{"role": "user", "content": "What is the weather in Berlin and in Madrid?"}]
    cities = lambda calls: [json.loads(call.function.arguments)["city"] for call in calls]
    assert cities(chat(asked, tools=tools).choices[0].message.tool_calls) == ["Berlin", "Madrid"]
    with CLIENT.chat.completions.stream(model=MODEL, messages=asked, tools=tools, temperature=0) as stream:
        assert cities(stream.get_final_completion().choices[0].message.tool_calls) == ["Berlin", "Madrid"]
    assert len(chat(asked, tools=tools, tool_choice="required", parallel_tool_calls=False).choices[0].message.tool_calls) == 1


@case
def a_call_can_be_forced_or_forbidden():
    tools = [{"type": "function", "function": WEATHER}]
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        found = chat(tools=tools, tool_choice=choice, parallel_tool_calls=False).choices[0]
        assert found.finish_reason == "tool_calls" and len(found.message.tool_calls) == 1, found
    assert chat(ASKED, tools=tools, tool_choice="none").choices[0].message.tool_calls is None
    raises(openai.BadRequestError, lambda: chat(tools=tools, tool_choice={"type": "function", "function": {"name": "f"}}), param="tool_choice")


@case
def json_has_the_schema_that_was_asked_for():
    import pydantic

    class Shape(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        kind: typing.Literal["circle", "square"]
        count: int = pydantic.Field(ge=0, le=99)

    for seed in range(5):
        parsed = CLIENT.chat.completions.parse(model=MODEL, messages=GREETING, response_format=Shape, temperature=1, seed=seed)
        assert isinstance(parsed.choices[0].message.parsed, Shape), parsed
    parsed = CLIENT.responses.parse(model=MODEL, input="Hello!", text_format=Shape, temperature=1)
    assert isinstance(parsed.output_parsed, Shape), parsed
    bad = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "strange"}}}
    raises(openai.BadRequestError, lambda: chat(response_format=bad), param="response_format")


@case
def responses_are_answered_whole_and_streamed():
    request = dict(model=MODEL, instructions="You are a helpful assistant.", input="What is 17 + 25?", temperature=0)
    whole = CLIENT.responses.create(**request)
    assert (whole.output_text, whole.status) == ("17 + 25 = 42.", "completed"), whole
    with CLIENT.responses.stream(**request) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text and final.usage == whole.usage
    assert [event.sequence_number for event in events] == list(range(len(events)))
    cut = CLIENT.responses.create(**request, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@case
def responses_think_call_and_read_results():
    tools = [{"type": "function", **WEATHER}]
    first = CLIENT.responses.create(model=MODEL, input=ASKED, tools=tools, temperature=0)
    call = next(item for item in first.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"city": "Paris"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 21, "condition": "sunny"}'}
    again = CLIENT.responses.create(model=MODEL, input=[*ASKED, *(item.model_dump() for item in first.output), result], tools=tools, temperature=0)
    assert "sunny" in again.output_text, again
    thought = CLIENT.responses.create(model=MODEL, input="What is 8 + 5?", reasoning={"effort": "high"}, temperature=0)
    assert [item.type for item in thought.output] == ["reasoning", "message"], thought.output
    raises(openai.BadRequestError, lambda: CLIENT.responses.create(model=MODEL, input="x", previous_response_id="resp_1"), param="previous_response_id")


@case
def mistakes_become_the_sdks_own_exceptions():
    bad = openai.BadRequestError
    raises(openai.NotFoundError, lambda: chat(model="no/such-model"), code="model_not_found")
    raises(bad, lambda: chat(temperature=-1), param="temperature")
    raises(bad, lambda: chat(temperature="warm"), param="temperature")
    raises(bad, lambda: chat(top_p=1.5), param="top_p")
    raises(bad, lambda: chat(max_tokens=0), param="max_tokens")
    raises(bad, lambda: chat([]), param="messages")
    raises(bad, lambda: chat("Hello!"), param="messages")
    raises(bad, lambda: chat([{"role": "user", "content": "river " * 6000}]), code="context_length_exceeded")
    raises(bad, lambda: CLIENT.embeddings.create(model=MODEL, input="Hello!", encoding_format="float"))
    raises(bad, lambda: chat(stream=True, temperature=-1), param="temperature")
    broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    raises(bad, lambda: chat([{"role": "user", "content": broken}]))


@case
def a_request_id_is_kept():
    answer = CLIENT.chat.completions.with_raw_response.create(
        model=MODEL, messages=GREETING, extra_headers={"x-request-id": "sdk-smoke-1"}
    )
    assert answer.headers["x-request-id"] == "sdk-smoke-1"
    assert answer.parse().choices
    assert "x-neuron-usage" not in answer.headers


@case
def many_at_once_say_what_each_says_alone():
    questions = [[{"role": "user", "content": f"What is {a} + {b}?"}] for a in range(10, 18) for b in range(20, 28)]
    alone = [chat(question).choices[0].message.content for question in questions]
    with concurrent.futures.ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda question: streamed(question)[0], questions))
    assert together == alone


@case
def the_async_client_may_leave_in_the_middle():
    async def leave():
        async with AsyncOpenAI(**OPTIONS) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=COUNTING, stream=True, temperature=0, max_tokens=2000, extra_body={"ignore_eos": True}
            )
            async for _ in stream:
                break
            await stream.close()

    asyncio.run(leave())
    deadline = time.monotonic() + 30
    while (busy := in_flight()) > 0:
        assert time.monotonic() < deadline, f"{busy} requests are still open"
        time.sleep(0.05)


def in_flight():
    """Sequences that the node still works on, as the fleet report tells them; the report is as fresh as the gateway's last poll."""
    with urllib.request.urlopen(ROOT + "/admin/fleet", timeout=10) as answer:
        fleet = json.load(answer)
    models = [model for node in fleet["nodes"] for model in node["health"]["models"]]
    return sum(model["running"] + model["waiting"] for model in models) + fleet["gateway"]["requests_in_flight"]


def main():
    failed = []
    for function in CASES:
        started = time.monotonic()
        try:
            function()
            outcome = "ok"
        except Exception:
            traceback.print_exc()
            failed.append(function.__name__)
            outcome = "FAILED"
        print(f"sdk {function.__name__} ... {outcome} ({time.monotonic() - started:.2f} s)", flush=True)
    print(f"sdk result: {len(CASES) - len(failed)} passed; {len(failed)} failed (openai {openai.__version__})")
    sys.exit(1 if failed else 0)


main()
