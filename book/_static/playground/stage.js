// A canvas that shows a square of the plane, in the colours of the page's theme.

const BLUE = "#0072b2", ORANGE = "#d55e00", SKY = "#56b4e9", YELLOW = "#e69f00";

export class Stage {
  /** The square [−reach, reach]² on `canvas`; `draw` is called whenever it has to be drawn anew. */
  constructor(canvas, reach, draw) {
    Object.assign(this, {canvas, reach, draw, pen: canvas.getContext("2d")});
    new ResizeObserver(() => this.fit()).observe(canvas);
    const themes = new MutationObserver(() => this.paint());
    themes.observe(document.documentElement, {attributeFilter: ["data-theme"]});
    this.fit();
  }

  get dark() {
    return document.documentElement.dataset.theme == "dark";
  }

  /** Colours that differ for readers with any kind of colour vision. */
  get colors() {
    const [path, end] = this.dark ? [SKY, YELLOW] : [BLUE, ORANGE];
    return {path, end, ink: this.dark ? "#e8e8e8" : "#1a1a1a", faint: this.dark ? "#777" : "#aaa"};
  }

  fit() {
    const side = this.canvas.clientWidth, dots = window.devicePixelRatio || 1;
    this.canvas.width = this.canvas.height = Math.max(1, Math.round(side * dots));
    this.scale = this.canvas.width / (2 * this.reach);
    this.dot = dots;
    this.paint();
  }

  paint() {
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.draw(this);
  }

  /** The pixel of a point. */
  at([x, y]) {
    return [(x + this.reach) * this.scale, (this.reach - y) * this.scale];
  }

  /** The point of a mouse or touch event. */
  under(event) {
    const box = this.canvas.getBoundingClientRect();
    const share = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [(2 * share[0] - 1) * this.reach, (1 - 2 * share[1]) * this.reach];
  }

  disc(point, radius, color, alpha = 1) {
    const pen = this.pen;
    pen.globalAlpha = alpha;
    pen.fillStyle = color;
    pen.beginPath();
    pen.arc(...this.at(point), radius * this.dot, 0, 7);
    pen.fill();
    pen.globalAlpha = 1;
  }

  line(points, color, width = 1, alpha = 1) {
    const pen = this.pen;
    Object.assign(pen, {globalAlpha: alpha, strokeStyle: color, lineWidth: width * this.dot});
    pen.beginPath();
    points.forEach((point, i) => (i ? pen.lineTo(...this.at(point)) : pen.moveTo(...this.at(point))));
    pen.stroke();
    pen.globalAlpha = 1;
  }

  /** A text, such as a star, with its middle at a point. */
  sign(text, point, size, color) {
    const pen = this.pen;
    Object.assign(pen, {fillStyle: color, font: `${size * this.dot}px sans-serif`});
    Object.assign(pen, {textAlign: "center", textBaseline: "middle"});
    pen.fillText(text, ...this.at(point));
  }

  /** Colour the square by n² pixels; `color(i, j)` has red, green, blue and opacity, up to 255. */
  ground(n, color) {
    const sheet = Object.assign(document.createElement("canvas"), {width: n, height: n});
    const pen = sheet.getContext("2d"), image = pen.createImageData(n, n);
    for (let k = 0; k < n * n; k++) image.data.set(color(k % n, Math.floor(k / n)), 4 * k);
    pen.putImageData(image, 0, 0);
    this.pen.drawImage(sheet, 0, 0, this.canvas.width, this.canvas.height);
  }

  ring(radius, color) {
    const pen = this.pen;
    Object.assign(pen, {strokeStyle: color, lineWidth: this.dot});
    pen.beginPath();
    pen.arc(...this.at([0, 0]), radius * this.scale, 0, 7);
    pen.stroke();
  }
}

/** The points of a path until the share `s` of it, the last one by interpolation. */
export function until(path, s) {
  const place = s * (path.length - 1), whole = Math.min(Math.floor(place), path.length - 2);
  const rest = place - whole, [a, b] = [path[whole], path[whole + 1]];
  return [...path.slice(0, whole + 1), [a[0] + rest * (b[0] - a[0]), a[1] + rest * (b[1] - a[1])]];
}

/** Whether the reader asked for no motion. */
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Run `step(share)` with a share that grows from 0 to 1 in so many seconds; calling it stops. */
export function animate(seconds, step, done = () => {}) {
  let began, wanted = true;
  const frame = now => {
    if (!wanted) return;
    began ??= now;
    const share = calm() ? 1 : Math.min((now - began) / (1000 * seconds), 1);
    step(share);
    if (share < 1) requestAnimationFrame(frame);
    else done();
  };
  requestAnimationFrame(frame);
  return () => (wanted = false);
}

/** The parts of a figure by the names that its HTML gives them. */
export const parts = figure =>
  Object.fromEntries([...figure.querySelectorAll("[data-part]")].map(part => [part.dataset.part, part]));

/** Where an arrow key moves a point of the square [−reach, reach]²; nothing for other keys. */
export function arrow(event, point, step, reach) {
  const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};
  if (!(event.key in moves)) return undefined;
  event.preventDefault();
  return point.map((value, i) =>
    Math.max(-reach, Math.min(reach, value + step * moves[event.key][i])));
}

/** Let a reader move a point by mouse, finger or arrow keys: `from()` is where it is. */
export function drag(stage, step, from, place) {
  const {canvas, reach} = stage, inside = value => Math.max(-reach, Math.min(reach, value));
  const follow = event => place(stage.under(event).map(inside));
  canvas.style.touchAction = "pinch-zoom";
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    follow(event);
  });
  canvas.addEventListener("pointermove", event => {
    if (canvas.hasPointerCapture(event.pointerId)) follow(event);
  });
  canvas.addEventListener("keydown", event => {
    const moved = arrow(event, from(), step, reach);
    if (moved) place(moved);
  });
}

/**
 * Let a slider choose the share of the way, by hand or by the button `play` in some seconds.
 * `shown()` is called for each share; the function that comes back stops the motion.
 */
export function player({time, play, "time-shown": output}, seconds, shown) {
  let stop = () => {};
  const show = () => {
    output.textContent = (time.value / 100).toFixed(2);
    shown();
  };
  time.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    stop();
    stop = animate(seconds, share => { time.value = Math.round(100 * share); show(); });
  });
  return () => stop();
}
