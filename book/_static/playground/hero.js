// The picture of the first page: points that follow ẋ = −∇Φ(t, x) from the normal law to the data.
import {potential, rk4, normals} from "./pieces.js";
import {Stage, until, calm, animate} from "./stage.js";

const POINTS = 240, STEPS = 24, SECONDS = 5, PAUSE = 1500;

export function start(figure, {flows}) {
  const phi = potential(flows["OT-Flow"].weights);
  const velocity = (t, x) => phi(t, x).dx.map(value => -value);
  const normal = normals(1), canvas = figure.querySelector("canvas");
  let paths = [], share = 1, stop = () => {}, waiting;

  const stage = new Stage(canvas, 4.6, stage => {
    const {path, end, faint} = stage.colors;
    for (const radius of [1, 2]) stage.ring(radius, faint);
    for (const points of paths) {
      const seen = until(points, share);
      stage.line(seen, path, 1, 0.35);
      stage.disc(seen.at(-1), 2.4, end);
    }
  });

  const draw = () => {
    paths = Array.from({length: POINTS}, () => rk4(velocity, normal(), 1, 0, STEPS));
  };
  const run = () => {
    draw();
    stop = animate(SECONDS, s => { share = s; stage.paint(); }, () => {
      if (!calm()) waiting = setTimeout(run, PAUSE);
    });
  };
  const button = figure.querySelector("button");
  button.addEventListener("click", () => {
    const moving = button.getAttribute("aria-pressed") == "true";
    button.setAttribute("aria-pressed", String(!moving));
    button.textContent = moving ? "Play" : "Pause";
    clearTimeout(waiting);
    stop();
    if (!moving) run();
  });
  draw();
  stage.paint();
  if (calm()) return;
  button.click();
}
