// BullMQ, as a peer: the command line of common.py.
import { openSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const { Queue, Worker } = createRequire(join(process.env.PEERS_ENV, "x"))("bullmq");

const SENDERS = 100;
const CHUNK = 1000;
const FLUSH_MS = 10;
const jobs = Number(process.env.PEERS_JOBS);
const connection = { host: "127.0.0.1", port: Number(process.env.PEERS_PORT) };
const payload = (n) => ({ to: "a@b.c", subject: "hi", n });
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Node cannot map a file into memory: the marks are kept here, and written out as a whole when there are new ones.
function work() {
  const starts = Math.ceil(jobs / 8) * 8;
  const marks = Buffer.alloc(starts + 8 * Number(process.env.PEERS_PACED));
  const file = openSync(process.env.PEERS_MARKS, "r+");
  let isNew = false;
  const run = async (job) => {
    const n = job.data.n;
    if (n < jobs) marks[n] += 1;
    else marks.writeBigInt64LE(process.hrtime.bigint(), starts + 8 * (n - jobs));
    isNew = true;
  };
  setInterval(() => {
    if (isNew) writeSync(file, marks, 0, marks.length, 0);
    isNew = false;
  }, FLUSH_MS);
  new Worker("bench", run, { connection, concurrency: Number(process.env.PEERS_CONCURRENCY) });
}

async function oneByOne(queue, next, end) {
  const sender = async () => {
    while (next < end) await queue.add("noop", payload(next++));
  };
  await Promise.all(Array.from({ length: SENDERS }, sender));
}

async function many(queue, first, end) {
  for (let n = first; n < end; n += CHUNK) {
    const size = Math.min(CHUNK, end - n);
    await queue.addBulk(Array.from({ length: size }, (_, i) => ({ name: "noop", data: payload(n + i) })));
  }
}

async function paced(queue, first, end, perS) {
  const began = performance.now();
  const sentNs = [];
  for (let n = first; n < end; n++) {
    await sleep(Math.max(0, began + ((n - first) * 1000) / perS - performance.now()));
    sentNs.push(Number(process.hrtime.bigint()));
    await queue.add("noop", payload(n));
  }
  return sentNs;
}

async function produce(role, first, end, perS) {
  const queue = new Queue("bench", { connection, defaultJobOptions: { removeOnComplete: true, removeOnFail: true } });
  await queue.waitUntilReady();
  let answer;
  if (role === "latency") {
    answer = await paced(queue, first, end, perS);
  } else {
    const began = performance.now();
    await (role === "one" ? oneByOne : many)(queue, first, end);
    answer = (performance.now() - began) / 1000;
  }
  console.log(JSON.stringify(answer));
  await queue.close();
}

const [role, ...numbers] = process.argv.slice(2);
if (role === "work") work();
else await produce(role, ...numbers.map(Number));
