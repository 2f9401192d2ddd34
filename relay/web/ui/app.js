// The dashboard of a relay: the list of runs, and one run streamed live. No framework, no build step.
//
// One event's way: EventSource -> Stream (cursor, order, reconnects) -> a queue -> once per animation frame the
// Transcript folds what is queued -> text nodes appended to what is already there. Nothing is ever rendered twice.
// Everything off the wire becomes a text node. The key travels in a header only; addresses carry short-lived tokens.

const LIST_EVERY_MS = 3000;
const PAGE = 50;
const FRAME_BUDGET_MS = 8; // folding stops here and goes on in the next frame, so that scrolling stays smooth
const LOG_ROWS = 500;
const SEQS_KEPT = 10000;
const INPUT_BYTES = 32768;
const RUN_ID = /^[A-Za-z0-9_-]{1,128}$/;

const $ = (id) => document.getElementById(id);
const pause = (ms) => new Promise((wake) => setTimeout(wake, ms));

/** What is true of the stream on screen; tests read it too. */
const state = {
  runId: null,
  status: null,
  connection: "idle", // idle, connecting, live, reconnecting, ended, closed
  ended: false, // relay.end arrived and everything before it is on screen
  lastSeq: 0,
  events: 0,
  reconnects: 0,
  repeats: 0, // events that came again or went backwards: never, if the relay is right
  gaps: 0, // steps of more than one that nobody announced; some upstreams number that way
  seqs: [], // the last seqs as they arrived, repeats included
};
window.relayState = state;

const TONES = {
  __proto__: null,
  running: "moving",
  cancelling: "moving",
  waiting_for_input: "waiting",
  completed: "good",
  failed: "bad",
  interrupted: "bad",
};
const FINAL = {
  __proto__: null, // types are the upstream's own words: one may be called `constructor`
  "run.completed": "completed",
  "run.failed": "failed",
  "run.cancelled": "cancelled",
  "run.interrupted": "interrupted",
};
const MOVING = {
  __proto__: null,
  "run.started": "running",
  "run.input_provided": "running",
  "run.resumed": "running",
  "run.waiting_for_input": "waiting_for_input",
  "run.cancel_requested": "cancelling",
};
const words = (status) => (status || "unknown").replaceAll("_", " ");
const number = (n) => Number(n).toLocaleString("en");

// --- DOM, text only ---------------------------------------------------------------------------------------------

