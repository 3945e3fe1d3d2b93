"""The names of attributes: OpenTelemetry's, copied as texts, and the runtime's own under `job.`.

Semantic conventions 1.44 (messaging: status Development). The installed package keeps its constants in a module that moves, so
they are texts here, and a test compares them.
"""

from __future__ import annotations

from typing import Final

SYSTEM: Final = "messaging.system"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
CONSUMER_GROUP: Final = "messaging.consumer.group.name"
CLIENT_ID: Final = "messaging.client.id"
MESSAGE_ID: Final = "messaging.message.id"
MESSAGE_COUNT: Final = "messaging.batch.message_count"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACK: Final = "exception.stacktrace"
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE: Final = "service.instance.id"
HOST_NAME: Final = "host.name"
PROCESS_ID: Final = "process.pid"
SDK_NAME: Final = "telemetry.sdk.name"
SDK_LANGUAGE: Final = "telemetry.sdk.language"
SDK_VERSION: Final = "telemetry.sdk.version"

REDIS: Final = "redis"  # a custom value: the conventions list none for it

TYPE: Final = "job.type"
PRIORITY: Final = "job.priority"
ATTEMPT: Final = "job.attempt"
DELIVERIES: Final = "job.deliveries"
WAIT_S: Final = "job.wait_s"
OUTCOME: Final = "job.outcome"
DEAD_CODE: Final = "job.dead_code"
ORIGIN: Final = "job.origin"
SCHEDULE: Final = "job.schedule"
BLOCKED_MS: Final = "job.blocked_ms"
FORCED: Final = "job.forced"
LINK: Final = "job.link"
DELAY_S: Final = "job.delay_s"
