// The live page. How things are is in the page itself (#now), so that it shows them before it has asked for anything;
// what is new comes ten times a second as one message of /ws?format=page, of which the first has all labels that are kept.
const $ = (selector, root = document) => root.querySelector(selector);
const make = (tag, className = "", text = "") => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
};
const colours = new Map(); // for canvases, as they are in this scheme: asking for one makes the browser compute styles
const colour = (name) => {
  if (!colours.has(name)) colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim() || "gray");
  return colours.get(name);
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colours.clear();
  drawLatency();
  for (const one of streams.values()) one.plot();
});
const hue = (label) => `var(--of-${CSS.escape(label)}, var(--ink))`; // a bundle may have labels of its own
const marked = new Set();
const mark = (name) => { if (!marked.has(name)) { marked.add(name); performance.mark(name); } }; // for who measures
const percent = (value) => `${Math.round(100 * value)} %`;
const duration = (ms) => ms < 1999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
const plural = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;
const say = (element, text) => { if (element.textContent !== text) element.textContent = text; }; // a screen reader says it once
const SENSE = { audio: "sound", video: "face", text: "words" };
const KEPT = 500;

class LiveStream extends HTMLElement {
  connectedCallback() {
    this.append($("#stream-template").content.cloneNode(true));
    $("h2", this).textContent = this.dataset.name;
    this.trail = [];
  }

  estimate(message) {
    const done = message.kind === "utterance";
    $(".words", this).textContent = message.text || "…";
    const verdict = $(".verdict strong", this);
    verdict.textContent = message.label + (message.uncertain ? " ?" : "");
    verdict.style.color = hue(message.label);
    const parts = Object.entries(message.modalities).filter(([, part]) => part.frames > 0);
    const driver = parts.sort((a, b) => b[1].contribution - a[1].contribution)[0];
    $(".verdict span", this).textContent = [
      percent(message.confidence), message.uncertain ? "not sure" : "",
      done ? "label" : "so far", driver && done ? `mostly from the ${SENSE[driver[0]]}` : "",
    ].filter(Boolean).join(" · ");
    this.used = message.face;
    this.speaking = message.speaking;
    this.moods = new Map(message.faces.map((face) => [face.id, face.label ?? (face.id === message.face ? message.label : "")]));
    this.bars(message);
    if (message.valence !== null && message.valence !== undefined) this.wander(message.valence, message.arousal);
  }

  bars(message) {
    const list = $(".bars", this);
    if (list.childElementCount !== 3 * Object.keys(message.probabilities).length) {
      list.replaceChildren();
      for (const name of Object.keys(message.probabilities)) {
        const track = make("dd", "track");
        track.append(make("div", "fill"));
        list.append(make("dt", "", name), track, make("dd", "share"));
      }
    }
    Object.entries(message.probabilities).forEach(([name, value], i) => {
      const [term, track, share] = [...list.children].slice(3 * i, 3 * i + 3);
      const best = name === message.label;
      term.className = best ? "best" : "";
      share.className = best ? "share best" : "share";
      share.textContent = percent(value);
      track.firstChild.style.width = `${100 * value}%`;
      track.firstChild.style.background = best ? hue(name) : "var(--quiet)";
    });
  }

  wander(valence, arousal) {
    this.trail = [...this.trail.slice(-11), [valence, arousal]];
    $(".point", this).setAttribute("aria-label", `valence ${valence.toFixed(2)}, arousal ${arousal.toFixed(2)}`);
    this.plot();
  }

  plot() {
    if (!this.trail.length) return;
    const canvas = $(".point", this), draw = canvas.getContext("2d"), size = canvas.width;
    draw.clearRect(0, 0, size, size);
    draw.strokeStyle = colour("quiet");
    draw.lineWidth = 1.5;
    draw.strokeRect(1, 1, size - 2, size - 2);
    draw.beginPath();
    draw.moveTo(size / 2, 0); draw.lineTo(size / 2, size); draw.moveTo(0, size / 2); draw.lineTo(size, size / 2);
    draw.stroke();
    this.trail.forEach(([x, y], i) => {
      draw.globalAlpha = (i + 1) / this.trail.length;
      draw.fillStyle = colour("accent");
      draw.beginPath();
      draw.arc((x + 1) / 2 * size, (1 - y) / 2 * size, i === this.trail.length - 1 ? 8 : 4, 0, 7);
      draw.fill();
    });
    draw.globalAlpha = 1;
  }

