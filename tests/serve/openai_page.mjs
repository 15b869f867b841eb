// Uses a server from a page of another origin, through the npm package openai, in headless Chromium.
// node openai_page.mjs CHROMIUM PACKAGE FOLDER: serves a page with the package in it, prints the page's origin, reads the
// server's URL from stdin, and goes on.
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { join, normalize } from "node:path";
import { createInterface } from "node:readline";
import { open } from "./browser.mjs";

const [chromium, packageFolder, folder] = process.argv.slice(2);
const site = createServer(({ url }, answer) => {
  if (url === "/") {
    answer.writeHead(200, { "Content-Type": "text/html" });
    return answer.end("<!doctype html><title>elsewhere</title><link rel=icon href=data:,>");
  }
  try {
    const text = readFileSync(join(packageFolder, normalize(new URL(url, "http://x").pathname)));
    answer.writeHead(200, { "Content-Type": "text/javascript" });
    answer.end(text);
  } catch {
    answer.writeHead(404);
    answer.end();
  }
}).listen(0, "127.0.0.1");
await new Promise((listening) => site.once("listening", listening));
const origin = `http://127.0.0.1:${site.address().port}`;
console.log(origin);
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const server = (await lines.next()).value;

const { command, evaluate, until, check, end } = await open(chromium, folder);
await command("Page.navigate", { url: `${origin}/` });
await until(`document.readyState === "complete" && document.title === "elsewhere"`);
await evaluate(`import("/index.mjs").then(({ OpenAI }) => {
  globalThis.OpenAI = OpenAI;
  globalThis.client = (more) => new OpenAI({ baseURL: ${JSON.stringify(server)} + "/v1", apiKey: "sesame", maxRetries: 0, dangerouslyAllowBrowser: true, ...more });
  globalThis.ask = { model: "any", temperature: 0, max_tokens: 24, ignore_eos: true, messages: [{ role: "user", content: "hello" }] };
})`);
const whole = await evaluate(`client().chat.completions.create(ask).then((reply) => reply.choices[0].message.content)`);
check("a reply", whole.length > 0);
const streamed = await evaluate(`(async () => {
  let text = "";
  for await (const chunk of await client().chat.completions.create({ ...ask, stream: true })) text += chunk.choices[0]?.delta.content ?? "";
  return text;
})()`);
check("a stream says the same", streamed === whole);
check("models are listed", (await evaluate(`client().models.list().then((list) => list.data[0].id)`)) === "tiny");
const beta = `client({ defaultHeaders: { "OpenAI-Beta": "assistants=v2", "X-Any-Other": "1" }, timeout: 50_000 })`;
check("headers of any name", (await evaluate(`${beta}.chat.completions.create(ask).then((reply) => reply.choices[0].message.content)`)) === whole);
const refused = (call) => evaluate(`${call}.then(() => "nothing", (error) => error.constructor.name + " " + error.code)`);
check("a wrong field", (await refused(`client().chat.completions.create({ ...ask, temprature: 1 })`)) === "BadRequestError unknown_parameter");
check("a wrong key", (await refused(`client({ apiKey: "x" }).chat.completions.create(ask)`)) === "AuthenticationError invalid_api_key");
console.log("all is well");
end(0);
