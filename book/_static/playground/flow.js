// Drop points into the plane of a trained flow, follow them in both directions, and save steps.
import {velocity} from "./pieces/networks.js";
import {normals, rk4} from "./pieces/solvers.js";
import {Stage, arrow, parts, player, until} from "./stage.js";

const FINE = 64, SECONDS = 3, MOST = 400;

/** The picture of the points on their way, and of the cursor. */
const picture = (state, data, {way, time}) => stage => {
  const {path, end, ink, faint} = stage.colors, share = +time.value / 100;
  if (way.value == "forward") for (const radius of [1, 2, 3]) stage.ring(radius, faint);
  else for (const point of data) stage.disc(point, 1.2, faint);
  for (const points of state.paths) {
    const seen = until(points, share);
    stage.line(seen, path, 1.2, 0.7);
    points.forEach((point, i) => { if (i < seen.length - 1) stage.disc(point, 1.6, path); });
    stage.disc(points[0], 2.4, ink);
    stage.disc(seen.at(-1), 3, end);
  }
  if (state.cursor) {
    const [x, y] = state.cursor;
    stage.line([[x - 0.3, y], [x + 0.3, y]], ink, 1.5);
    stage.line([[x, y - 0.3], [x, y + 0.3]], ink, 1.5);
  }
};

/** What the page says of points that end with these errors after k steps of a flow. */
function sentence(name, errors, k) {
  const n = errors.length, mean = errors.reduce((a, b) => a + b, 0) / n;
  if (!n) return "No points yet. Click into the plane, or press “Drop 40 points”.";
  return `${name}, ${n} point${n == 1 ? "" : "s"}, ${k} step${k == 1 ? "" : "s"}: the ends are ` +
    `${mean.toPrecision(2)} away from those by ${FINE} steps, on average.`;
}

/** Let a reader drop points by mouse or finger, or by a cursor that arrow keys move. */
function listen(stage, state, says, add) {
  const {canvas, reach} = stage;
  canvas.addEventListener("pointerdown", event => {
    state.cursor = null;
    add([stage.under(event)]);
  });
  canvas.addEventListener("keydown", event => {
    const moved = arrow(event, state.cursor ?? [0, 0], 0.2, reach);
    if (moved) {
      state.cursor = moved;
      says.textContent = `Cursor at ${moved.map(v => v.toFixed(1)).join(", ")}. Enter drops a point.`;
      stage.paint();
    } else if (event.key == "Enter" || event.key == " ") {
      event.preventDefault();
      add([state.cursor ?? [0, 0]]);
    }
  });
  canvas.addEventListener("blur", () => {
    state.cursor = null;
    stage.paint();
  });
}

export function start(figure, {flows, data, reach}) {
  const all = parts(figure), {model, way, steps, time, says} = all, normal = normals(7);
  const velocities = Object.fromEntries(
    Object.entries(flows).map(([name, flow]) => [name, velocity(flow)]));
  const state = {points: [], paths: [], cursor: null};
  const stage = new Stage(all.canvas, reach, picture(state, data, all));

  function solve() {
    const v = velocities[model.value], ends = way.value == "forward" ? [0, 1] : [1, 0];
    const run = (x, count) => rk4(v, x, ...ends, count), last = path => path.at(-1);
    state.paths = state.points.map(x => run(x, +steps.value));
    const fine = state.points.map(x => last(run(x, FINE)));
    const errors = fine.map(([x, y], i) => Math.hypot(last(state.paths[i])[0] - x, last(state.paths[i])[1] - y));
    all["steps-shown"].textContent = steps.value;
    says.textContent = sentence(model.value, errors, +steps.value);
    stage.paint();
  }

  function add(some) {
    state.points = [...state.points, ...some].slice(-MOST);
    time.value = 100;
    all["time-shown"].textContent = "1.00";
    solve();
  }

  function drop() {
    const pick = () => data[Math.floor(((Math.atan2(...normal()) / Math.PI + 1) / 2) * data.length)];
    add(Array.from({length: 40}, () => (way.value == "forward" ? pick() : normal())));
  }

  const rest = player(all, SECONDS, () => stage.paint());
  const clear = () => { rest(); state.points = []; solve(); };
  listen(stage, state, says, add);
  for (const input of [model, steps]) input.addEventListener("input", solve);
  way.addEventListener("input", () => { clear(); drop(); });
  all.drop.addEventListener("click", drop);
  all.clear.addEventListener("click", clear);
  drop();
}
