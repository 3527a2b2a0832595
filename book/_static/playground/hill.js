// Round a hill in the wind: a learned feedback, and its own plan without feedback, in the same noise.
import {obstacle, pinned, quadratic, rollout} from "./pieces/control.js";
import {potential} from "./pieces/networks.js";
import {normals} from "./pieces/solvers.js";
import {Stage, drag, parts, player, until} from "./stage.js";

const PATHS = 12, STEPS = 50, SECONDS = 3, COARSE = 29, FINE = 140;
const LEVELS = 14, LOW = 0.5, HIGH = 400;  // of Φ: bands on a logarithmic scale

/** The bands of a function of the plane: their numbers at FINE² pixels, by rows from the top. */
function bands(value, reach) {
  const at = i => reach * (2 * i / (COARSE - 1) - 1);
  const level = (j, i) => Math.log(Math.max(value([at(i), -at(j)]), LOW) / LOW) / Math.log(HIGH / LOW);
  const nodes = Array.from({length: COARSE}, (_, j) => Array.from({length: COARSE}, (_, i) => level(j, i)));
  const places = Array.from({length: FINE}, (_, i) => (i + 0.5) / FINE * (COARSE - 1));
  return places.map(y => {
    const j = Math.floor(y), [upper, lower] = [nodes[j], nodes[j + 1]];
    return places.map(x => {
      const i = Math.floor(x), mix = row => row[i] + (x - i) * (row[i + 1] - row[i]);
      const found = mix(upper) + (y - j) * (mix(lower) - mix(upper));
      return Math.round(LEVELS * Math.max(0, Math.min(1, found)));
    });
  });
}

/** The picture of the value function, the hill and the paths. */
const picture = (state, {problem, reach}, phi, time) => stage => {
  if (!state.calm) return;
  const {path, end, ink} = stage.colors, share = +time.value / 100;
  state.bands[time.value] ??= bands(x => phi(share, x).value, reach);
  const shade = stage.dark ? 255 : 40, shown = state.bands[time.value];
  stage.ground(FINE, (i, j) => [shade, shade, shade, 9 * shown[j][i]]);
  for (const deviations of [1, 2]) stage.ring(deviations * Math.sqrt(problem.variance), ink);
  for (const [paths, color] of [[state.blind, path], [state.steered, end]])
    for (const {path: points} of paths) {
      const seen = until(points, share);
      stage.line(points, color, 0.8, 0.3);
      stage.line(seen, color, 1.6);
      stage.disc(seen.at(-1), 2.6, color);
    }
  stage.line(state.calm.path, ink, 1.4);
  stage.disc(state.from, 5, ink);
  stage.sign("★", problem.target, 20, ink);
};

/** σΔW of each step: the same numbers for each start and each strength of the noise. */
function kicks(normal, sigma, strength) {
  return Array.from({length: STEPS}, () => {
    const dW = normal();
    return sigma.map(row => strength * (row[0] * dW[0] + row[1] * dW[1]) / Math.sqrt(STEPS));
  });
}

/** What the page says of the paths from a start. */
function sentence({from, steered, blind}, target, value) {
  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
  const outcome = paths => {
    const far = ({path}) => Math.hypot(...path.at(-1).map((v, i) => v - target[i]));
    return `costs ${mean(paths.map(p => p.cost)).toFixed(1)} and ends ${mean(paths.map(far)).toFixed(2)} away`;
  };
  return `From (${from.map(v => v.toFixed(1)).join(", ")}), mean of ${PATHS} paths: the feedback ` +
    `${outcome(steered)} from the star; its plan without feedback ${outcome(blind)}. ` +
    `Φ(0, start) is ${value.toFixed(1)}.`;
}

export function start(figure, known) {
  const all = parts(figure), {canvas, noise, time, says, renew} = all, {problem} = known;
  const phi = pinned(quadratic(problem), potential(known.correction)), hill = obstacle(problem);
  const policy = (t, x) => hill.control(x, phi(t, x).dx), state = {from: known.from, bands: {}};
  const stage = new Stage(canvas, known.reach, picture(state, known, phi, time));
  let seed = 1;

  function solve() {
    const normal = normals(seed), strength = +noise.value, {from} = state;
    const fly = (steering, wind) => rollout(hill, steering, from, wind);
    const calm = fly(policy, kicks(normal, problem.sigma, 0));
    const winds = Array.from({length: PATHS}, () => kicks(normal, problem.sigma, strength));
    const steered = winds.map(wind => fly(policy, wind));
    const blind = winds.map(wind => fly((t, x, k) => calm.controls[k], wind));
    Object.assign(state, {calm, steered, blind});
    all["noise-shown"].textContent = strength.toFixed(1);
    says.textContent = sentence(state, problem.target, phi(0, from).value);
    stage.paint();
  }

  noise.addEventListener("input", solve);
  renew.addEventListener("click", () => { seed += 1; solve(); });
  drag(stage, 0.1, () => state.from, from => { state.from = from; solve(); });
  player(all, SECONDS, () => stage.paint());
  solve();
}
