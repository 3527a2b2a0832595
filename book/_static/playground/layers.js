// The points of a plane move through the layers of a trained network, and so does one of the reader's.
import {resnet} from "./pieces/networks.js";
import {Stage, drag, parts, player, until} from "./stage.js";

const SECONDS = 4, PIXELS = 40;

const color = (stage, label) => (label ? stage.colors.end : stage.colors.path);

/** What a network of so many layers makes of the data: their paths, and each pixel's probability. */
function solved(net, plane, layers) {
  const at = i => plane.reach * (2 * (i + 0.5) / PIXELS - 1), row = Array.from({length: PIXELS}, (_, i) => at(i));
  const walk = y => net.path(y, layers), end = path => net.probability(path.at(-1));
  const project = u => plane.axes.map(axis => axis.reduce((sum, a, i) => sum + a * u[i], 0));
  const paths = plane.data.map(([x, y]) => walk([x, y]));
  const right = plane.data.filter(([x, y, label], k) => (end(paths[k]) > 0.5) == label);
  return {
    layers,
    paths: paths.map(path => path.map(project)),
    likely: row.map(y => row.map(x => end(walk([x, -y])))),
    accuracy: right.length / plane.data.length,
    own: y => ({path: walk(y).map(project), probability: end(walk(y))}),
  };
}

/** The picture of the data, on what the network says of each point of the plane. */
const data = state => stage => {
  if (!state.own) return;
  const {found: {likely}, plane, from} = state;
  const [path, end] = [stage.colors.path, stage.colors.end].map(code =>
    [1, 3, 5].map(k => parseInt(code.slice(k, k + 2), 16)));
  stage.ground(PIXELS, (i, j) => [...(likely[j][i] > 0.5 ? end : path), 200 * Math.abs(likely[j][i] - 0.5)]);
  for (const [x, y, label] of plane.data) stage.disc([x, y], 2, color(stage, label));
  stage.disc(from, 6, stage.colors.ink);
};

/** The picture of the features after some layers, with the cut between the classes. */
const features = (state, time) => stage => {
  if (!state.own) return;
  const {found, plane, net, own} = state, cut = net.cut(plane.axes[0]), {ink, faint} = stage.colors;
  stage.line([[cut, -stage.reach], [cut, stage.reach]], faint, 2);
  found.paths.forEach((path, k) =>
    stage.disc(until(path, +time.value / 100).at(-1), 2, color(stage, plane.data[k][2])));
  const seen = until(own.path, +time.value / 100);
  stage.line(seen, ink, 1.5);
  stage.disc(seen.at(-1), 6, ink);
};

/** What the page says after layer k. */
function sentence({found: {layers, accuracy}, plane, from, own}, k) {
  const coordinates = point => `(${point.map(v => v.toFixed(2)).join(", ")})`;
  return `${layers} layers of step ${(plane.horizon / layers).toPrecision(2)}: ` +
    `${Math.round(100 * accuracy)} % of the points are told right. The point ${coordinates(from)} is at ` +
    `${coordinates(own.path[k])} after layer ${k}, and is orange with probability ${own.probability.toFixed(2)}.`;
}

export function start(figure, {nets}) {
  const all = parts(figure), {before, after, model, share, time, says} = all, state = {};
  const left = new Stage(before, 1, data(state)), right = new Stage(after, 1, features(state, time));

  function choose() {
    const plane = nets[model.value];
    Object.assign(state, {plane, net: resnet(plane.weights, plane.horizon), from: plane.data[0].slice(0, 2)});
    [left.reach, right.reach] = [plane.reach, plane.features];
    solve();
    left.fit();
    right.fit();
  }

  function solve() {
    state.found = solved(state.net, state.plane, Math.round(state.net.trained * +share.value));
    move(state.from);
  }

  function move(from) {
    Object.assign(state, {from, own: state.found.own(from)});
    show();
  }

  function show() {
    const n = state.found.layers, k = Math.round(n * time.value / 100);
    all["time-shown"].textContent = `${k} of ${n}`;
    says.textContent = sentence(state, k);
    left.paint();
    right.paint();
  }

  model.addEventListener("input", choose);
  share.addEventListener("input", solve);
  drag(left, 0.05, () => state.from, move);
  player(all, SECONDS, show);
  choose();
}
