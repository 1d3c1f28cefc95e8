// Ask about pictures with Node's own fetch (Node 18 or newer; a browser's is the same), all in one request.
//   node examples/ask.mjs examples/digit-7.png …
//   TRESNET_URL=https://gateway.example TRESNET_API_KEY=tresnet_… node examples/ask.mjs …
import { readFile } from "node:fs/promises";
import { basename } from "node:path";

const url = process.env.TRESNET_URL ?? "http://127.0.0.1:8080";
const paths = process.argv.slice(2);
const ends = Date.now() + 60_000;

const form = new FormData();
for (const path of paths) form.append("image", new Blob([await readFile(path)]), basename(path));

async function ask() {
  for (;;) {
    const left = ends - Date.now();
    const headers = { "X-Request-Timeout-Ms": String(left) };
    if (process.env.TRESNET_API_KEY) headers["X-API-Key"] = process.env.TRESNET_API_KEY;
    const answer = await fetch(`${url}/classify?top_k=1`, {
      method: "POST", body: form, headers, signal: AbortSignal.timeout(left),
    });
    if (answer.ok) return answer.json();
    // RFC 9457, with a code for programs and a detail for people; a proxy's page is none.
    const problem = await answer.json().catch(() => ({ code: answer.status, detail: answer.statusText }));
    const pause = 1000 * (Number(answer.headers.get("Retry-After")) || 1) * (1 + Math.random() / 4);
    const passes = [429, 502, 503, 504].includes(answer.status);
    if (!passes || Date.now() + pause > ends) throw new Error(`${problem.code}: ${problem.detail}`);
    await new Promise((wake) => setTimeout(wake, pause));
  }
}

try {
  const { results } = await ask();
  results.forEach((result, i) => {
    const name = basename(paths[i]);
    if (result.status === "ok") {
      const [best] = result.predictions;
      console.log(`${name} ${best.label} ${best.score.toFixed(3)}`);
    } else {
      console.log(`${name} ${result.error.code}`);
      process.exitCode = 1;
    }
  });
} catch (error) {
  console.error(String(error));
  process.exitCode = 1;
}
