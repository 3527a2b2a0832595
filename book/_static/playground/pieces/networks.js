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
    values[k] = size + Math.log(1 + e);
    slopes[k] = (a[k] < 0 ? e - 1 : 1 - e) / (1 + e);
  }
  return {values, slopes};
}

const sigmoid = a => 1 / (1 + Math.exp(-a));

/** The features of the last layer of a potential, and the slopes of each. */
function forward({K0, b0, matrices, shifts, h}, s) {
  let {values: u, slopes: first} = logCosh(affine(K0, s, b0));
  const slopes = [first];
  matrices.forEach((matrix, i) => {
    const {values, slopes: next} = logCosh(affine(matrix, u, shifts[i]));
    slopes.push(next);
    u = u.map((value, k) => value + h * values[k]);
  });
  return {u, slopes};
}

/** The slopes z of Φ in the features of each layer, and y in what enters the first. */
function backward({matrices, w, h}, slopes) {
  const z = Array(slopes.length);
  let y;
  for (let i = matrices.length; i >= 0; i--) {
    z[i] = new Float64Array(w);
    if (y) {
      const back = transposed(matrices[i], y);
      for (let k = 0; k < w.length; k++) z[i][k] = z[i + 1][k] + h * back[k];
    }
    y = z[i].map((value, k) => value * slopes[i][k]);
  }
  return {z, y};
}

/** The sum of the second derivatives in x, by one sweep forward for each of its d entries. */
function laplacian({K0, A, matrices, w, h, inputs}, d, slopes, z) {
  const width = w.length, none = new Float64Array(width);
  let sum = 0;
  for (let j = 0; j < d; j++) {
    for (let r = j; r < A.length; r += inputs) sum += A[r] ** 2;
    let J = none;
    for (let i = 0; i <= matrices.length; i++) {
      const KJ = i ? affine(matrices[i - 1], J, none) : w.map((_, k) => K0[k * inputs + j]), scale = i ? h : 1;
      for (let k = 0; k < width; k++) sum += scale * (1 - slopes[i][k] ** 2) * z[i][k] * KJ[k] ** 2;
      J = J.map((value, k) => value + scale * slopes[i][k] * KJ[k]);
    }
  }
  return sum;
}

/**
 * The potential wᵀN(s) + ½‖As‖² + bᵀs + c with s = (x, t, context): a function of t, x and a
 * context that returns its value, dt, dx and laplacian. It is `ctdl_lib.potentials.ResNetPotential`.
 */
export function potential(stored) {
  const {K, b, linear, constant, ...net} = arrays(stored), {K0, A, w} = net, width = w.length;
  const layers = b.length / width, inputs = linear.length, none = new Float64Array(A.length / inputs);
  const cut = (of, size) => Array.from({length: layers}, (_, i) => of.subarray(i * size, (i + 1) * size));
  Object.assign(net, {inputs, h: 1 / Math.max(layers, 1), matrices: cut(K, width * width), shifts: cut(b, width)});

  return (t, x, context = []) => {
    const s = new Float64Array(inputs), d = x.length;
    s.set(x);
    s[d] = t;
    s.set(context, d + 1);
    const {u, slopes} = forward(net, s), {z, y} = backward(net, slopes);
    const As = affine(A, s, none), gradient = transposed(K0, y), outer = transposed(A, As);
    let value = constant[0];
    for (let k = 0; k < width; k++) value += w[k] * u[k];
    for (const entry of As) value += entry ** 2 / 2;
    for (let k = 0; k < inputs; k++) {
      value += linear[k] * s[k];
      gradient[k] += outer[k] + linear[k];
    }
    return {
      value, dt: gradient[d], dx: gradient.subarray(0, d),
      get laplacian() { return laplacian(net, d, slopes, z); },
    };
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
