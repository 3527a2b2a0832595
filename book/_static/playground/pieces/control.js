// Problems of control, their policies and paths. A test compares each with `ctdl_lib`.
import {affine, arrays} from "./networks.js";

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
