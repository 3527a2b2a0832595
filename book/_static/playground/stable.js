// Layers u ← u + hσ(Ku): forward and back again, for any eigenvalues of K.
import {euler, normals, rk4} from "./pieces/solvers.js";
import {Stage, parts} from "./stage.js";

const POINTS = 300, LAYERS = 40, REACH = 3;

export function start(figure) {
  const all = parts(figure), {before, middle, after, real, imaginary, step, scheme, says} = all;
  const normal = normals(3);
  const points = Array.from({length: POINTS}, (_, k) => {
    const [a, b] = normal(), inner = k % 2;
    const size = (inner ? 0.5 : 1.5) / Math.hypot(a, b) + 0.08;
    return [a * size, b * size];
  });
  let moved = points, back = points;
  const draw = which => stage => {
    const {path, end} = stage.colors;
    which().forEach((x, k) => stage.disc(x, 2.2, k % 2 ? end : path));
  };
  const stages = [
    new Stage(before, REACH, draw(() => points)),
    new Stage(middle, REACH, draw(() => moved)),
    new Stage(after, REACH, draw(() => back)),
  ];

  function solve() {
    const a = +real.value, b = +imaginary.value, h = +step.value;
    const f = (t, x) => Float64Array.of(Math.tanh(a * x[0] - b * x[1]), Math.tanh(b * x[0] + a * x[1]));
    const method = {euler, rk4}[scheme.value], T = h * LAYERS;
    moved = points.map(x => method(f, x, 0, T, LAYERS).at(-1));
    back = moved.map(x => method(f, x, T, 0, LAYERS).at(-1));
    const off = back.map((x, k) => Math.hypot(x[0] - points[k][0], x[1] - points[k][1]));
    const mean = off.reduce((p, q) => p + q) / POINTS;
    for (const [name, value] of [["real", a], ["imaginary", b], ["step", h]])
      all[`${name}-shown`].textContent = value.toFixed(2);
    const growth = Math.hypot(1 + h * a, h * b);
    says.textContent = `Eigenvalues ${a.toFixed(2)} ± ${b.toFixed(2)}i. A step of Euler's method multiplies small features by ` +
      `|1 + hλ| = ${growth.toFixed(3)}. After ${LAYERS} layers and back, points are ${mean.toPrecision(2)} away from their start.`;
    stages.forEach(stage => stage.paint());
  }

  for (const input of [real, imaginary, step, scheme]) input.addEventListener("input", solve);
  solve();
}
