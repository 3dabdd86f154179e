// Draws numbers over time, and bars, as SVG of our own, each with a table that says the same.

import { h, table } from "./dom.js";

const [HEIGHT, LEFT, BOTTOM, TOP] = [160, 52, 22, 10];
const NARROW = 240; // how wide a chart is at least
const MARKS = 4;
const SHOWN = 200; // points; older ones are thinned
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** Return points of which every second one is left out where there are too many; the first two and the last stay. */
export function thin(points) {
  return points.length > SHOWN ? points.filter((_, i) => i < 2 || i % 2 === 0 || i === points.length - 1) : points;
}

/** Return a round number of at least `value`, for the end of an axis. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return power * ([1, 2, 4, 6, 8, 10].find((step) => step * power >= value) ?? 10);
}

/** Return round numbers from 0 to at most `most`, some four of them. */
function rounds(most) {
  const least = most / MARKS;
  const power = 10 ** Math.floor(Math.log10(least));
  const round = [1, 2, 2.5, 5, 10].find((each) => each * power >= least && (each !== 2.5 || power >= 10));
  const step = Math.max(most >= 2 ? 1 : 0, round * power);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, i) => step * i);
}

/** Draw into a picture now and whenever it has another width: as large as it is shown, so that its words are, too. */
function painter(picture, paint) {
  let painted = null;
  const again = () => {
    painted = Math.max(NARROW, picture.clientWidth);
    picture.replaceChildren(paint(painted));
  };
  new ResizeObserver(() => painted && painted !== Math.max(NARROW, picture.clientWidth) && again()).observe(picture);
  return again;
}

function axis(most, width, words) {
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / most);
  return {
    y,
    marks: rounds(most).map((value) => [
      h("line.grid", { x1: LEFT, x2: width, y1: y(value), y2: y(value) }),
      h("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, words(value))]),
  };
}

const drawing = (label, width, ...children) =>
  h("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label, class: "chart" }, children);

function figure(title, unit) {
  const picture = h("div");
  const rows = h("div.scroll", { tabindex: 0, role: "region", "aria-label": `${title} as a table` });
  const note = h("p.hint");
  const node = h("figure.card", h("figcaption", h("strong", title), h("span.quiet", ` ${unit}`)), picture, note,
    h("details", h("summary", "As a table"), rows));
  return { node, picture, rows, note };
}

const clock = (at) => CLOCK.format(new Date(at * 1000));

/**
 * Return a chart over time: `node`, and `show` for points [unix seconds, number]; `most` is the axis' end. With `unseen`
 * nobody knows how it went from the first point to the second.
 */
export function timeline({ title, unit, words }) {
  const { node, picture, rows, note } = figure(title, unit);
  let shown = null;
  const paint = painter(picture, (width) => {
    const { points, most, unseen } = shown;
    const [first, last] = [points[0][0], points.at(-1)[0]];
    const { y, marks } = axis(most ?? ceiling(Math.max(...points.map(([, value]) => value), 1)), width, words);
    const x = (at) => LEFT + ((width - LEFT - 4) * (at - first)) / (last - first || 1);
    const path = (some) =>
      some.map(([at, value], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    return drawing(
      `${title}, ${unit}: from ${words(points[0][1])} at ${clock(first)} to ${words(points.at(-1)[1])} at ${clock(last)}`,
      width, marks,
      h("path.area", { d: `${path(points)}L${x(last).toFixed(1)} ${y(0)}L${LEFT} ${y(0)}Z` }),
      unseen && h("path.curve.guess", { d: path(points.slice(0, 2)) }),
      h("path.curve", { d: path(unseen ? points.slice(1) : points) }),
      h("circle.point", { cx: x(last), cy: y(points.at(-1)[1]), r: 3 }),
      h("text", { x: LEFT, y: HEIGHT - 4 }, clock(first)),
      h("text", { x: width, y: HEIGHT - 4, "text-anchor": "end" }, clock(last)));
  });
  const show = (points, { most = null, unseen = false, words: said = [] } = {}) => {
    shown = { points, most, unseen };
    note.replaceChildren(...said);
    paint();
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
  let points = null;
  const paint = painter(picture, (width) => {
    const { y, marks } = axis(ceiling(Math.max(...points.map(([, value]) => value), 1)), width, words);
    const step = (width - LEFT) / points.length;
    const drawn = points.map(([, value], i) =>
      h("rect.column", { x: LEFT + i * step + step * 0.15, width: Math.max(1, step * 0.7),
      y: y(value), height: Math.max(0, HEIGHT - BOTTOM - y(value)) }));
    return drawing(`${title}, ${unit}, for ${points.length} days`, width, marks, drawn,
      h("text", { x: LEFT, y: HEIGHT - 4 }, points[0][0]),
      h("text", { x: width, y: HEIGHT - 4, "text-anchor": "end" }, points.at(-1)[0]));
  });
  const show = (found) => {
    points = found;
    paint();
    rows.replaceChildren(table({ caption: `${title}, ${unit}`, columns: ["Day", `${unit}:number`],
      rows: points.map(([name, value]) => [name, words(value)]) }));
  };
  return { node, show };
}
