// Advection and diffusion in a basin by linear finite elements, as in chapter 15, and the network
// that opens a drain. A test compares each with Python.
import {affine, arrays} from "./networks.js";

const WAVES = [Math.PI, 2 * Math.PI];
const SIDES = [17, 9, 5, 3], CHANNELS = [6, 16, 32, 32];
const SCALES = [1, 1, 1, 0.06, 0.06, 1];  // of u, v₁, v₂, f, g, t

/** The velocity (∂ψ/∂y, −∂ψ/∂x) of ψ = Σ cⱼₖ sin(jπx) sin(kπy), of greatest norm |speed|. */
export function stream(c, speed) {
  const velocity = (x, y) => {
    let along = 0, across = 0;
    WAVES.forEach((p, j) => WAVES.forEach((q, k) => {
      along += c[j][k] * Math.sin(p * x) * q * Math.cos(q * y);
      across -= c[j][k] * p * Math.cos(p * x) * Math.sin(q * y);
    }));
    return [along, across];
  };
  let most = 0;
  for (let i = 0; i <= 64; i++)
    for (let j = 0; j <= 64; j++) most = Math.max(most, Math.hypot(...velocity(i / 64, j / 64)));
  return (x, y) => velocity(x, y).map(value => speed / most * value);
}

/** The Gaussian of that centre, width and, on the whole plane, integral. */
export function bump([cx, cy], strength, radius) {
  const height = strength / (2 * Math.PI * radius ** 2);
  return (x, y) => height * Math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * radius ** 2));
}

/** The triangles of the mesh, two for each cell; nodes are numbered along y first. */
function triangles(n) {
  const found = [], number = (i, j) => i * n + j;
  for (let i = 0; i + 1 < n; i++)
    for (let j = 0; j + 1 < n; j++)
      for (const third of [[i, j + 1], [i + 1, j]])
        found.push([[i, j], third, [i + 1, j + 1]].map(([a, b]) => ({at: [a / (n - 1), b / (n - 1)], k: number(a, b)})));
  return found;
}

/** The slopes of the three functions that are one at a corner, and the area of a triangle. */
function shape(corners) {
  const [[x0, y0], [x1, y1], [x2, y2]] = corners.map(corner => corner.at);
  const twice = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0);
  const slopes = [[y1 - y2, x2 - x1], [y2 - y0, x0 - x2], [y0 - y1, x1 - x0]];
  return {slopes: slopes.map(slope => slope.map(value => value / twice)), area: Math.abs(twice) / 2};
}

/** A rule of order two on a triangle: three points by their weights of the corners. */
const RULE = [[4, 1, 1], [1, 4, 1], [1, 1, 4]].map(point => point.map(share => share / 6));

const place = (corners, shares) => [0, 1].map(axis =>
  shares.reduce((sum, share, i) => sum + share * corners[i].at[axis], 0));

/** A square matrix with few diagonals beside the main one. */
class Banded {
  constructor(size, band) {
    Object.assign(this, {size, band, width: 2 * band + 1, rows: new Float64Array(size * (2 * band + 1))});
  }

  index(i, j) { return i * this.width + j - i + this.band; }

  add(i, j, value) { this.rows[this.index(i, j)] += value; }

  /** The product with a vector. */
  times(x) {
    return Float64Array.from(x, (_, i) => {
      let sum = 0;
      for (let j = Math.max(0, i - this.band); j <= Math.min(this.size - 1, i + this.band); j++)
        sum += this.rows[this.index(i, j)] * x[j];
      return sum;
    });
  }

  /** A function b ↦ x with Ax = b, by LU factors that replace the entries. No rows are swapped. */
  factorised() {
    const {rows, size, band} = this, last = i => Math.min(size - 1, i + band);
    for (let k = 0; k < size; k++)
      for (let i = k + 1; i <= last(k); i++) {
        const factor = rows[this.index(i, k)] /= rows[this.index(k, k)];
        if (factor) for (let j = k + 1; j <= last(k); j++) rows[this.index(i, j)] -= factor * rows[this.index(k, j)];
      }
    return b => {
      const x = Float64Array.from(b);
      for (let i = 0; i < size; i++)
        for (let j = Math.max(0, i - band); j < i; j++) x[i] -= rows[this.index(i, j)] * x[j];
      for (let i = size - 1; i >= 0; i--) {
        for (let j = i + 1; j <= last(i); j++) x[i] -= rows[this.index(i, j)] * x[j];
        x[i] /= rows[this.index(i, i)];
      }
      return x;
    };
  }
}

/** The matrix M of ∫uw, M + hA with A of ∫κ∇u·∇w + (v·∇u)w, and the vectors of ∫fw and ∫gw. */
function assembled(nodes, h, kappa, v, f, g) {
  const size = nodes * nodes, mass = new Banded(size, nodes + 1), system = new Banded(size, nodes + 1);
  const [source, sink] = [new Float64Array(size), new Float64Array(size)];
  for (const corners of triangles(nodes)) {
    const {slopes, area} = shape(corners);
    for (const shares of RULE) {
      const at = place(corners, shares), [along, across] = v(...at), [emitted, drained] = [f(...at), g(...at)];
      corners.forEach(({k: i}, a) => {
        source[i] += area / 3 * emitted * shares[a];
        sink[i] += area / 3 * drained * shares[a];
        corners.forEach(({k: j}, b) => {
          const [dx, dy] = slopes[b], m = area / 3 * shares[a] * shares[b];
          const diffused = kappa * (dx * slopes[a][0] + dy * slopes[a][1]);
          mass.add(i, j, m);
          system.add(i, j, m + h * area / 3 * (diffused + (along * dx + across * dy) * shares[a]));
        });
      });
    }
  }
  return {mass, solve: system.factorised(), source, sink};
}

