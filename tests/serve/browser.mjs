// Headless Chromium over the DevTools protocol, without any package: what the scripts that drive a page share.
import { spawn } from "node:child_process";
import { join } from "node:path";

// Starts Chromium with a profile in `folder`. It is ended with this program, whatever ends that, and after 150 seconds.
export async function open(chromium, folder) {
  const browser = spawn(chromium, ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
    `--user-data-dir=${join(folder, "profile")}`, "--window-size=1280,860", "about:blank"], { stdio: ["ignore", "ignore", "pipe"] });
  const end = (code, message) => { if (message) console.error(message); browser.kill("SIGKILL"); process.exit(code); };
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"]) process.on(signal, () => end(1, signal));
  setTimeout(() => end(1, "the page took too long"), 150_000);

  const endpoint = await new Promise((found) => {
    let text = "";
    browser.stderr.on("data", (data) => {
      text += data;
      const match = text.match(/ws:\/\/([^/]+)\//);
      if (match) found(match[1]);
    });
  });
  const pages = await (await fetch(`http://${endpoint}/json/list`)).json();
  const socket = new WebSocket(pages.find((page) => page.type === "page").webSocketDebuggerUrl);
  await new Promise((open) => { socket.onopen = open; });

  let count = 0;
  const waiting = new Map();
  const complaints = [];
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.id) waiting.get(message.id)(message);
    if (message.method === "Runtime.exceptionThrown") complaints.push(message.params.exceptionDetails.exception?.description);
    if (message.method === "Log.entryAdded" && message.params.entry.level === "error") complaints.push(message.params.entry.text);
  };
  const command = (method, params = {}) => new Promise((done) => {
    waiting.set(++count, done);
    socket.send(JSON.stringify({ id: count, method, params }));
  });
  const evaluate = async (expression) => {
    const { result } = await command("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (result.exceptionDetails) end(1, `${expression}: ${result.exceptionDetails.exception?.description}`);
    return result.result.value;
  };
  const until = async (expression) => {
    while (!(await evaluate(expression))) await new Promise((next) => setTimeout(next, 30));
  };
  const check = (name, condition) => { console.log(condition ? "ok" : "WRONG", name); if (!condition) end(1); };
  await command("Runtime.enable");
  await command("Log.enable");
  await command("Page.enable");
  return { command, evaluate, until, check, complaints, end };
}
