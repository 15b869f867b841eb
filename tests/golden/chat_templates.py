#!/usr/bin/env python3
"""Renders chat templates the way Python's transformers does and keeps the texts as the golden data of src/session/template/tests.rs.

    pip install jinja2==3.1.6 && python3 tests/golden/chat_templates.py

rewrites tests/golden/chat_templates.json from tests/golden/chat-templates/*.jinja, and tests/golden/chat_expressions.json from the lines of
tests/golden/chat-expressions.txt, each a template of its own: filters and methods on values of all kinds, undefined ones among them. smollm2 and qwen2.5 are the templates that those models
carry (both Apache-2.0); the others are written here after the formats that the models of their names were trained on.
"""

import json
import pathlib

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather in a city, in °C.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}},
                "required": ["city"],
            },
        },
    }
]
CALL = {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "exact": True}}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "one question": {"messages": [turn("user", "What is 2+2?")]},
    "with a system": {"messages": [turn("system", "Be brief."), turn("user", "Hi there\n")]},
    "three turns": {"messages": [turn("user", "Hi"), turn("assistant", "Hello! 👋"), turn("user", "  Tell me a joke about 'quotes' & <tags>  ")]},
    "no prompt": {"messages": [turn("user", "Hi"), turn("assistant", "Bye")], "add_generation_prompt": False},
    "tools": {
        "messages": [
            turn("system", "Use tools."),
            turn("user", "Weather in Zürich?"),
            turn("assistant", "", tool_calls=[CALL]),
            turn("tool", "{\"temp\": 3.5}", tool_call_id="call12345"),
        ],
        "tools": TOOLS,
    },
    "thought": {
        "messages": [turn("user", "Think"), turn("assistant", "<think>\nhm\n</think>\n\nDone."), turn("user", "Again")],
        "enable_thinking": False,
    },
    "parts": {"messages": [turn("user", [{"type": "text", "text": " See "}, {"type": "image"}])]},
    "wrong order": {"messages": [turn("assistant", "I begin"), turn("assistant", "and go on")]},
    "empty": {"messages": []},
}


class Generation(Extension):
    """transformers' own block: prints what is inside."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True), lineno=line)


class Raised(jinja2.TemplateError):
    pass


def raise_exception(message):
    raise Raised(message)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = lambda value, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    env.globals["raise_exception"] = raise_exception
    return env


def render(source, variables):
    try:
        return {"text": environment().from_string(source).render(bos_token="<s>", eos_token="</s>", **variables)}
    except Raised as error:
        return {"raised": str(error)}
    except (jinja2.TemplateError, TypeError, AttributeError, KeyError, IndexError, ValueError):
        return {"failed": True}


def main():
    templates = {path.stem: path.read_text(encoding="utf-8") for path in sorted((HERE / "chat-templates").glob("*.jinja"))}
    cases = []
    for name, source in templates.items():
        for title, conversation in CONVERSATIONS.items():
            variables = {"add_generation_prompt": True, "date_string": "26 Jul 2024", **conversation}
            cases.append({"template": name, "conversation": title, "variables": variables, "expected": render(source, variables)})
    (HERE / "chat_templates.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    lines = (HERE / "chat-expressions.txt").read_text(encoding="utf-8").splitlines()
    said = {"messages": [turn("user", "Hi"), turn("assistant", "Yo")]}
    expressions = [{"source": line, "variables": said, "expected": render(line, said)} for line in lines]
    (HERE / "chat_expressions.json").write_text(json.dumps(expressions, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(len(expressions), "expressions,", sum("text" in case["expected"] for case in expressions), "with a text")
    print(len(cases), "renderings,", sum("text" in case["expected"] for case in cases), "with a text")


if __name__ == "__main__":
    main()
