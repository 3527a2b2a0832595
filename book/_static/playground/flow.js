// Drop points into the plane of a trained flow, follow them in both directions, and save steps.
import {velocity} from "./pieces/networks.js";
import {normals, rk4} from "./pieces/solvers.js";
import {Stage, arrow, parts, player, until} from "./stage.js";

const FINE = 64, SECONDS = 3, MOST = 400;

export function start(figure, {flows, data, reach}) {
  const all = parts(figure), {canvas, model, way, steps, time, says} = all;
  const velocities = Object.fromEntries(
    Object.entries(flows).map(([name, flow]) => [name, velocity(flow)]));
  const normal = normals(7);
  let points = [], paths = [], errors = [], cursor = null;

  const forward = () => way.value == "forward";
  const ends = () => (forward() ? [0, 1] : [1, 0]);

  const stage = new Stage(canvas, reach, stage => {
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
    all["steps-shown"].textContent = k;
    const mean = errors.reduce((a, b) => a + b, 0) / n;
    says.textContent = n
      ? `${model.value}, ${n} point${n == 1 ? "" : "s"}, ${k} step${k == 1 ? "" : "s"}: the ends are ` +
        `${mean.toPrecision(2)} away from those by ${FINE} steps, on average.`
      : "No points yet. Click into the plane, or press “Drop 40 points”.";
  }

  function add(some) {
    points = [...points, ...some].slice(-MOST);
    time.value = 100;
    all["time-shown"].textContent = "1.00";
    solve();
  }

  function drop() {
    const pick = () => data[Math.floor(((Math.atan2(...normal()) / Math.PI + 1) / 2) * data.length)];
    add(Array.from({length: 40}, () => (forward() ? pick() : normal())));
  }

  function clear() {
    rest();
    points = [];
    solve();
  }

  canvas.addEventListener("pointerdown", event => {
    cursor = null;
    add([stage.under(event)]);
  });
  canvas.addEventListener("keydown", event => {
    const moved = arrow(event, cursor ?? [0, 0], 0.2, reach);
    if (moved) {
      cursor = moved;
      says.textContent = `Cursor at ${cursor.map(v => v.toFixed(1)).join(", ")}. Enter drops a point.`;
      stage.paint();
    } else if (event.key == "Enter" || event.key == " ") {
      event.preventDefault();
      add([cursor ?? [0, 0]]);
    }
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
  const rest = player(all, SECONDS, () => stage.paint());
  all.drop.addEventListener("click", drop);
  all.clear.addEventListener("click", clear);
  drop();
}
