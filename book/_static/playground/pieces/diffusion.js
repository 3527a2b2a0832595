// An exact score, and the steps that turn noise into data. A test compares each with `ctdl_lib`.

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
