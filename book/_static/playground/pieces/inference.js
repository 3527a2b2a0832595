// Posteriors by a conditional flow, and the task of the two moons. A test compares each with Python.
import {potential} from "./networks.js";
import {rk4} from "./solvers.js";

/** The share Φ(z) of the normal law below z, by a series whose terms have all one sign. */
export function normalShare(z) {
  if (Math.abs(z) > 8) return z > 0 ? 1 : 0;
  let term = z, sum = z;
  for (let k = 3; Math.abs(term) > 1e-17 * Math.abs(sum); k += 2) {
    term *= z * z / k;
    sum += term;
  }
  return 0.5 + sum * Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI);
}

/**
 * A trained `ctdl_lib.generative.Flow` with a context, in a box: `path(y, z, steps)` has the points
 * from z at t = 1 to a sample of the posterior of y at t = 0, both in the box.
 */
export function conditionalFlow({weights, mean, std, low, high}) {
  const phi = potential(weights), minus = value => -value;
  const inside = z => low.map((least, i) => least + (high[i] - least) * normalShare(z[i]));
  return {
    path(y, z, steps) {
      const context = y.map((value, i) => (value - mean[i]) / std[i]);
      return rk4((t, x) => phi(t, x, context).dx.map(minus), z, 1, 0, steps).map(inside);
    },
  };
}

/**
 * The task y = (r cos a + ¼ − |x₁ + x₂|/√2, r sin a + (x₂ − x₁)/√2) of `sbibm` with r ~ N(0.1, 0.01²)
 * and a ~ U(−π/2, π/2): the radius r that leads from x to y, negative behind the half ring.
 */
export function moonRadius(x, y) {
  const ray = [y[0] - 0.25 + Math.abs(x[0] + x[1]) / Math.SQRT2, y[1] - (x[1] - x[0]) / Math.SQRT2];
  return (ray[0] < 0 ? -1 : 1) * Math.hypot(...ray);
}

/** log p(y | x) of a radius, up to a constant. */
export const moonLogLikelihood = r => -(((r - 0.1) / 0.01) ** 2) / 2 - Math.log(Math.abs(r));