  sense(senses, status) {
    const wave = $(".wave", this), draw = wave.getContext("2d"), { width, height } = wave;
    draw.clearRect(0, 0, width, height);
    draw.fillStyle = colour((status && status.speech > 0.5) ? "accent" : "quiet");
    senses.envelope.forEach((value, i) => {
      const tall = Math.max(2, value / 100 * height);
      draw.fillRect(width - (senses.envelope.length - i) * 6, (height - tall) / 2, 4, tall);
    });
    const level = status && status.level_dbfs !== null ? `level ${Math.round(status.level_dbfs)} dB · speech ${percent(status.speech)}` : "no sound";
    wave.setAttribute("aria-label", level);
    $(".level", this).textContent = level;
    this.look(senses.faces);
  }

  state({ state, labelled, heard }) {
    $(".source", this).textContent = [sources[this.dataset.name], state, `${labelled} labelled of ${heard} heard`].filter(Boolean).join(" · ");
  }

  show({ jpeg }) {
    const image = new Image();
    image.onload = () => { this.picture = image; };
    image.src = `data:image/jpeg;base64,${jpeg}`;
  }

  // Draws the faces at their places, in the picture if it is sent. Otherwise only the crops are drawn, and the picture's
  // aspect ratio follows from the boxes, which are square.
  look(faces) {
    const scene = $(".scene", this), draw = scene.getContext("2d"), first = faces[0], picture = this.picture;
    scene.classList.toggle("whole", Boolean(picture));
    const height = picture ? Math.min(480, picture.height) : 180;
    if (scene.height !== height) scene.height = height;
    const square = first && first.box && first.box[2] > 0 ? first.box[3] / first.box[2] : 4 / 3;
    const shape = picture ? picture.width / picture.height : square;
    const width = Math.round(Math.min(2.4, Math.max(0.5, shape)) * scene.height);
    if (scene.width !== width) scene.width = width;
    draw.clearRect(0, 0, width, scene.height);
    if (picture) draw.drawImage(picture, 0, 0, width, scene.height);
    draw.font = "bold 15px system-ui, sans-serif";
    for (const { id, box, crop } of faces) {
      const [x, y, wide, tall] = box ?? [0.3, 0.25, 0.4, 0.5];
      const place = [x * width, y * scene.height, wide * width, tall * scene.height];
      if (!picture) {
        const bytes = Uint8Array.from(atob(crop), (letter) => letter.charCodeAt(0)), image = new ImageData(48, 48);
        bytes.forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
        const crops = new OffscreenCanvas(48, 48);
        crops.getContext("2d").putImageData(image, 0, 0);
        draw.drawImage(crops, ...place);
      }
      const used = id === this.used;
      draw.strokeStyle = colour(used ? "accent" : "quiet");
      draw.lineWidth = used ? 4 : 1.5;
      draw.strokeRect(...place);
      const mood = picture && this.moods && this.moods.get(id);
      const text = [faces.length > 1 ? id : "", mood].filter(Boolean).join(" ");
      if (!text) continue;
      if (picture) {
        draw.fillStyle = colour("card");
        draw.fillRect(place[0], place[1] - 21, draw.measureText(text).width + 8, 20);
      }
      draw.fillStyle = colour(used ? "accent" : "quiet");
      draw.fillText(text, place[0] + 4, place[1] - 6);
    }
    const many = faces.length === 0 ? "no face" : faces.length === 1 ? "a face" : `${faces.length} faces`;
    const speaks = faces.length > 1 && this.speaking ? `, ${this.speaking} speaks` : "";
    scene.setAttribute("aria-label", many + speaks);
    $(".facing", this).textContent = many + speaks;
  }
}
customElements.define("live-stream", LiveStream);

let sources = {};
const streams = new Map();
const stream = (name) => {
  if (!streams.has(name)) {
    const element = make("live-stream");
    element.dataset.name = name;
    $("#streams").append(element);
    streams.set(name, element);
  }
  return streams.get(name);
};

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

function row(message) {
  const details = make("details"), summary = make("summary");
  summary.append(make("span", "when", [message.stream, message.speaker, clock(message.start_s)].filter(Boolean).join(" ")));
  const label = make("span", "label", `${message.label}${message.uncertain ? " ?" : ""} ${percent(message.confidence)}`);
  label.style.color = hue(message.label);
  summary.append(label, make("span", "text", message.text || "…"));
  summary.append(make("span", "ms", message.latency_ms ? duration(message.latency_ms.total) : ""));
  details.append(summary);
  details.addEventListener("toggle", () => { if (details.open && details.childElementCount === 1) details.append(detail(message)); });
  const item = make("li");
  item.append(details);
  return item;
}

