// Drives the page in headless Chromium over the DevTools protocol, without any package.
// node page.mjs CHROMIUM URL FOLDER: asks twice, stops a reply, asks again, and leaves screenshots in the folder.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { open } from "./browser.mjs";

const [chromium, url, folder] = process.argv.slice(2);
const { command, evaluate, until, check, complaints, end } = await open(chromium, folder);
const screenshot = async (name) => {
  const { result } = await command("Page.captureScreenshot", { format: "png" });
  writeFileSync(join(folder, name), Buffer.from(result.data, "base64"));
};
const ask = (text) => evaluate(`(() => { document.getElementById("prompt").value = ${JSON.stringify(text)}; send(); })()`);

await command("Page.navigate", { url });
await until(`document.readyState === "complete" && typeof props !== "undefined" && props !== null`);
await screenshot("1-empty.png");
check("the model is named", (await evaluate(`document.getElementById("model").textContent`)).includes("blocks"));

await evaluate(`document.getElementById("temperature").value = 0; document.getElementById("max").value = 32;`);
await ask("Why is the sky blue? <b>&</b>");
await until(`running === null && turns.length === 2`);
await screenshot("2-reply.png");
check("the message is shown as it is", (await evaluate(`document.querySelector(".mine p").textContent`)) === "Why is the sky blue? <b>&</b>");
check("the reply is shown", (await evaluate(`document.querySelector(".reply .text").textContent === turns[1].content`)));
check("its figures are shown", (await evaluate(`document.querySelector(".numbers").textContent`)).includes("tokens/s"));
const first = await evaluate(`turns[1].content`);
const coloured = await evaluate(`document.querySelectorAll(".text span[data-exit]").length`);
console.log("coloured tokens:", coloured);
check("exits are told apart", coloured === 0 || (await evaluate(`document.querySelector(".numbers").textContent`)).includes("left after a layer"));
check("bars belong to exits", (await evaluate(`document.querySelectorAll(".reply .bars").length`)) === (coloured > 0 ? 1 : 0));

await evaluate(`document.querySelector(".again").click()`);
await until(`running === null && turns.length === 2`);
check("regenerated greedily it is the same", (await evaluate(`turns[1].content`)) === first);

await evaluate(`document.getElementById("theme").click(); document.getElementById("max").value = 100000;`);
await ask("Tell me a long story.");
await until(`document.querySelectorAll(".reply:last-child .text span").length > 8`);
await screenshot("3-streaming-other-theme.png");
await evaluate(`document.getElementById("stop").click()`);
await until(`running === null && turns.length === 4`);
check("a stopped reply is kept", (await evaluate(`turns[3].content.length`)) > 0);

await command("Emulation.setDeviceMetricsOverride", { width: 400, height: 800, deviceScaleFactor: 1, mobile: true });
await screenshot("4-narrow.png");
const fits = () => evaluate(`document.documentElement.scrollWidth <= innerWidth &&
  [...document.querySelectorAll("header button")].every((button) => button.getBoundingClientRect().right <= innerWidth)`);
check("nothing is wider than a phone", await fits());
await evaluate(`document.getElementById("settings-toggle").click()`);
await screenshot("5-narrow-settings.png");
check("neither are the settings", await fits());
check("the page has nothing to complain of: " + complaints.join("; "), complaints.length === 0);
console.log("all is well");
end(0);
