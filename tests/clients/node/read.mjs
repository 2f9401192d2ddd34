// node read.mjs CLIENT URL: prints each event's JSON as a line, in the order the client gave them; then how it ended.
import { createRequire } from "node:module";

const [client, url, modules] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const event = (message) => console.log(message.data);
const over = (how) => {
  console.log(JSON.stringify({ over: how }));
  process.exit(0);
};

if (client === "eventsource") {
  // Left to itself: it must come back by itself, and stop by itself.
  const { EventSource } = require("eventsource");
  const source = new EventSource(url);
  source.onmessage = event;
  source.onerror = (error) => source.readyState === EventSource.CLOSED && over(`closed ${error.code ?? ""}`);
} else if (client === "reconnecting-eventsource") {
  // Comes back for ever: who uses it closes it when the end is told.
  const { EventSource } = require("eventsource");
  globalThis.MessageEvent ??= class {};
  const { default: Reconnecting } = require("reconnecting-eventsource");
  const source = new Reconnecting(url, { eventSourceClass: EventSource, max_retry_time: 50 });
  source.addEventListener("message", event);
  source.addEventListener("relay.end", () => over("told"));
} else if (client === "fetch-event-source") {
  globalThis.window = globalThis;
  globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
  const { fetchEventSource } = require("@microsoft/fetch-event-source");
  const onmessage = (message) => message.event === "" && message.data && event(message);
  await fetchEventSource(url, { onmessage, onerror: () => 20, openWhenHidden: true });
  over("resolved");
} else if (client === "eventsource-client") {
  const { createEventSource } = require("eventsource-client");
  const source = createEventSource({
    url,
    onMessage: (message) => {
      if (message.event === undefined) event(message);
      if (message.event === "relay.end") over("told");
    },
  });
  void source;
}
