// What is wrong with a run, in words, and what fixes it. Part of the page's one script, before page.js.
const LIGHTER = 'fewer streams, a lower video.fps or speech.recognizer = "none" help';
const LOG = "the log of stream-run says why";
const HEARD_ABOVE_DBFS = -60, PATIENCE_S = 10;

function wrongWith(name, node, run) {
  if (node.state === "failed") return `${name} has failed for good; ${LOG}.`;
  if (node.state === "ended" && name === "record" && run === "running") return `record has ended: nothing is recorded any more; ${LOG}.`;
  if (node.state === "away") return `${name}: its process ended and is being started again; if that repeats, ${LOG}.`;
  if (node.state === "running" && node.silent_s >= 3) return `${name}: its source has given nothing for ${node.silent_s.toFixed(0)} s. Is it plugged in, switched on, on the network? It is opened again by itself.`;
  if (name === "record" && node.dropped) return `record: ${plural(node.dropped, "message")} dropped, which the recording lacks; this machine or its disk is too slow.`;
  return "";
}

const begun = new Map(); // when what still lasts began (s, by the run's clock), by its name
function lasted(name, lasts, now) {
  if (!lasts) begun.delete(name);
  else if (!(begun.get(name) <= now)) begun.set(name, now);
  return lasts ? now - begun.get(name) : 0;
}

// A hint is nothing wrong: perhaps nobody has anything to say.
function unheard(name, { state, muted, paused, level_dbfs, heard }, now) {
  const hears = (state === "running" || state === "degraded") && !muted && !paused && level_dbfs !== null;
  const silent = lasted(`${name} silent`, hears && level_dbfs <= HEARD_ABOVE_DBFS, now);
  const unspoken = lasted(`${name} unspoken`, hears && heard === 0, now);
  const remedy = "stream-doctor --microphone says what it hears.";
  if (silent > PATIENCE_S) return { text: `${name}: silence (${Math.round(level_dbfs)} dB). Is it muted, or another microphone? ${remedy}` };
  if (unspoken > PATIENCE_S) return { text: `${name}: nobody has spoken yet; the loudest sound has ${Math.round(level_dbfs)} dB. Is it the right microphone, and near enough? ${remedy}`, hint: true };
  return { text: "" };
}

// What to say of a status: a list of { text, hint }.
function troubles(status) {
  const found = [], now = status.uptime_s, nodes = Object.entries(status.nodes);
  const add = (text, hint = false) => { if (text && !found.some((other) => other.text === text)) found.push({ text, hint }); };
  for (const [name, one] of Object.entries(status.streams)) {
    const known = found.length;
    for (const [node, its] of nodes) if (node === "fusion" || node.endsWith(`.${name}`)) add(wrongWith(node, its, status.state));
    const { text, hint } = unheard(name, one, now);
    add(text, hint);
    if (one.state === "away" && known === found.length) add(`${name}: no labels can come; its source or a process is away, and is tried again.`);
    if (one.behind_s >= 2) add(`${name}: ${one.behind_s.toFixed(0)} s behind; ${LIGHTER}.`);
    if (one.sound_lost_s > 0.05) add(`${name}: ${one.sound_lost_s.toFixed(1)} s of sound lost so far. If it grows, the source breaks off, or this machine is too slow: then ${LIGHTER}.`);
    if (one.unlabelled) add(`${name}: ${plural(one.unlabelled, "utterance")} without a label so far; ${LOG}.`);
    if (one.late_video) add(`${name}: ${plural(one.late_video, "label")} did not wait for all faces; a lower video.fps helps.`);
    if (one.paused) add(`${name} is paused: neither sound nor picture is used until Resume, below.`);
    else if (one.muted) add(`${name} is muted: its sound is not used until Unmute, below.`);
  }
  for (const [node, its] of nodes) if (!node.includes(".") && node !== "fusion") add(wrongWith(node, its, status.state));
  return found;
}
