// The reference server of Durable Streams: `node durable-streams.mjs PORT [DIRECTORY]`.
// In memory without a directory; in files, fsynced as it chooses to, with one.
import { DurableStreamTestServer } from "@durable-streams/server";

const [port, dataDir] = process.argv.slice(2);
await new DurableStreamTestServer({
  port: Number(port),
  host: "127.0.0.1",
  compression: false,
  ...(dataDir ? { dataDir } : {}),
}).start();
