// Steps of solvers for ẋ = f(t, x), and random numbers. A test compares each with `ctdl_lib`.

/** The points of `steps` equal steps, with the start; `step(t, x, h)` moves a point by one. */
function stepped(step, x, t0, t1, steps) {
  const h = (t1 - t0) / steps, path = [Float64Array.from(x)];
  for (let n = 0; n < steps; n++) path.push(step(t0 + n * h, path.at(-1), h));
  return path;
}

const moved = (x, h, k) => x.map((value, i) => value + h * k[i]);

/** The points of equal steps of Euler's method for ẋ = f(t, x). */
export const euler = (f, ...how) => stepped((t, x, h) => moved(x, h, f(t, x)), ...how);

/** The points of equal Runge–Kutta steps of order four for ẋ = f(t, x). */
export const rk4 = (f, ...how) => stepped((t, x, h) => {
  const k1 = f(t, x), k2 = f(t + h / 2, moved(x, h / 2, k1));
  const k3 = f(t + h / 2, moved(x, h / 2, k2)), k4 = f(t + h, moved(x, h, k3));
  return moved(x, h, k1.map((value, i) => (value + 2 * k2[i] + 2 * k3[i] + k4[i]) / 6));
}, ...how);

/** Standard normal numbers, two at a time, that are the same in each browser (mulberry32). */
export function normals(seed) {
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let a = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    a = (a + Math.imul(a ^ (a >>> 7), 61 | a)) ^ a;
    return ((a ^ (a >>> 14)) >>> 0) / 4294967296;
  };
  return () => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform();
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  };
}

// Dormand and Prince's pair of orders five and four: stages, and the weights of the error.
const NODES = [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1];
const STAGES = [
  [], [1 / 5], [3 / 40, 9 / 40], [44 / 45, -56 / 15, 32 / 9],
  [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
  [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
  [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
];
const ERROR = [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40];

/**
 * Adaptive steps for ẋ = f(t, x) from t0 to t1 with relative and absolute tolerance `tol`:
 * {accepted: [{t, x}], rejected: [{t, x}], evaluations}. A step is accepted if its error is at
 * most one, as the root of the mean square over the entries, in units of tol (1 + |x|).
 */
export function dormandPrince(f, x, t0, t1, tol, first = 0.01, most = 20000) {
  const accepted = [{t: t0, x: Float64Array.from(x)}], rejected = [];
  let h = first, k1 = f(t0, x), evaluations = 1;
  while (accepted.at(-1).t < t1 && accepted.length + rejected.length < most) {
    const {t, x} = accepted.at(-1), last = t + h >= t1, step = last ? t1 - t : h;
    const k = [k1], sum = row => x.map((value, i) =>
      value + step * row.reduce((total, weight, j) => total + weight * k[j][i], 0));
    for (let i = 1; i < 7; i++) k.push(f(t + NODES[i] * step, sum(STAGES[i])));
    evaluations += 6;
    const end = sum(STAGES[6]);
    const parts = end.map((value, i) =>
      step * ERROR.reduce((total, weight, j) => total + weight * k[j][i], 0) /
      (tol * (1 + Math.max(Math.abs(x[i]), Math.abs(value)))));
    const error = Math.sqrt(parts.reduce((total, part) => total + part * part, 0) / parts.length);
    const reached = {t: last ? t1 : t + step, x: end};
    if (error <= 1) {
      accepted.push(reached);
      k1 = k[6];
    } else rejected.push(reached);
    h = step * Math.min(5, Math.max(0.2, 0.9 * Math.max(error, 1e-10) ** -0.2));
  }
  return {accepted, rejected, evaluations};
}
