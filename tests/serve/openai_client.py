"""Uses a server through the openai package: what it offers, what it refuses, and what the package makes of both."""
import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="sesame", max_retries=0, timeout=60)
ASK = dict(model="any", temperature=0, max_tokens=24, messages=[{"role": "user", "content": "hello"}])
FULL = {"ignore_eos": True}


def check(name, condition):
    print(("ok" if condition else "WRONG"), name)
    if not condition:
        sys.exit(1)


def refused(name, kind, call):
    try:
        call()
    except kind as error:
        check(f"{name}: {error.code}", True)
        return error
    check(f"{name}: nothing was refused", False)


models = client.models.list().data
check("models are listed", [model.id for model in models] == ["tiny"])
check("a model is found", client.models.retrieve("tiny").object == "model")

reply = client.chat.completions.create(**ASK, extra_body=FULL)
whole = reply.choices[0].message.content
check("a reply", reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 24)
check("our own fields are kept", len(reply.choices[0].exit_layers) == 24 and reply.timings["exits"]["mean_depth"] == 6)

stream = client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}, extra_body=FULL)
chunks = list(stream)
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
check("a stream says the same", text == whole)
check("its usage comes last", chunks[-1].usage.completion_tokens == 24 and not chunks[-1].choices)

raw = client.completions.create(model="any", prompt="abc", max_tokens=5, temperature=0, logprobs=2, extra_body=FULL)
check("a completion", len(raw.choices[0].logprobs.tokens) == 5 and len(raw.choices[0].logprobs.top_logprobs[0]) == 2)

sure = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2, extra_body=FULL)
check("log-probabilities", len(sure.choices[0].logprobs.content) == 24)

schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
formed = client.chat.completions.create(
    **{**ASK, "max_tokens": 400},
    response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
)
check("a schema is followed", isinstance(json.loads(formed.choices[0].message.content)["ok"], bool))

tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
check("tools are taken", client.chat.completions.create(**ASK, tools=tools).choices[0].message.content is not None)

with client.chat.completions.create(**{**ASK, "max_tokens": 400}, stream=True, extra_body=FULL) as left:
    next(iter(left))
check("a stream that is left in the middle", client.chat.completions.create(**ASK).id)

parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
same = client.chat.completions.create(**{**ASK, "messages": parts}, extra_body=FULL)
check("parts are one text", same.choices[0].message.content == whole)

refused("a wrong number", openai.BadRequestError, lambda: client.chat.completions.create(**{**ASK, "temperature": -1}))
error = refused("a misspelt field", openai.BadRequestError,
                lambda: client.chat.completions.create(**ASK, extra_body={"temprature": 1}))
check("it is named with what it may have meant", error.param == "temprature" and "temperature" in error.message)
refused("several replies", openai.BadRequestError, lambda: client.chat.completions.create(**ASK, n=3))
refused("no such model", openai.NotFoundError, lambda: client.models.retrieve("gpt"))
long = [{"role": "user", "content": "word " * 1000}]
error = refused("a long prompt", openai.BadRequestError, lambda: client.chat.completions.create(**{**ASK, "messages": long}))
check("agents find the word", error.code == "context_length_exceeded")
refused("a wrong key", openai.AuthenticationError, lambda: client.with_options(api_key="x").models.list())
print("all is well")
