// The library's pieces that the playgrounds need. A test compares each with `ctdl_lib`.

/** The arrays of a network by their names, from what `playgrounds.export` wrote. */
export function arrays(stored) {
  const found = {};
  for (const [name, text] of Object.entries(stored)) {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    found[name] = Float64Array.from(new Float32Array(bytes.buffer));
  }
  return found;
}

/** A x + b, where A has as many rows as b has entries and is stored row by row. */
function affine(A, x, b) {
  const n = x.length;
  return b.map((value, i) => {
    for (let j = 0; j < n; j++) value += A[i * n + j] * x[j];
    return value;
  });
}

/** Aᵀ y for A with y.length rows. */
function transposed(A, y) {
  const n = A.length / y.length, found = new Float64Array(n);
  for (let i = 0; i < y.length; i++)
    for (let j = 0; j < n; j++) found[j] += A[i * n + j] * y[i];
  return found;
}

const logCosh = a => Math.abs(a) + Math.log1p(Math.exp(-2 * Math.abs(a)));  // log(2 cosh a)
const sigmoid = a => 1 / (1 + Math.exp(-a));

/**
 * The potential wᵀN(s) + ½‖As‖² + bᵀs + c with s = (x, t): a function of t and x that returns
 * its value, dt, dx and laplacian. It is `ctdl_lib.potentials.ResNetPotential`.
 */
export function potential(stored) {
  const {K0, b0, K, b, w, A, linear, constant} = arrays(stored);
  const width = w.length, layers = b.length / width, h = 1 / Math.max(layers, 1);
  const inputs = linear.length, d = inputs - 1;
  const matrix = i => K.subarray(i * width * width, (i + 1) * width * width);

  return (t, x) => {
    const s = Float64Array.of(...x, t), slopes = [];
    let u = affine(K0, s, b0);
    slopes.push(u.map(Math.tanh));
    u = u.map(logCosh);
    for (let i = 0; i < layers; i++) {
      const a = affine(matrix(i), u, b.subarray(i * width, (i + 1) * width));
      slopes.push(a.map(Math.tanh));
      u = u.map((value, k) => value + h * logCosh(a[k]));
    }

    const z = Array(layers + 1), y = Array(layers + 1);
    for (let i = layers; i >= 0; i--) {
      z[i] = i == layers ? w : transposed(matrix(i), y[i + 1]).map((v, k) => z[i + 1][k] + h * v);
      y[i] = z[i].map((value, k) => value * slopes[i][k]);
    }
    const As = affine(A, s, new Float64Array(A.length / inputs));
    const inner = transposed(K0, y[0]), outer = transposed(A, As);
    const gradient = inner.map((value, k) => value + outer[k] + linear[k]);

    let laplacian = 0;
    for (let j = 0; j < d; j++) {
      for (let r = 0; r < As.length; r++) laplacian += A[r * inputs + j] ** 2;
      let J = Float64Array.from(w, (_, k) => K0[k * inputs + j]);
      for (let i = 0; i <= layers; i++) {
        const KJ = i ? affine(matrix(i - 1), J, new Float64Array(width)) : J, scale = i ? h : 1;
        const before = i ? J : new Float64Array(width);
        for (let k = 0; k < width; k++)
          laplacian += scale * (1 - slopes[i][k] ** 2) * z[i][k] * KJ[k] ** 2;
        J = before.map((value, k) => value + scale * slopes[i][k] * KJ[k]);
      }
    }

    let value = constant[0];
    for (let k = 0; k < width; k++) value += w[k] * u[k];
    for (const entry of As) value += entry ** 2 / 2;
    for (let k = 0; k < inputs; k++) value += linear[k] * s[k];
    return {value, dt: gradient[d], dx: gradient.subarray(0, d), laplacian};
  };
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

/** The points of `steps` equal Runge–Kutta steps of order four for ẋ = f(t, x), with the start. */
export function rk4(f, x, t0, t1, steps) {
  const h = (t1 - t0) / steps, path = [Float64Array.from(x)];
  const moved = (k, share) => path.at(-1).map((value, i) => value + share * h * k[i]);
  for (let n = 0; n < steps; n++) {
    const t = t0 + n * h, k1 = f(t, path.at(-1));
    const k2 = f(t + h / 2, moved(k1, 1 / 2)), k3 = f(t + h / 2, moved(k2, 1 / 2));
    const k4 = f(t + h, moved(k3, 1));
    path.push(moved(k1.map((value, i) => (value + 2 * k2[i] + 2 * k3[i] + k4[i]) / 6), 1));
  }
  return path;
}

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
