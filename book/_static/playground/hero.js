// The picture of the first page: points that follow ẋ = −∇Φ(t, x) from the normal law to the data.
import {velocity} from "./pieces/networks.js";
import {normals, rk4} from "./pieces/solvers.js";
import {Stage, animate, calm, parts, until} from "./stage.js";

const POINTS = 240, STEPS = 24, SECONDS = 5, PAUSE = 1500;

export function start(figure, {flows, reach}) {
  const {canvas, play} = parts(figure), v = velocity(flows["OT-Flow"]), normal = normals(1);
  let paths = [], share = 1, stop = () => {}, waiting;

  const stage = new Stage(canvas, reach, stage => {
    const {path, end, faint} = stage.colors;
    for (const radius of [1, 2]) stage.ring(radius, faint);
    for (const points of paths) {
      const seen = until(points, share);
      stage.line(seen, path, 1, 0.35);
      stage.disc(seen.at(-1), 2.4, end);
    }
  });

  const draw = () => {
    paths = Array.from({length: POINTS}, () => rk4(v, normal(), 1, 0, STEPS));
    stage.paint();
  };
  const run = () => {
    draw();
    stop = animate(SECONDS, s => { share = s; stage.paint(); }, () => {
      if (!calm()) waiting = setTimeout(run, PAUSE);
    });
  };
  play.setAttribute("aria-pressed", "false");
  play.addEventListener("click", () => {
    const moving = play.getAttribute("aria-pressed") == "true";
    play.setAttribute("aria-pressed", String(!moving));
    play.textContent = moving ? "Play" : "Pause";
    clearTimeout(waiting);
    stop();
    if (!moving) run();
  });
  draw();
  if (!calm()) play.click();
}