/** An element. Children are nodes or strings, and strings become text nodes. */
function el(tag, { tone, testid, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  if (tone) node.dataset.tone = tone;
  if (testid) node.dataset.testid = testid;
  node.append(...children);
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setTone(node, tone) {
  if (tone) node.dataset.tone = tone;
  else delete node.dataset.tone;
}

/** A value for people: text as it is, JSON text and objects indented. */
function readable(value) {
  if (value === undefined || value === null) return "";
  if (typeof value !== "string") return JSON.stringify(value, null, 2);
  if (!/^\s*[{[]/.test(value)) return value;
  try {
    return JSON.stringify(JSON.parse(value), null, 2);
  } catch {
    return value;
  }
}

/** The same in one line, for a summary. */
function inline(value) {
  const text = typeof value === "string" ? value : value == null ? "" : JSON.stringify(value);
  return text.slice(0, 400).replace(/\s+/g, " ").trim();
}

// --- the API ----------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
  get hopeless() {
    return [403, 404, 422].includes(this.status);
  }
}

let key = sessionStorage.getItem("relay.key");

/** JSON in, JSON out. Throws Refused with the relay's own sentence; asks for a key and tries again on 401. */
async function api(method, path, body) {
  for (;;) {
    const used = key;
    const headers = {};
    if (used) headers.Authorization = `Bearer ${used}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
    const answer = await response.json().catch(() => null);
    if (response.ok) return answer;
    if (response.status !== 401) throw new Refused(response.status, answer?.message || `The relay answered ${response.status}.`);
    if (used === key) await askForKey(used ? answer?.message || "This key was not accepted." : null);
  }
}

let asking = null;

/** One question at a time, however many calls need the answer. */
function askForKey(complaint) {
  if (asking) return asking;
  const note = $("key-note");
  if (complaint) {
    note.textContent = complaint;
    note.className = "bad";
  }
  $("key").value = "";
  $("key-dialog").showModal();
  asking = new Promise((answered) => {
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = $("key").value.trim();
      $("key").value = "";
      if ($("key-keep").checked) sessionStorage.setItem("relay.key", key);
      else sessionStorage.removeItem("relay.key");
      $("key-dialog").close();
      asking = null;
      answered();
    };
  });
  return asking;
}
$("key-dialog").addEventListener("cancel", (event) => event.preventDefault());

const upstreamOf = new Map(); // run_id -> upstream, as the list told us: run ids are unique only within one

function runPath(runId, suffix = "", query = {}) {
  const parameters = new URLSearchParams(query);
  if (upstreamOf.has(runId)) parameters.set("upstream", upstreamOf.get(runId));
  const tail = parameters.size ? `?${parameters}` : "";
  return `/native/v1/runs/${encodeURIComponent(runId)}${suffix}${tail}`;
}

// --- one run's stream -------------------------------------------------------------------------------------------

/** Follows a run until `relay.end`, through the browser's own reconnects and, where those give up, through ours. */
class Stream {
  #source = null;
  #stopped = false;
  #opened = 0;
  #failures = 0;
  #resetTo = 0;

  constructor(runId, sink) {
    this.runId = runId;
    this.sink = sink;
  }

  async start() {
    this.#say("connecting");
    await this.#connect();
  }

  stop() {
    this.#stopped = true;
    this.#source?.close();
  }

  #say(connection) {
    if (!this.#stopped) this.sink.connection(connection);
  }

  async #connect() {
    const query = state.lastSeq ? { after_seq: state.lastSeq } : {};
    try {
      if (key) query.access_token = (await api("POST", runPath(this.runId, "/tokens"), {})).token;
    } catch (error) {
      return this.#failed(error);
    }
    if (this.#stopped) return undefined;
    const source = new EventSource(runPath(this.runId, "/events", query));
    this.#source = source;
    source.onopen = () => {
      this.#opened += 1;
      if (this.#opened > 1) state.reconnects += 1;
      this.#say("live");
    };
    source.onmessage = (message) => this.#event(message.data);
    source.onerror = () => {
      if (this.#stopped || source !== this.#source) return;
      this.#say("reconnecting");
      if (source.readyState === EventSource.CLOSED) this.#lost();
    };
    const frame = (name, take) => source.addEventListener(name, (message) => take(JSON.parse(message.data)));
    frame("relay.end", (end) => this.#end(end));
    frame("relay.goodbye", (goodbye) => this.#goodbye(goodbye));
    frame("relay.reset", (reset) => {
      this.#advance(reset.to_seq);
      this.#resetTo = reset.to_seq;
      this.sink.reset(reset);
    });
    frame("relay.position", ({ seq }) => this.#advance(seq));
    frame("relay.snapshot", ({ as_of_seq }) => this.#advance(as_of_seq));
    return undefined;
  }

  #event(text) {
    const event = JSON.parse(text);
    const from = event.seq_from ?? event.seq;
    this.#failures = 0;
    state.events += 1;
    state.seqs.push(event.seq);
    if (state.seqs.length > SEQS_KEPT) state.seqs.splice(0, SEQS_KEPT / 2);
    if (from <= state.lastSeq) {
      state.repeats += 1;
      this.sink.counted();
      return;
    }
    if (state.lastSeq && from !== state.lastSeq + 1 && state.lastSeq !== this.#resetTo) state.gaps += 1;
    state.lastSeq = event.seq;
    this.sink.event(event, text);
  }

  #advance(seq) {
    if (Number.isInteger(seq) && seq > state.lastSeq) state.lastSeq = seq;
  }

  #end(end) {
    this.stop();
    this.sink.end(end);
  }

  /** The relay is about to abort. The browser comes back by itself after `retry:`, unless it may not or needs a token. */
  #goodbye({ code, reconnect, after_ms: afterMs }) {
    if (reconnect === false) return this.#give(`The relay ended this stream: ${code}.`);
    this.#say("reconnecting");
    if (code !== "auth.expired") return undefined;
    this.#source.close();
    return this.#again(afterMs || 0);
  }

  /** EventSource gives up on any answer but a stream and never says why: ask, and decide. */
  async #lost() {
    this.#source.close();
    try {
      const run = await api("GET", runPath(this.runId));
      if (run.ended && run.last_seq <= state.lastSeq) return this.#end({ status: run.status, last_seq: run.last_seq });
      return this.#again();
    } catch (error) {
      return this.#failed(error);
    }
  }

  #failed(error) {
    if (this.#stopped) return undefined;
    return error.hopeless ? this.#give(error.message) : this.#again();
  }

  async #again(ms) {
    this.#say("reconnecting");
    this.#failures += 1;
    await pause(ms ?? Math.random() * Math.min(10000, 500 * 2 ** this.#failures));
    if (!this.#stopped) await this.#connect();
  }

  #give(sentence) {
    this.#say("closed");
    this.stop();
    this.sink.notice(sentence);
  }
}

// --- the transcript ---------------------------------------------------------------------------------------------

const MARKED = /(\*\*|`)(?=\S)(.+?)(?<=\S)\1/g;
const ADORNABLE = 4000; // characters; a longer line is data, and not worth the search

/** Text that only grows: one element per line, one text node per frame. The text itself is never changed. */
class Prose {
  #pending = "";
  #line = null;
  #head = "";
  #fenced = false;

  constructor(root) {
    this.root = root;
    this.length = 0;
    this.last = "";
  }

  add(text) {
    this.#pending += text;
    this.length += text.length;
  }

  commit() {
    for (const part of this.#pending.split(/(?<=\n)/)) if (part) this.#append(part);
    this.#pending = "";
  }

  #append(part) {
    if (!this.#line) {
      this.#line = el("div", { className: "line" });
      this.#head = "";
      this.root.append(this.#line);
    }
    this.#line.append(part);
    this.#head = (this.#head + part).slice(0, 120);
    if (this.#head.trim()) this.last = this.#head;
    const ended = part.endsWith("\n");
    this.#line.className = `line ${this.#kind(ended)}`;
    if (ended) this.end();
  }

  /** The line is complete: bold and code are set as such, their signs stay (paler), so that the text stays what it was. */
  end() {
    const line = this.#line;
    this.#line = null;
    const text = line?.textContent ?? "";
    if (!text || text.length > ADORNABLE || /code|fence/.test(line.className)) return;
    const parts = [];
    let at = 0;
    for (const { 0: all, 1: mark, 2: inner, index } of text.matchAll(MARKED)) {
      const sign = () => el("span", { className: "sign" }, mark);
      parts.push(text.slice(at, index), sign(), el(mark === "`" ? "code" : "strong", {}, inner), sign());
      at = index + all.length;
    }
    if (at) line.replaceChildren(...parts, text.slice(at));
  }

  /** A touch of typography by how a line begins, as writers of Markdown mean it. */
  #kind(ended) {
    if (/^\s*```/.test(this.#head)) {
      if (ended) this.#fenced = !this.#fenced;
      return "fence";
    }
    if (this.#fenced) return "code";
    if (/^#{1,6} /.test(this.#head)) return "head";
    return ended && !this.#head.trim() ? "blank-line" : "";
  }
}

class ToolCard {
  constructor(name) {
    this.what = el("span", { className: "what", testid: "tool-name" }, name);
    this.peek = el("span", { className: "peek" });
    this.mark = el("span", { className: "state", tone: "moving", testid: "tool-state" }, "calling");
    this.root = el("details", { className: "fold tool", testid: "tool" }, el("summary", {}, this.what, this.peek, this.mark));
    this.arguments = null;
    this.streamed = "";
  }

  #part(title, testid) {
    const pre = el("pre", { testid });
    this.root.append(el("div", { className: "part" }, el("h3", {}, title), pre));
    return pre;
  }

  /** Arguments while they are written; the card opens so that they can be watched. */
  stream(text) {
    this.streamed += text;
    if (!this.arguments) {
      this.arguments = this.#part("Arguments", "tool-arguments");
      this.root.open = true;
    }
    this.pending = (this.pending ?? "") + text;
  }

  commit() {
    if (!this.pending) return;
    this.arguments.append(this.pending);
    this.pending = "";
    this.arguments.scrollTop = this.arguments.scrollHeight;
    setText(this.peek, inline(this.streamed));
  }

  call(name, value) {
    this.commit();
    setText(this.what, name);
    setText(this.mark, "running");
    setText(this.peek, inline(value) || inline(this.streamed));
    const text = readable(value);
    if (!text || text === "{}") return;
    this.arguments ??= this.#part("Arguments", "tool-arguments");
    setText(this.arguments, text);
  }

  result({ result, error, is_error: isError }) {
    const bad = Boolean(error || isError);
    setText(this.mark, bad ? "failed" : "done");
    setTone(this.mark, bad ? "bad" : "good");
    const text = readable(error || result);
    if (text) setText(this.#part(bad ? "Error" : "Result", "tool-result"), text);
    if (!this.peek.textContent) setText(this.peek, inline(error || result));
    if (bad) this.root.open = true;
  }

  /** The run is over and the call has no answer. */
  abandon() {
    setText(this.mark, "no result");
    setTone(this.mark, null);
  }
}

/** Folds native events into elements. Text is gathered here and committed once per frame. */
class Transcript {
  #root;
  #open = null; // the block that text goes on in: { kind, prose, ... }
  #tools = new Map();
  #dirty = new Set();

  constructor(root) {
    this.#root = root;
    root.replaceChildren();
  }

  /** True if the event was shown; what is not goes to the log. */
  take(event) {
    const data = event.data ?? {};
    if (FINAL[event.type]) {
      if (data.delegate_layer === "acp") this.#nested(FINAL[event.type]);
      else this.#finished(FINAL[event.type], data, event);
      return true;
    }
    const tell = Transcript.#TELL[event.type];
    tell?.call(this, data, event);
    return Boolean(tell);
  }

  commit() {
    for (const block of this.#dirty) block.commit();
    this.#dirty.clear();
  }

  reset({ from_seq: from, to_seq: to, reason }) {
    this.#alert("bad", "Missing here", `Events ${from} to ${to} can no longer be had (${reason}).`, "reset");
  }

  close() {
    this.commit();
    if (!this.#open) return;
    this.#open.prose.end();
    this.#open.root.classList.remove("live");
    if (this.#open.finish) this.#open.finish();
    this.#open = null;
  }

  #add(node) {
    this.close();
    this.#root.append(node);
  }

  #mark(text, tone, testid = "mark") {
    this.#add(el("div", { className: "mark", tone, testid }, el("span", {}, text)));
  }

  #alert(tone, title, text, testid) {
    this.#add(el("div", { className: "alert", tone, testid }, el("b", {}, title), text));
  }

  #said(data) {
    const thinking = data.channel === "thinking";
    const kind = `${thinking} ${data.role ?? "assistant"} ${data.message_id ?? ""}`;
    if (this.#open?.kind !== kind) this.#begin(kind, thinking, data.role ?? "assistant");
    const block = this.#open;
    block.prose.add(typeof data.content === "string" ? data.content : "");
    this.#dirty.add(block);
  }

  #begin(kind, thinking, role) {
    const body = el("div", { className: "prose", testid: "text" });
    const prose = new Prose(body);
    let root;
    let block;
    if (thinking) {
      const what = el("span", { className: "what" }, "Thinking");
      const peek = el("span", { className: "peek" });
      root = el("details", { className: "fold thinking live", testid: "thinking" }, el("summary", {}, what, peek), body);
      block = {
        commit: () => {
          prose.commit();
          setText(peek, prose.last.trim());
        },
        finish: () => {
          setText(what, "Thought");
          setText(peek, `${number(prose.length)} characters`);
        },
      };
    } else {
      root = el("article", { className: "message live", testid: "message" });
      if (role !== "assistant") root.append(el("div", { className: "role" }, role));
      root.append(body);
      block = { commit: () => prose.commit() };
    }
    this.#add(root);
    this.#open = Object.assign(block, { kind, prose, root });
  }

  #toolKey(data) {
    return String(data.tool_call_id ?? data.id ?? `#${data.tool_call_index ?? 0}`);
  }

  #card(data) {
    const id = this.#toolKey(data);
    // Arguments may have streamed under an index before the call had an id.
    const known = this.#tools.get(id) ?? this.#tools.get(`#${data.tool_call_index}`);
    const card = known ?? new ToolCard(this.#toolName(data));
    if (!known) this.#add(card.root);
    this.#tools.delete(`#${data.tool_call_index}`);
    this.#tools.set(id, card);
    return card;
  }

  #toolName(data) {
    return String(data.tool_name ?? data.name ?? "tool");
  }

  #finished(status, data, event) {
    if (status === "failed" || data.message) {
      const tone = status === "failed" ? "bad" : "waiting";
      this.#alert(tone, data.error_class ?? words(status), inline(data.message ?? data.error ?? "The run failed."), "failure");
    }
    for (const card of this.#tools.values()) card.abandon();
    this.#tools.clear();
    const tokens = data.usage?.total_tokens;
    const parts = [`Run ${words(status)}`, tokens && `${number(tokens)} tokens`, clock(event.created_at), event.synthesized && "noted by the relay"];
    this.#mark(parts.filter(Boolean).join(" · "), TONES[status], "final");
  }

  #nested(status) {
    this.#add(el("div", { className: "note", testid: "nested" }, `A nested agent’s run: ${words(status)}`));
  }

  static #TELL = {
    __proto__: null,
    "run.started"(data, event) {
      this.#mark(["Run started", data.model, clock(event.created_at)].filter(Boolean).join(" · "));
    },
    "message.delta"(data) {
      this.#said(data);
    },
    "tool.call.delta"(data) {
      const card = this.#card(data);
      card.stream(String(data.arguments_delta ?? ""));
      this.#dirty.add(card);
    },
    "tool.call"(data) {
      this.#card(data).call(this.#toolName(data), data.arguments);
    },
    "tool.result"(data) {
      const card = this.#card(data);
      if (!card.arguments) setText(card.what, this.#toolName(data));
      card.result(data);
      this.#tools.delete(this.#toolKey(data));
    },
    "run.waiting_for_input"(data) {
      this.#alert("waiting", "Waiting for input", question(data), "waiting");
    },
    "run.input_provided"(data) {
      this.#add(el("div", { className: "mine", testid: "input" }, String(data.content ?? "")));
    },
    "run.gap"(data) {
      this.#alert("bad", "A gap in this run", inline(data.reason ?? data), "gap");
    },
    "thread.title.updated"() {},
  };
}

const question = (data) => data.message || data.prompt || readable(data);

function clock(time) {
  const date = new Date(time ?? NaN);
  return Number.isNaN(date.valueOf()) ? "" : date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

// --- the log of what the transcript does not show ------------------------------------------------------------------

/** The last rows, kept as text and made into elements only while someone looks. */
class EventLog {
  #rows = [];
  #count = 0;
  #drawn = 0;

  constructor() {
    $("log").ontoggle = () => this.commit();
    $("log-rows").replaceChildren();
  }

  add(seq, type, text) {
    this.#rows.push([seq, type, text.slice(0, 2000)]);
    if (this.#rows.length > LOG_ROWS) this.#rows.shift();
    this.#count += 1;
  }

  commit() {
    setText($("log-count"), number(this.#count));
    const list = $("log-rows");
    if (!$("log").open || this.#drawn === this.#count) return;
    const fresh = this.#rows.slice(-Math.min(this.#count - this.#drawn, LOG_ROWS));
    this.#drawn = this.#count;
    list.append(...fresh.map(([seq, type, text]) => el("li", { title: text }, el("span", {}, String(seq)), el("span", {}, type), el("span", {}, text))));
    while (list.childElementCount > LOG_ROWS) list.firstElementChild.remove();
    list.scrollTop = list.scrollHeight;
  }
}

// --- the run on screen --------------------------------------------------------------------------------------------

/** One selected run: takes what its Stream brings, spends it on the page once per frame. */
class RunView {
  #queue = [];
  #next = 0;
  #scheduled = false;
  #stick = true;
  #resized = new ResizeObserver(() => this.#schedule()); // stay at the end when the foot grows

  constructor(runId) {
    this.runId = runId;
    Object.assign(state, { runId, status: null, connection: "idle", ended: false, lastSeq: 0, events: 0, reconnects: 0, repeats: 0, gaps: 0, seqs: [] });
    this.transcript = new Transcript($("transcript"));
    this.log = new EventLog();
    this.stream = new Stream(runId, this);
    $("title").textContent = `Run ${runId.slice(0, 8)}`;
    $("run-id").textContent = runId;
    $("model").textContent = "";
    $("composer").hidden = true;
    $("answer").value = "";
    this.notice("");
    this.#status(null);
    this.#draw();
    $("scroll").onscroll = () => this.#scrolled();
    $("jump").onclick = () => this.#toEnd();
    this.#resized.observe($("scroll"));
    $("cancel").onclick = () => this.#cancel();
    $("composer").onsubmit = (event) => {
      event.preventDefault();
      this.#answer();
    };
    this.stream.start();
    this.#describe();
  }

  close() {
    this.stream.stop();
    this.#resized.disconnect();
    this.runId = null;
  }

  // what the stream says
  connection(connection) {
    state.connection = connection;
    this.#schedule();
  }

  event(event, text) {
    this.#queue.push(() => {
      try {
        this.#fold(event, text);
      } catch {
        this.log.add(event.seq, String(event.type), text); // data of a shape nobody thought of: told as it came
      }
    });
    this.#schedule();
  }

  counted() {
    this.#schedule();
  }

  reset(frame) {
    this.#queue.push(() => this.transcript.reset(frame));
    this.#schedule();
  }

  end({ status }) {
    this.#queue.push(() => {
      this.transcript.close();
      if (status) this.#status(status);
      state.connection = "ended";
      state.ended = true;
    });
    this.#schedule();
  }

  notice(sentence) {
    $("notice").hidden = !sentence;
    setText($("notice"), sentence);
  }

  // one frame
  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    const turn = () => this.#frame();
    // A hidden page gets no animation frames; its queue must not grow without bound.
    if (document.hidden) setTimeout(turn, 200);
    else requestAnimationFrame(turn);
  }

  #frame() {
    this.#scheduled = false;
    if (this.runId === null) return;
    const until = performance.now() + FRAME_BUDGET_MS;
    while (this.#next < this.#queue.length && performance.now() < until) this.#queue[this.#next++]();
    const more = this.#next < this.#queue.length;
    if (!more) {
      this.#queue = [];
      this.#next = 0;
    }
    this.transcript.commit();
    this.log.commit();
    this.#draw();
    if (this.#stick) $("scroll").scrollTop = $("scroll").scrollHeight;
    if (more) this.#schedule();
  }

  #draw() {
    const link = $("connection");
    setText(link, state.connection);
    link.className = "link dot";
    setTone(link, { live: "good", connecting: "moving", reconnecting: "waiting", closed: "bad" }[state.connection]);
    setText($("last-seq"), number(state.lastSeq));
    setText($("events"), number(state.events));
    setText($("reconnects"), number(state.reconnects));
    const order = $("order");
    setText(order, state.gaps ? `${number(state.gaps)} ${state.gaps === 1 ? "gap" : "gaps"}` : "no gaps");
    setTone(order, state.gaps ? "waiting" : null);
    $("repeat").hidden = !state.repeats;
  }

  #fold(event, text) {
    const data = event.data ?? {};
    const nested = data.delegate_layer === "acp";
    const status = nested ? undefined : (FINAL[event.type] ?? MOVING[event.type]);
    if (status) this.#status(status);
    if (event.type === "run.started" && data.model) setText($("model"), data.model);
    if (event.type === "thread.title.updated" && data.title) this.#title(data.title);
    this.#waiting(event.type, status, data);
    if (!this.transcript.take(event)) this.log.add(event.seq, String(event.type), text);
  }

  #title(title) {
    setText($("title"), String(title));
    document.title = `${title} · relay`;
  }

  #status(status) {
    state.status = status;
    const pill = $("status");
    setText(pill, words(status));
    pill.hidden = !status;
    setTone(pill, TONES[status]);
    $("cancel").hidden = !status || Object.values(FINAL).includes(status);
    $("cancel").disabled = status === "cancelling";
    setText($("cancel"), status === "cancelling" ? "Cancelling…" : "Cancel run");
    list.status(this.runId, status);
  }

  /** The answer box is there exactly while the run waits. Whatever shows that it goes on takes it away. */
  #waiting(type, status, data) {
    if (type === "run.waiting_for_input") {
      $("composer").hidden = false;
      return;
    }
    if (status || type === "message.delta" || type === "tool.result") {
      if (!status && state.status === "waiting_for_input") this.#status("running");
      $("composer").hidden = true;
    }
  }

  // where the reader is
  #scrolled() {
    const box = $("scroll");
    this.#stick = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    $("jump").hidden = this.#stick;
  }

  #toEnd() {
    this.#stick = true;
    $("scroll").scrollTop = $("scroll").scrollHeight;
    $("scroll").focus();
  }

  // what the reader does
  async #describe() {
    const run = await api("GET", runPath(this.runId)).catch(() => null); // the stream tells what is wrong
    if (!run || this.runId !== state.runId) return;
    if (!state.status && run.status) this.#status(run.status);
    if (!$("model").textContent && run.model) setText($("model"), run.model);
  }

  async #cancel() {
    $("cancel").disabled = true;
    await this.#act(() => api("POST", runPath(this.runId, ":cancel"), {}), () => {
      if (!Object.values(FINAL).includes(state.status)) this.#status("cancelling");
    });
    $("cancel").disabled = state.status === "cancelling";
  }

  async #answer() {
    const content = $("answer").value;
    if (!content.trim()) return;
    if (new TextEncoder().encode(content).length > INPUT_BYTES) {
      this.notice(`An answer may have ${number(INPUT_BYTES)} bytes at most.`);
      return;
    }
    const controls = $("composer").querySelectorAll("button, textarea");
    for (const control of controls) control.disabled = true;
    await this.#act(() => api("POST", runPath(this.runId, "/input"), { content }), () => {
      $("composer").hidden = true;
      $("answer").value = "";
    });
    for (const control of controls) control.disabled = false;
  }

  async #act(call, then) {
    const { runId } = this;
    try {
      await call();
      if (runId !== state.runId) return;
      this.notice("");
      then();
    } catch (error) {
      if (runId === state.runId) this.notice(error.message);
    }
  }
}