function addLabels(messages) {
  $("#nothing").hidden = true;
  $("#said").prepend(...messages.map(row).reverse());
  while ($("#said").childElementCount > KEPT) $("#said").lastChild.remove();
}

function table(rows) {
  const element = make("table");
  for (const [name, value] of rows) {
    const row = element.insertRow();
    const head = make("th", "", name);
    head.scope = "row";
    row.append(head, make("td", "", value));
  }
  return element;
}

// The parts of a latency one below the other, each beginning where the previous one ended.
function waterfall({ total, ...parts }) {
  const element = table(Object.entries({ ...parts, total }).map(([name, value]) => [name.replaceAll("_", " "), duration(value)]));
  let begin = 0;
  Object.values(parts).concat(total).forEach((value, i) => {
    const bar = make("div", "fill"), cell = element.rows[i].insertCell(), share = Math.max(0, value) / Math.max(1, total);
    const last = i === element.rows.length - 1;
    cell.className = "span";
    bar.style.marginLeft = `${Math.min(100, last ? 0 : 100 * begin)}%`;
    bar.style.width = `${Math.max(0.5, Math.min(100, 100 * share))}%`;
    cell.append(bar);
    begin += share;
  });
  return element;
}

function detail(message) {
  const box = make("div", "detail");
  const part = (title, rows) => { const div = make("div"); div.append(make("p", "quiet", title), table(rows)); box.append(div); };
  part("How likely", Object.entries(message.probabilities).sort((a, b) => b[1] - a[1]).map(([name, value]) => [name, percent(value)]));
  part("What it rests on", Object.entries(message.modalities).map(([name, value]) =>
    [SENSE[name], `${percent(value.coverage)} there, adds ${value.contribution >= 0 ? "+" : ""}${value.contribution.toFixed(2)}`]));
  if (message.faces && message.faces.length > 1) part("Faces in view", message.faces.map((face) =>
    [`face ${face.id}`, [face.id === message.speaking ? "speaks" : "", face.id === message.face ? "used" : "", face.label ?? ""].filter(Boolean).join(", ") || "listens"]));
  if (message.overlap > 0.1) box.append(make("p", "quiet", `two voices at once: ${percent(message.overlap)}`));
  if (message.latency_ms) {
    const div = make("div");
    div.append(make("p", "quiet", "Where the time went"), waterfall(message.latency_ms));
    box.append(div);
  }
  if (message.words.length) {
    const div = make("div"), line = make("p", "said-words");
    for (const word of message.words) line.append(make("span", "", `${word.start_s.toFixed(1)} `), `${word.word}  `);
    div.append(make("p", "quiet", "Words, and when each began (s)"), line);
    box.append(div);
  }
  return box;
}

const latencies = [];
function drawLatency() {
  const canvas = $("#latency"), draw = canvas.getContext("2d"), { width, height } = canvas;
  const bins = new Array(20).fill(0);
  for (const value of latencies) bins[Math.min(19, Math.floor(value / 50))] += 1;
  const most = Math.max(1, ...bins);
  draw.clearRect(0, 0, width, height);
  draw.fillStyle = colour("accent");
  bins.forEach((count, i) => draw.fillRect(i * 24 + 2, (1 - count / most) * height, 20, count / most * height));
  draw.fillStyle = colour("line");
  draw.fillRect(0, height - 1, width, 1);
  const sorted = [...latencies].sort((a, b) => a - b);
  const half = sorted.length ? `half of ${sorted.length} within ${duration(sorted[sorted.length >> 1])}` : "no labels yet";
  canvas.setAttribute("aria-label", half);
  $("#half").textContent = `: ${half}`;
}

let lastStatus = null, lastCpu = new Map();
function showStatus(status) {
  lastStatus = status;
  say($("#state span"), `run ${status.run} · ${status.state}`);
  $("#clock").textContent = `· ${clock(status.uptime_s)}`;
  $("#state").classList.remove("bad");
  const recorder = status.nodes.record;
  $("#recording").hidden = !recorder || recorder.state !== "running";
  for (const [name, one] of Object.entries(status.streams)) {
    stream(name).state(one);
    stream(name).classList.toggle("unlit", !Object.keys(status.nodes).some((node) => node === `video.${name}` || node === `capture.${name}`));
  }
  $("#trouble").replaceChildren(...troubles(status).map(({ text, hint }) => make("li", hint ? "hint" : "", text)));
  $("#nodes tbody").replaceChildren(...Object.entries(status.nodes).map(([name, node]) => {
    const before = lastCpu.get(name);
    const share = before && status.published_ns > before[1] ? (node.cpu_s - before[0]) / ((status.published_ns - before[1]) / 1e9) : 0;
    lastCpu.set(name, [node.cpu_s, status.published_ns]);
    const row = make("tr");
    for (const text of [name, node.state, percent(Math.max(0, share)), Math.round(node.rss_bytes / 2 ** 20), node.dropped, node.gaps, node.starts]) row.append(make("td", "", String(text)));
    return row;
  }));
}

