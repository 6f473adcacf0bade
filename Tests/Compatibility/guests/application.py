"""One application as WSGI (`wsgi`) and as ASGI (`asgi`): GET /N answers N bytes, POST the body's SHA-256."""
import hashlib

BLOCK = bytes((number * 2654435761 >> 11) & 0xFF for number in range(1 << 16))


def blocks(count):
    while count:
        piece = BLOCK[:min(count, len(BLOCK))]
        count -= len(piece)
        yield piece


def wsgi(environment, start_response):
    if environment["REQUEST_METHOD"] == "POST":
        digest = hashlib.sha256()
        left = int(environment["CONTENT_LENGTH"])
        while left and (piece := environment["wsgi.input"].read(min(left, 1 << 16))):
            digest.update(piece)
            left -= len(piece)
        body = digest.hexdigest().encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    count = int(environment["PATH_INFO"].strip("/"))
    start_response("200 OK", [("Content-Length", str(count))])
    return blocks(count)


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["method"] == "POST":
        digest = hashlib.sha256()
        while True:
            message = await receive()
            digest.update(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = digest.hexdigest().encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})
        return
    count = int(scope["path"].strip("/"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(count).encode())]})
    for piece in blocks(count):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
