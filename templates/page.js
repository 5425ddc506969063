"use strict";
const MOST_SHOWN = 500;          // rows: a tab that stays open for a week stays small
const FIRST_DELAY = 1000, LONGEST_DELAY = 30000;
const STEADY = 30000;            // a connection that lasted so long was a good one
const IDLE = 60000;              // without input for so long after a notice, a page leaves by itself
const FOLDED = { lines: 12, characters: 600 };
const MOST_SEEN = 1000;          // ids by which a message that comes again is known
const ANNOUNCE_EVERY = 5000;     // a screen reader is not given more than one text in this time
const NEVER_AGAIN = {            // closes after which a client should not come back by itself
  1002: "protocol error", 1003: "unsupported data", 1007: "invalid text", 1009: "message too big",
};
const CHANNELS = [...new Set(new URLSearchParams(location.search).getAll("channel"))];
const NAMES_CHANNELS = CHANNELS.length > 0;   // `/?channel=orders&channel=alerts` shows these
if (!NAMES_CHANNELS) CHANNELS.push("broadcast");
const $ = (id) => document.getElementById(id);

let socket, me, retryTimer, noticeTimer;
let retryAt;                     // when this page connects again, on its clock
let serverChoseRetry = false;    // whether the server said so
let openedAt = null;             // when this connection came about, on this page's clock
let failures = 0;                // connections in a row that did not last
let comeBackAfter = null;        // what the server asked of this client, in milliseconds
let noticedAt = null;            // when the server said that it is going to close
let leaving = false;             // whether this page has closed the connection because of that
let lastInput = performance.now();
let lastSent = "";
let connectedAt = NaN;           // when this connection came about, on the server's clock

// By channel, the id of the last message that is in the list: the next connection begins after it. In the memory of this
// tab alone, as the list is. Kept longer, over a reload or in a copy of the tab, an id would stand for messages that the
// new list does not have.
const positions = new Map();
const seen = new Set();
const recoveries = new Map();    // by channel: how many messages were recovered, and the row that says so

function connect() {
  clearInterval(retryTimer);
  if (document.activeElement === $("reconnect")) $("text").focus();
  $("reconnect").hidden = true;
  show("connecting", "Connecting …");
  openedAt = noticedAt = null;
  leaving = false;
  recoveries.clear();
  socket = new WebSocket(webSocketUrl());
  socket.onopen = () => {
    openedAt = performance.now();
    comeBackAfter = null;
    show("open", "Connected");
    countClients();
  };
  socket.onmessage = (event) => receive(event.data);
  socket.onclose = (event) => closed(event.code, event.reason);
}

