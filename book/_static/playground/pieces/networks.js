// The networks of the library. A test compares each with `ctdl_lib`.

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
export function affine(A, x, b) {
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
