/** Draws a label's heat map over its picture: what spoke for the label, from clear (nothing) to pale yellow (most). */

const STOPS = [
  [0.0, [60, 9, 101]],
  [0.3, [135, 33, 107]],
  [0.55, [209, 69, 64]],
  [0.78, [249, 142, 9]],
  [1.0, [252, 245, 160]],
];
const LONGEST_SIDE = 560;
const DETAIL = 16; // pixels drawn for each cell of the map; what lies between cells is interpolated

/** `map`: rows of signed numbers; `box`: the part of the picture, in its pixels, that the network saw. */
export function drawHeatMap(canvas, map, [left, top, right, bottom], width, height) {
  const scale = LONGEST_SIDE / Math.max(width, height);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  const box = [left * scale, top * scale, (right - left) * scale, (bottom - top) * scale];
  context.imageSmoothingQuality = "high";
  context.drawImage(painted(map), ...box);
  if (left > 1 || top > 1 || width - right > 1 || height - bottom > 1) shadeUnseen(context, box);
}

/** Once for the legend beside it. */
export function legendGradient() {
  return `linear-gradient(90deg, ${STOPS.map(([at, rgb]) => `rgb(${rgb.join(" ")} / ${opacity(at)}) ${at * 100}%`).join(", ")})`;
}

function painted(map) {
  const rows = map.length * DETAIL;
  const columns = map[0].length * DETAIL;
  const most = Math.max(...map.flat(), 0) || 1;
  const image = new ImageData(columns, rows);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const value = Math.max(0, between(map, (y + 0.5) / DETAIL - 0.5, (x + 0.5) / DETAIL - 0.5)) / most;
      image.data.set([...colour(value), 255 * opacity(value)], 4 * (y * columns + x));
    }
  }
  const canvas = new OffscreenCanvas(columns, rows);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function between(map, y, x) {
  const [y0, y1, dy] = neighbours(y, map.length);
  const [x0, x1, dx] = neighbours(x, map[0].length);
  const upper = map[y0][x0] * (1 - dx) + map[y0][x1] * dx;
  const lower = map[y1][x0] * (1 - dx) + map[y1][x1] * dx;
  return upper * (1 - dy) + lower * dy;
}

function neighbours(at, count) {
  const inside = Math.min(Math.max(at, 0), count - 1);
  const first = Math.floor(inside);
  return [first, Math.min(first + 1, count - 1), inside - first];
}

function colour(value) {
  const above = Math.max(1, STOPS.findIndex(([at]) => at >= value));
  const [[from, low], [to, high]] = [STOPS[above - 1], STOPS[above]];
  const share = (value - from) / (to - from);
  return low.map((part, index) => part + (high[index] - part) * share);
}

function opacity(value) {
  return 0.85 * Math.min(1, value * 1.6);
}

function shadeUnseen(context, [x, y, width, height]) {
  context.fillStyle = "rgb(0 0 0 / 0.45)";
  const path = new Path2D();
  path.rect(0, 0, context.canvas.width, context.canvas.height);
  path.rect(x, y, width, height);
  context.fill(path, "evenodd");
}