// Relative to this page: a proxy may serve it under a prefix.
function webSocketUrl() {
  const url = new URL("ws", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  for (const channel of CHANNELS) url.searchParams.append("channel", channel);
  // One for each channel, in the same order. An empty one asks for nothing that was before.
  for (const channel of CHANNELS) url.searchParams.append("since", positions.get(channel) ?? "");
  return url.href;
}

function receive(raw) {
  console.log(raw);
  let message;
  try { message = JSON.parse(raw); } catch { /* shown as it is */ }
  if (message === null || typeof message !== "object") message = { type: "text", data: raw };
  if (!["subscribed", "reset"].includes(message.type) && isRepeated(message)) return;
  switch (message.type) {
    case "welcome":
      me = message.client;
      // A UUID of version 7 begins with the time, in milliseconds since 1970.
      connectedAt = parseInt(String(me).replaceAll("-", "").slice(0, 12), 16);
      add(message, "server", `Welcome. You are ${short(me)}.`);
      break;
    case "notification": {
      const data = message.data;
      if (message.source === "server" && typeof data?.message === "string") {
        if (!isOld(message)) showClients(data.clients);
        add(message, named("server", message), data.message);
      } else {
        addData(message, "notification", data, raw);
      }
      break;
    }
    case "message": {
      const mine = message.from === me;
      addData(message, mine ? "you" : short(message.from), message.data, raw, mine);
      break;
    }
    case "subscribed":
      subscribed(message);
      break;
    case "reset":
      reset(message);
      break;
    case "shutdown":
      noticed(message);
      break;
    case "error":
      add(message, "error", `${message.message} (${message.code})`);
      announce(`Error: ${message.message}`);
      break;
    default:
      addData(message, message.type ?? "unknown", message.data ?? message, raw);
  }
  countRecovered(message);
}

// Notes the position of a message. Returns true if the message was here before. Ids are compared, and not read.
function isRepeated({ channel, id }) {
  if (!CHANNELS.includes(channel) || typeof id !== "string") return false;
  const key = `${channel} ${id}`;
  if (seen.has(key)) return true;
  seen.add(key);
  if (seen.size > MOST_SEEN) seen.delete(seen.values().next().value);
  positions.set(channel, id);
  return false;
}

// A channel's messages follow: what was missed since the position that the page asked for, or only new ones.
function subscribed({ channel, id, recovered }) {
  if (!CHANNELS.includes(channel) || typeof id !== "string") return;
  if (recovered) {
    recoveries.set(channel, { count: 0, row: null });
  } else if (positions.has(channel)) {
    addMissed(channel);
  }
  positions.set(channel, id);
}

// The server has lost messages of a channel, although the connection was there all the time: what comes after `id` follows.
function reset({ channel, id }) {
  if (!CHANNELS.includes(channel) || typeof id !== "string") return;
  recoveries.delete(channel);
  addMissed(channel);
  positions.set(channel, id);
}

function addMissed(channel) {
  const words = `Some messages${where(channel)} may have been missed.`;
  add({ type: "missed" }, "page", words);
  announce(words);
}

// Whether a message was published before this connection came about: it was missed, and is recovered.
const isOld = ({ time }) => Date.parse(time) < connectedAt;

// The number of the messages that were recovered is above the last of them.
function countRecovered(message) {
  const { channel } = message, recovery = recoveries.get(channel);
  if (recovery === undefined || !isOld(message)) return;
  recovery.count += 1;
  recovery.row?.remove();
  const number = recovery.count === 1 ? "1 message" : `${recovery.count.toLocaleString()} messages`;
  recovery.row = add({ type: "recovered" }, "page", `Recovered ${number}${where(channel)}.`);
}

// The channel, on a page that has several.
const where = (channel) => CHANNELS.length > 1 ? ` in ${channel}` : "";
const named = (who, { channel }) => CHANNELS.includes(channel) ? `${who}${where(channel)}` : who;

function closed(code, reason) {
  endNotice();
  const gone = socket;
  $("clients").textContent = "";
  const why = reason || NEVER_AGAIN[code] || (code === 1006 ? "connection lost" : `code ${code}`);
  let words = leaving ? "Left, as the server is about to close." : `Closed: ${why}.`;
  $("reconnect").hidden = false;
  if (code in NEVER_AGAIN) {
    if (code === 1009 && $("text").value === "") $("text").value = lastSent;
    show("refused", `${words} This page does not reconnect by itself.`);
    return;
  }
  if (openedAt !== null && performance.now() - openedAt > STEADY) failures = 0;
  // The server's own wish first; else a delay that doubles, of which a random half is taken off, so that
  // many pages do not knock at the same moment.
  const growing = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** failures) * (0.5 + Math.random() / 2);
  serverChoseRetry = comeBackAfter !== null;
  retryAt = performance.now() + (comeBackAfter ?? growing);
  failures += 1;
  comeBackAfter = null;
  const tick = () => {
    const left = retryAt - performance.now();
    if (left <= 0) connect();
    else show("waiting", `${words} Reconnecting`, `in ${span(left)} …`);
  };
  clearInterval(retryTimer);
  retryTimer = setInterval(tick, 250);
  if (openedAt === null) {
    words = "Not connected.";
    whyNot().then((answer) => {
      if (socket !== gone) return;
      words = answer;
      tick();
    });
  }
  tick();
}

