/**
 * A model card's Markdown as DOM nodes: headings, paragraphs, lists, tables, code, emphasis, links to the web.
 * Anything else stays the text that it is. Pictures are named, not loaded.
 */

import { el } from "./dom.js";

const INLINE = /\\[\\|`*[]|`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|(!?)\[([^\]]*)\]\(([^)\s]+)\)/g;
const MOST_AT_ONCE = 4000; // characters; what a hostile card makes of a pattern stays a matter of milliseconds
const BLOCKS = [
  [/^```/, fenced],
  [/^#{1,6}\s/, heading],
  [/^\|/, table],
  [/^\s*[-*+]\s/, (lines) => list(lines, "ul", /^\s*[-*+]\s+/)],
  [/^\s*\d+[.)]\s/, (lines) => list(lines, "ol", /^\s*\d+[.)]\s+/)],
];

export function render(markdown, headingOffset = 1) {
  const lines = markdown.replaceAll("\r", "").split("\n");
  const nodes = [];
  while (lines.length) {
    if (!lines[0].trim()) lines.shift();
    else nodes.push((kindOf(lines[0]) ?? paragraph)(lines, headingOffset));
  }
  return nodes;
}

function kindOf(line) {
  return BLOCKS.find(([pattern]) => pattern.test(line))?.[1];
}

/** Takes lines off the front for as long as `belongs` says so. */
function take(lines, belongs) {
  const end = lines.findIndex((line) => !belongs(line));
  return lines.splice(0, end < 0 ? lines.length : end);
}

function fenced(lines) {
  lines.shift();
  const code = take(lines, (line) => !line.startsWith("```"));
  lines.shift();
  return el("pre", { tabIndex: 0 }, el("code", {}, code.join("\n")));
}

function heading(lines, offset) {
  const line = lines.shift().trimEnd();
  const level = /^#+/.exec(line)[0].length;
  let end = line.length;
  while (end > level && line[end - 1] === "#") end -= 1;
  const closes = /\s/.test(line[end - 1]); // as in `# About #`, but not in `# About C#`
  return el(`h${Math.min(6, level + offset)}`, {}, ...inline(line.slice(level, closes ? end : line.length).trim()));
}

function paragraph(lines) {
  const first = lines.shift();
  return el("p", {}, ...inline([first, ...take(lines, (line) => line.trim() && !kindOf(line))].join(" ")));
}

function list(lines, name, marker) {
  const items = [];
  for (const line of take(lines, (line) => marker.test(line) || (/^\s+\S/.test(line) && !kindOf(line)))) {
    if (marker.test(line)) items.push(line.replace(marker, ""));
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  return el(name, {}, ...items.map((item) => el("li", {}, ...inline(item))));
}

function table(lines) {
  const rows = take(lines, (line) => line.startsWith("|")).map(cells);
  const ruled = rows.length > 1 && rows[1].every((cell) => /^:?-+:?$/.test(cell));
  const head = ruled ? rows[0].map((cell) => el("th", { scope: "col" }, ...inline(cell))) : [];
  const body = rows.slice(ruled ? 2 : 0).map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, ...inline(cell)))));
  // Wide tables scroll by themselves, with the keyboard too.
  return el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Table" },
    el("table", {}, head.length ? el("thead", {}, el("tr", {}, ...head)) : null, el("tbody", {}, ...body)));
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

/** What the cards' own writer escapes, for labels may hold anything. */
function plain(text) {
  return text.replace(/\\([\\|`*[])/g, "$1").replaceAll("&lt;", "<");
}

function inline(text) {
  return [...pieces(text)].flatMap(marked);
}

/** Cut at spaces; together they are the text. */
function* pieces(text) {
  let start = 0;
  while (text.length - start > MOST_AT_ONCE) {
    const space = text.lastIndexOf(" ", start + MOST_AT_ONCE);
    const end = space > start ? space : start + MOST_AT_ONCE;
    yield text.slice(start, end);
    start = end;
  }
  yield text.slice(start);
}

function marked(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, code, strong, emphasis, picture, label, target] = match;
    nodes.push(plain(text.slice(end, match.index)));
    end = match.index + whole.length;
    if (whole[0] === "\\") nodes.push(plain(whole));
    else if (code) nodes.push(el("code", {}, code));
    else if (strong) nodes.push(el("strong", {}, plain(strong)));
    else if (emphasis) nodes.push(el("em", {}, plain(emphasis)));
    else if (picture) nodes.push(el("em", {}, label ? `(picture: ${label})` : "(picture)"));
    else if (/^https?:\/\//.test(target)) nodes.push(el("a", { href: target, rel: "noopener noreferrer", target: "_blank" }, plain(label)));
    else nodes.push(plain(label));
  }
  nodes.push(plain(text.slice(end)));
  return nodes.filter((node) => node !== "");
}
