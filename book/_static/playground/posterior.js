// Two moons: drag the observation, and the sample of its posterior moves with it.
import {conditionalFlow, moonLogLikelihood, moonRadius} from "./pieces/inference.js";
import {normals} from "./pieces/solvers.js";
import {Stage, drag, parts, player, until} from "./stage.js";

const POINTS = 100, SECONDS = 2, PIXELS = 160, EDGE = 1.04;
const NEAR = 0.03;  // three deviations of the radius

/** The exact posterior on PIXELS² pixels, by rows from the top, over its largest value; or nothing. */
function exactPosterior(y) {
  const at = i => EDGE * (2 * (i + 0.5) / PIXELS - 1);
  const found = new Float64Array(PIXELS * PIXELS);
  for (let j = 0; j < PIXELS; j++)
    for (let i = 0; i < PIXELS; i++) {
      const x = [at(i), -at(j)], r = moonRadius(x, y);
      if (Math.max(...x.map(Math.abs)) <= 1 && Math.abs(r - 0.1) < NEAR)
        found[j * PIXELS + i] = Math.exp(moonLogLikelihood(r));
    }
  const most = found.reduce((a, b) => Math.max(a, b));
  return most > 0 ? found.map(value => value / most) : undefined;
}

/** What the page says of a sample, the observation and its exact posterior. */
function sentence(y, points, steps, known) {
  const near = points.filter(x => Math.abs(moonRadius(x, y) - 0.1) < NEAR).length / points.length;
  const upper = points.filter(x => x[0] + x[1] > 0).length / points.length;
  const percent = share => `${Math.round(100 * share)} %`;
  const head = `Observation (${y.map(v => v.toFixed(2)).join(", ")}), ${points.length} points by ${steps} steps: `;
  if (!known) return `${head}no parameters in the box explain it, and the network answers all the same.`;
  return `${head}${percent(near)} lie on the crescents, within three deviations of their radius. Of the exact ` +
    `posterior 99.7 % lie there. ${percent(upper)} lie on the upper right side.`;
}

/** The picture of the observations: those that the simulator makes, and the reader's. */
const observations = (data, state) => stage => {
  for (const y of data) stage.disc(y, 1.5, stage.colors.faint);
  stage.disc(state.y, 6, stage.colors.ink);
};

/** The picture of the parameters: the exact posterior in grey, and the sample on its way. */
const parameters = (state, time) => stage => {
  const {end, faint} = stage.colors, shade = stage.dark ? 255 : 40, {exact, paths} = state;
  if (exact) stage.ground(PIXELS, (i, j) => [shade, shade, shade, 220 * exact[j * PIXELS + i]]);
  stage.line([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]], faint);
  for (const path of paths) stage.disc(until(path, +time.value / 100).at(-1), 1.6, end);
};

export function start(figure, known) {
  const all = parts(figure), {before, after, steps, time, says, renew} = all;
  const flow = conditionalFlow(known), state = {y: known.from, paths: [], exact: undefined};
  let seed = 1;
  const left = new Stage(before, known.reach, observations(known.data, state));
  const right = new Stage(after, EDGE, parameters(state, time));

  function solve() {
    const normal = normals(seed);
    state.paths = Array.from({length: POINTS}, () => flow.path(state.y, normal(), +steps.value));
    all["steps-shown"].textContent = steps.value;
    says.textContent = sentence(state.y, state.paths.map(path => path.at(-1)), steps.value, state.exact);
    left.paint();
    right.paint();
  }

  function move(y) {
    Object.assign(state, {y, exact: exactPosterior(y)});
    solve();
  }

  steps.addEventListener("input", solve);
  renew.addEventListener("click", () => { seed += 1; solve(); });
  drag(left, 0.05, () => state.y, move);
  player(all, SECONDS, () => right.paint());
  move(known.from);
}
