// An adaptive solver on van der Pol's equation: which steps it takes, and which it takes back.
import {dormandPrince, rk4} from "./pieces/solvers.js";
import {Stage, drag, parts} from "./stage.js";

const TIME = 20, REACH = 2.6, START = [0.5, 0.3];

/** What the page says of the steps, of their error at the end, and of that of equal steps. */
function sentence({accepted, rejected, evaluations}, error, fixed) {
  const sizes = accepted.slice(1).map((step, k) => step.t - accepted[k].t);
  const small = value => Number.isFinite(value) ? value.toExponential(0) : "not finite";
  return `${sizes.length} steps accepted, ${rejected.length} taken back, ${evaluations} ` +
    `evaluations. Steps from ${Math.min(...sizes).toFixed(3)} to ${Math.max(...sizes).toFixed(2)}. ` +
    `Error at the end: ${small(error)}; by equal Runge–Kutta steps with as many evaluations: ${small(fixed)}.`;
}

export function start(figure) {
  const all = parts(figure), {canvas, tolerance, stiffness, says} = all;
  let from = START, found = null, dense = [];

  const stage = new Stage(canvas, REACH, stage => {
    if (!found) return;
    const {path, end, ink} = stage.colors;
    stage.line(dense, path, 1, 0.6);
    for (const {x} of found.rejected) {
      stage.line([[x[0] - 0.05, x[1] - 0.05], [x[0] + 0.05, x[1] + 0.05]], ink, 1);
      stage.line([[x[0] - 0.05, x[1] + 0.05], [x[0] + 0.05, x[1] - 0.05]], ink, 1);
    }
    for (const {x} of found.accepted) stage.disc(x, 2.5, end);
    stage.disc(from, 4, ink);
  });

  function solve() {
    const mu = +stiffness.value, tol = 10 ** -tolerance.value;
    const f = (t, x) => Float64Array.of(mu * (x[0] - x[0] ** 3 / 3 - x[1]), x[0] / mu);
    const exact = dormandPrince(f, Float64Array.from(from), 0, TIME, 1e-10);
    dense = exact.accepted.map(step => step.x);
    found = dormandPrince(f, Float64Array.from(from), 0, TIME, tol);
    const off = x => Math.hypot(x[0] - dense.at(-1)[0], x[1] - dense.at(-1)[1]);
    const equal = Math.max(1, Math.round(found.evaluations / 4));
    const fixed = off(rk4(f, from, 0, TIME, equal).at(-1));
    const error = off(found.accepted.at(-1).x);
    all["tolerance-shown"].textContent = `1e-${tolerance.value}`;
    all["stiffness-shown"].textContent = mu;
    says.textContent = sentence(found, error, fixed);
    stage.paint();
  }

  const place = point => { from = point; solve(); };
  drag(stage, 0.1, () => from, place);
  for (const input of [tolerance, stiffness]) input.addEventListener("input", solve);
  solve();
}
