// One phrase at a time: microphone to a 16-bit WAV, played back here, uploaded only when it is accepted.
//
// Gradio runs this with element, trigger, props, upload and watch (gr.HTML, js_on_load). props.value is the prompt on the
// screen (studio.projects.Prompt), props.texts the sentences, props.max_seconds the longest take. Texts are set as
// textContent, never through the template, which Gradio evaluates as code.
//
// The microphone is read as raw samples from an AudioWorklet, with the browser's gain, noise and echo processing off:
// MediaRecorder would be lossy, and the processing clips and pumps.

const find = (selector) => element.querySelector(selector);
const button = (action) => find(`[data-do="${action}"]`);
const TAIL_MS = 250; // people press the key while the last sound is still there
const SHORTEST = 0.3; // seconds
const SILENT = 0.003; // peak of full scale: a muted or wrong microphone
const CLIPPED = 0.99;

let state = "idle"; // idle, opening, recording, take, saving
let shown = null; // the prompt that the take belongs to
let context = null;
let chunks = [];
let frames = 0;
let peak = 0; // of this recording
let level = 0; // for the meter, falling slowly
let take = null; // {file, url}

const WORKLET = `registerProcessor("samples", class extends AudioWorkletProcessor {
  process(inputs) { if (inputs[0][0]) this.port.postMessage(inputs[0][0].slice(0)); return true; }
});`;

function say(key, trouble = false) {
  const status = find(".status");
  status.textContent = props.texts[key] ?? "";
  status.dataset.kind = trouble ? "trouble" : "";
}

function become(next) {
  state = next;
  const recording = state === "recording";
  const record = button("record");
  record.firstElementChild.textContent = props.texts[recording ? "stop" : "record"];
  record.setAttribute("aria-pressed", recording);
  record.disabled = state === "opening" || state === "saving";
  button("accept").disabled = state !== "take";
  button("redo").disabled = state !== "take";
  for (const action of ["previous", "skip", "next"]) button(action).disabled = !["idle", "take"].includes(state);
}

function showPrompt() {
  const prompt = props.value;
  if (!prompt) return;
  dropTake();
  const phrase = find(".phrase");
  phrase.textContent = prompt.text;
  phrase.lang = prompt.language;
  const takes = prompt.takes ? ` (${prompt.takes} ${props.texts.done})` : "";
  find(".place").textContent = `${prompt.number} / ${prompt.total}${takes}`;
  become("idle");
  say("ready");
}

function dropTake() {
  if (take) URL.revokeObjectURL(take.url);
  take = null;
  find(".take").hidden = true;
  find(".take").removeAttribute("src");
}

// The words for what getUserMedia refused; anything unknown is most often another program holding the device.
function reason(error) {
  if (!window.isSecureContext || !navigator.mediaDevices) return "insecure";
  return { NotFoundError: "missing", NotAllowedError: "denied" }[error.name] ?? "busy";
}

async function openMicrophone() {
  if (context) return context.resume();
  const audio = { channelCount: 1, autoGainControl: false, noiseSuppression: false, echoCancellation: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio });
  const opened = new AudioContext(); // at the device's own rate; the corpus keeps it
  const module = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
  await opened.audioWorklet.addModule(module);
  URL.revokeObjectURL(module);
  const node = new AudioWorkletNode(opened, "samples");
  node.port.onmessage = (message) => hear(message.data);
  opened.createMediaStreamSource(stream).connect(node);
  // A device that is unplugged ends its track: the next press opens whatever is there then.
  stream.getAudioTracks()[0].onended = () => { opened.close(); context = null; };
  context = opened;
}

function hear(samples) {
  let loudest = 0;
  for (const sample of samples) loudest = Math.max(loudest, Math.abs(sample));
  level = Math.max(loudest, level * 0.97);
  if (state !== "recording") return;
  chunks.push(samples);
  frames += samples.length;
  peak = Math.max(peak, loudest);
  if (frames >= props.max_seconds * context.sampleRate) finish("too_long");
}

