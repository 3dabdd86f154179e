// Draws numbers over time, and bars, as SVG of our own, each with a table that says the same.

import { h, table } from "./dom.js";

const [HEIGHT, LEFT, BOTTOM, TOP] = [160, 52, 22, 10];
const [NARROW, WIDE] = [240, 640]; // how wide a chart is at least, and before it is placed
const MARKS = 4;
const SHOWN = 200; // points; older ones are thinned
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** Return points of which every second one is left out where there are too many; first and last stay. */
export function thin(points) {
  return points.length > SHOWN ? points.filter((_, i) => i % 2 === 0 || i === points.length - 1) : points;
}

/** Return a round number of at least `value`, for the end of an axis. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return power * ([1, 2, 4, 6, 8, 10].find((step) => step * power >= value) ?? 10);
}

/** Return how wide a picture is: it is drawn as large as it is shown, so that its words are as large as others. */
const widthOf = (picture) => Math.max(NARROW, picture.clientWidth || WIDE);

function axis(most, width, words) {
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / most);
  return {
    y,
    marks: Array.from({ length: MARKS + 1 }, (_, i) => (most * i) / MARKS).map((value) => [
      h("line.grid", { x1: LEFT, x2: width, y1: y(value), y2: y(value) }),
      h("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, words(value))]),
  };
}

const drawing = (label, width, ...children) =>
  h("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label, class: "chart" }, children);

function figure(title, unit) {
  const picture = h("div");
  const rows = h("div.scroll", { tabindex: 0, role: "region", "aria-label": `${title} as a table` });
  const node = h("figure.card", h("figcaption", h("strong", title), h("span.quiet", ` ${unit}`)), picture,
    h("details", h("summary", "As a table"), rows));
  return { node, picture, rows };
}

/** Return a chart over time: `node`, and `show` for points [unix seconds, number]; `most` fixes the axis' end. */
export function timeline({ title, unit, words, most = null }) {
  const { node, picture, rows } = figure(title, unit);
  const show = (points, limit = most) => {
    const [first, last] = [points[0][0], points.at(-1)[0]];
    const top = limit ?? ceiling(Math.max(...points.map(([, value]) => value), 1));
    const width = widthOf(picture);
    const { y, marks } = axis(top || 1, width, words);
    const x = (at) => LEFT + ((width - LEFT - 4) * (at - first)) / (last - first || 1);
    const path = points.map(([at, value], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const clock = (at) => CLOCK.format(new Date(at * 1000));
    picture.replaceChildren(drawing(
      `${title}, ${unit}: from ${words(points[0][1])} at ${clock(first)} to ${words(points.at(-1)[1])} at ${clock(last)}`,
      width, marks,
      h("path.area", { d: `${path}L${x(last).toFixed(1)} ${y(0)}L${LEFT} ${y(0)}Z` }), h("path.curve", { d: path }),
      h("circle.point", { cx: x(last), cy: y(points.at(-1)[1]), r: 3 }),
      h("text", { x: LEFT, y: HEIGHT - 4 }, clock(first)),
      h("text", { x: width, y: HEIGHT - 4, "text-anchor": "end" }, clock(last))));
    const every = Math.ceil(points.length / 60);
    const told = points.filter((_, i) => i % every === 0 || i === points.length - 1);
    rows.replaceChildren(table({ caption: `${title}, ${unit}`, columns: ["Time", `${unit}:number`],
      rows: told.map(([at, value]) => [clock(at), words(value)]) }));
  };
  return { node, show };
}

/** Return a chart of bars: `node`, and `show` for [name, number] pairs, to be called when the node is in its place. */
export function bars({ title, unit, words }) {
  const { node, picture, rows } = figure(title, unit);
  const show = (points) => {
    const width = widthOf(picture);
    const { y, marks } = axis(ceiling(Math.max(...points.map(([, value]) => value), 1)), width, words);
    const step = (width - LEFT) / points.length;
    const drawn = points.map(([, value], i) =>
      h("rect.column", { x: LEFT + i * step + step * 0.15, width: Math.max(1, step * 0.7),
      y: y(value), height: Math.max(0, HEIGHT - BOTTOM - y(value)) }));
    picture.replaceChildren(drawing(`${title}, ${unit}, for ${points.length} days`, width, marks, drawn,
      h("text", { x: LEFT, y: HEIGHT - 4 }, points[0][0]),
      h("text", { x: width, y: HEIGHT - 4, "text-anchor": "end" }, points.at(-1)[0])));
    rows.replaceChildren(table({ caption: `${title}, ${unit}`, columns: ["Day", `${unit}:number`],
      rows: points.map(([name, value]) => [name, words(value)]) }));
  };
  return { node, show };
}