const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);

/**
 * The problem `SourceMitigation` of one basin y = {stream, speed, source, strength, sink}: what a
 * network sees of it, and how a concentration changes in a step.
 */
export function basin(constants, {stream: c, speed, source, strength, sink}) {
  const {nodes, steps, diffusivity, radius, horizon} = constants, h = horizon / steps;
  const v = stream(c, speed), f = bump(source, strength, radius), g = bump(sink, 1, radius);
  const {mass, solve, source: emitted, sink: drained} = assembled(nodes, h, diffusivity, v, f, g);
  const grid = Array.from({length: nodes * nodes}, (_, k) => [Math.floor(k / nodes), k % nodes].map(i => i / (nodes - 1)));
  const fields = [at => v(...at)[0], at => v(...at)[1], at => f(...at), at => g(...at)];
  return {
    ...constants, h, mass, solve, drained, velocity: v,
    images: fields.map(field => Float64Array.from(grid, field)),
    step: (u, a) => solve(mass.times(u).map((value, i) => value + h * (emitted[i] - a * drained[i]))),
    energy: u => dot(u, mass.times(u)) / 2,
  };
}

/** The states and openings of a basin under a policy a(t, u, images, k), and their cost. */
export function drain({nodes, steps, h, alpha, gamma, images, step, energy}, policy) {
  const states = [new Float64Array(nodes * nodes)], openings = [];
  let cost = 0;
  for (let k = 0; k < steps; k++) {
    const a = policy(k * h, states[k], images, k);
    cost += h * (energy(states[k]) + alpha * a * a / 2);
    openings.push(a);
    states.push(step(states[k], a));
  }
  return {states, openings, cost: cost + gamma * energy(states[steps])};
}

/** The openings a ≥ 0 of least cost, as `best_openings`: the cost is ½aᵀHa − bᵀa and a constant. */
export function bestOpenings(problem) {
  const {steps, h, alpha, gamma, mass, solve, drained} = problem;
  const {states: free} = drain(problem, () => 0), response = [solve(drained.map(value => h * value))];
  while (response.length < steps) response.push(solve(mass.times(response.at(-1))));
  const weighed = response.map(u => mass.times(u)), gram = response.map(u => weighed.map(w => dot(u, w)));
  const all = Array.from({length: steps}, (_, k) => k), weight = k => (k == steps ? gamma : h);
  const later = (first, value) => all.slice(first).reduce((sum, k) => sum + weight(k + 1) * value(k), 0);
  const b = all.map(i => later(i, k => dot(free[k + 1], weighed[k - i])));
  const H = all.map(i => all.map(j =>
    later(Math.max(i, j), k => gram[k - i][k - j]) + (i == j ? h * alpha : 0)));
  return nonNegative(H, b);
}

/** The x ≥ 0 at which ½xᵀHx − bᵀx is least, entry by entry until none changes. */
function nonNegative(H, b, tolerance = 1e-9, most = 5000) {
  const x = b.map(() => 0);
  for (let sweep = 0, moved = 1; sweep < most && moved > tolerance; sweep++) {
    moved = 0;
    for (let i = 0; i < b.length; i++) {
      const next = Math.max(0, x[i] + (b[i] - dot(H[i], x)) / H[i][i]);
      moved = Math.max(moved, Math.abs(next - x[i]));
      x[i] = next;
    }
  }
  return x;
}

const silu = a => a / (1 + Math.exp(-a));

/** Images of n² pixels within a margin of zeros. */
function framed(images, n) {
  const channels = images.length / (n * n), m = n + 2, found = new Float64Array(channels * m * m);
  for (let row = 0; row < channels * n; row++)
    found.set(images.subarray(row * n, (row + 1) * n), (row + 2 * Math.floor(row / n) + 1) * m + 1);
  return found;
}

/** A convolution by 3 × 3 weights with stride 2 and a margin of zeros, and SiLU. */
function convolved(images, n, m, weight, bias) {
  const channels = images.length / (n * n), seen = framed(images, n), side = n + 2;
  const window = (out, p, q) => {
    let sum = bias[out], w = out * channels * 9;
    for (let c = 0; c < channels; c++)
      for (let i = 0, x = (c * side + 2 * p) * side + 2 * q; i < 3; i++, x += side, w += 3)
        sum += weight[w] * seen[x] + weight[w + 1] * seen[x + 1] + weight[w + 2] * seen[x + 2];
    return silu(sum);
  };
  return Float64Array.from({length: bias.length * m * m}, (_, k) =>
    window(Math.floor(k / (m * m)), Math.floor(k / m) % m, k % m));
}

/** The direct policy, `networks.Net` of chapter 15: the opening a(t, u, images). */
export function opening(stored) {
  const all = arrays(stored);
  return (t, u, images) => {
    let x = new Float64Array(CHANNELS[0] * SIDES[0] ** 2);
    [u, ...images, u.map(() => t)].forEach((field, c) => x.set(field.map(value => SCALES[c] * value), c * SIDES[0] ** 2));
    for (let k = 0; k < 3; k++)
      x = convolved(x, SIDES[k], SIDES[k + 1], all[`encoder.${2 * k}.weight`], all[`encoder.${2 * k}.bias`]);
    x = affine(all["encoder.7.weight"], x, all["encoder.7.bias"]).map(silu);
    const [a] = affine(all["head.weight"], x, all["head.bias"]);
    return Math.max(a, 0) + Math.log1p(Math.exp(-Math.abs(a)));
  };
}
