// Drop points into the plane of a trained flow, follow them in both directions, and save steps.
import {velocity, rk4, normals} from "./pieces.js";
import {Stage, animate, parts, until} from "./stage.js";

const FINE = 64, SECONDS = 3, MOST = 400, REACH = 4.6;

export function start(figure, {flows, data}) {
  const all = parts(figure), part = name => all[name];
  const {canvas, model, way, steps, time} = all;
  const velocities = Object.fromEntries(
    Object.entries(flows).map(([name, flow]) => [name, velocity(flow)]));
  const normal = normals(7);
  let points = [], paths = [], errors = [], cursor = null, stop = () => {};

  const forward = () => way.value == "forward";
  const ends = () => (forward() ? [0, 1] : [1, 0]);

  const stage = new Stage(canvas, REACH, stage => {
    const {path, end, ink, faint} = stage.colors;
    if (forward()) for (const radius of [1, 2, 3]) stage.ring(radius, faint);
    else for (const point of data) stage.disc(point, 1.2, faint);
    for (const points of paths) {
      const seen = until(points, +time.value / 100);
      stage.line(seen, path, 1.2, 0.7);
      points.forEach((point, i) => { if (i < seen.length - 1) stage.disc(point, 1.6, path); });
      stage.disc(points[0], 2.4, ink);
      stage.disc(seen.at(-1), 3, end);
    }
    if (cursor) {
      const [x, y] = cursor;
      stage.line([[x - 0.3, y], [x + 0.3, y]], ink, 1.5);
      stage.line([[x, y - 0.3], [x, y + 0.3]], ink, 1.5);
    }
  });

  function solve() {
    const v = velocities[model.value];
    const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
    paths = points.map(x => rk4(v, x, ...ends(), +steps.value));
    errors = points.map((x, i) => distance(paths[i].at(-1), rk4(v, x, ...ends(), FINE).at(-1)));
    say();
    stage.paint();
  }

  function say() {
    const n = points.length, k = +steps.value;
    part("steps-shown").textContent = k;
    part("time-shown").textContent = (+time.value / 100).toFixed(2);
    const mean = errors.reduce((a, b) => a + b, 0) / n;
    part("says").textContent = n
      ? `${model.value}, ${n} point${n == 1 ? "" : "s"}, ${k} step${k == 1 ? "" : "s"}: the ends are ` +
        `${mean.toPrecision(2)} away from those by ${FINE} steps, on average.`
      : "No points yet. Click into the plane, or press “Drop 40 points”.";
  }

  function add(some) {
    points = [...points, ...some].slice(-MOST);
    time.value = 100;
    solve();
  }

  function drop() {
    const pick = () => data[Math.floor(((Math.atan2(...normal()) / Math.PI + 1) / 2) * data.length)];
    add(Array.from({length: 40}, () => (forward() ? pick() : normal())));
  }

  function clear() {
    stop();
    points = [];
    solve();
  }

  canvas.addEventListener("pointerdown", event => {
    cursor = null;
    add([stage.under(event)]);
  });
  canvas.addEventListener("keydown", event => {
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};
    if (event.key in moves) {
      const bounded = value => Math.max(-REACH, Math.min(REACH, value));
      cursor = (cursor ?? [0, 0]).map((value, i) => bounded(value + 0.2 * moves[event.key][i]));
      part("says").textContent = `Cursor at ${cursor.map(v => v.toFixed(1)).join(", ")}. Enter drops a point.`;
      stage.paint();
    } else if (event.key == "Enter" || event.key == " ") add([cursor ?? [0, 0]]);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("blur", () => {
    cursor = null;
    stage.paint();
  });
  model.addEventListener("input", solve);
  steps.addEventListener("input", solve);
  way.addEventListener("input", () => {
    clear();
    drop();
  });
  time.addEventListener("input", () => {
    stop();
    say();
    stage.paint();
  });
  part("drop").addEventListener("click", drop);
  part("clear").addEventListener("click", clear);
  part("play").addEventListener("click", () => {
    stop();
    stop = animate(SECONDS, share => {
      time.value = Math.round(100 * share);
      part("time-shown").textContent = share.toFixed(2);
      stage.paint();
    });
  });
  drop();
}
