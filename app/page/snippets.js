/** The same question for a shell and for Python. The key itself never gets in: its variable does. */

import { hasKey, questionUrl } from "./service.js";

export function curl(fileName, task, parameters) {
  const key = hasKey() ? ` -H "X-API-Key: $TRESNET_API_KEY"` : "";
  return `curl${key} --data-binary ${shell(`@${fileName}`)} \\\n  ${shell(questionUrl(task, parameters).href)}`;
}

export function python(fileName, task, parameters) {
  const given = Object.entries(parameters).map(([name, value]) => `${text(name)}: ${literal(value)}`);
  const listed = task === "tag" ? "tags" : "predictions";
  return [
    hasKey() ? "import os\n" : null,
    "import httpx\n",
    `with open(${text(fileName)}, "rb") as file:`,
    "    picture = file.read()",
    "answer = httpx.post(",
    `    ${text(questionUrl(task, {}).href)},`,
    `    params={${given.join(", ")}},`,
    hasKey() ? `    headers={"X-API-Key": os.environ["TRESNET_API_KEY"]},` : null,
    "    content=picture,",
    ")",
    "answer.raise_for_status()",
    `for found in answer.json()["results"][0]["${listed}"]:`,
    `    print(found["label"], found["score"])`,
  ].filter((line) => line !== null).join("\n");
}

function shell(word) {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

function text(value) {
  return JSON.stringify(value); // JSON's escapes are Python's, too
}

function literal(value) {
  return value === true ? "True" : typeof value === "number" ? String(value) : text(value);
}
