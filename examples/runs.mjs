// Read many runs of a relay on one connection, over everything that may happen to it. For browsers and Node (18 and
// later), without dependencies: fetch, because an EventSource can send no Authorization and gives up for good at a 503.
//
//   import { readRuns } from "./runs.mjs";
//   const reading = readRuns("https://relay.example.com", { runs: ["r1", "r2"] }, {
//     event: (event) => show(event.run_id, event),              // each once, in the order of its run
//     end: ({ run_id, status }) => done(run_id, status),        // no more of this run, ever
//     snapshot: (fold) => start(fold.run_id, fold),             // with { snapshot: 1 }: instead of what lies before it
//     reset: ({ run_id, from_seq, to_seq, reason }) => …,       // "rewritten": forget the run, it follows again
//     error: ({ run_id, code, message, retrying }) => …,        // about one run; the others go on
//   }, { headers: { Authorization: `Bearer ${key}` } });
//   reading.stop();                                             // `await reading.done` ends when all runs have
//
// In place of `runs` there may be `{ thread: "t" }`: what is active in it, and whatever starts later.

const SILENCE_MS = 40_000; // the relay says something every 15 s: a longer silence is a dead connection

export function readRuns(base, what, on, { headers = {}, cursor = "", silenceMs = SILENCE_MS } = {}) {
  const controller = new AbortController();
  const reader = { cursor, seen: new Map(), ended: new Set(), waitMs: 0, failures: 0, over: false };
  const query = new URLSearchParams(what.thread ? { thread: what.thread } : { runs: what.runs.join(",") });
  for (const name of ["types", "snapshot", "children", "upstream"]) if (what[name]) query.set(name, what[name]);
  const url = `${base.replace(/\/$/, "")}/v1/events?${query}`;
  const done = (async () => {
    while (!reader.over && !controller.signal.aborted) {
      try {
        await once(url, reader, on, headers, controller.signal, silenceMs);
      } catch (error) {
        if (error.fatal) throw error;
        reader.failures += 1; // a connection that could not be made, or was cut: come back with the cursor
      }
      if (!reader.over) await pause(reader, controller.signal);
    }
  })();
  return { done, stop: () => controller.abort(), get cursor() { return reader.cursor; } };
}

async function once(url, reader, on, headers, signal, silenceMs) {
  const connection = new AbortController();
  const stop = () => connection.abort();
  signal.addEventListener("abort", stop);
  let alarm = setTimeout(stop, silenceMs);
  try {
    const position = reader.cursor ? { "Last-Event-ID": reader.cursor } : {};
    const response = await fetch(url, {
      headers: { Accept: "text/event-stream", ...headers, ...position }, signal: connection.signal, cache: "no-store",
    });
    if (response.status === 204) return void (reader.over = true); // nothing of any run is left
    if (response.status === 429 || response.status >= 500) {
      reader.waitMs = 1000 * (Number(response.headers.get("Retry-After")) || 1);
      throw new Error(`${response.status}`);
    }
    if (!response.ok) throw Object.assign(new Error(`${response.status} ${await response.text()}`), { fatal: true });
    const bytes = response.body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { value, done } = await bytes.read();
      if (done) break;
      clearTimeout(alarm);
      alarm = setTimeout(stop, silenceMs);
      const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) take(block, reader, on);
    }
    reader.over = true; // mid-run a response is only ever cut: a proper end means that all runs have ended
  } finally {
    clearTimeout(alarm);
    signal.removeEventListener("abort", stop);
  }
}

function take(block, reader, on) {
  const frame = {};
  for (const line of block.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) frame[line.slice(0, colon)] = line.slice(colon + 2);
  }
  if (frame.retry) reader.waitMs = Number(frame.retry);
  const data = JSON.parse(frame.data);
  const kind = (frame.event ?? "relay.event").slice("relay.".length);
  if (kind === "event") {
    // A write that was cut half-way comes again: drop what we have.
    if (data.seq > (reader.seen.get(data.run_id) ?? 0)) {
      reader.seen.set(data.run_id, data.seq);
      on.event?.(data);
    }
  } else if (kind !== "end" || !reader.ended.has(data.run_id)) {
    if (kind === "end") reader.ended.add(data.run_id);
    if (kind === "snapshot") reader.seen.set(data.run_id, data.as_of_seq); // it stands for all events up to there
    on[kind]?.(data);
  }
  if (frame.id) reader.cursor = frame.id; // after the callbacks: if one of them throws, this frame comes again
  reader.failures = 0;
}

function pause(reader, signal) {
  const backoff = Math.min(10_000, 250 * 2 ** reader.failures) * Math.random(); // so that a crowd does not march
  const ms = Math.max(reader.waitMs, 50 + backoff);
  reader.waitMs = 0;
  return new Promise((wake) => {
    const timer = setTimeout(wake, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), wake()), { once: true });
  });
}
