// The library's pieces that the playgrounds need. A test compares each with `ctdl_lib`.

/** The arrays by their names, from factors and integers of 16 bits that a build wrote. */
export function arrays(stored) {
  const found = {};
  for (const [name, [factor, text]] of Object.entries(stored)) {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    found[name] = Float64Array.from(new Int16Array(bytes.buffer), integer => factor * integer);
  }
  return found;
}

/** A x + b, where A has as many rows as b has entries and is stored row by row. */
function affine(A, x, b) {
  const n = x.length, y = new Float64Array(b);
  for (let i = 0, k = 0; i < y.length; i++) {
    let sum = y[i];
    for (let j = 0; j < n; j++) sum += A[k++] * x[j];
    y[i] = sum;
  }
  return y;
}

/** Aᵀ y for A with y.length rows. */
function transposed(A, y) {
  const n = A.length / y.length, found = new Float64Array(n);
  for (let i = 0, k = 0; i < y.length; i++) {
    const factor = y[i];
    for (let j = 0; j < n; j++) found[j] += A[k++] * factor;
  }
  return found;
}

/** log(2 cosh aₖ), and their slopes tanh aₖ, of which both need e^(−2|a|). */
function logCosh(a) {
  const values = new Float64Array(a.length), slopes = new Float64Array(a.length);
  for (let k = 0; k < a.length; k++) {
    const size = Math.abs(a[k]), e = Math.exp(-2 * size);
    values[k] = size + Math.log1p(e);
    slopes[k] = Math.sign(a[k]) * (1 - e) / (1 + e);
  }
  return {values, slopes};
}

const sigmoid = a => 1 / (1 + Math.exp(-a));

/**
 * The potential wᵀN(s) + ½‖As‖² + bᵀs + c with s = (x, t): a function of t and x that returns
 * its value, dt, dx and laplacian. It is `ctdl_lib.potentials.ResNetPotential`.
 */
export function potential(stored) {
  const {K0, b0, K, b, w, A, linear, constant} = arrays(stored);
  const width = w.length, layers = b.length / width, h = 1 / Math.max(layers, 1);
  const inputs = linear.length, d = inputs - 1;
  const matrices = Array.from({length: layers}, (_, i) => K.subarray(i * width * width, (i + 1) * width * width));
  const shifts = Array.from({length: layers}, (_, i) => b.subarray(i * width, (i + 1) * width));
  const none = new Float64Array(A.length / inputs);

  return (t, x) => {
    const s = new Float64Array(inputs);
    s.set(x);
    s[d] = t;
    let {values: u, slopes: first} = logCosh(affine(K0, s, b0));
    const slopes = [first];
    for (let i = 0; i < layers; i++) {
      const {values, slopes: next} = logCosh(affine(matrices[i], u, shifts[i]));
      slopes.push(next);
      for (let k = 0; k < width; k++) values[k] = u[k] + h * values[k];
      u = values;
    }

    const z = Array(layers + 1);
    let y;
    for (let i = layers; i >= 0; i--) {
      z[i] = new Float64Array(w);
      if (i < layers) {
        const back = transposed(matrices[i], y);
        for (let k = 0; k < width; k++) z[i][k] = z[i + 1][k] + h * back[k];
      }
      y = new Float64Array(width);
      for (let k = 0; k < width; k++) y[k] = z[i][k] * slopes[i][k];
    }
    const As = affine(A, s, none), gradient = transposed(K0, y), outer = transposed(A, As);
    for (let k = 0; k < inputs; k++) gradient[k] += outer[k] + linear[k];

    const laplacian = () => {
      let sum = 0;
      for (let j = 0; j < d; j++) {
        for (let r = 0; r < As.length; r++) sum += A[r * inputs + j] ** 2;
        let J = Float64Array.from(w, (_, k) => K0[k * inputs + j]);
        for (let i = 0; i <= layers; i++) {
          const KJ = i ? affine(matrices[i - 1], J, new Float64Array(width)) : J, scale = i ? h : 1;
          const before = i ? J : new Float64Array(width);
          for (let k = 0; k < width; k++)
            sum += scale * (1 - slopes[i][k] ** 2) * z[i][k] * KJ[k] ** 2;
          J = before.map((value, k) => value + scale * slopes[i][k] * KJ[k]);
        }
      }
      return sum;
    };

    let value = constant[0];
    for (let k = 0; k < width; k++) value += w[k] * u[k];
    for (const entry of As) value += entry ** 2 / 2;
    for (let k = 0; k < inputs; k++) value += linear[k] * s[k];
    return {value, dt: gradient[d], dx: gradient.subarray(0, d), get laplacian() { return laplacian(); }};
  };
}