// Compares the labels since a setting was changed with those before.
let since = null;
const kept = []; // [latency or null, uncertain] of each label
const likeness = (labels) => {
  const sorted = labels.map(([ms]) => ms).filter((ms) => ms !== null).sort((a, b) => a - b);
  const late = sorted.length ? `half within ${Math.round(sorted[sorted.length >> 1])} ms, ` : "";
  return `${plural(labels.length, "label")}, ${late}${labels.filter(([, uncertain]) => uncertain).length} of them not sure`;
};
function showEffect() {
  if (since === null) return;
  const after = kept.slice(since);
  $("#effect").textContent = after.length ? `Since then: ${likeness(after)}. Before: ${since ? likeness(kept.slice(0, since)) : "none"}.` : "Its effect is shown with the next label.";
}

function showSettings(settings) {
  for (const [name, value] of Object.entries(settings)) {
    const field = $(`[data-set="${name}"]`);
    if (!field || field === document.activeElement) continue;
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) field.append(new Option(value));
    field.value = value;
  }
}

function take(news) {
  if (news.sources) sources = news.sources;
  if (news.status) showStatus(news.status);
  if (news.settings) showSettings(news.settings);
  const newest = new Map();
  for (const message of news.labels) {
    const counted = lastStatus && lastStatus.streams[message.stream];
    if (counted && !news.status) counted.labelled = Math.min(counted.heard, counted.labelled + 1); // until the next status
    newest.set(message.stream, message);
    if (kept.length === 2 * KEPT) { kept.shift(); since = since && since - 1; }
    kept.push([message.latency_ms ? message.latency_ms.total : null, message.uncertain]);
    if (message.latency_ms) { latencies.push(message.latency_ms.total); if (latencies.length > KEPT) latencies.shift(); }
  }
  for (const [name, message] of newest) {
    stream(name).estimate(message);
    if (lastStatus && lastStatus.streams[name]) stream(name).state(lastStatus.streams[name]);
    if (greeted) say($("#spoken"), `${name}: ${message.label}, ${percent(message.confidence)}${message.uncertain ? ", not sure" : ""}. ${message.text}`);
  }
  if (news.labels.length) { addLabels(news.labels); drawLatency(); showEffect(); }
  for (const message of news.windows) stream(message.stream).estimate(message);
  for (const [name, picture] of Object.entries(news.pictures)) stream(name).show(picture);
  for (const [name, senses] of Object.entries(news.senses)) { stream(name).sense(senses, lastStatus && lastStatus.streams[name]); mark("senses"); }
  if (streams.size) mark("streams");
}

function forget() {
  $("#said").replaceChildren();
  latencies.length = kept.length = 0;
  since = null;
  $("#effect").textContent = "";
}

let wait = 250, greeted = false; // whether all labels so far have come
function connect() {
  const socket = new WebSocket(new URL("ws?format=page", location.href.replace(/^http/, "ws")));
  let first = true;
  socket.onmessage = (event) => {
    if (first) { wait = 250; forget(); }
    take(JSON.parse(event.data));
    if (first) first = !(greeted = true);
  };
  socket.onclose = () => {
    greeted = false;
    say($("#state span"), "the run is away; trying again …");
    $("#clock").textContent = "";
    $("#state").classList.add("bad");
    $("#recording").hidden = true;
    setTimeout(connect, wait);
    wait = Math.min(4000, 2 * wait);
  };
}

async function steer(body) {
  const response = await fetch("api/control", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  $("#answer").textContent = (await response.json()).text;
  if (response.ok && body.command === "set") { since = kept.length; showEffect(); }
}
for (const button of document.querySelectorAll("[data-command]")) button.addEventListener("click", () => steer({ command: button.dataset.command }));
for (const field of document.querySelectorAll("[data-set]")) field.addEventListener("change", () => steer({ command: "set", value: `${field.dataset.set}=${field.value}` }));
$("#steer").addEventListener("submit", (event) => event.preventDefault());
connect();
drawLatency();
take(JSON.parse($("#now").textContent));
