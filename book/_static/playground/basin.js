// A leak in a basin: drag source and drain, choose the stream, and see what a trained policy does.
import {basin, bestOpenings, drain, opening} from "./pieces/basins.js";
import {Stage, drag, parts, player} from "./stage.js";

const SECONDS = 3, PIXELS = 65, DARTS = 9;

const shown = point => point.map(value => 2 * value - 1);  // the basin [0, 1]² fills the square [−1, 1]²
const inside = point => point.map(value => (value + 1) / 2);

/** The values at PIXELS² pixels of a function with these values at the nodes, by rows from the top. */
function fine(u, nodes) {
  const places = Array.from({length: PIXELS}, (_, i) => (i + 0.5) / PIXELS * (nodes - 1));
  return places.toReversed().map(y => places.map(x => {
    const i = Math.floor(x), j = Math.floor(y), row = k => (1 - y + j) * u[k * nodes + j] + (y - j) * u[k * nodes + j + 1];
    return (1 - x + i) * row(i) + (x - i) * row(i + 1);
  }));
}

/** Draw where the stream goes, by arrows as long as it is fast. */
function darts(stage, velocity) {
  for (let i = 1; i < DARTS; i++)
    for (let j = 1; j < DARTS; j++) {
      const at = [i / DARTS, j / DARTS], [p, q] = velocity(...at).map(value => 0.07 * value);
      const tip = [at[0] + p, at[1] + q], barb = turn => [tip[0] - 0.3 * (p - turn * q), tip[1] - 0.3 * (q + turn * p)];
      stage.line([at, tip, barb(1), tip, barb(-1)].map(shown), stage.colors.ink, 0.8, 0.5);
    }
}

/** The picture of a concentration, with the stream, the source and the drain. */
const field = (state, name, time) => stage => {
  const found = state.paths?.[name];
  if (!found) return;
  const {nodes, steps, velocity} = state.problem, code = stage.colors.path, {source, sink} = state.basin;
  const values = fine(found.states[Math.round(time.value / 100 * steps)], nodes);
  const color = [1, 3, 5].map(k => parseInt(code.slice(k, k + 2), 16));
  stage.ground(PIXELS, (i, j) => [...color, 230 * Math.max(0, Math.min(1, values[j][i] / state.top))]);
  darts(stage, velocity);
  stage.sign("▲", shown(source), 18, stage.colors.end);
  stage.disc(shown(sink), 6, stage.colors.ink);
};

/** The picture of the openings over time: those of the policy and of the best plan. */
const openings = (state, time) => stage => {
  if (!state.paths) return;
  const {steps} = state.problem, {end, ink, faint} = stage.colors, {policy, best} = state.paths;
  const top = Math.max(0.5, ...policy.openings, ...best.openings);
  const at = (k, a) => [1.7 * k / steps - 0.8, 1.65 * a / top - 0.8];
  const stairs = values => values.flatMap((a, k) => [at(k, a), at(k + 1, a)]);
  stage.line([at(0, top), at(0, 0), at(steps, 0)], faint);
  for (const [text, k, a] of [["0", -1, 0], [top.toFixed(1), -1.2, top], ["t = 0", 1, -0.07 * top], ["t = 1", 24, -0.07 * top]])
    stage.sign(text, at(k, a), 12, ink);
  stage.line([at(time.value / 100 * steps, 0), at(time.value / 100 * steps, top)], faint);
  stage.line(stairs(best.openings), ink, 1.5);
  stage.line(stairs(policy.openings), end, 2);
};

/** Whether speed, strength and places are in the ranges of the training. */
function usual({speed, source, strength, sink}) {
  const within = (value, low, high) => value >= low - 1e-9 && value <= high + 1e-9;
  return within(Math.abs(speed), 0.2, 1) && within(strength, 0.5, 1.5) &&
    [...source, ...sink].every(value => within(value, 0.2, 0.8));
}

/** What the page says of a basin and its three costs. */
function sentence(given, {shut, policy, best}) {
  const loss = 100 * (policy.cost / best.cost - 1), point = at => `(${at.map(v => v.toFixed(2)).join(", ")})`;
  return `Source at ${point(given.source)}, drain at ${point(given.sink)}. Cost with the drain shut ${shut.cost.toFixed(3)}, ` +
    `by the policy ${policy.cost.toFixed(3)}, by the best plan ${best.cost.toFixed(3)}: the policy costs ${loss.toFixed(1)} % more. ` +
    `Speed, strength and places are ${usual(given) ? "in" : "outside of"} the ranges of the training.`;
}

export function start(figure, {constants, streams, weights, first}) {
  const all = parts(figure), {moved, stream, speed, strength, time} = all, policy = opening(weights);
  const state = {basin: first};
  const stages = [
    new Stage(all.before, 1, field(state, "shut", time)),
    new Stage(all.middle, 1, field(state, "policy", time)),
    new Stage(all.after, 1, openings(state, time)),
  ];
  const paint = () => stages.forEach(stage => stage.paint());

  function solve() {
    Object.assign(state.basin, {stream: streams[stream.value], speed: +speed.value, strength: +strength.value});
    const problem = basin(constants, state.basin), plan = bestOpenings(problem);
    const paths = {shut: drain(problem, () => 0), policy: drain(problem, policy), best: drain(problem, (t, u, y, k) => plan[k])};
    Object.assign(state, {problem, paths, top: Math.max(...paths.shut.states.at(-1))});
    all["speed-shown"].textContent = state.basin.speed.toFixed(1);
    all["strength-shown"].textContent = state.basin.strength.toFixed(1);
    all.says.textContent = sentence(state.basin, paths);
    paint();
  }

  for (const stage of stages.slice(0, 2))
    drag(stage, 0.04, () => shown(state.basin[moved.value]), point => {
      state.basin[moved.value] = inside(point);
      solve();
    });
  for (const input of [stream, speed, strength]) input.addEventListener("input", solve);
  player(all, SECONDS, paint);
  solve();
}
