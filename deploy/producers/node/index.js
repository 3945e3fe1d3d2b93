// Sends jobs from Node by plain XADD. Each message carries the context of its `publish` span, so the job's span becomes that one's child.
//
//   REDIS_URL=redis://127.0.0.1:6379 OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 node index.js [ORDERS]
//
// sends an order every five seconds until it is stopped, or so many orders at once.

import { setTimeout as sleep } from 'node:timers/promises'

import { context, propagation, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api'
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto'
import { defaultResource, detectResources, envDetector, hostDetector } from '@opentelemetry/resources'
import { BatchSpanProcessor, NodeTracerProvider } from '@opentelemetry/sdk-trace-node'
import { Redis } from 'ioredis'

const QUEUE = process.env.RUNTIME_QUEUE || 'jobs'
const PAUSE_MS = 5_000 // a guess: a person can follow it
const SPANS_MS = 2_000 // as long as a worker waits at its end
const PATIENCE_MS = 5_000 // what our own producer waits for an answer

const provider = new NodeTracerProvider({
  // host.name keeps Jaeger from taking each span for another machine's, whose clock may be wrong.
  resource: defaultResource().merge(detectResources({ detectors: [envDetector, hostDetector] })),
  spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
})
provider.register()
const tracer = trace.getTracer('orders')
const redis = new Redis(process.env.REDIS_URL || 'redis://127.0.0.1:6379', { commandTimeout: PATIENCE_MS })
redis.on('error', (error) => console.error(`Redis: ${error.message}`))

/** Store a job of this type, with a payload that becomes JSON, and return its id. */
async function send(type, payload, priority = 'high') {
  const attributes = {
    'messaging.system': 'redis',
    'messaging.operation.name': 'publish',
    'messaging.operation.type': 'send',
    'messaging.destination.name': QUEUE,
    'job.type': type,
    'job.priority': priority,
  }
  return tracer.startActiveSpan(`publish ${QUEUE}`, { kind: SpanKind.PRODUCER, attributes }, async (span) => {
    const carried = {}
    propagation.inject(context.active(), carried)
    const fields = { type, data: JSON.stringify(payload), src: 'node', traceparent: carried.traceparent, tracestate: carried.tracestate }
    const given = Object.entries(fields).filter(([, value]) => value)
    try {
      const id = `${priority}-${await redis.xadd(`{${QUEUE}}:${priority}`, '*', ...given.flat())}`
      span.setAttribute('messaging.message.id', id)
      return id
    } catch (error) {
      span.setStatus({ code: SpanStatusCode.ERROR, message: error.message })
      span.setAttribute('error.type', error.name)
      throw error
    } finally {
      span.end()
    }
  })
}

const stop = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => stop.abort())

const most = Number(process.argv[2] || Infinity)
for (let number = 1; number <= most && !stop.signal.aborted; number += 1) {
  try {
    console.log(await send('confirm-order', { order: number, to: 'ada@example.com', failures: number % 3 }))
  } catch (error) {
    console.error(`order ${number} was not sent: ${error.message}`)
    process.exitCode = 1
  }
  if (most === Infinity) await sleep(PAUSE_MS, undefined, { signal: stop.signal }).catch(() => {})
}
redis.disconnect()
// A collector that is away is waited for no longer than that, and the orders were sent all the same.
const spans = provider.shutdown().catch((error) => console.error(`spans were not sent: ${error.message}`))
await Promise.race([spans, sleep(SPANS_MS)])
process.exit()