// Why no connection came about: of an answer such as 503, a browser tells its page nothing.
async function whyNot() {
  try {
    const answer = await fetch("health/ready", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    // Without JSON, it is the answer of a proxy that does not pass this on.
    const { phase, seconds_left: left } = await answer.json().catch(() => ({}));
    if (phase === undefined) return "The server may be full, about to close, or not reachable behind its proxy.";
    if (phase === "serving") {
      const names = NAMES_CHANNELS ? ", or a name in this page's URL is no channel's" : "";
      return `The server refused the connection: it is full, or admits no pages from here${names}.`;
    }
    const within = left > 0 ? ` within ${span(left * 1000)}` : " soon";
    if (phase === "draining" || phase === "closing") return `The server closes${within}, and admits no new clients.`;
  } catch { /* nothing answers */ }
  return "The server cannot be reached.";
}

function noticed(message) {
  comeBackAfter = message.reconnect?.after_ms ?? null;
  const left = (Number(message.seconds_left) || 0) * 1000;
  if (noticedAt === null) {
    noticedAt = performance.now();
    add(message, "server", `Closing in ${span(left)}: ${message.reason}.`);
  }
  // Counted on this page's own clock: the server's may differ.
  const until = performance.now() + left;
  const words = `The server closes soon (${message.reason}). You can finish; with an empty text field, this page leaves after a minute without input. It comes back by itself.`;
  if ($("reason").textContent !== words) $("reason").textContent = words;
  $("banner").hidden = false;
  clearInterval(noticeTimer);
  const tick = () => {
    $("countdown").textContent = span(Math.max(0, until - performance.now()));
    leaveIfIdle();
  };
  noticeTimer = setInterval(tick, 250);
  tick();
}

function endNotice() {
  clearInterval(noticeTimer);
  $("banner").hidden = true;
}

// The server waits for its clients: a page that is of no use to its user at the moment does not keep it waiting.
function leaveIfIdle() {
  if (noticedAt === null || leaving || socket.readyState !== WebSocket.OPEN || $("text").value !== "") return;
  if (!document.hidden && performance.now() - Math.max(lastInput, noticedAt) < IDLE) return;
  leaving = true;
  socket.close(1000, "idle");
}

async function countClients() {
  const asking = socket;
  try {
    const { clients } = await (await fetch("health/ready")).json();
    if (asking === socket && asking.readyState === WebSocket.OPEN) showClients(clients);
  } catch { /* the next notification tells */ }
}

function showClients(n) {
  if (Number.isInteger(n)) $("clients").textContent = n === 1 ? "1 client" : `${n.toLocaleString()} clients`;
}

// What changes each second stands beside the words: it is not read aloud.
function show(state, words, wait = "") {
  document.body.dataset.state = state;
  $("wait").textContent = wait;
  if ($("state").textContent !== words) $("state").textContent = words;
  $("send").disabled = $("hello").disabled = state !== "open";
}

// Adds what clients and back ends send: text, or JSON.
function addData(message, who, data, raw, mine) {
  who = named(who, message);
  const json = typeof data !== "string";
  const text = json ? written(raw) : data;
  add(message, who, text, { mine, json });
  announce(`${who}: ${text}`);
}

// JSON on one line if that is short. Numbers are shown as they were sent: JSON.parse rounds those that a double
// cannot hold. Browsers without JSON.rawJSON show them rounded.
function written(raw) {
  const exact = (key, value, context) =>
    typeof value === "number" && context?.source && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
  const whole = JSON.parse(raw, exact);
  const shown = Object.hasOwn(whole, "data") ? whole.data : whole;
  const line = JSON.stringify(shown);
  return line.length <= 60 ? line : JSON.stringify(shown, null, 2);
}

function add(message, who, text, { mine, json } = {}) {
  const item = document.createElement("li");
  let when = new Date(message.time ?? Date.now());
  if (Number.isNaN(when.getTime())) when = new Date();
  const time = document.createElement("time");
  time.dateTime = time.title = when.toISOString();
  time.textContent = when.toLocaleTimeString();
  const body = document.createElement("div");
  const from = document.createElement("div");
  from.className = "who";
  from.textContent = who;
  const part = document.createElement("div");
  part.className = json ? "text json" : "text";
  if (!json) part.dir = "auto";
  body.append(from, part);
  if (text.trim() === "") {
    part.classList.add("empty");
    part.textContent = "(empty text)";
  } else {
    fold(part, text);
  }
  item.dataset.type = message.type;
  if (mine) item.dataset.mine = "";
  item.className = "new";
  item.append(time, body);
  $("messages").prepend(item);
  while ($("messages").children.length > MOST_SHOWN) $("messages").lastChild.remove();
  return item;
}

// Shows the beginning of a long text, and the rest when it is asked for.
function fold(part, text) {
  // Not cut within a character of two code units.
  const start = text.split("\n", FOLDED.lines).join("\n").slice(0, FOLDED.characters).replace(/[\uD800-\uDBFF]$/, "");
  part.textContent = text;
  if (start === text) return;
  const more = document.createElement("button");
  more.type = "button";
  more.className = "more";
  let whole = true;
  more.onclick = () => {
    whole = !whole;
    part.textContent = whole ? text : `${start} …`;
    more.textContent = whole ? "Show less" : `Show all ${text.length.toLocaleString()} characters`;
    more.setAttribute("aria-expanded", whole);
  };
  more.onclick();
  part.after(more);
}

let unannounced = 0, latest = "", announceTimer = null;

// Has a screen reader say this. What comes while it may still speak is counted, and only the latest is said.
function announce(words) {
  if (!$("announce").checked) return;
  unannounced += 1;
  latest = words.length > 200 ? `${words.slice(0, 200)} …` : words;
  if (announceTimer === null) announceLatest();
}

function announceLatest() {
  announceTimer = null;
  if (unannounced === 0) return;
  $("announced").textContent = unannounced === 1 ? latest : `${unannounced} new messages. The latest: ${latest}`;
  unannounced = 0;
  announceTimer = setTimeout(announceLatest, ANNOUNCE_EVERY);
}

$("announce").onchange = () => {
  unannounced = 0;
  $("announced").textContent = "";
};

const short = (id) => String(id).slice(-8);

function span(ms) {
  const s = Math.ceil(ms / 1000), m = Math.floor(s / 60), h = Math.floor(m / 60);
  const parts = h > 0 ? [[h, "h"], [m % 60, "min"]] : [[m, "min"], [s % 60, "s"]];
  return parts.filter(([n]) => n > 0).map(([n, unit]) => `${n} ${unit}`).join(" ") || "0 s";
}

// Says so if the text is too long to be sent.
function fits() {
  const size = new TextEncoder().encode($("text").value).length;
  const words = size <= MAX_MESSAGE_SIZE ? "" :
    `This text has ${size.toLocaleString()} bytes; the server takes ${MAX_MESSAGE_SIZE.toLocaleString()} at most.`;
  if ($("limit").textContent !== words) $("limit").textContent = words;
  $("text").setAttribute("aria-invalid", words !== "");
  return words === "";
}

$("text").oninput = fits;
$("form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value;
  if (text === "" || socket.readyState !== WebSocket.OPEN || !fits()) return;
  socket.send(text);
  lastSent = text;
  $("text").value = "";
};
$("hello").onclick = () => socket.send("Hello");   // disabled unless it is open
$("reconnect").onclick = connect;

for (const kind of ["keydown", "pointerdown", "pointermove", "wheel", "touchmove"]) {
  addEventListener(kind, () => { lastInput = performance.now(); }, { capture: true, passive: true });
}
// A browser may keep a page that was left, with its socket: then the server would wait for a client that is gone.
addEventListener("pagehide", () => {
  clearInterval(retryTimer);
  socket.onclose = null;
  socket.close();
});
// Timers of a tab in the background may be a minute late.
addEventListener("visibilitychange", () => {
  leaveIfIdle();
  if (!document.hidden && socket.readyState === WebSocket.OPEN) countClients();
});
// A browser knows that its network is gone long before it gives up the connection.
addEventListener("offline", () => {
  if (socket.readyState > WebSocket.OPEN) return;
  socket.onopen = socket.onmessage = socket.onclose = null;
  socket.close();
  closed(1006, "this browser is offline");
});
addEventListener("online", () => {
  if (serverChoseRetry) return;
  failures = 0;
  retryAt = Math.min(retryAt, performance.now() + FIRST_DELAY * (0.5 + Math.random() / 2));
});
addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
if (NAMES_CHANNELS) {
  const [first] = CHANNELS;
  $("heading").textContent = `Messages in ${CHANNELS.length <= 3 ? CHANNELS.join(", ") : `${CHANNELS.length} channels`}`;
  $("text").placeholder = `Say something in ${first}`;
  $("text").setAttribute("aria-label", `Text to send in ${first}`);
}
connect();