/**
 * A trained `ctdl_lib.networks.ResNet` of two classes: `path(y, layers)` has the features after each
 * of so many Euler steps until the same time, with weights constant between the trained layers.
 */
export function resnet(stored, horizon) {
  const {K_in, K, b, K_out, b_out} = arrays(stored), width = K_out.length, trained = b.length / width;
  const none = new Float64Array(width);
  const part = (of, i, size) => of.subarray(i * size, (i + 1) * size);
  return {
    trained,
    path(y, layers) {
      const h = horizon / layers, path = [affine(K_in, y, none)];
      for (let k = 0; k < layers; k++) {
        const i = Math.floor(k * trained / layers), u = path[k];
        const a = affine(part(K, i, width * width), u, part(b, i, width));
        path.push(u.map((value, j) => value + h * Math.tanh(a[j])));
      }
      return path;
    },
    probability: u => sigmoid(affine(K_out, u, b_out)[0]),
    /** Where a line along a direction of the features leaves the one class for the other. */
    cut: direction => -b_out[0] / K_out.reduce((sum, value, i) => sum + value * direction[i], 0),
  };
}

const square = x => x.reduce((sum, value) => sum + value * value, 0);
const minus = (x, y) => x.map((value, i) => value - y[i]);

/** The exact value function of drift u, ½|u|² and ½m|x − target|², as `LinearQuadratic.value`. */
export function quadratic({target, weight, sigma}) {
  const noise = square(sigma.flat()) / 2;
  return (t, x) => {
    const P = 1 / (1 / weight + 1 - t), z = minus(x, target);
    return {value: P * square(z) / 2 + noise * Math.log1p(weight * (1 - t)), dx: z.map(v => P * v)};
  };
}

/** Φ = known + (1 − t)·correction, as `ctdl_lib.potentials.PinnedPotential`. */
export function pinned(known, correction) {
  return (t, x) => {
    const K = known(t, x), N = correction(t, x), left = 1 - t;
    return {value: K.value + left * N.value, dx: K.dx.map((v, i) => v + left * N.dx[i])};
  };
}

/** The problem of a hill between start and target, `ctdl_lib.problems.control.Obstacle`. */
export function obstacle({target, weight, height, variance}) {
  const peak = height / (2 * Math.PI * variance);
  return {
    drift: (x, u) => u,
    running: (x, u) => square(u) / 2 + peak * Math.exp(-square(x) / (2 * variance)),
    terminal: x => weight * square(minus(x, target)) / 2,
    control: (x, p) => p.map(value => -value),
  };
}

/** height·φ(s(t), (x − center)/unit), as `ctdl_lib.potentials.ScaledPotential` with a `layer`. */
export function scaled(phi, {height, center, unit, layer}) {
  const span = Math.log((1 + layer) / layer);
  return (t, x) => {
    const s = Math.log((1 + layer) / (1 - t + layer)) / span;
    const {value, dx} = phi(s, x.map((v, i) => (v - center[i]) / unit[i]));
    return {value: height * value, dx: dx.map((v, i) => height / unit[i] * v)};
  };
}

/** The quadcopter `ctdl_lib.problems.vehicles.Quadcopter` of mass 1. */
export function quadcopter({gravity, weight, target}) {
  const axis = x => {
    const [s1, s2, s3] = x.subarray(3, 6).map(Math.sin), [c1, c2, c3] = x.subarray(3, 6).map(Math.cos);
    return [s1 * s3 + c1 * s2 * c3, s1 * s2 * c3 - c1 * s3, c2 * c3];
  };
  return {
    axis,
    drift: (x, u) => {
      const [e1, e2, e3] = axis(x), f = new Float64Array(12);
      f.set(x.subarray(6));
      f.set([u[0] * e1, u[0] * e2, u[0] * e3 - gravity, u[1], u[2], u[3]], 6);
      return f;
    },
    running: (x, u) => 2 + square(u),
    terminal: x => weight * square(minus(x, target)) / 2,
    control: (x, p) => {
      const thrust = axis(x).reduce((sum, e, i) => sum + e * p[6 + i], 0);
      return [thrust, p[9], p[10], p[11]].map(value => -value / 2);
    },
  };
}

