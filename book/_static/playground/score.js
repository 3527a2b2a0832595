// Noise becomes data by an exact score: the reverse SDE and the probability flow, from equal noise.
import {denoise, mixtureScore, normals} from "./pieces.js";
import {Stage, animate, parts, until} from "./stage.js";

const POINTS = 300, SECONDS = 4, RING = 4 / Math.SQRT2, VARIANCE = 0.125, NEAR = 3;
const MEANS = Array.from({length: 8}, (_, k) =>
  [RING * Math.cos((k * Math.PI) / 4), RING * Math.sin((k * Math.PI) / 4)]);
const GRIDS = {t: share => 1 - share, root: share => (1 - share) ** 2};

export function start(figure) {
  const {sde, ode, steps, grid, time, says, play, renew} = parts(figure);
  const score = mixtureScore(MEANS, VARIANCE);
  let seed = 1, paths = {}, stop = () => {};

  const picture = name => stage => {
    const {path, end, faint} = stage.colors, share = +time.value / 100;
    for (const mean of MEANS) stage.disc(mean, Math.sqrt(VARIANCE) * NEAR * stage.scale / stage.dot, faint, 0.25);
    for (const points of paths[name] ?? []) {
      const seen = until(points, share);
      stage.line(seen, path, 0.7, 0.12);
      stage.disc(seen.at(-1), 2, end);
    }
  };
  const stages = {sde: new Stage(sde, 4.6, picture("sde")), ode: new Stage(ode, 4.6, picture("ode"))};
  const paint = () => Object.values(stages).forEach(stage => stage.paint());

  const near = points => {
    const ends = points.map(path => path.at(-1)), far = NEAR * Math.sqrt(VARIANCE);
    const inside = ends.filter(x => MEANS.some(m => Math.hypot(x[0] - m[0], x[1] - m[1]) < far));
    return Math.round((100 * inside.length) / ends.length);
  };

  function solve() {
    const n = +steps.value, times = Array.from({length: n + 1}, (_, k) => GRIDS[grid.value](k / n));
    const noise = normals(seed), from = Array.from({length: POINTS}, noise);
    for (const [name, c] of [["sde", 1], ["ode", 0.5]])
      paths[name] = from.map(x => denoise(score, x, times, c, noise));
    figure.querySelector("[data-part=steps-shown]").textContent = n;
    says.textContent = `${n} evaluations of the score: ${near(paths.sde)} % of the points by the SDE and ` +
      `${near(paths.ode)} % by the flow end within ${NEAR} standard deviations of a Gaussian. Of the data, 99 % lie there.`;
    paint();
  }

  for (const input of [steps, grid]) input.addEventListener("input", solve);
  time.addEventListener("input", () => { stop(); paint(); });
  renew.addEventListener("click", () => { seed += 1; solve(); });
  play.addEventListener("click", () => {
    stop();
    stop = animate(SECONDS, share => { time.value = Math.round(100 * share); paint(); });
  });
  solve();
}
