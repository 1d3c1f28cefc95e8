/** Elements out of plain data. Text only ever becomes text nodes, so nothing that is shown can be run. */

const SVG = "http://www.w3.org/2000/svg";

/** `properties` are set as properties; `class`, `role`, `aria-*` and `data-*` as attributes; `--*` as style variables. */
export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("--")) element.style.setProperty(key, value);
    else if (key === "class" || key === "role" || key.includes("-")) element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function cross() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", "M3 3l10 10M13 3L3 13");
  svg.append(path);
  return svg;
}

export function percent(score) {
  const value = score * 100;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value > 99.9 && value < 100) return "> 99.9 %";
  return `${value.toFixed(value > 0 && value < 9.95 || value >= 99 && value < 100 ? 1 : 0)} %`;
}

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  return count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}
