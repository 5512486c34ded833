// @ts-check
// <ry-picture src boxes>: an image with its true boxes (solid) and predicted boxes (dashed) on one
// canvas, with lines between the pairs. `boxes` is JSON: {truth: [{box, phrase}], predicted: [...]},
// with corners as fractions of the sides. Keys: t true, y predicted, d difference, + - 0 zoom.

/** @typedef {{ box: [number, number, number, number], phrase: string }} Box
 * @typedef {{ truth: Box[], predicted: Box[] }} Boxes */

const MOST_ZOOM = 12;

/** Return the overlap of two boxes: 1 if they are equal, 0 if they are apart.
 * @param {Box["box"]} a @param {Box["box"]} b */
export function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (/** @type {Box["box"]} */ box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

/** Pair true and predicted boxes, greatest overlap first.
 * @param {Boxes} boxes @returns {{ truth: number, predicted: number, iou: number }[]} */
export function pair({ truth, predicted }) {
  const all = truth.flatMap((a, i) => predicted.map((b, j) => ({ truth: i, predicted: j, iou: iou(a.box, b.box) })));
  all.sort((a, b) => b.iou - a.iou);
  const pairs = [], seen = new Set();
  for (const one of all) {
    if (!one.iou || seen.has(`t${one.truth}`) || seen.has(`p${one.predicted}`)) continue;
    seen.add(`t${one.truth}`).add(`p${one.predicted}`);
    pairs.push(one);
  }
  return pairs;
}

class Picture extends HTMLElement {
  static observedAttributes = ["src", "boxes", "show"];
  canvas = document.createElement("canvas");
  image = new Image();
  zoom = 1;
  center = { x: 0.5, y: 0.5 };
  frame = 0;

  connectedCallback() {
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", this.getAttribute("label") ?? "Image with boxes");
    this.canvas.tabIndex = 0;
    // In a shadow root, since the element itself is replaced in place by one without a canvas.
    (this.shadowRoot ?? this.attachShadow({ mode: "open" })).replaceChildren(this.canvas);
    Object.assign(this.canvas.style, { display: "block", width: "100%", height: "100%" });
    this.observer = new ResizeObserver(() => this.request());
    this.observer.observe(this);
    this.image.addEventListener("load", () => { this.removeAttribute("data-missing"); this.request(); });
    this.image.addEventListener("error", () => this.setAttribute("data-missing", "The image is not available."));
    this.load();
    this.canvas.addEventListener("keydown", (event) => this.onKey(event));
    this.canvas.addEventListener("pointermove", (event) => {
      if (!event.buttons || this.zoom === 1) return;
      const { width, height } = this.fit();
      this.center.x -= event.movementX / (width * this.zoom);
      this.center.y -= event.movementY / (height * this.zoom);
      this.request();
    });
    this.canvas.addEventListener("dblclick", () => this.scale(this.zoom > 1 ? 1 / this.zoom : 3));
  }
  disconnectedCallback() { this.observer?.disconnect(); cancelAnimationFrame(this.frame); }
  /** @param {string} name */
  attributeChangedCallback(name) { if (!this.isConnected) return; if (name === "src") this.load(); this.request(); }
  load() { this.image.src = this.getAttribute("src") ?? ""; }

  /** @returns {Boxes} */
  boxes() {
    try { return JSON.parse(this.getAttribute("boxes") ?? ""); } catch { return { truth: [], predicted: [] }; }
  }
  /** Return which boxes are shown: any of t, y, d. */
  shown() { return this.getAttribute("show") ?? "ty"; }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "+" || event.key === "=") this.scale(1.5);
    else if (event.key === "-") this.scale(1 / 1.5);
    else if (event.key === "0") this.scale(1 / this.zoom);
    else return;
    event.preventDefault();
  }
  /** @param {number} by */
  scale(by) {
    this.zoom = Math.min(Math.max(this.zoom * by, 1), MOST_ZOOM);
    if (this.zoom === 1) this.center = { x: 0.5, y: 0.5 };
    this.request();
  }
  request() { cancelAnimationFrame(this.frame); this.frame = requestAnimationFrame(() => this.draw()); }

  /** Return the size of the unzoomed image within the element. */
  fit() {
    const { naturalWidth, naturalHeight } = this.image, { clientWidth, clientHeight } = this;
    const scale = Math.min(clientWidth / (naturalWidth || 1), clientHeight / (naturalHeight || 1));
    return { width: naturalWidth * scale, height: naturalHeight * scale };
  }

  draw() {
    const { canvas, zoom } = this, ratio = devicePixelRatio, style = getComputedStyle(this);
    const [width, height] = [this.clientWidth, this.clientHeight];
    if (canvas.width !== width * ratio || canvas.height !== height * ratio) [canvas.width, canvas.height] = [width * ratio, height * ratio];
    const context = canvas.getContext("2d");
    if (!context || !this.image.naturalWidth) return;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const size = this.fit(), half = 0.5 / zoom;
    for (const side of /** @type {const} */ (["x", "y"])) this.center[side] = Math.min(Math.max(this.center[side], half), 1 - half);
    const left = width / 2 - this.center.x * size.width * zoom, top = height / 2 - this.center.y * size.height * zoom;
    const place = (/** @type {number} */ x, /** @type {number} */ y) => /** @type {[number, number]} */ ([left + x * size.width * zoom, top + y * size.height * zoom]);
    context.imageSmoothingEnabled = size.width * zoom < 4 * this.image.naturalWidth;
    context.drawImage(this.image, ...place(0, 0), size.width * zoom, size.height * zoom);
    const boxes = this.boxes(), shown = this.shown(), pairs = pair(boxes);
    const agreed = { truth: new Set(), predicted: new Set() };
    if (shown.includes("d")) for (const one of pairs) if (one.iou >= 0.5) { agreed.truth.add(one.truth); agreed.predicted.add(one.predicted); }
    for (const [kind, key, dash] of /** @type {const} */ ([["truth", "t", []], ["predicted", "y", [5, 4]]])) {
      if (!shown.includes(key)) continue;
      context.setLineDash(dash);
      const stroke = resolve(this, style, `--box-${kind}`);
      boxes[kind].forEach(({ box, phrase }, index) => {
        if (agreed[kind].has(index)) return;
        const [x0, y0] = place(box[0], box[1]), [x1, y1] = place(box[2], box[3]);
        context.lineWidth = 4;
        context.strokeStyle = "rgb(0 0 0 / 0.45)";
        context.strokeRect(x0, y0, x1 - x0, y1 - y0);
        context.lineWidth = 2;
        context.strokeStyle = stroke;
        context.strokeRect(x0, y0, x1 - x0, y1 - y0);
        if (boxes[kind].length <= 60) this.write(context, phrase, x0, kind === "truth" ? y0 - 3 : y1 + 12, stroke);
      });
    }
    context.setLineDash([]);
    if (shown.includes("t") && shown.includes("y")) this.link(context, boxes, pairs, agreed.truth, place);
  }

  /** Draw a line between the centers of each pair.
   * @param {CanvasRenderingContext2D} context @param {Boxes} boxes @param {ReturnType<typeof pair>} pairs
   * @param {Set<number>} agreed @param {(x: number, y: number) => [number, number]} place */
  link(context, boxes, pairs, agreed, place) {
    context.lineWidth = 1;
    context.strokeStyle = "rgb(255 255 255 / 0.7)";
    for (const one of pairs) {
      if (agreed.has(one.truth)) continue;
      const [a, b] = [boxes.truth[one.truth].box, boxes.predicted[one.predicted].box];
      context.beginPath();
      context.moveTo(...place((a[0] + a[2]) / 2, (a[1] + a[3]) / 2));
      context.lineTo(...place((b[0] + b[2]) / 2, (b[1] + b[3]) / 2));
      context.stroke();
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {string} text @param {number} x @param {number} y @param {string} color */
  write(context, text, x, y, color) {
    if (!text) return;
    const short = text.length > 24 ? `${text.slice(0, 23)}…` : text;
    context.font = "600 11px Inter, system-ui";
    const width = context.measureText(short).width;
    context.fillStyle = "rgb(0 0 0 / 0.65)";
    context.fillRect(x - 1, y - 10, width + 6, 13);
    context.fillStyle = color;
    context.fillText(short, x + 2, y);
  }
}

/** Resolve a color of the style sheet to one that a canvas takes.
 * @param {HTMLElement} element @param {CSSStyleDeclaration} style @param {string} name */
function resolve(element, style, name) { return style.getPropertyValue(name).trim() || getComputedStyle(element).color; }

customElements.define("ry-picture", Picture);