// Level and length of the recording, as often as the screen is drawn.
function drawMeter() {
  if (!element.isConnected) return;
  const bar = find(".meter span");
  const decibels = 20 * Math.log10(Math.max(level, 1e-5));
  bar.style.width = `${Math.max(0, Math.min(100, (100 * (decibels + 60)) / 60))}%`;
  find(".time").textContent = state === "recording" ? `${(frames / context.sampleRate).toFixed(1)} s` : "";
  bar.dataset.level = level >= CLIPPED ? "clipped" : decibels > -3 ? "loud" : "good";
  requestAnimationFrame(drawMeter);
}

async function record() {
  dropTake();
  become("opening");
  say("opening");
  try {
    await openMicrophone();
  } catch (error) {
    become("idle");
    say(reason(error), true);
    return;
  }
  shown = props.value;
  chunks = [];
  frames = 0;
  peak = 0;
  become("recording");
  say("recording");
}

function finish(remark = null) {
  if (state !== "recording") return;
  const rate = context.sampleRate;
  if (frames < SHORTEST * rate || !shown) {
    become("idle");
    say("too_short", true);
    return;
  }
  const file = new File([wav(chunks, frames, rate)], "take.wav", { type: "audio/wav" });
  take = { file, url: URL.createObjectURL(file) };
  chunks = [];
  find(".take").src = take.url;
  find(".take").hidden = false;
  become("take");
  const heard = peak < SILENT ? "silent" : peak >= CLIPPED ? "clipped" : remark;
  say(heard ?? "take", Boolean(heard));
}

// Mono 16-bit RIFF/WAVE of `length` samples in [-1, 1].
function wav(parts, length, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * length));
  const ascii = (offset, text) => [...text].forEach((letter, i) => view.setUint8(offset + i, letter.charCodeAt(0)));
  ascii(0, "RIFF");
  view.setUint32(4, 36 + 2 * length, true);
  ascii(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format that follows: PCM, 1 channel, rate, bytes a second, a frame, bits
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  ascii(36, "data");
  view.setUint32(40, 2 * length, true);
  let offset = 44;
  for (const part of parts) {
    for (const sample of part) {
      view.setInt16(offset, Math.max(-1, Math.min(1, sample)) * 0x7fff, true);
      offset += 2;
    }
  }
  return view.buffer;
}

async function accept() {
  become("saving");
  say("saving");
  try {
    const { path } = await upload(take.file);
    trigger("accept", { ...shown, path });
  } catch {
    become("take");
    say("upload_failed", true);
  }
}

function act(action) {
  if (button(action).disabled) return;
  if (action === "record" && state === "recording") setTimeout(finish, TAIL_MS);
  else if (action === "record" || action === "redo") record();
  else if (action === "accept") accept();
  else if (action === "skip") trigger("skip", { ...props.value });
  else if (action === "previous") trigger("previous", { ...props.value });
  else if (action === "next") trigger("next", { ...props.value });
}

const KEYS = { " ": "record", Enter: "accept", r: "redo", s: "skip", ArrowLeft: "previous", ArrowRight: "next" };
const OWN_KEYS = "input, textarea, select, button, a, summary, audio, [contenteditable], [role=listbox], [role=option]";

function onKey(event) {
  if (!element.isConnected) {
    document.removeEventListener("keydown", onKey);
    return;
  }
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest(OWN_KEYS)) return; // a control that has the focus keeps its keys
  event.preventDefault();
  act(action);
}

element.addEventListener("click", (event) => {
  const pressed = event.target.closest("[data-do]");
  if (!pressed) return;
  if (event.detail) find(".recorder").focus(); // a mouse leaves the shortcuts working; the keyboard keeps its place
  act(pressed.dataset.do);
});
document.addEventListener("keydown", onKey);
window.addEventListener("take-not-saved", () => {
  if (state !== "saving") return;
  become("take");
  say("failed", true);
});
window.addEventListener("beforeunload", (event) => {
  if (take && element.isConnected) event.preventDefault();
});

for (const action of ["record", "accept", "redo", "skip"]) button(action).firstElementChild.textContent = props.texts[action];
button("previous").setAttribute("aria-label", props.texts.previous);
button("next").setAttribute("aria-label", props.texts.next);
find(".recorder").setAttribute("aria-label", props.texts.group);
become("idle");
watch("value", showPrompt);
showPrompt();
drawMeter();
