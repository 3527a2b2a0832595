// Noise becomes data by an exact score: the reverse SDE and the probability flow, from equal noise.
import {denoise, mixtureScore} from "./pieces/diffusion.js";
import {normals} from "./pieces/solvers.js";
import {Stage, parts, player, until} from "./stage.js";

const POINTS = 300, SECONDS = 4, NEAR = 3;
const GRIDS = {t: share => 1 - share, root: share => (1 - share) ** 2};

export function start(figure, {means, variance, reach}) {
  const all = parts(figure), {sde, ode, steps, grid, time, says, renew} = all;
  const score = mixtureScore(means, variance), far = NEAR * Math.sqrt(variance);
  let seed = 1, paths = {};

  const picture = name => stage => {
    const {path, end, faint} = stage.colors, share = +time.value / 100;
    for (const mean of means) stage.disc(mean, far * stage.scale / stage.dot, faint, 0.25);
    for (const points of paths[name] ?? []) {
      const seen = until(points, share);
      stage.line(seen, path, 0.7, 0.12);
      stage.disc(seen.at(-1), 2, end);
    }
  };
  const stages = {sde: new Stage(sde, reach, picture("sde")), ode: new Stage(ode, reach, picture("ode"))};
  const paint = () => Object.values(stages).forEach(stage => stage.paint());

  const near = points => {
    const ends = points.map(path => path.at(-1));
    const inside = ends.filter(x => means.some(m => Math.hypot(x[0] - m[0], x[1] - m[1]) < far));
    return Math.round((100 * inside.length) / ends.length);
  };

  function solve() {
    const n = +steps.value, times = Array.from({length: n + 1}, (_, k) => GRIDS[grid.value](k / n));
    const noise = normals(seed), from = Array.from({length: POINTS}, noise);
    for (const [name, c] of [["sde", 1], ["ode", 0.5]])
      paths[name] = from.map(x => denoise(score, x, times, c, noise));
    all["steps-shown"].textContent = n;
    says.textContent = `${n} evaluations of the score: ${near(paths.sde)} % of the points by the SDE and ` +
      `${near(paths.ode)} % by the flow end within ${NEAR} standard deviations of a Gaussian. Of the data, 99 % lie there.`;
    paint();
  }

  for (const input of [steps, grid]) input.addEventListener("input", solve);
  renew.addEventListener("click", () => { seed += 1; solve(); });
  player(all, SECONDS, paint);
  solve();
}
