"""Drives a gateway in front of scripted nodes with LangChain, in each dialect.

usage: langchain.py http://127.0.0.1:PORT        (`.ci/scripted` starts the nodes: `actor`, and one with `embedder`)
"""

import sys
import traceback
from importlib.metadata import version

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

ROOT = sys.argv[1]
MODELS = {
    "chat": ChatOpenAI(base_url=ROOT + "/v1", api_key="none", model="actor", max_retries=0, stream_usage=True),
    "responses": ChatOpenAI(base_url=ROOT + "/v1", api_key="none", model="actor", max_retries=0, use_responses_api=True),
    "messages": ChatAnthropic(base_url=ROOT, api_key="none", model="actor", max_retries=0, max_tokens=100),
}
# What `actor` says, as in scripted_sdk.py.
INPUTS = [{"path": "notes.txt", "lines": [1, 2]}, {"path": 'a "b"\n</tool_call>', "lines": []}]


@tool
def read(path: str, lines: list[int]) -> str:
    """Reads lines of a file."""
    return "heron"


def works(model):
    """One turn with calls, whole and streamed, and the answer to their results."""
    asked = HumanMessage("What do the notes say?")
    bound = model.bind_tools([read])
    whole = bound.invoke([asked])
    assert [call["args"] for call in whole.tool_calls] == INPUTS, whole
    chunks = list(bound.stream([asked]))
    streamed = chunks[0]
    for chunk in chunks[1:]:
        streamed += chunk
    assert [call["args"] for call in streamed.tool_calls] == INPUTS, streamed
    assert sum(len(chunk.tool_call_chunks) for chunk in chunks) > 4, "calls come in fragments"
    assert streamed.text == whole.text == "Reading.", (streamed, whole)
    assert streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"] > 0
    results = [ToolMessage(read.invoke(call["args"]), tool_call_id=call["id"]) for call in whole.tool_calls]
    assert bound.invoke([asked, whole, *results]).text == "It says heron."


def embeds():
    """Texts and a query, as numbers; LangChain's own count of tokens is for OpenAI's models."""
    embedder = OpenAIEmbeddings(base_url=ROOT + "/v1", api_key="none", model="embedder", max_retries=0, check_embedding_ctx_length=False)
    texts = embedder.embed_documents(["a heron", "the reeds"])
    assert texts[0] == embedder.embed_query("a heron") != texts[1], texts


def main():
    cases = {f"over {name}": lambda model=model: works(model) for name, model in MODELS.items()} | {"embeds": embeds}
    failed = []
    for name, run in cases.items():
        try:
            run()
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print(f"sdk LangChain {name} ... {'FAILED' if name in failed else 'ok'}", flush=True)
    versions = ", ".join(f"{package} {version(package)}" for package in ("langchain-openai", "langchain-anthropic"))
    print(f"sdk result: {len(cases) - len(failed)} passed; {len(failed)} failed (scripted nodes; {versions})")
    sys.exit(1 if failed else 0)


main()
