// Three controllers of a quadcopter in the same wind, from the side and from above.
import {along, quadcopter, rollout, scaled} from "./pieces/control.js";
import {potential} from "./pieces/networks.js";
import {normals} from "./pieces/solvers.js";
import {Stage, parts, player, until} from "./stage.js";

const FLIGHTS = 4, STEPS = 100, SECONDS = 3, ARM = 0.22;
const VIEWS = {side: [0, 2], top: [0, 1]};  // the entries of the state that a picture shows

/** The ends of an arm of the copter in a view, across its thrust. */
function arm(copter, state, [i, j]) {
  const e = copter.axis(state), size = Math.hypot(e[i], e[j]) || 1, middle = [state[i], state[j]];
  const across = [ARM * e[j] / size, -ARM * e[i] / size];
  return [-1, 1].map(sign => middle.map((value, k) => value + sign * across[k]));
}

/** The picture of all flights in a view. */
const picture = (state, {problem, from}, copter, time, view) => stage => {
  const {path, end, ink} = stage.colors, share = +time.value / 100, [i, j] = view;
  const shades = {"open loop": ink, "linear feedback": path, network: end};
  for (const [name, some] of Object.entries(state.flights))
    for (const {path: states} of some) {
      const points = states.map(x => [x[i], x[j]]);
      stage.line(points, shades[name], 0.7, 0.25);
      stage.line(until(points, share), shades[name], 1.3, 0.8);
      const now = states[Math.round(share * STEPS)];
      stage.disc([now[i], now[j]], 3, shades[name]);
      stage.line(arm(copter, now, view), shades[name], 3);
    }
  stage.disc([from[i], from[j]], 4, ink);
  stage.sign("★", [problem.target[i], problem.target[j]], 20, ink);
};

/** What the page says of the flights of a controller. */
function outcome(name, some, target) {
  const mean = of => some.reduce((sum, flight) => sum + of(flight), 0) / FLIGHTS;
  const far = mean(({path}) => Math.hypot(...[0, 1, 2].map(i => path.at(-1)[i] - target[i])));
  return `${name} costs ${Math.round(mean(flight => flight.cost))} and ends ${far.toFixed(2)} from the star`;
}

/** σΔW of each step of some flights. */
function winds(seed, sigma) {
  const normal = normals(seed), size = sigma / Math.sqrt(STEPS);
  const kick = () => Float64Array.from(Array.from({length: 6}, normal).flat(), value => size * value);
  return Array.from({length: FLIGHTS}, () => Array.from({length: STEPS}, kick));
}

export function start(figure, known) {
  const all = parts(figure), {wind, time, says, renew} = all, copter = quadcopter(known.problem);
  const phi = scaled(potential(known.weights), known.frame), {planned, linear} = along(known.plan);
  const network = (t, x) => copter.control(x, phi(t, x).dx);
  const policies = {"open loop": planned, "linear feedback": linear, network};
  const state = {flights: {}};
  let seed = 1;
  const stages = Object.entries(VIEWS).map(([name, view]) =>
    new Stage(all[name], known.reach, picture(state, known, copter, time, view)));
  const paint = () => stages.forEach(stage => stage.paint());

  function solve() {
    const some = winds(seed, +wind.value), {target} = known.problem;
    for (const [name, policy] of Object.entries(policies))
      state.flights[name] = some.map(kicks => rollout(copter, policy, known.from, kicks));
    all["wind-shown"].textContent = (+wind.value).toFixed(2);
    says.textContent = `Wind ${(+wind.value).toFixed(2)}, mean of ${FLIGHTS} flights: ` +
      Object.entries(state.flights).map(([name, found]) => outcome(name, found, target)).join("; ") + ".";
    paint();
  }

  wind.addEventListener("input", solve);
  renew.addEventListener("click", () => { seed += 1; solve(); });
  player(all, SECONDS, paint);
  solve();
}
