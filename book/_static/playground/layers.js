// The points of a plane move through the layers of a trained network, and so does one of the reader's.
import {resnet} from "./pieces/networks.js";
import {Stage, drag, parts, player, until} from "./stage.js";

const SECONDS = 4, PIXELS = 40;

export function start(figure, {nets}) {
  const all = parts(figure), {before, after, model, share, time, says} = all;
  let net, plane, from, paths = [], own, likely = [], accuracy;

  const project = u => plane.axes.map(axis => axis.reduce((sum, a, i) => sum + a * u[i], 0));
  const walk = y => net.path(y, layers()).map(project);
  const end = y => net.probability(net.path(y, layers()).at(-1));
  const layers = () => Math.round(net.trained * +share.value);
  const color = (stage, label) => (label ? stage.colors.end : stage.colors.path);

  const left = new Stage(before, 1, stage => {
    if (!own) return;
    const [path, end] = [stage.colors.path, stage.colors.end].map(code =>
      [1, 3, 5].map(k => parseInt(code.slice(k, k + 2), 16)));
    stage.ground(PIXELS, (i, j) => [...(likely[j][i] > 0.5 ? end : path), 200 * Math.abs(likely[j][i] - 0.5)]);
    for (const [x, y, label] of plane.data) stage.disc([x, y], 2, color(stage, label));
    stage.disc(from, 6, stage.colors.ink);
  });
  const right = new Stage(after, 1, stage => {
    if (!own) return;
    const cut = net.cut(plane.axes[0]), {ink, faint} = stage.colors;
    stage.line([[cut, -stage.reach], [cut, stage.reach]], faint, 2);
    paths.forEach((path, k) => stage.disc(until(path, +time.value / 100).at(-1), 2, color(stage, plane.data[k][2])));
    const seen = until(own, +time.value / 100);
    stage.line(seen, ink, 1.5);
    stage.disc(seen.at(-1), 6, ink);
  });

  function choose() {
    plane = nets[model.value];
    net = resnet(plane.weights, plane.horizon);
    from = plane.data[0].slice(0, 2);
    [left.reach, right.reach] = [plane.reach, plane.features];
    solve();
    left.fit();
    right.fit();
  }

  function solve() {
    const at = i => plane.reach * (2 * (i + 0.5) / PIXELS - 1), row = Array.from({length: PIXELS}, (_, i) => at(i));
    likely = row.map(y => row.map(x => end([x, -y])));
    paths = plane.data.map(([x, y]) => walk([x, y]));
    accuracy = plane.data.filter(([x, y, label]) => (end([x, y]) > 0.5) == label).length / plane.data.length;
    move(from);
  }

  function move(point) {
    from = point;
    own = walk(from);
    show();
  }

  function show() {
    const n = layers(), k = Math.round(n * time.value / 100);
    const coordinates = point => `(${point.map(v => v.toFixed(2)).join(", ")})`;
    all["time-shown"].textContent = `${k} of ${n}`;
    says.textContent = `${n} layers of step ${(plane.horizon / n).toPrecision(2)}: ` +
      `${Math.round(100 * accuracy)} % of the points are told right. The point ${coordinates(from)} is at ` +
      `${coordinates(own[k])} after layer ${k}, and is orange with probability ${end(from).toFixed(2)}.`;
    left.paint();
    right.paint();
  }

  model.addEventListener("input", choose);
  share.addEventListener("input", solve);
  drag(left, 0.05, () => from, move);
  player(all, SECONDS, show);
  choose();
}