// --- the list -----------------------------------------------------------------------------------------------------

class RunList {
  #rows = new Map(); // run_id -> { root, id, time, what, run }; the order is that of the page
  #timer = null;
  #several = false;

  constructor() {
    $("more").onclick = () => this.#more();
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
  }

  async refresh() {
    clearTimeout(this.#timer);
    try {
      const page = await api("GET", `/native/v1/runs?limit=${PAGE}`);
      const first = this.#rows.size === 0;
      this.#merge(page, true);
      if (first) $("more").hidden = page.length < PAGE;
      this.#count();
      this.#note(this.#rows.size ? "" : "No runs yet.");
    } catch (error) {
      this.#note(error.status ? error.message : "Cannot reach the relay; trying again.");
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => document.hidden || this.refresh(), LIST_EVERY_MS);
  }

  async #more() {
    const last = $("runs").lastElementChild?.dataset.run;
    $("more").disabled = true;
    try {
      const page = await api("GET", `/native/v1/runs?limit=${PAGE}&before=${encodeURIComponent(last)}`);
      this.#merge(page, false);
      $("more").hidden = page.length < PAGE;
      this.#count();
    } catch (error) {
      this.#note(error.message);
    }
    $("more").disabled = false;
  }

  #count() {
    const size = this.#rows.size;
    setText($("runs-count"), `${number(size)}${$("more").hidden ? "" : "+"} ${size === 1 ? "run" : "runs"}`);
  }

  #note(sentence) {
    setText($("runs-note"), sentence);
    $("runs-note").hidden = !sentence;
  }

  /** A page laid over what is there: rows are updated in place, new ones enter, nothing flickers, focus stays. */
  #merge(page, atTop) {
    const container = $("runs");
    this.#several ||= new Set([...page.map((run) => run.upstream), ...upstreamOf.values()].filter(Boolean)).size > 1;
    let place = atTop ? container.firstElementChild : null;
    for (const run of page) {
      if (run.upstream) upstreamOf.set(run.run_id, run.upstream);
      const row = this.#row(run.run_id);
      if (row.item === place) place = place.nextElementSibling;
      else if (atTop || !row.item.isConnected) container.insertBefore(row.item, place);
      row.run = run;
      this.#paint(row);
    }
  }

  #row(runId) {
    let row = this.#rows.get(runId);
    if (row) return row;
    const id = el("span", { className: "row-id" }, runId);
    const time = el("time", { className: "row-time" });
    const what = el("span", { className: "row-what dot", testid: "row-status" });
    const link = el("a", { className: "row", testid: "run-row" }, id, time, what);
    row = { link, time, what, item: el("li", {}, link) };
    row.item.dataset.run = runId;
    this.#rows.set(runId, row);
    return row;
  }

  #paint({ run, link, time, what }) {
    const named = this.#several && run.upstream ? `&upstream=${encodeURIComponent(run.upstream)}` : "";
    const href = `#run=${encodeURIComponent(run.run_id)}${named}`;
    if (link.getAttribute("href") !== href) link.href = href;
    const chosen = run.run_id === state.runId;
    link.setAttribute("aria-current", String(chosen));
    // The stream knows the status of the run on screen sooner than the list does.
    const status = (chosen && state.status) || run.status;
    setText(what, [words(status), run.model, this.#several && run.upstream].filter(Boolean).join(" · "));
    setTone(what, TONES[status]);
    setText(time, ago(run.created_at));
    time.title = run.created_at ?? "";
  }

  status(runId, status) {
    const row = this.#rows.get(runId);
    if (!row || !status) return;
    row.run.status = status;
    this.#paint(row);
  }

  select() {
    for (const row of this.#rows.values()) this.#paint(row);
  }
}

function ago(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  if (Number.isNaN(seconds)) return "";
  if (seconds < 60) return "now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return new Date(time).toLocaleDateString([], { month: "short", day: "numeric" });
}

// --- the page ------------------------------------------------------------------------------------------------------

const list = new RunList();
let view = null;

/** `#run=<id>` is the whole address of a run; `&upstream=` is there where ids of several upstreams may meet. */
function route() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const runId = wanted.get("run");
  const valid = runId !== null && RUN_ID.test(runId);
  if (valid && runId === state.runId) return;
  if (valid && wanted.get("upstream")) upstreamOf.set(runId, wanted.get("upstream"));
  view?.close();
  view = null;
  state.runId = null;
  state.connection = "idle";
  document.title = "relay";
  document.body.dataset.view = valid ? "run" : "list";
  $("run").hidden = !valid;
  $("blank").hidden = valid;
  if (valid) view = new RunView(runId);
  list.select();
}

addEventListener("hashchange", route);
await list.refresh(); // asks for a key if one is needed, before any stream is opened
route();
