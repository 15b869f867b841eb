"""Calls tools through the openai package, whole and streamed, and lets an agent of openai-agents call one of its own."""
import json
import sys
from typing import Literal

import openai
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=60)
PARAMETERS = {
    "type": "object",
    "properties": {"unit": {"type": "string", "enum": ["C", "F"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("weather", "pool")]
ASK = dict(model="any", temperature=0, max_tokens=300, tools=TOOLS, messages=[{"role": "user", "content": "How warm is it?"}])


def check(name, condition):
    print(("ok" if condition else "WRONG"), name)
    if not condition:
        sys.exit(1)


reply = client.chat.completions.create(**ASK, tool_choice="required").choices[0]
call = reply.message.tool_calls[0]
check("a call", reply.finish_reason == "tool_calls" and reply.message.content is None)
check("its arguments are JSON", json.loads(call.function.arguments)["unit"] in ("C", "F"))

named = {"type": "function", "function": {"name": "pool"}}
check("a named function", client.chat.completions.create(**ASK, tool_choice=named).choices[0].message.tool_calls[0].function.name == "pool")

with client.chat.completions.stream(**ASK, tool_choice="required") as stream:
    for _ in stream:
        pass
    final = stream.get_final_completion().choices[0]
streamed = final.message.tool_calls[0].function
check("a stream adds up", (streamed.name, streamed.arguments) == (call.function.name, call.function.arguments))
check("and ends as the whole does", final.finish_reason == "tool_calls")

history = ASK["messages"] + [reply.message, {"role": "tool", "tool_call_id": call.id, "content": "12"}]
after = client.chat.completions.create(**{**ASK, "messages": history, "max_tokens": 4})
check("the history goes back as it came", after.usage.prompt_tokens > 0)

# An agent: it is made to call its tool, runs it, sends what came of it, and takes the next reply for its answer.
seen = []


@function_tool
def weather(unit: Literal["C", "F"]) -> str:
    """How warm it is."""
    seen.append(unit)
    return "12"


set_tracing_disabled(True)
model = OpenAIChatCompletionsModel(model="any", openai_client=openai.AsyncOpenAI(base_url=sys.argv[1], api_key="none", max_retries=0))
settings = ModelSettings(tool_choice="required", temperature=0, max_tokens=300)
agent = Agent(name="a", instructions="Use the tool.", tools=[weather], model=model, model_settings=settings)
result = Runner.run_sync(agent, "How warm is it?", max_turns=3)
check(f"an agent called its tool: {seen}", len(seen) == 1)
kinds = [item.type for item in result.new_items]
check(f"and went on: {kinds}", kinds[:2] == ["tool_call_item", "tool_call_output_item"])
print("all is well")
