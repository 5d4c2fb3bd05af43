// better-sse with a channel for each topic, as its guide does it: `node better-sse.mjs PORT`.
// It speaks the hub's paths. Nothing is kept: an event is answered once it was broadcast.
import { createServer } from "node:http";
import { createChannel, createSession } from "better-sse";

const channels = new Map();
const channel = (topic) => {
  if (!channels.has(topic)) channels.set(topic, createChannel());
  return channels.get(topic);
};

createServer(async (request, response) => {
  if (request.method === "GET") {
    const topic = new URL(request.url, "http://bench").searchParams.get("topic");
    const session = await createSession(request, response, { keepAlive: null });
    channel(topic).register(session);
    session.push({}, "tidings.caught_up");
    return;
  }
  let body = "";
  for await (const chunk of request) body += chunk;
  const { topic, data } = JSON.parse(body);
  channel(topic).broadcast(data, "message");
  response.writeHead(200, { "content-type": "application/json", "content-length": 2 }).end("{}");
}).listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
