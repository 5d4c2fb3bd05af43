"""sse-starlette over Redis: `python starlette.py PORT DIRECTORY`.

What many applications have: a publish is kept in a Redis stream (append-only file, fsync always)
and told by pub/sub; every reader has its own subscription. It speaks the hub's paths.
"""

import os
import socket
import subprocess
import sys

# This file's folder would hide the package of its own name.
sys.path = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

import json

import redis.asyncio as redis
import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PORT, DIRECTORY = int(sys.argv[1]), sys.argv[2]
SOCKET = os.path.join(DIRECTORY, "redis.sock")
pool = redis.BlockingConnectionPool.from_url(f"unix://{SOCKET}", max_connections=64, timeout=None)
store = redis.Redis(connection_pool=pool)


async def publish(request: Request) -> Response:
    event = json.loads(await request.body())
    topic, data = event["topic"], json.dumps(event["data"], separators=(",", ":"))
    async with store.pipeline(transaction=True) as pipe:
        pipe.xadd(topic, {"data": data}, maxlen=10_000, approximate=True)
        pipe.publish(topic, data)
        await pipe.execute()
    return Response("{}", media_type="application/json")


async def follow(request: Request) -> EventSourceResponse:
    topic = request.query_params["topic"]

    async def events():
        own = redis.Redis(unix_socket_path=SOCKET, single_connection_client=True)
        subscription = own.pubsub(ignore_subscribe_messages=True)
        await subscription.subscribe(topic)
        await subscription.get_message(ignore_subscribe_messages=False, timeout=5)
        yield {"event": "tidings.caught_up", "data": "{}"}
        async for message in subscription.listen():
            yield {"data": message["data"].decode()}

    return EventSourceResponse(events(), ping=3600)


app = Starlette(
    routes=[
        Route("/v1/events", publish, methods=["POST"]),
        Route("/v1/events", follow, methods=["GET"]),
    ]
)

if __name__ == "__main__":
    subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", SOCKET, "--dir", DIRECTORY, "--save", ""]
        + ["--appendonly", "yes", "--appendfsync", "always", "--maxclients", "60000"],
        stdout=subprocess.DEVNULL,
    )
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(SOCKET)
            break
        except OSError:
            pass
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error", access_log=False, backlog=4096)