/** The plan's controls, and the linear feedback uₖ − Kₖ(x − xₖ) along it: policies of `rollout`. */
export function along(stored) {
  const {x: states, u: controls, K} = arrays(stored);
  const planned = (t, x, k) => controls.subarray(4 * k, 4 * k + 4);
  const linear = (t, x, k) => minus(planned(t, x, k),
    affine(K.subarray(48 * k, 48 * k + 48), minus(x, states.subarray(12 * k, 12 * k + 12)), new Float64Array(4)));
  return {planned, linear};
}

/**
 * The path from t = 0 to 1 of dx = f dt + σ dW under a policy u(t, x, k), step by step by Euler and
 * Maruyama as in `ctdl_lib.control.rollout`: {path, controls, cost}. `kicks` has σΔW of each step.
 */
export function rollout({drift, running, terminal}, policy, x, kicks) {
  const path = [Float64Array.from(x)], controls = [], h = 1 / kicks.length;
  let cost = 0;
  kicks.forEach((kick, k) => {
    const at = path.at(-1), u = policy(k * h, at, k), f = drift(at, u);
    controls.push(u);
    cost += h * running(at, u);
    path.push(at.map((value, i) => value + h * f[i] + kick[i]));
  });
  return {path, controls, cost: cost + terminal(path.at(-1))};
}

/** The velocity of `ctdl_lib.networks.ConcatSquash` with tanh, a function of t and x. */
export function concatSquash(stored) {
  const all = arrays(stored), layers = Object.keys(all).length / 5;
  return (t, x) => {
    for (let i = 0; i < layers; i++) {
      const [W, b, a, c, e] = ["W", "b", "a", "c", "e"].map(name => all[`${name}.${i}`]);
      x = affine(W, x, b).map((value, k) => value * sigmoid(a[k] * t + c[k]) + e[k] * t);
      if (i < layers - 1) x = x.map(Math.tanh);
    }
    return x;
  };
}

/** The velocity of a stored flow. */
export function velocity(flow) {
  if (flow.kind == "ConcatSquash") return concatSquash(flow.weights);
  const phi = potential(flow.weights);
  return (t, x) => phi(t, x).dx.map(value => -value);
}

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

/** The rate β(t), a(t) and s(t)² of `ctdl_lib.generative.Schedule`. */
export const schedule = {
  beta: t => 0.1 + 19.9 * t,
  a: t => Math.exp(-0.5 * t * (0.1 + 9.95 * t)),
  variance: t => -Math.expm1(-t * (0.1 + 9.95 * t)),
};

/** The score ∇log p_t of an equal mixture of N(m, v I) at t = 0, a function of t and x. */
export function mixtureScore(means, v) {
  return (t, x) => {
    const a = schedule.a(t), spread = a * a * v + schedule.variance(t);
    const logs = means.map(m => -((x[0] - a * m[0]) ** 2 + (x[1] - a * m[1]) ** 2) / (2 * spread));
    const most = Math.max(...logs), weights = logs.map(log => Math.exp(log - most));
    const sum = weights.reduce((p, q) => p + q);
    return [0, 1].map(i => weights.reduce((p, w, k) => p + w * (a * means[k][i] - x[i]), 0) / (sum * spread));
  };
}

/**
 * The states at `times` (from 1 down to 0) of dX = −β(½X + cS)dt + √(2c − 1)√β dW̄ by Euler's method:
 * c = 1 is the reverse SDE, c = ½ the equation of the probability flow. The last state is
 * E[X(0) | X(t)] = (X + s²S)/a.
 */
export function denoise(score, x, times, c, noise) {
  const path = [Float64Array.from(x)];
  for (let k = 0; k + 1 < times.length; k++) {
    const t = times[k], at = path.at(-1), S = score(t, at), h = schedule.beta(t) * (t - times[k + 1]);
    const eta = c == 1 ? noise() : [0, 0];
    path.push(k + 2 == times.length
      ? at.map((value, i) => (value + schedule.variance(t) * S[i]) / schedule.a(t))
      : at.map((value, i) => value + h * (value / 2 + c * S[i]) + Math.sqrt(h) * eta[i]));
  }
  return path;
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
